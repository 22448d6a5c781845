"""The seam for tasks: any that keeps to `engine.tasks.base` can be trained, evaluated and reported."""

import inspect
import json
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import summarize_run
from conftest import ROOT, Stop, assert_same_run, error_of, run, stop_at_update
from data.batches import collate_pictures
from engine.evaluation.evaluators import ClassEvaluator, ClosingClassEvaluator
from engine.evaluation.knn import Bank, Neighbours
from engine.evaluation.label_evaluators import ClosingLabelEvaluator, LabelEvaluator
from engine.evaluation.loop import fill_up
from engine.tasks import TASKS
from engine.tasks.base import ChoosingEvaluator, ClosingEvaluator, Evaluator, Task
from engine.tasks.classification import Classification
from utils.metrics import Metric
from utils.processes.collectives import sum_over_ranks
from utils.run_files import read_figures


class Reading(Classification):
    """Reads a digit as a number: an error whose lower values are better, a loss of two parts, no loss in evaluation.

    Its targets are not one tensor: {"digits": [(1,), (1,), ...]}.
    """

    primary = Metric("error", "mean error", digits=3, higher_is_better=False)
    figures = (primary,)

    def train_dataset(self):
        return with_own_targets(super().train_dataset())

    def val_dataset(self, classes=None):
        return with_own_targets(super().val_dataset(classes))

    def build_model(self, num_classes):
        return super().build_model(1)

    def loss(self, model, batch):
        distance = errors(model, batch)
        parts = {"near": distance.abs().mean(), "far": distance.square().mean()}
        return {"loss": sum(parts.values()), **parts}

    def evaluator(self, purpose, device):
        return Errors(device)

    def evaluation_like(self, batch):
        return batch

    def preview(self, batch, classes):
        return np.zeros((4, 4, 3), np.uint8)


def with_own_targets(dataset):
    dataset.collate = partial(collate_pictures, collate_targets=in_a_list)
    return dataset


def in_a_list(digits):
    return {"digits": [torch.tensor([digit]) for digit in digits]}


def errors(model, batch):
    return model(batch.images)[:, 0] - torch.cat(batch.targets["digits"])


class Errors:
    def __init__(self, device):
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)

    def step(self, model, batch):
        distance = errors(model, batch).abs()
        self.sums += torch.stack([distance.sum(), torch.tensor(float(len(distance)))])

    def compute(self):
        total, images = sum_over_ranks(self.sums).tolist()
        return {"error": total / images, "num_images": int(images)}

    def gather(self, peers):
        pass

    def sections(self, classes):
        return [
            {"title": "What was read", "text": "digits", "columns": ["class"], "rows": [[name] for name in classes]}
        ]


def records(folder, kind):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture
def reading(monkeypatch, write_config):
    """Writes the config of a run that has the other task."""
    monkeypatch.setitem(TASKS, "reading", Reading)
    return lambda **values: write_config(TASK="reading", **values)


def test_another_task_is_trained_evaluated_and_reported(reading, tmp_path):
    folder = tmp_path / "output/fat_tiny/default"
    path = reading()
    run("--cfg", path)
    for line in records(folder, "train"):
        assert line["loss"] == pytest.approx(line["near"] + line["far"])
    epochs = records(folder, "epoch")
    assert len(epochs) == 2 and "loss" not in epochs[0]["raw"]
    found = [epoch[weights]["error"] for epoch in epochs for weights in ("raw", "ema")]
    best = json.loads((folder / "result.json").read_text())["best"]
    assert len(set(found)) > 1 and best["error"] == min(found)
    run("--cfg", path, "--eval", "--resume", folder / "best.pth", "--tag", "eval")
    evaluated = json.loads((tmp_path / "output/fat_tiny/eval/eval.json").read_text())
    assert evaluated["error"] == pytest.approx(best["error"], rel=1e-6) and evaluated["num_images"] == 29
    page = (folder / "report.html").read_text()
    assert "Best mean error" in page and f"{best['error']:.3f}" in page and "What was read" in page
    assert "top-1" not in page


def test_parts_of_a_loss_survive_a_save_between_two_log_lines(reading, tmp_path, monkeypatch):
    path = reading(PRINT_FREQ=5, TRAIN={"SAVE_EVERY_STEPS": 2})
    run("--cfg", path, "--tag", "whole")
    restore = stop_at_update(monkeypatch, 3)
    with pytest.raises(Stop):
        run("--cfg", path, "--tag", "cut")
    restore()
    run("--cfg", path, "--tag", "cut")
    whole, cut = (tmp_path / "output/fat_tiny" / tag for tag in ("whole", "cut"))
    assert_same_run(whole, cut)
    assert len(records(cut, "train")) == 4 and all(line["near"] > 0 for line in records(cut, "train"))


