"""Which runs and checkpoints fill a cell of the tables, and the classification table."""

import csv
import functools
import json
import shutil

import pytest
import torch
import yaml
from PIL import Image
from timm.data import ImageNetInfo

import reproduce
from conftest import ROOT, SMALLEST, Stop, error_of, run, smallest_model, stop_at_update
from parts.reproduce import cells, results
from parts.reproduce import target_ablations as ablations
from parts.reproduce import target_classification as classification
from utils.config import load_config

count, draw = functools.cache(classification.count), classification.draw


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """ImageNet's classes with an image each, a config of the cell fat_b0 for them, and its finished run."""
    root = tmp_path_factory.mktemp("thousand")
    for number, name in enumerate(ImageNetInfo("imagenet-1k").label_names()):
        for split in ("train", "val"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), (number % 256, number // 4, 90)).save(root / split / name / "a.png")
    config = {
        "REPRODUCES": "fat_b0", "DEVICE": "cpu",
        "DATA": {"DATASET": "folder", "IMG_SIZE": 32, "BATCH_SIZE": 200, "NUM_WORKERS": 0},
        "MODEL": {"NAME": "fat_tiny", "NUM_CLASSES": 1000, "FAT": dict(SMALLEST)},
        "TRAIN": {"EPOCHS": 2, "WARMUP_EPOCHS": 1, "TOTAL_BATCH_SIZE": 200, "BASE_LR": 0.02},
        "AUG": {"AUTO_AUGMENT": "none", "REPROB": 0.0},
    }  # fmt: skip
    (root / "configs").mkdir()
    (root / "configs/fat_b0.yaml").write_text(yaml.safe_dump(config))
    run("--cfg", root / "configs/fat_b0.yaml", "--data-path", root, "--output", root / "output", "--batch-size", 100)
    return root


@pytest.fixture
def small_cells(thousand, monkeypatch):
    """The numbers of this ImageNet, and its config for fat_b0."""
    monkeypatch.setattr(cells, "CONFIGS", thousand / "configs")
    monkeypatch.setattr(cells, "TRAIN_IMAGES", 1000)
    monkeypatch.setattr(cells, "VAL_IMAGES", 1000)


@pytest.fixture
def table(tmp_path, monkeypatch, capsys):
    """Makes the table in an empty folder; returns the exit status, FAT-B0's row and the lines of errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(classification, "count", count)
    monkeypatch.setattr(classification, "draw", lambda path, rows: None)  # takes a second
    monkeypatch.setattr(cells, "MEASURED", tmp_path / "committed")

    def make(*argv):
        status = reproduce.main(["classification", "--output", "made", *map(str, argv)])
        with open("made/classification.csv") as file:
            [row] = [row for row in csv.DictReader(file) if row["model"] == "fat_b0"]
        return status, row, [line for line in capsys.readouterr().err.splitlines() if line]

    return make


# The computed figures


def test_computed_figures_are_the_expected_ones(table, tmp_path, monkeypatch):
    monkeypatch.setattr(classification, "draw", draw)
    assert table()[::2] == (0, [])
    text = (tmp_path / "made/classification.md").read_text()
    assert all(f"{params} (paper: " in text for params in ("4,494,488", "7,819,720", "13,466,728", "29,196,264"))
    assert text.count("| reproduced |") == 12 and text.count("(the paper's) | not measured |") == 4
    assert (tmp_path / "made/classification.png").stat().st_size > 10_000
    with open(tmp_path / "made/classification.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["params"]) for row in rows] == sorted(float(row["params"]) for row in rows)
    assert all(row["source"] and row["gmacs"] for row in rows)
    peers = {row["model"]: row["top1_published"] for row in rows if row["kind"] == "peer"}
    assert peers == {row["weights"]: row["top1"] for row in results.read_published() if row["weights"]}


@pytest.mark.parametrize("cell, quantity, text", [
    ("fat_b0", "params", "4494489"), ("fat_b1", "params_m", "7.9"), ("fat_b2", "conv_gmacs_paper", "2.1"),
    ("fat_b3", "conv_gmacs", "4.45"), ("fat_b3", "gmacs", "4.62"),
])  # fmt: skip
def test_a_computed_figure_that_is_not_expected_ends_with_1(table, monkeypatch, cell, quantity, text):
    known = results.read_expected()
    other = {**known, (cell, quantity): results.Expected(text, known[cell, quantity].tolerance, "a source")}
    monkeypatch.setattr(classification, "read_expected", lambda: other)
    status, _, [line] = table()
    assert status == 1 and all(part in line for part in (cell, f"{quantity} is", text, "a source"))


def test_the_readme_s_table_is_the_one_that_was_made():
    with open(ROOT / "results" / "classification.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "FAT"]
    made = [
        f"| {row['model'].upper().replace('_', '-')} | {int(row['params']) / 1e6:.2f} M | {row['conv_gmacs']} | {row['gmacs']} | {row['top1_published']} % |"
        for row in rows
    ]
    assert len(made) == 4
    assert [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| FAT-B")] == made


def test_peers_have_a_source_and_gmacs():
    rows = results.read_published()
    assert all(row["source"] and float(row["gmacs"]) > 0 for row in rows)
    assert len({row["weights"] or row["model"] for row in rows}) == len(rows)


def test_the_output_may_stand_before_the_target():
    parser, _ = reproduce.build_parser()
    for words in (["--output", "x", "classification"], ["classification", "--output", "x"]):
        assert str(parser.parse_args(words).output) == "x"
    assert str(parser.parse_args(["classification"]).output) == "results"


# A run's result


def facts_of(folder):
    result = json.loads((folder / "result.json").read_text())
    assert all(isinstance(result.pop(key), str) for key in ("date", "commit", "machine", "versions"))
    return result


def test_result_of_a_resumed_run_is_that_of_an_uninterrupted_one(write_config, tmp_path, monkeypatch):
    path = write_config(TRAIN={"SAVE_EVERY_STEPS": 2}, REPRODUCES="fat_b1", SEED=5)
    folder = tmp_path / "output/fat_tiny"
    run("--cfg", path, "--tag", "whole")
    for update in (5, 6):  # in the first of two epochs of 7 updates, and in the second
        restore = stop_at_update(monkeypatch, update)
        with pytest.raises(Stop):
            run("--cfg", path, "--tag", "cut")
        restore()
        assert not (folder / "cut/result.json").exists()
    run("--cfg", path, "--tag", "cut")
    whole = facts_of(folder / "whole")
    assert facts_of(folder / "cut") == whole
    records = [json.loads(line) for line in (folder / "whole/metrics.jsonl").read_text().splitlines()]
    epochs = {record["epoch"]: record for record in records if record["kind"] == "epoch"}
    for which in ("best", "last"):
        found = whole[which]
        figures = epochs[found["epoch"]][found["weights"]]
        assert {"acc1", "acc5", "loss", "num_images"} < set(figures) and figures.items() <= found.items()
    assert whole["last"]["epoch"] == 1 and whole["best"]["acc1"] == max(
        e[w]["acc1"] for e in epochs.values() for w in ("raw", "ema")
    )
    known = {
        "cell": "fat_b1",
        "epochs": 2,
        "seed": 5,
        "classes": 3,
        "imagenet": False,
        "train_images": 60,
        "val_images": 29,
    }
    assert known.items() <= whole.items() and whole["unreadable"] == 0 and whole["changes"] == []
    run("--cfg", path, "--eval", "--resume", folder / "whole/best.pth")
    found = json.loads((folder / "default/eval.json").read_text())
    assert (found["cell"], found["classes"], found["imagenet"], found["acc1"]) == (
        "fat_b1",
        3,
        False,
        whole["best"]["acc1"],
    )


def test_what_changed_on_the_way_is_in_the_result(write_config, tmp_path, monkeypatch):
    path, folder = write_config(), tmp_path / "output/fat_tiny/default"
    restore = stop_at_update(monkeypatch, 9)
    with pytest.raises(Stop):
        run("--cfg", path)
    restore()
    run("--cfg", path, "--opts", "TRAIN.WEIGHT_DECAY", 0.1)
    assert facts_of(folder)["changes"] == ["TRAIN.WEIGHT_DECAY changed from 0.05 to 0.1"]
    assert facts_of(folder)["cell"] == ""
    run("--cfg", path, "--opts", "TRAIN.AUTO_RESUME", False, "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)
    assert facts_of(folder)["epochs"] == 1 and len(list(folder.glob("replaced_*/result.json"))) == 1


@pytest.mark.parametrize("name", ["fat_b9", "../configs/fat_b0", "/fat_b0", "expected.csv", "fat_b0.yaml"])
def test_a_cell_that_does_not_exist_is_refused(write_config, name):
    message = str(error_of("--cfg", write_config(REPRODUCES=name)))
    assert "REPRODUCES" in message and "below configs/" in message


def test_every_cell_s_config_names_it():
    for cell in [*classification.CELLS, *(f"ablations/{name}" for name in ablations.variants())]:
        assert load_config(ROOT / "configs" / f"{cell}.yaml").REPRODUCES == cell


# A run and its cell


def test_a_finished_run_feeds_its_cell(table, small_cells, thousand, tmp_path):
    assert "reproduce.py classification --runs" in (thousand / "output/fat_tiny/default/log.txt").read_text()
    result = facts_of(thousand / "output/fat_tiny/default")
    status, row, lines = table("--runs", thousand / "output")
    assert (status, lines) == (0, [])
    assert row["top1_measured"] == f"{result['best']['acc1']:.2f}" and row["top1_verdict"] == "differs"
    text = (tmp_path / "made/classification.md").read_text()
    assert f"training run {thousand / 'output/fat_tiny/default'}" in text and text.count("not measured") == 3
    kept = (tmp_path / "made/measured/fat_b0.json").read_bytes()
    assert table()[1] == row  # from what is kept
    shutil.move(tmp_path / "made/measured", tmp_path / "committed")
    assert table()[1] == row  # from the repository
    assert json.loads(kept)["acc1"] == result["best"]["acc1"] and json.loads(kept)["num_images"] == 1000


def test_a_kept_measurement_that_is_none(table, tmp_path):
    (tmp_path / "committed").mkdir()
    (tmp_path / "committed/fat_b0.json").write_text('{"cell": "fat_b0", "acc1": 77.6}')
    status, row, [line] = table()
    assert status == 2 and "fat_b0.json: is no measurement" in line and row["top1_verdict"] == "not measured"


def test_the_newest_run_counts(table, small_cells, thousand, tmp_path):
    for name, year in (("a", "2090"), ("b", "2080")):
        shutil.copytree(thousand / "output/fat_tiny/default", tmp_path / "output/fat_tiny" / name)
        path = tmp_path / "output/fat_tiny" / name / "result.json"
        result = json.loads(path.read_text())
        result["date"], result["best"]["acc1"] = year + result["date"][4:], 77.5 if name == "a" else 78.5
        result["best"]["acc5"] = 95.0
        path.write_text(json.dumps(result))
    assert table()[1]["top1_measured"] == "77.50" and table()[1]["top1_verdict"] == "reproduced"
    assert table("--runs", thousand / "output")[1]["top1_measured"] == "77.50"  # the older one that is named


def spoil_config(section, key, value):
    def spoil(folder):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config[section][key] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    return spoil


def spoil_result(**values):
    def spoil(folder):
        result = json.loads((folder / "result.json").read_text())
        for key, value in values.items():
            result[key] = {**result[key], **value} if isinstance(value, dict) else value
        (folder / "result.json").write_text(json.dumps(result))

    return spoil


@pytest.mark.parametrize("spoil, reason", [
    (spoil_config("TRAIN", "BASE_LR", 0.03), "TRAIN.BASE_LR is 0.03, not 0.02"),
    (spoil_config("TRAIN", "TOTAL_BATCH_SIZE", 400), "TRAIN.TOTAL_BATCH_SIZE is 400, not 200"),
    (spoil_config("MODEL", "PRETRAINED", "x.pth"), "MODEL.PRETRAINED"),
    (lambda folder: (folder / "result.json").unlink(), "not finished"),
    (lambda folder: (folder / "result.json").write_text('{"best":'), "cannot be read"),
    (lambda folder: (folder / "result.json").write_text("{}"), "is no run's result"),
    (spoil_result(best={"acc1": "77.6"}), "is no run's result"),
    (spoil_result(seed=None), "is no run's result"),
    *((spoil_result(best=values), "is no run's result") for values in (
        {"acc1": float("nan")}, {"acc1": float("inf")}, {"acc1": 101.0, "acc5": 102.0}, {"acc1": -1.0}, {"acc1": 10**400}, {"acc1": True},
        {"acc1": 50.0, "acc5": 40.0}, {"acc5": float("nan")}, {"loss": float("nan")}, {"epoch": 2}, {"epoch": 0.5}, {"epoch": -1},
        {"weights": "raw\n| a |"}, {"num_images": 1000.0},
    )),
    *((spoil_result(**values), "is no run's result") for values in (
        {"last": {"acc1": 99.0}}, {"date": "yesterday"}, {"commit": "a\nb"}, {"machine": "\ud800"}, {"seed": -1}, {"left_out": "x"},
        {"best": {"acc1": 0.0, "acc5": 0.0}, "last": {"acc1": 1.0}}, {"unreadable": -1},
    )),
    (spoil_result(unreadable=2), "2 images could not be read"),
    (spoil_result(imagenet="yes"), "not of ImageNet"),
    (spoil_result(changes="abc"), "no list"),
    (spoil_result(last={"epoch": 0}), "1 of 2 epochs"),
    (spoil_result(cell="fat_b1"), "fat_b1"),
    (spoil_result(changes=["TRAIN.BASE_LR changed from 0.1 to 0.02"]), "changed on the way: TRAIN.BASE_LR"),
    (spoil_result(changes=["num images changed from 900 to 1000"]), "num images"),
    (spoil_result(imagenet=False), "not of ImageNet"),
    (spoil_result(best={"num_images": 999}), "999"),
    (spoil_result(best={"num_images": None}), "None"),
    (spoil_result(val_images=999), "999"),
    (spoil_result(train_images=999), "999"),
])  # fmt: skip
def test_a_run_that_is_not_what_the_cell_means_is_refused(
    table, small_cells, thousand, tmp_path, capsys, spoil, reason
):
    folder = tmp_path / "output/fat_tiny/spoilt"
    shutil.copytree(thousand / "output/fat_tiny/default", folder)
    spoil(folder)
    status, row, lines = table("--runs", folder)
    assert status == 2 and len(lines) == 1 and "spoilt" in lines[0] and reason in lines[0]
    assert (row["top1_measured"], row["top1_verdict"]) == ("", "not measured") and not (
        tmp_path / "made/measured"
    ).exists()
    reproduce.main(["classification", "--output", "made"])  # found, not named
    out, err = capsys.readouterr()
    assert "not used: " in out and reason in out and not err


def test_what_may_differ_is_said(table, small_cells, thousand, tmp_path):
    folder = tmp_path / "output/fat_tiny/other"
    shutil.copytree(thousand / "output/fat_tiny/default", folder)
    for section, key, value in (
        ("DATA", "BATCH_SIZE", 25),
        ("DATA", "NUM_WORKERS", 3),
        ("DATA", "BACKEND", "cv2"),
        ("AMP", "ENABLED", False),
    ):
        spoil_config(section, key, value)(folder)
    spoil_result(changes=["DATA.NUM_WORKERS changed from 0 to 3", "DATA.BATCH_SIZE changed from 50 to 25"])(folder)
    assert table()[0] == 0
    assert json.loads((tmp_path / "made/measured/fat_b0.json").read_text())["other_settings"] == {
        "DATA.BACKEND": "cv2",
        "AMP.ENABLED": False,
    }
    assert "DATA.BACKEND cv2; AMP.ENABLED False" in (tmp_path / "made/classification.md").read_text()


def test_what_was_left_out_is_said(table, small_cells, thousand, tmp_path):
    shutil.copytree(thousand / "output/fat_tiny/default", tmp_path / "run")
    spoil_result(unreadable=1, left_out=7)(tmp_path / "run")
    source = table("--runs", tmp_path / "run")[1]["source"]
    assert "; without 1 training images that could not be read; without 7 updates that were not finite; " in source


def test_a_run_that_was_begun_anew_counts_as_it_is_now(table, small_cells, thousand, tmp_path):
    folder = tmp_path / "output/fat_tiny/run"
    shutil.copytree(thousand / "output/fat_tiny/default", folder)
    (folder / "replaced_20260101_000000").mkdir()
    shutil.copy(folder / "config.yaml", folder / "replaced_20260101_000000")
    status, row, lines = table("--runs", folder)
    assert (status, lines) == (0, []) and row["top1_measured"]


def test_what_may_differ_from_a_recipe():
    free = {
        "OUTPUT",
        "SEED",
        "DATA.DATA_PATH",
        "DATA.TIMEOUT",
        "DATA.NUM_WORKERS",
        "MODEL.RESUME",
        "TEST.SETS",
        "TEST.KNN",
    }
    assert free <= cells.WHERE and {"AMP.DTYPE", "DATA.BACKEND"} <= cells.HOW
    assert cells.SPLIT_OF_BATCH == {"DATA.BATCH_SIZE", "TRAIN.ACCUMULATION_STEPS"}
    shaping = {
        "DATA.MEAN",
        "DATA.IMG_SIZE",
        "TEST.CROPS",
        "MODEL.NAME",
        "MODEL.PRETRAINED",
        "TRAIN.EPOCHS",
        "DISTILL.WEIGHTS",
    }
    assert not shaping & (cells.WHERE | cells.HOW | cells.SPLIT_OF_BATCH)


# A checkpoint and its cell


def test_a_checkpoint_is_evaluated(table, small_cells, thousand, tmp_path):
    best = thousand / "output/fat_tiny/default/best.pth"
    status, row, lines = table("--data-path", thousand, "--dataset", "folder", "--checkpoints", f"fat_b0={best}")
    assert (status, lines) == (0, [])
    kept = json.loads((tmp_path / "made/measured/fat_b0.json").read_text())
    assert kept["acc1"] == facts_of(best.parent)["best"]["acc1"] and row["top1_measured"] == f"{kept['acc1']:.2f}"
    assert (
        kept["source"] == f"evaluation of a checkpoint, best.pth, sha256 {kept['sha256'][:12]}"
        and kept["source"] in row["source"]
    )
    assert f"; saved after {facts_of(best.parent)['best']['epoch'] + 1} of 2 epochs; " in row["source"]


@pytest.fixture
def other_model(tmp_path):
    torch.save(smallest_model(num_classes=10).state_dict(), tmp_path / "ten_classes.pth")
    return tmp_path / "ten_classes.pth"


@pytest.mark.parametrize("argv, parts", [
    ("--data-path {digits} --checkpoints fat_b0={best}", ["29 images in 3 classes", "1,000 in 1,000"]),
    ("--data-path {root}/nowhere --checkpoints fat_b0={best}", ["nowhere", "no such folder"]),
    ("--data-path {root} --dataset foldr --checkpoints fat_b0={best}", ["foldr", "did you mean 'folder'?"]),
    ("--data-path {root} --checkpoints fat_b0={other}", ["ten_classes.pth", "is of another model", "head"]),
    ("--data-path {root} --checkpoints fat_b0={root}/none.pth", ["none.pth", "no such checkpoint"]),
    ("--data-path {root} --checkpoints fat_b0={root}/configs/fat_b0.yaml", ["fat_b0.yaml", "no checkpoint"]),
    ("--data-path {root} --checkpoints fat-b0={best}", ["'fat-b0' is no cell", "did you mean 'fat_b0'?"]),
    ("--data-path {root} --checkpoints {best}", ["CELL=FILE"]),
    ("--checkpoints fat_b0={best}", ["--data-path"]),
    ("--data-path {root}", ["add --checkpoints"]),
    ("--runs {root}/nowhere", ["nowhere", "no such folder"]),
    ("--runs {root}/val/n01440764", ["holds no run", "fat_b0"]),
])  # fmt: skip
def test_inputs_that_cannot_be_used(table, small_cells, thousand, digits, other_model, tmp_path, argv, parts):
    names = {
        "root": thousand,
        "best": thousand / "output/fat_tiny/default/best.pth",
        "digits": digits,
        "other": other_model,
    }
    status, row, lines = table(*argv.format(**names).split())
    assert (
        status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and all(part in lines[0] for part in parts)
    )
    assert row["top1_verdict"] == "not measured" and not (tmp_path / "made/measured").exists()


def test_classes_that_are_not_imagenet_s(small_cells, thousand, tmp_path):
    shutil.copytree(thousand / "val", tmp_path / "val")
    (tmp_path / "val/n01440764").rename(tmp_path / "val/n00000000")
    with pytest.raises(cells.DataError, match="'n00000000' and so on, are not ImageNet's"):
        cells.require_imagenet("fat_b0", str(tmp_path), "folder")


def test_a_checkpoint_of_another_recipe(small_cells, thousand, tmp_path):
    checkpoint = torch.load(thousand / "output/fat_tiny/default/best.pth", weights_only=True)
    checkpoint["config"]["DISTILL"]["TEACHER"] = "resnet50"
    torch.save(checkpoint, tmp_path / "taught.pth")
    with pytest.raises(cells.DataError, match="taught.pth: is another recipe .*DISTILL.TEACHER is 'resnet50'"):
        cells.facts_of_checkpoint("fat_b0", tmp_path / "taught.pth")
    torch.save(checkpoint["model"], tmp_path / "plain.pth")
    assert cells.facts_of_checkpoint("fat_b0", tmp_path / "plain.pth")["recipe_known"] is False
