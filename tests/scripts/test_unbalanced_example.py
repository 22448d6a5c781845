"""The worked example of unbalanced images: the set out of its package, and runs of several settings and seeds side by side."""

import csv
import io
import json
import shutil
import statistics
import sys
import zipfile

import pytest
from PIL import Image

import compare_runs
import make_solar_cell_data
import summarize_run
from conftest import ROOT, SMALLEST, run
from engine.tasks import create_task
from sample_packages import fetched_wheel
from utils.config import load_config
from utils.errors import ConfigError, DataError
from utils.run_files import read_figures

CONFIG = ROOT / "configs/finetune/fat_tiny_solar_cells.yaml"
COUNTS = {"functional": 12, "probably_functional": 6, "probably_defective": 5, "defective": 8}  # of the stand-in


def png(level: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (40, 40), level).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A small package of the real one's layout."""
    path = tmp_path_factory.mktemp("package") / "elpv_dataset.whl"
    probabilities = ("0.0", "0.3333333333333333", "0.6666666666666666", "1.0")
    cells = [value for value, count in zip(probabilities, COUNTS.values()) for _ in range(count)]
    with zipfile.ZipFile(path, "w") as archive:
        lines = [f"images/cell{number:04d}.png  {value:20}mono" for number, value in enumerate(cells, 1)]
        archive.writestr("elpv_dataset/data/labels.csv", "\n".join(lines))
        for number in range(1, len(cells) + 1):
            archive.writestr(f"elpv_dataset/data/images/cell{number:04d}.png", png(5 * number))
    return path


# The set


def test_the_set_is_the_package_s(wheel, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_solar_cell_data, "fetched_wheel", lambda folder: wheel)
    monkeypatch.setattr(sys, "argv", ["make_solar_cell_data.py", str(tmp_path / "cells")])
    assert make_solar_cell_data.main() == 0 and make_solar_cell_data.main() == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("12 functional, 6 probably_functional, 5 probably_defective, 8 defective")
    assert said[1].endswith("is there already; nothing to do")
    first, *lines = (tmp_path / "cells/labels.csv").read_text().splitlines()
    assert first == f"# classes: {', '.join(COUNTS)}"
    rows = list(csv.DictReader(lines))
    assert [row["label"] for row in rows] == [name for name, count in COUNTS.items() for _ in range(count)]
    for number, row in enumerate(rows, 1):
        with Image.open(tmp_path / "cells" / row["path"]) as image:
            assert (image.size, image.mode, image.getpixel((0, 0))) == ((20, 20), "L", 5 * number)


def test_without_a_way_to_the_package_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(sys, "argv", ["make_solar_cell_data.py", str(tmp_path / "cells")])
    with pytest.raises(
        DataError, match="^pip download elpv-dataset==.*: failed .*; check the network and pip's index$"
    ):
        make_solar_cell_data.main()
    assert not (tmp_path / "cells").exists()


@pytest.mark.only_all
def test_the_package_s_pictures_are_all_there_and_split_by_class(tmp_path):
    """The real ones, with the config's share of each class for validation."""
    counts = make_solar_cell_data.write_set(fetched_wheel(tmp_path, make_solar_cell_data.PACKAGE), tmp_path)
    assert list(counts.values()) == [715, 1508, 295, 106] and sum(counts.values()) == 2624
    cfg = load_config(CONFIG, [], {"DATA.DATA_PATH": str(tmp_path / "labels.csv")}, "train")
    task = create_task(cfg)
    train, val = task.train_dataset(), task.val_dataset(list(make_solar_cell_data.CLASSES.values()))
    assert (len(train), len(val)) == (1575, 1049)
    shutil.rmtree(tmp_path)


# Runs side by side


