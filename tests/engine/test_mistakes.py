"""What a model got wrong, gathered during an evaluation."""

import numpy as np
import torch
import torch.nn.functional as F

from conftest import run_processes
from data.batches import Finish, collate_items
from engine.evaluation.mistakes import Mistakes
from engine.tasks.classification import Classification
from utils.config import config_from
from utils.metrics import ClassificationMetrics
from utils.processes.launch import Launch
from utils.processes.peers import Peers

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
ALONE = Peers(Launch(), 0, None, 60.0, on_loss=print)


def images_and_logits(count: int = 40, classes: int = 4):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=generator)
    normalised = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    logits = 3 * torch.randn(count, classes, generator=generator)
    targets = torch.randint(0, classes, (count,), generator=generator)
    return pixels, normalised, logits, targets, [f"{i:03d}.png" for i in range(count)]


def collected(batch_size: int, most: int, indices=range(40)) -> Mistakes:
    _, images, logits, targets, keys = images_and_logits()
    mistakes = Mistakes(torch.device("cpu"), MEAN, STD, most)
    for part in torch.tensor(list(indices)).split(batch_size):
        mistakes.update(logits[part], targets[part], [keys[i] for i in part], images[part])
    return mistakes


def test_the_worst_are_those_of_a_sort_over_all_images():
    pixels, _, logits, targets, keys = images_and_logits()
    losses = F.cross_entropy(logits, targets, reduction="none")
    wrong = [i for i in range(40) if int(logits[i].argmax()) != int(targets[i])]
    expected = sorted(wrong, key=lambda i: -losses[i])[:5]
    for batch_size in (1, 7, 40):
        found = collected(batch_size, most=5)
        errors = found.gather(ALONE)
        assert [m.key for m in errors.worst] == [keys[i] for i in expected]
        for mistake, i in zip(errors.worst, expected):
            assert (mistake.target, mistake.predicted) == (int(targets[i]), int(logits[i].argmax()))
            assert (
                abs(mistake.loss - float(losses[i])) < 1e-6
                and abs(mistake.probability - float(logits[i].softmax(0).max())) < 1e-6
            )
            assert np.array_equal(mistake.pixels, pixels[i].permute(1, 2, 0).numpy())
        plain = ClassificationMetrics(torch.device("cpu"))
        plain.update(logits, targets)
        assert found.compute() == plain.compute()
        matrix = errors.confusion(4)
        assert matrix.sum() == 40 and matrix.trace() == 40 - len(wrong)
        assert matrix[1, 2] == sum(int(targets[i]) == 1 and int(logits[i].argmax()) == 2 for i in range(40)) > 0


def test_of_equal_logits_the_class_that_the_accuracy_counts():
    """Of hundreds of classes, whose 16-bit logits are often equal, which comes first is up to how many are sorted."""
    logits = torch.randn(2000, 300, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    equal = (logits == logits.amax(dim=1, keepdim=True)).sum(dim=1) > 1
    assert equal.sum() > 20
    targets = torch.where(equal, logits.topk(5, dim=1).indices[:, 0], 0)
    mistakes = Mistakes(torch.device("cpu"), MEAN, STD)
    mistakes.update(logits, targets, [str(i) for i in range(2000)], torch.zeros(2000, 3, 1, 1))
    matrix = mistakes.gather(ALONE).confusion(300)
    assert matrix.trace() == mistakes.sums[0] and 100 * matrix.trace() / matrix.sum() == mistakes.compute()["acc1"]


def test_of_equal_losses_the_first_name_counts():
    mistakes = Mistakes(torch.device("cpu"), MEAN, STD, most=2)
    for keys in (["c", "d"], ["b"], ["a"]):
        mistakes.update(
            torch.tensor([[2.0, 1.0]] * len(keys)),
            torch.ones(len(keys), dtype=torch.long),
            keys,
            torch.zeros(len(keys), 3, 2, 2),
        )
    assert [mistake.key for mistake in mistakes.gather(ALONE).worst] == ["a", "b"]


def _in_two_processes(folder):
    import os

    from utils.processes.group import process_group
    from utils.processes.launch import read_launch

    launch = read_launch(os.environ, None)
    with process_group(launch, torch.device("cpu"), os.getppid()) as store:
        peers = Peers(launch, os.getppid(), store, 60.0, on_loss=print)
        errors = collected(3, 5, range(launch.rank, 40, 2)).gather(peers)
        torch.save(([m.key for m in errors.worst], torch.from_numpy(errors.confusion(4))), folder / str(launch.rank))
        peers.meet()
        peers.close(True)


def test_any_number_of_processes_finds_the_same(tmp_path):
    run_processes(2, _in_two_processes, tmp_path)
    errors = collected(40, 5).gather(ALONE)
    for rank in "01":
        keys, matrix = torch.load(tmp_path / rank, weights_only=True)
        assert keys == [mistake.key for mistake in errors.worst] and np.array_equal(matrix.numpy(), errors.confusion(4))


def test_of_five_crops_the_centre_is_shown(digits):
    """As engine.inference.predictor does; the first one is a corner."""
    cfg = config_from(
        {
            "MODEL": {"NAME": "fat_tiny"},
            "DATA": {"DATASET": "folder", "DATA_PATH": str(digits), "IMG_SIZE": 32},
            "TEST": {"CROPS": 5, "CROP_PCT": 0.5},
        },
        "test",
    )
    task = Classification(cfg)
    dataset = task.val_dataset(["0", "1", "2"])
    batch, _ = collate_items([dataset[0], dataset[1]])
    evaluator = task.evaluator("closing", torch.device("cpu"))
    wrong = (batch.targets + 1) % 3
    evaluator.step(
        lambda images: F.one_hot(wrong, 3).float(),
        Finish(cfg.DATA.MEAN, cfg.DATA.STD, torch.device("cpu"))(batch),
    )
    shown = {mistake.key: mistake.pixels for mistake in evaluator.metrics.gather(ALONE).worst}
    for i, key in enumerate(batch.keys):
        centre, corner = (batch.images[view * 2 + i].permute(1, 2, 0).numpy() for view in (4, 0))
        assert np.array_equal(shown[key], centre) and not np.array_equal(centre, corner)