class Masks(torch.nn.Module):
    """As detectors do: losses of images and targets in training, a list with an entry for each image in evaluation."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, images, targets=None):
        logits = self.convolution(images)[:, 0]
        if not self.training:
            return [{"mask": mask > 0} for mask in logits]
        masks = targets["masks"]
        assert masks.shape == images[:, 0].shape
        return {"mask": F.binary_cross_entropy_with_logits(logits, masks), "size": logits.square().mean() * 1e-3}


class Segmenting:
    """Which pixels are bright. Knows nothing of classes, and has no loss in evaluation; its targets lie on the images."""

    primary = Metric("miou", "mean IoU, %")
    figures = (primary,)

    def __init__(self, cfg):
        self.images = Classification(cfg)
        self.eval_size = self.images.eval_size

    def train_dataset(self):
        return with_masks(self.images.train_dataset())

    def val_dataset(self, classes=None):
        return with_masks(self.images.val_dataset(classes))

    def build_model(self, num_classes):
        return Masks()

    def prepare_training(self, num_classes, distillation=None):
        pass

    def loss(self, model, batch):
        losses = model(batch.images, batch.targets)
        return {"loss": sum(losses.values()), **losses}

    def evaluator(self, purpose, device):
        return Overlaps(device)

    def resized(self, batch, size):
        masks = F.interpolate(batch.targets["masks"][:, None], (size, size))[:, 0]
        return batch._replace(images=F.interpolate(batch.images, (size, size)), targets={"masks": masks})

    def evaluation_like(self, batch):
        return batch

    def preview(self, batch, classes):
        return np.zeros((4, 4, 3), np.uint8)


def with_masks(dataset):
    dataset.collate = collate_masks
    return dataset


def collate_masks(samples):
    batch = collate_pictures(samples)
    return batch._replace(targets={"masks": (batch.images[:, 0] > 127).float()})


class Overlaps(Errors):
    """Intersection and union, of all pixels of all images."""

    def step(self, model, batch):
        found = model(batch.images)
        for image, mask in zip(found, batch.targets["masks"].bool(), strict=True):
            overlap, union = (image["mask"] & mask).sum(), (image["mask"] | mask).sum()
            self.sums += torch.stack([overlap, union]).double()

    def compute(self):
        overlap, union = sum_over_ranks(self.sums).tolist()
        return {"miou": 100 * overlap / max(union, 1.0), "num_images": 29}


def test_a_task_without_classes_and_without_a_loss_in_evaluation(monkeypatch, write_config, tmp_path, capsys):
    """The step at another size is rehearsed with masks of that size; a run goes on; neighbours and sets are refused."""
    monkeypatch.setitem(TASKS, "segmenting", Segmenting)
    path = write_config(
        TASK="segmenting", TRAIN={"IMG_SIZES": [[0, 32], [1, 48]], "SAVE_EVERY_STEPS": 2}, AUG={"MIXUP": 0.0, "CUTMIX": 0.0}
    )  # fmt: skip
    folder = tmp_path / "output/fat_tiny/default"
    restore = stop_at_update(monkeypatch, 10)
    with pytest.raises(Stop):
        run("--cfg", path)
    restore()
    run("--cfg", path)
    best = json.loads((folder / "result.json").read_text())["best"]
    assert best["miou"] == max(epoch[name]["miou"] for epoch in records(folder, "epoch") for name in ("raw", "ema"))
    assert all(line["loss"] == pytest.approx(line["mask"] + line["size"]) for line in records(folder, "train"))
    run("--cfg", path, "--eval", "--resume", folder / "best.pth", "--tag", "eval")
    assert json.loads((folder.with_name("eval") / "eval.json").read_text())["miou"] == pytest.approx(best["miou"])
    assert "mean IoU" in (folder / "report.html").read_text()
    for key, value in (("TEST.KNN", [1]), ("TEST.SETS", ["val"])):
        error = error_of("--cfg", path, "--eval", "--resume", folder / "best.pth", "--opts", key, value)
        assert str(error).startswith(f"{key}: is about images' classes, which TASK segmenting does not give")
    rows = dict(summarize_run.table_rows(folder, read_figures(folder)))
    assert rows["raw miou"] == f"{records(folder, 'epoch')[-1]['raw']['miou']:.2f}"
    summarize_run.draw_curves(read_figures(folder), tmp_path / "curves.png")


def test_a_batch_is_filled_up_whatever_a_model_gives():
    """A tensor; maps of several levels; a list with an entry for each image, given as a list of their own sizes."""
    images = torch.arange(3.0)[:, None, None, None].expand(3, 3, 2, 2)
    whole = fill_up(lambda images: images.sum((1, 2, 3)), 5)(images)
    assert torch.equal(whole, torch.tensor([0.0, 12.0, 24.0]))
    levels = fill_up(lambda images: {"levels": (images, [images[:, 0]])}, 5)(images)["levels"]
    assert torch.equal(levels[0], images) and torch.equal(levels[1][0], images[:, 0])
    sizes = [torch.zeros(3, side, side) for side in (2, 3)]
    boxes = fill_up(lambda images: [{"boxes": torch.zeros(image.shape[1], 4)} for image in images], 4)(sizes)
    assert [len(entry["boxes"]) for entry in boxes] == [2, 3]


def methods(protocol) -> dict:
    return {name: value for name, value in vars(protocol).items() if inspect.isfunction(value) and name[0] != "_"}


def arguments(method) -> list[str]:
    return list(inspect.signature(method).parameters)


@pytest.mark.parametrize(
    "protocol, made",
    [
        *((Task, task) for task in TASKS.values()),
        (Evaluator, ClassEvaluator),
        (Evaluator, Bank),
        (Evaluator, Neighbours),
        (ClosingEvaluator, ClosingClassEvaluator),
        (ClosingEvaluator, ClosingLabelEvaluator),
        (ChoosingEvaluator, LabelEvaluator),
    ],
)
def test_a_protocol_is_kept_to(protocol, made):
    assert methods(protocol)
    for name, method in methods(protocol).items():
        assert arguments(getattr(made, name)) == arguments(method), name
    assert all(hasattr(made, name) for name in protocol.__annotations__)


def test_training_and_reports_name_no_task_and_no_metric_of_one():
    rooms = [ROOT / "engine/training", ROOT / "engine/report", ROOT / "engine/evaluation/loop.py"]
    paths = [path for room in rooms for path in (room.rglob("*.py") if room.is_dir() else [room])]
    assert len(paths) > 10
    for path in paths:
        assert not re.search(r"acc1|acc5|top-1|Classification", path.read_text()), path