@pytest.fixture(scope="module")
def runs(wheel, tmp_path_factory):
    """Plain and weighted runs of the example's config on the stand-in, with two seeds each."""
    root = tmp_path_factory.mktemp("unbalanced")
    make_solar_cell_data.write_set(wheel, root)
    small = [
        "DATA.IMG_SIZE",
        "32",
        "TRAIN.EPOCHS",
        "1",
        "TRAIN.WARMUP_EPOCHS",
        "0",
        "TRAIN.TOTAL_BATCH_SIZE",
        "8",
        "DATA.BATCH_SIZE",
        "8",
    ]
    small += [word for key, value in SMALLEST.items() for word in (f"MODEL.FAT.{key}", str(value))]
    for tag, setting in (("plain", []), ("weights", ["TRAIN.CLASS_WEIGHTS", "balanced"])):
        for seed in ("0", "1"):
            run(
                *("--cfg", CONFIG, "--data-path", root / "labels.csv", "--output", root / "output"),
                *("--tag", f"{tag}_{seed}", "--opts", *small, *setting, "SEED", seed),
            )
    return root / "output/fat_tiny"


def test_runs_of_a_setting_are_one_line(runs, tmp_path, capsys):
    folders = [str(runs / f"{tag}_{seed}") for tag in ("plain", "weights") for seed in (0, 1)]
    argv = [*folders, "--recall", "functional", "--output", str(tmp_path / "made")]
    assert compare_runs.main(argv) == 0
    head, _, plain, weights = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "setting",
        "runs",
        *compare_runs.FIGURES,
        "recall of functional",
    ]
    for line, tag, name in (
        (plain, "plain", "as the first"),
        (weights, "weights", "TRAIN.CLASS_WEIGHTS balanced"),
    ):
        last = [json.loads((runs / f"{tag}_{seed}/result.json").read_text())["last"] for seed in (0, 1)]
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert cells[:2] == [name, "2"]
        for cell, figure in zip(cells[2:], compare_runs.FIGURES):
            values = [result[figure] for result in last]
            assert cell == f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
    text = (tmp_path / "made.md").read_text()
    assert (
        text.startswith("# Runs side by side\n\n`python scripts/compare_runs.py ")
        and "| TRAIN.CLASS_WEIGHTS balanced | 2 | " in text
    )
    with open(tmp_path / "made.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["seed"]) for row in rows] == [
        (f"{tag}_{seed}", str(seed)) for tag in ("plain", "weights") for seed in (0, 1)
    ]
    assert float(rows[0]["recall of functional"]) == compare_runs.recalls_of(runs / "plain_0", "raw")["functional"]


def test_the_summary_shows_what_best_pth_is_chosen_by(runs):
    last = json.loads((runs / "plain_0/result.json").read_text())["last"]
    rows = dict(summarize_run.table_rows(runs / "plain_0", read_figures(runs / "plain_0")))
    assert rows["raw acc1 / acc5 / f1_macro"] == f"{last['acc1']:.2f} % / 100.00 % / {last['f1_macro']:.2f}"


def test_the_recall_is_of_the_class(runs):
    """Beside the balanced accuracy, which is the mean of all."""
    last = json.loads((runs / "plain_0/result.json").read_text())["last"]
    recalls = compare_runs.recalls_of(runs / "plain_0", "raw")
    assert set(recalls) == set(COUNTS)
    assert statistics.mean(recalls.values()) == pytest.approx(last["balanced_accuracy"], abs=0.01)


@pytest.mark.parametrize("argv, error, message", [
    (["plain_0", "none"], DataError, "none/config.yaml: no such file"),
    (["plain_0", "--figures", "miou"], DataError, "has no figure miou; those that it has: acc1, "),
    (["plain_0", "--recall", "broken"], DataError, "has no class broken; those that it has: "),
    (["plain_0", "plain_0"], ConfigError, "plain_0: another run has the same config and seed"),
])  # fmt: skip
def test_what_cannot_be_compared_is_one_line(runs, monkeypatch, argv, error, message):
    monkeypatch.chdir(runs)
    with pytest.raises(error, match=message) as caught:
        compare_runs.main(argv)
    assert "\n" not in str(caught.value)


def test_the_page_s_table_is_the_one_that_was_made():
    made = [line for line in (ROOT / "results/unbalanced.md").read_text().splitlines() if line.startswith("| ")]
    page = (ROOT / "docs/unbalanced.md").read_text()
    assert len(made) > 4 and "\n".join(made) in page
