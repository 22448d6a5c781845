"""Views, repeats, mixing and the losses that belong to them."""

import json
import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import AugMixDataset, create_transform
from timm.data.random_erasing import RandomErasing
from timm.models import is_model

from conftest import ROOT, Stop, assert_same_run, error_of, load, rest, run, stop_at_update
from data.batches import Examples, collate_items
from data.dataset import ImageDataset, SeededIndex
from data.loader import TrainLoader
from data.schedule import Schedule
from data.sources import open_source
from engine.tasks import create_task
from engine.tasks.criterion import create_criterion
from loading import LOADING, augmentation
from utils.config import load_config
from utils.rng import seed_all

PLAIN = {"MIXUP": 0.0, "CUTMIX": 0.0}


def views_of(digits, **changes) -> ImageDataset:
    return ImageDataset(open_source("folder", "train", str(digits)), augmentation(**{"splits": 3, **changes}))


def records(tmp_path, kind="train", tag="default"):
    lines = (tmp_path / f"output/fat_tiny/{tag}/metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


# Views


def test_views_are_timm_s(digits):
    """The pixels of timm's AugMixDataset after the same seed: crop and flip shared, the first view not augmented."""
    ours = views_of(digits, auto_augment="augmix-m5-w2", reprob=0.0)
    parts = create_transform(
        32, is_training=True, scale=(0.08, 1.0), ratio=(0.75, 1.33), hflip=0.5, auto_augment="augmix-m5-w2",
        interpolation="bicubic", mean=(0.5,) * 3, separate=True,
    )  # fmt: skip

    class Plain:
        transform = (parts[0], parts[1], np.array)

        def __getitem__(self, index):
            image, label = ours.source.load(index)
            return self.transform(image), label

    timm_s = AugMixDataset(Plain(), 3)
    for index in range(12):
        pictures, label, _ = ours[SeededIndex(index, index + 50)].sample
        seed_all(index + 50)
        theirs, their_label = timm_s[index]
        assert label == their_label and len(pictures) == len(theirs) == 3
        assert all(np.array_equal(mine.pixels, other) for mine, other in zip(pictures, theirs))
        assert not np.array_equal(pictures[1].pixels, pictures[2].pixels)


def test_the_first_view_is_never_erased_and_the_others_as_often_as_said(digits):
    """As timm's erasing of a batch with num_splits: the first B of V * B images stay."""
    found = views_of(digits, reprob=1.0, auto_augment="none", color_jitter=0)
    batch, _ = collate_items([found[SeededIndex(index, index)] for index in range(6)])
    assert {box[0] for box in batch.boxes} == set(range(6, 18))
    erased = torch.ones(18, 3, 32, 32)
    RandomErasing(1.0, mode="const", num_splits=3, device="cpu")(erased)
    assert [bool((image == 0).any()) for image in erased] == [False] * 6 + [True] * 12
    assert batch.images.shape == (18, 3, 32, 32) and batch.targets.shape == (6,)
    # but for the erasing they are the same
    assert all(torch.equal(batch.images[i], batch.images[i + 6]) for i in range(6))


@pytest.mark.parametrize("backend", ["pil", "cv2"])
def test_views_with_both_backends(digits, backend):
    found = views_of(digits, backend=backend)
    source = open_source("folder", "train", str(digits), found.transform.decode)
    found = ImageDataset(source, found.transform)
    first, second = (found[SeededIndex(4, 9)].sample[0] for _ in range(2))
    random.random()
    assert len(first) == 3 and all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, second))
    one = ImageDataset(source, augmentation(backend=backend, auto_augment="none", color_jitter=0))
    assert np.array_equal(one[SeededIndex(4, 9)].sample[0].pixels, first[0].pixels)


def test_the_jensen_shannon_loss_by_hand():
    torch.manual_seed(0)
    logits, targets = torch.randn(12, 5, dtype=torch.float64).float(), torch.tensor([0, 1, 2, 4])
    views = logits.double().softmax(1).view(3, 4, 5)  # view-major
    mean = views.mean(0)
    divergence = sum((view * (view / mean).log()).sum() for view in views) / 4 / 3
    clean = F.cross_entropy(logits[:4].double(), targets, label_smoothing=0.1)
    found = create_criterion("ce", 0.1, 0.0, mixed=False, splits=3)(logits, targets)
    assert found.item() == pytest.approx((clean + 12 * divergence).item(), rel=1e-5)


