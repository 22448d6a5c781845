"""reproduce.py as a command, and its table of ablations."""

import csv
import json

import pytest

import reproduce
from conftest import ROOT, run_program
from parts.reproduce import cells, results
from parts.reproduce import target_ablations as ablations
from parts.reproduce import target_ade20k as ade20k
from parts.reproduce import target_coco as coco
from utils.errors import ConfigError


@pytest.fixture
def two_variants(monkeypatch):
    """Counting all twelve takes seconds; tests/scripts/test_ablations.py does."""
    monkeypatch.setattr(ablations, "variants", lambda: ["base", "no_cpe"])


def target(tmp_path, *argv) -> int:
    return reproduce.main([*map(str, argv), "--output", str(tmp_path)])


# The command


def test_all_makes_every_target():
    parser, modules = reproduce.build_parser()
    words = [[word.format(output="results", configs="configs") for word in line] for line in reproduce.ALL]
    assert [parser.parse_args(line).target for line in words] == [line[0] for line in words]
    assert {line[0] for line in words} == set(reproduce.TARGETS) == set(modules)


def test_an_error_in_one_target_leaves_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        reproduce,
        "ALL",
        [["curves", "{output}/none", "other"], ["speed", "--csv", str(ROOT / "results/benchmark_cpu.csv")]],
    )
    assert target(tmp_path, "--all") == 2
    said = capsys.readouterr()
    assert (
        said.err
        == f"error: curves: {tmp_path}/none/metrics.jsonl: cannot be read (No such file or directory); give the folder of a run, such as output/fat_b0/default\n"
    )
    assert (tmp_path / "speed.md").is_file() and not (tmp_path / "curves.md").exists()


@pytest.mark.parametrize("argv, message", [
    ([], "give --all, or one target"), (["--all", "speed"], "give --all, or one target"), (["tables"], "invalid choice: 'tables'"),
    (["ablations", "--seeds", "x"], "--seeds: invalid int value"), (["speed", "--quick", "--csv", "x"], "--csv contradicts --quick"),
])  # fmt: skip
def test_refused(argv, message):
    with pytest.raises(ConfigError) as caught:
        reproduce.main(argv)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_as_a_command_from_another_folder(tmp_path):
    argv = ["speed", "--csv", "none.csv", "--output", tmp_path / "results"]
    done = run_program("scripts/reproduce.py", *argv, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and not (tmp_path / "results").exists()
    *_, line = done.stderr.splitlines()  # other packages may say something, too, when they are imported
    assert line == "error: none.csv: cannot be read (No such file or directory); make it with scripts/benchmark.py"


def test_a_package_that_is_missing_is_one_line(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(reproduce.importlib, "import_module", fail)
    with pytest.raises(ConfigError, match="^scipy: cannot be imported .*quickstart-requirements.txt$"):
        reproduce.main(["speed", "--csv", "none"])


# Ablations


def test_the_table_of_ablations(two_variants, tmp_path, monkeypatch):
    """Counts, what differs, and a measured cell; the next run without that file says not measured."""
    monkeypatch.setattr(cells, "MEASURED", tmp_path / "committed")
    measured = {
        "cell": "ablations/no_cpe", "acc1": 76.543, "acc5": 93.0, "loss": 1.0, "num_images": 50000, "weights": "raw", "source": "a run", "date": "2026-01-01T00:00:00+00:00",
        "commit": "abc", "machine": "m", "versions": "v", "other_settings": {},
    }  # fmt: skip
    (tmp_path / "committed/ablations").mkdir(parents=True)
    (tmp_path / "committed/ablations/no_cpe.json").write_text(json.dumps(measured))
    assert target(tmp_path / "results", "ablations") == 0
    with open(tmp_path / "results/ablations.csv", newline="") as file:
        base, no_cpe = csv.DictReader(file)
    assert (base["params"], no_cpe["params"], no_cpe["change"]) == ("4494488", "4399704", "cpe: False")
    assert (base["top1"], no_cpe["top1"]) == ("not measured", "76.54") and "a run" in no_cpe["top1_source"]
    text = (tmp_path / "results/ablations.md").read_text()
    assert "| cpe: False | 4.400 | -0.095 | 0.685 | -0.016 | 0.738 | -0.016 | reproduced | 76.54 |" in text
    (tmp_path / "committed/ablations/no_cpe.json").unlink()
    assert target(tmp_path / "results", "ablations") == 0
    assert "76.54" not in (tmp_path / "results/ablations.md").read_text()


def test_a_count_that_is_not_expected_ends_with_1(two_variants, tmp_path, monkeypatch, capsys):
    expected = results.read_expected()
    expected["ablations/no_cpe", "macs"] = results.Expected("737924737", "", "elsewhere")
    monkeypatch.setattr(ablations, "read_expected", lambda: expected)
    assert target(tmp_path, "ablations") == 1
    assert capsys.readouterr().err == "error: ablations/no_cpe: macs is 737924736, expected 737924737 (elsewhere)\n"
    assert "| differs, reproduced |" in (tmp_path / "ablations.md").read_text()


@pytest.mark.parametrize("text, tolerance, measured, verdict", [
    ("4.5", "", 4.494488, "reproduced"), ("4.5", "", 4.5500001, "differs"), ("4.5", "", 4.4499, "differs"), ("0.70", "", 0.7049, "reproduced"),
    ("0.70", "", 0.7051, "differs"), ("29", "0.5", 29.196, "reproduced"), ("4494488", "", 4494488, "reproduced"), ("4494488", "", 4494489, "differs"),
    ("77.6", "0.3", 77.9, "reproduced"), ("77.6", "0.3", 77.29, "differs"), ("77.6", "0.3", 77.91, "differs"), ("77.6", "0.3", None, "not measured"),
])  # fmt: skip
def test_verdicts(text, tolerance, measured, verdict):
    assert results.Expected(text, tolerance, "a source").verdict(measured) == verdict


# ADE20K


def test_the_table_of_ade20k(tmp_path, monkeypatch):
    """Parameters exactly and MACs as printed; no mIoU is claimed."""
    monkeypatch.setattr(ade20k, "CELLS", ade20k.CELLS[:1])
    assert target(tmp_path, "ade20k") == 0
    with open(tmp_path / "ade20k.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["params"], row["params_verdict"], row["gflops_verdict"]) == ("8377702", "reproduced", "reproduced")
    assert row["miou_verdict"] == "not measured"
    assert "| not measured |" in (tmp_path / "ade20k.md").read_text()


# COCO


def test_the_table_of_coco(tmp_path, monkeypatch):
    """Parameters and MACs are counted; no AP is claimed."""
    monkeypatch.setattr(coco, "CELLS", coco.CELLS[:1])
    monkeypatch.setattr(coco, "INPUT", (64, 64))
    assert target(tmp_path, "coco") == 0
    with open(tmp_path / "coco.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["params"], row["box_ap_published"], row["ap_verdict"]) == ("13779332", "40.4", "not measured")
    assert "| 40.4 (published) | not measured |" in (tmp_path / "coco.md").read_text()
