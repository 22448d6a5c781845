"""Classes that differ in their number of images: weights, logit adjustment, and a run whose epochs are balanced."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from conftest import Stop, assert_same_run, run, stop_at_update
from data.batches import Examples
from engine.tasks import create_task
from engine.tasks.criterion import create_criterion
from engine.tasks.imbalance import class_weights, log_priors, read_weights
from utils.config import load_config
from utils.errors import ConfigError

COUNTS, NAMES = np.array([500, 40, 3]), ["cat", "dog", "owl"]


def test_weights_are_scikit_learn_s_and_the_paper_s_with_a_mean_of_1():
    labels = np.repeat([0, 1, 2], COUNTS)
    balanced = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights("balanced", COUNTS, NAMES).tolist() == pytest.approx(list(balanced / balanced.mean()))
    # equation 2 of arXiv 1901.05555: the sum of a geometric series
    effective = np.array([sum(0.999**power for power in range(count)) for count in COUNTS])
    expected = (1 / effective) / (1 / effective).mean()
    assert class_weights("effective", COUNTS, NAMES).tolist() == pytest.approx(list(expected))
    with_none = class_weights("balanced", np.array([500, 0, 3]), NAMES)
    assert with_none[1] == 1 and with_none[[0, 2]].mean() == pytest.approx(1)
    assert log_priors(np.array([6, 0, 2])).exp().tolist() == pytest.approx([6 / 9, 1 / 9, 2 / 9])


def test_weights_of_a_file_are_those_of_its_classes(tmp_path):
    path = tmp_path / "weights.csv"
    path.write_text("class,weight\nowl,6\ncat,1\n\ndog,2\n")
    assert read_weights(path, NAMES) == [1, 2, 6]
    assert class_weights(str(path), COUNTS, NAMES).tolist() == pytest.approx([1 / 3, 2 / 3, 2])


@pytest.mark.parametrize("text, error", [
    (None, ": cannot be read (No such file or directory); give balanced, effective, or a CSV file"),
    ("owl,6\n", ": its first line is not class,weight; give"),
    ("class,weight\nowl,6\nrat,1\n", ", line 3: 'rat,1': it is no class of the training images"),
    ("class,weight\nowl,6\nowl,6\n", ", line 3: 'owl,6': another line has it; correct it"),
    ("class,weight\nowl,0\n", ", line 2: the weight is '0'; give a number above 0"),
    ("class,weight\nowl,much\n", ", line 2: the weight is 'much'; give a number above 0"),
    ("class,weight\nowl,1\n", ": has no line for cat, dog; add one for each class"),
])  # fmt: skip
def test_a_file_of_weights_that_cannot_be_used_is_one_line(tmp_path, text, error):
    path = tmp_path / "weights.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_weights(path, NAMES)
    assert str(caught.value).startswith(f"TRAIN.CLASS_WEIGHTS: {path}{error}")


def by_hand(logits, targets, weights, adjustment):
    """Targets (B, C)."""
    return -(weights * targets * (logits + adjustment).log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_the_written_one(mixed):
    """Of labels that are smoothed here, and of mixed ones; with neither it is timm's."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator)
    labels = torch.tensor([0, 1, 2, 0, 0, 1])
    soft = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
    if mixed:
        soft = 0.7 * soft + 0.3 * soft.flip(0)
    targets = soft if mixed else labels
    weights, adjustment = torch.tensor([0.2, 0.8, 2.0]), torch.tensor([-0.1, -1.0, -3.0])
    none, ones = torch.zeros(3), torch.ones(3)

    def loss(*balance):
        return create_criterion("ce", 0.1, 0.0, mixed, 0, *balance)(logits, targets)

    assert loss(weights, None).item() == pytest.approx(by_hand(logits, soft, weights, none).item())
    assert loss(None, adjustment).item() == pytest.approx(by_hand(logits, soft, ones, adjustment).item())
    assert loss(weights, adjustment).item() == pytest.approx(by_hand(logits, soft, weights, adjustment).item())
    assert loss(ones, none).item() == pytest.approx(loss().item())
    assert abs(loss(weights, None).item() - loss().item()) > 0.05


class Fixed(nn.Module):
    def forward(self, images):
        return torch.arange(3.0).expand(len(images), 3)


def test_a_task_weighs_and_adjusts_by_its_training_images(write_config, digits, tmp_path):
    """Of the digits 1 and 2 most training images are left out."""
    for name, images in (("0", 20), ("1", 5), ("2", 2)):
        (tmp_path / "rare/train" / name).mkdir(parents=True)
        for file in sorted((digits / "train" / name).iterdir())[:images]:
            shutil.copy(file, tmp_path / "rare/train" / name)
    path = write_config(AUG={"MIXUP": 0.0, "CUTMIX": 0.0}, DATA={"DATA_PATH": str(tmp_path / "rare")})
    task = create_task(load_config(path, ["TRAIN.CLASS_WEIGHTS", "balanced", "TRAIN.LOGIT_ADJUSTMENT", "1.5"]))
    task.train_dataset()
    task.prepare_training(3)
    counts = np.array([20, 5, 2])
    assert task.notes[0] == "training images of a class: 2 to 20; the rarest: 2: 2, 1: 5, 0: 20"
    assert task.notes[1].startswith("TRAIN.CLASS_WEIGHTS balanced: losses are multiplied by 0.2 to 2")
    assert task.notes[2].startswith("TRAIN.LOGIT_ADJUSTMENT 1.5: the loss sees logits + 1.5 x")
    labels = torch.tensor([0, 2])
    soft = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
    loss = task.loss(Fixed(), Examples(torch.zeros(2, 3, 8, 8), labels, ("a", "b")))["loss"]
    logits = torch.arange(3.0).expand(2, 3)
    expected = by_hand(logits, soft, class_weights("balanced", counts, list("012")), 1.5 * log_priors(counts))
    assert loss.item() == pytest.approx(expected.item())


def test_a_run_with_balanced_epochs_goes_on_to_the_same_bits(write_config, tmp_path, monkeypatch, capsys):
    path = write_config(
        TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "SAVE_EVERY_STEPS": 2}, DATA={"SAMPLING": "balanced"}, EMA={"ENABLED": False}
    )  # fmt: skip
    run("--cfg", path, "--tag", "whole")
    said = capsys.readouterr().out
    assert "training images of a class: 20 to 20; the rarest: 0: 20, 1: 20, 2: 20" in said
    assert "DATA.SAMPLING balanced: an epoch has 20.0 images of each class" in said
    restore = stop_at_update(monkeypatch, 5)
    with pytest.raises(Stop):
        run("--cfg", path, "--tag", "cut")
    restore()
    run("--cfg", path, "--tag", "cut")
    whole, cut = (tmp_path / "output/fat_tiny" / tag for tag in ("whole", "cut"))
    assert_same_run(whole, cut)
    assert "balanced by classes" in torch.load(whole / "last.pth")["plan"]["images"]