def test_a_run_with_views_counts_images(write_config, tmp_path):
    path = write_config(AUG={**PLAIN, "SPLITS": 3, "AUTO_AUGMENT": "augmix-m3"})
    run("--cfg", path, "--check")
    run("--cfg", path)
    folder = tmp_path / "output/fat_tiny/default"
    assert load(folder / "last.pth")["progress"]["updates"] == 14
    epochs = records(tmp_path, "epoch")
    assert epochs[-1]["raw"]["num_images"] == 29
    assert epochs[0]["train_loss"] == pytest.approx(np.mean([r["loss"] for r in records(tmp_path)[:7]]), rel=1e-6)
    assert (folder / "train_batch.png").exists()


def test_the_preview_shows_views_side_by_side(write_config):
    cfg = load_config(write_config(AUG={**PLAIN, "SPLITS": 2}))
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 96, 96) / 6
    images = (images - torch.tensor(cfg.DATA.MEAN).view(3, 1, 1)) / torch.tensor(cfg.DATA.STD).view(3, 1, 1)
    picture = create_task(cfg).preview(Examples(images, torch.tensor([0, 1, 2]), [""] * 3), ["a", "b", "c"])
    found = [int(picture[60, 50 + 100 * i, 0]) for i in range(6)]
    assert found == [int(255 * level / 6) for level in (0, 3, 1, 4, 2, 5)]


def test_benchmark_data_with_views(write_config, capsys, monkeypatch):
    monkeypatch.setattr("engine.commands.benchmark_data.ROUNDS", 1)
    run("--cfg", write_config(AUG={**PLAIN, "SPLITS": 2}), "--benchmark-data")
    assert "views" in capsys.readouterr().out


# Losses


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_binary_cross_entropy_by_hand(threshold):
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 5), torch.tensor([0, 1, 2, 4])
    soft = F.one_hot(targets, 5) * 0.9 + 0.1 / 5
    mixed = 0.7 * soft + 0.3 * soft.flip(0)
    for given, wanted in ((targets, soft), (mixed, mixed)):
        wanted = (wanted > threshold).float() if threshold else wanted
        expected = -(wanted * logits.sigmoid().log() + (1 - wanted) * (-logits).sigmoid().log()).mean()
        found = create_criterion("bce", 0.1, threshold, mixed=given is mixed, splits=0)(logits, given)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("mixed, dtype", [
    (False, "float32"), (True, "bfloat16"), rest(False, "bfloat16"), rest(True, "float32"),
])  # fmt: skip
def test_bce_trains(write_config, tmp_path, mixed, dtype):
    """From ln 2 per class at the start to better than guessing (a third), in either number format."""
    path = write_config(
        TRAIN={"LOSS": "bce", "BCE_TARGET_THRESH": 0.2, "EPOCHS": 4}, AUG={} if mixed else PLAIN, MODEL={"FAT": {}},
        AMP={"ENABLED": dtype != "float32", "DTYPE": "bfloat16"},
    )  # fmt: skip
    run("--cfg", path)
    assert records(tmp_path)[0]["loss"] == pytest.approx(0.693, abs=0.05)
    assert records(tmp_path, "epoch")[-1]["raw"]["acc1"] > 50


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_by_batch_pair_and_element(write_config, mode, kind):
    """Each image is mixed with its partner from the other end: by one share, one per pair, or one per image."""
    aug = {"MIXUP": 1.0 if kind == "mixup" else 0.0, "CUTMIX": 1.0 if kind == "cutmix" else 0.0, "MIXUP_MODE": mode}
    task = create_task(load_config(write_config(AUG=aug, MODEL={"LABEL_SMOOTHING": 0.0})))
    task.prepare_training(8)
    seen = {}

    def model(images):
        seen["images"] = images.clone()
        return torch.zeros(8, 8)

    task.criterion = lambda logits, targets: seen.update(targets=targets.clone()) or logits.sum()
    seed_all(4)
    values = torch.arange(8.0)
    task.loss(model, Examples(values.view(8, 1, 1, 1).expand(8, 3, 32, 32).clone(), torch.arange(8), [""] * 8))
    shares = seen["targets"].diagonal()
    assert torch.allclose(seen["targets"].flip(1).diagonal(), 1 - shares, atol=1e-6)
    means = seen["images"].mean((1, 2, 3))
    assert torch.allclose(means, values * shares + values.flip(0) * (1 - shares), atol=1e-4)
    within = [len(image.unique()) for image in seen["images"]]
    assert max(within) == (1 if kind == "mixup" else 2)
    distinct = len({round(share.item(), 5) for share in shares})
    assert distinct == 1 if mode == "batch" else torch.allclose(shares, shares.flip(0)) == (mode == "pair")
    assert mode == "batch" or distinct > 2


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_training_with_other_modes_of_mixing(write_config, tmp_path, mode):
    run("--cfg", write_config(AUG={"MIXUP_MODE": mode}, TRAIN={"EPOCHS": 2}))
    assert len(records(tmp_path)) == 14


