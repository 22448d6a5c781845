"""TASK multilabel: its losses, a run of it, and what is made of its checkpoint."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import checkpoint as tools
import predict
import visualize
from conftest import (
    ROOT,
    Stop,
    assert_same_run,
    config_writer,
    error_of,
    launch,
    load,
    rest,
    run,
    stop_at_update,
)
from data.batches import Examples
from engine import api
from engine.setup.group_draws import Group, drawing
from engine.tasks import create_task
from engine.tasks.criterion import create_label_criterion
from utils.config import load_config
from utils.errors import ConfigError
from utils.rng import derive_seed

COLOURS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """48 training and 21 validation images of noise with none to three colours, and the list of these."""
    root, random = tmp_path_factory.mktemp("painted"), np.random.default_rng(0)
    rows = ["path,labels,split"]
    for number in range(69):
        has = random.random(3) < [0.5, 0.4, 0.3]
        pixels = random.integers(0, 100, (32, 32, 3)) + 120 * has
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number}.png")
        labels = "|".join(name for name, there in zip(COLOURS, has) if there)
        rows.append(f"{number}.png,{labels},{'train' if number < 48 else 'val'}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def config(painted, tmp_path_factory):
    """A function that writes the config of a run on them."""
    folder = tmp_path_factory.mktemp("runs")
    write = config_writer(folder, painted)
    base = {"BASE": [str(ROOT / "configs/multilabel/base.yaml")], "PRINT_FREQ": 3}
    data = {"DATASET": "list", "DATA_PATH": str(painted / "labels.csv")}
    aug = {"AUTO_AUGMENT": "none", "COLOR_JITTER": 0.0}
    return lambda name="run.yaml", TRAIN={}, AUG={}, **more: write(
        name, **base, DATA=data, TRAIN={"BASE_LR": 0.2, "SAVE_EVERY_STEPS": 2, **TRAIN}, AUG={**aug, **AUG}, **more
    )


@pytest.fixture(scope="module")
def trained(config):
    """The folder of a run that is done."""
    path = config()
    run("--cfg", path)
    return path.parent / "output/fat_tiny/default"


def records(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "epoch"]


# Losses


def asymmetric(logits, targets, gamma_neg, gamma_pos, clip):
    """Ridnik et al. (ICCV 2021), Equations 2, 4 and 5, for one image after the other: sums over classes."""
    p = logits.double().sigmoid()
    shifted = (p - clip).clamp(min=0)
    positive = (1 - p) ** gamma_pos * p.log()
    negative = shifted**gamma_neg * (1 - shifted).log()
    return -(targets * positive + (1 - targets) * negative).sum(1)


def test_the_asymmetric_loss_is_that_of_the_paper_in_float32():
    torch.manual_seed(0)
    logits, targets = 4 * torch.randn(8, 5), (torch.rand(8, 5) < 0.3).float()
    for settings in ((4.0, 1.0, 0.05), (2.0, 0.0, 0.0)):
        criterion = create_label_criterion("asymmetric", 0.0, *settings)
        expected = asymmetric(logits, targets, *settings).mean().float()
        assert torch.allclose(criterion(logits, targets), expected, atol=1e-5)
    half = logits.bfloat16()
    assert criterion(half, targets).dtype == torch.float32
    assert torch.allclose(criterion(half, targets), asymmetric(half, targets, 2.0, 0.0, 0.0).mean().float(), atol=1e-5)


def test_binary_cross_entropy_is_linear_in_mixed_targets():
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 3), (torch.rand(4, 3) < 0.5).float()
    criterion = create_label_criterion("bce", 0.0, 4.0, 1.0, 0.05)
    each = [criterion(logits, one) for one in (targets, targets.flip(0))]
    assert torch.allclose(criterion(logits, 0.3 * targets + 0.7 * targets.flip(0)), 0.3 * each[0] + 0.7 * each[1])
    assert criterion(logits, targets) == pytest.approx(F.binary_cross_entropy_with_logits(logits, targets).item())
    assert create_label_criterion("bce", 0.2, 4.0, 1.0, 0.05)(logits, 0.3 * targets) == criterion(logits, targets)


def test_mixup_mixes_all_labels_of_two_images_in_whole_groups_or_parts(config):
    task = create_task(load_config(config("mixed.yaml"), ["TRAIN.LOSS", "bce", "AUG.MIXUP", "1.0"], command="train"))
    task.prepare_training(3)
    targets = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]], dtype=torch.uint8)
    images = targets[:, :, None, None].float().expand(4, 3, 2, 2)  # a pixel says what its target must be
    seen = []
    task.criterion = lambda logits, mixed: seen.append((logits, mixed)) or mixed.mean()

    def learn(rows):
        task.loss(lambda images: images[:, :, 0, 0], Examples(images[rows].clone(), targets[rows], [""] * len(rows)))

    np.random.seed(derive_seed(0))
    learn([0, 1, 2, 3])
    with drawing([Group((0,), 4, (0, 3))]):
        learn([0, 3])
    pixels, mixed = seen[0]
    assert torch.allclose(pixels, mixed) and 0 < mixed[0, 1] < 1
    assert torch.equal(seen[1][1], mixed[[0, 3]]) and torch.equal(seen[1][0], pixels[[0, 3]])


# A run


def test_the_best_map_is_kept_with_its_thresholds(trained):
    epochs = records(trained)
    found = [epoch[weights]["map"] for epoch in epochs for weights in ("raw", "ema")]
    best = json.loads((trained / "result.json").read_text())["best"]
    assert best["map"] == max(found) and best["num_images"] == 21 and best["num_classes"] == 3
    assert {"f1_macro", "f1_micro", "loss"} <= set(best)
    chosen = load(trained / "best.pth")["progress"]["chosen"]
    assert set(chosen) == {"raw", "ema"} and len(chosen["raw"]["thresholds"]) == 3
    page = (trained / "report.html").read_text()
    assert "Best mAP, %" in page and "average precision" in page and "threshold" in page
    assert all(name in page for name in COLOURS)


def test_eval_has_the_run_s_figures_with_its_thresholds_on_any_number_of_processes(config, trained, capsys):
    path, output = config("eval.yaml"), trained.parent
    run("--cfg", path, "--tag", "one", "--eval", "--resume", trained / "last.pth")
    said = capsys.readouterr().out
    assert "raw: thresholds: the checkpoint's" in said and "ema: thresholds" in said
    launch(2, "--cfg", path, "--tag", "two", "--batch-size", 4, "--eval", "--resume", trained / "last.pth")
    last = records(trained)[-1]
    for tag in ("one", "two"):
        found = json.loads((output / tag / "eval.json").read_text())
        for weights in ("raw", "ema"):
            assert found[weights] == pytest.approx(last[weights], abs=2e-6)
    with open(output / "two/eval_classes_raw.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == sorted(COLOURS)
    assert np.mean([float(row["average_precision"]) for row in rows]) == pytest.approx(last["raw"]["map"])
    thresholds = load(trained / "last.pth")["progress"]["chosen"]["raw"]["thresholds"]
    assert [float(row["threshold"]) for row in rows] == pytest.approx(thresholds, abs=1e-4)
    fixed = ["--opts", "MULTILABEL.THRESHOLD", 0.99]
    run("--cfg", path, "--tag", "half", "--eval", "--resume", trained / "last.pth", *fixed)
    found = json.loads((output / "half" / "eval.json").read_text())["raw"]
    assert found["map"] == last["raw"]["map"] and found["f1_micro"] == 0.0
    assert "MULTILABEL.THRESHOLD 0.99 of all classes" in capsys.readouterr().out


def test_a_run_goes_on_to_the_same_bits(config, trained, monkeypatch):
    path = config("resumed.yaml")
    stop = stop_at_update(monkeypatch, 9)  # in the second epoch, of which the saves have the first one's thresholds
    with pytest.raises(Stop):
        run("--cfg", path, "--tag", "resumed")
    stop()
    run("--cfg", path, "--tag", "resumed")
    assert_same_run(trained, trained.parent / "resumed")


@pytest.mark.parametrize("loss, more", [("bce", {"MIXUP": 0.8, "CUTMIX": 1.0}), rest("asymmetric", {})])
def test_two_processes_and_16_bits(config, loss, more):
    path = config(
        "two.yaml", TRAIN={"LOSS": loss, "EPOCHS": 1, "WARMUP_EPOCHS": 0}, AUG=more, AMP={"DTYPE": "bfloat16"}
    )
    launch(2, "--cfg", path, "--tag", "two_processes")
    (epoch,) = records(path.parent / "output/fat_tiny/two_processes")
    assert epoch["raw"]["num_images"] == 21 and 0 < epoch["raw"]["map"] <= 100


def test_check_writes_nothing_and_refuses_a_label_of_no_class(config, painted, tmp_path):
    path = config("check.yaml")
    run("--cfg", path, "--tag", "checked", "--check")
    assert not (path.parent / "output/fat_tiny/checked").exists()
    text = (painted / "labels.csv").read_text()
    copy = tmp_path / "labels.csv"
    copy.write_text(text.replace("68.png,", "68.png,grean|", 1))
    data = ["DATA.DATA_PATH", painted, "DATA.LIST", copy]
    error = error_of("--cfg", path, "--tag", "other", "--check", "--opts", *data)
    assert str(error).startswith(f"{copy}: line 70: 'grean' is none of the 3 classes")


# What is made of a checkpoint


def test_predict_gives_all_labels_above_the_thresholds(trained, painted, tmp_path, capsys):

    images = [painted / f"{number}.png" for number in range(48, 56)]
    written = [str(tmp_path / name) for name in ("a.csv", "a.json", "a.png")]
    flags = [word for pair in zip(("--csv", "--json", "--sheet"), written) for word in pair]
    weights = ["--checkpoint", str(trained / "last.pth"), "--weights", "raw"]
    assert predict.main([*weights, *map(str, images), *flags, "--device", "cpu"]) == 0
    assert "thresholds: the checkpoint's" in capsys.readouterr().err
    content = json.loads((tmp_path / "a.json").read_text())
    thresholds = load(trained / "last.pth")["progress"]["chosen"]["raw"]["thresholds"]
    assert content["thresholds"] == thresholds and content["names"] == sorted(COLOURS)
    for image in content["images"]:
        expected = [label for label, score in enumerate(image["scores"]) if score >= thresholds[label]]
        assert sorted(one["label"] for one in image["labels"]) == expected
        probabilities = [one["probability"] for one in image["labels"]]
        assert probabilities == sorted(probabilities, reverse=True)
    with open(tmp_path / "a.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["class"]]
    assert len(rows) == sum(len(image["labels"]) for image in content["images"])
    assert Image.open(tmp_path / "a.png").width > 100

    stripped = str(tmp_path / "small.pth")
    assert tools.main(["strip", str(trained / "last.pth"), "--weights", "raw", "--output", stripped]) == 0
    assert load(stripped)["chosen"] == {"thresholds": thresholds}
    assert "raw weights, config, thresholds and class names" in capsys.readouterr().out


def test_mistakes_are_of_one_label(trained, tmp_path):
    with pytest.raises(
        ConfigError, match="mistakes: are classes taken for others, which TASK multilabel does not have"
    ):
        visualize.main(
            ["mistakes", "--checkpoint", str(trained / "last.pth"), "--output", str(tmp_path), "--device", "cpu"]
        )


def test_a_predictor_in_python(trained, painted):
    predictor = api.load(trained / "last.pth", weights="raw", device="cpu")
    (prediction,) = predictor([str(painted / "50.png")])
    assert prediction.labels == [
        label for label in np.argsort(-prediction.scores) if prediction.scores[label] >= predictor.thresholds[label]
    ]


def test_an_image_without_labels_is_written_too(trained, painted, tmp_path, capsys):
    state = load(trained / "last.pth")
    state["progress"]["chosen"]["raw"]["thresholds"] = [1.0, 1.0, 1.0]
    torch.save(state, tmp_path / "last.pth")
    shutil.copy(painted / "50.png", tmp_path / "a.png")
    flags = ["--weights", "raw", "--csv", str(tmp_path / "a.csv"), "--device", "cpu"]
    assert predict.main(["--checkpoint", str(tmp_path / "last.pth"), str(tmp_path / "a.png"), *flags]) == 0
    assert (tmp_path / "a.csv").read_text().splitlines()[1:] == [f"{tmp_path / 'a.png'},,,,,"]
    assert "no label" in capsys.readouterr().out