@pytest.mark.parametrize("values, parts", [
    (dict(AUG={**PLAIN, "SPLITS": 1}), ["AUG.SPLITS is 1", "2 to 16"]),
    (dict(AUG={"MIXUP_MODE": "elements"}), ["AUG.MIXUP_MODE", "batch, pair, elem"]),
])  # fmt: skip
def test_refused(write_config, values, parts):
    message = str(error_of("--cfg", write_config(**values)))
    assert all(part in message for part in parts), message


# Repeats


@pytest.mark.parametrize("policy", ["augmix-m3-a0", "augmix-m3-w9999", "rand-m9-n1000000000"])
def test_policies_that_no_image_survives(write_config, policy):
    assert policy in str(error_of("--cfg", write_config(AUG={"AUTO_AUGMENT": policy}), "--check"))


def test_repeats_are_seen_as_pictures(digits):
    """What two processes get in a micro-batch: four images three times each, every time another picture of the same label."""
    found = ImageDataset(open_source("folder", "train", str(digits)), augmentation())
    batches = []
    for rank in range(2):
        loader = TrainLoader(found, Schedule(5, 6, rank=rank, world_size=2, seed=1, repeats=3), LOADING)
        batches.append(next(loader.epoch(0, 0)))
        listed = loader.images_of(0, 0, 1)
    names = [entry["image"] for entry in listed]
    assert [names.count(name) for name in dict.fromkeys(names)] == [3] * 4 and len(
        {entry["seed"] for entry in listed}
    ) == 12
    images = torch.stack([batch.images for batch in batches], 1).flatten(0, 1).unflatten(0, (4, 3))  # as dealt
    targets = torch.stack([batch.targets for batch in batches], 1).flatten().view(4, 3)
    assert (targets == targets[:, :1]).all()
    for copies in images:
        assert len({copy.numpy().tobytes() for copy in copies}) == 3


def test_a_run_with_repeats_resumes_to_the_same_bits_and_refuses_others(write_config, tmp_path, monkeypatch):
    path = write_config(AUG={"REPEATS": 3}, TRAIN={"SAVE_EVERY_STEPS": 2})
    run("--cfg", path, "--tag", "whole")
    restore = stop_at_update(monkeypatch, 11)
    with pytest.raises(Stop):
        run("--cfg", path, "--tag", "cut")
    restore()
    message = str(error_of("--cfg", path, "--tag", "cut", "--opts", "AUG.REPEATS", 1))
    assert "repeats 3; now it is 1" in message
    run("--cfg", path, "--tag", "cut")
    assert_same_run(tmp_path / "output/fat_tiny/whole", tmp_path / "output/fat_tiny/cut")


# The recipes of docs/training.md


def test_the_pages_recipes_are_configs(tmp_path, digits):
    text = (ROOT / "docs/training.md").read_text().split("## Augmentation and losses")[1].split("\n## ")[0]
    recipes = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(recipes) == 3
    for number, recipe in enumerate(recipes):
        path = tmp_path / f"{number}.yaml"
        path.write_text(f"BASE: {ROOT}/configs/fat_b0.yaml\n{recipe}")
        cfg = load_config(path, ["DATA.DATASET", "folder", "DATA.DATA_PATH", str(digits), "MODEL.NUM_CLASSES", "3"])
        task = create_task(cfg)
        task.prepare_training(3)
        pictures = task.train_dataset()[SeededIndex(0, 0)].sample[0]
        assert isinstance(pictures[0], np.ndarray) or len(pictures) == cfg.AUG.SPLITS
        assert hasattr(task.build_model(3), "head") and (not cfg.DISTILL.TEACHER or is_model(cfg.DISTILL.TEACHER))
