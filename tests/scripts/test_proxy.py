"""The ablations' proxy and the speed table: training many runs, comparing them, reading a benchmark."""

import argparse
import csv
import json
import signal
import subprocess
import sys
import time

import pytest
import yaml
from scipy import stats

from conftest import ROOT
from parts.reproduce import proxy, quickstart, training
from parts.reproduce import target_speed as speed
from parts.reproduce.statistics import compare, holm
from utils.config import load_config
from utils.errors import ConfigError, DataError, OutputError

VARIANTS = {"base": {}, "added": {"MODEL.FAT.interaction": "add"}}


@pytest.fixture
def proxy_args(write_config, tmp_path):
    """A recipe of 60 digits and two updates, and the command line's arguments."""
    recipe = write_config(
        "recipe.yaml", DATA={"BATCH_SIZE": 30}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}, EMA={"ENABLED": False}
    )
    return argparse.Namespace(
        proxy=recipe, seeds=2, jobs=2, proxy_runs=tmp_path / "runs", output=tmp_path / "results", command="a command"
    )


# Statistics


def test_the_paired_test_is_scipys():
    figures = {"base": [80.0, 82.0, 81.0, 79.0], "up": [83.0, 84.5, 84.0, 82.2], "same": [80.5, 81.0, 82.0, 78.5]}
    found = compare(figures, "base")
    for name in ("up", "same"):
        expected = stats.ttest_rel(figures[name], figures["base"])
        interval = expected.confidence_interval(0.95)
        assert found[name].p_value == pytest.approx(expected.pvalue)
        assert found[name].interval == pytest.approx((interval.low, interval.high))
    assert found["up"].difference == pytest.approx(2.925) and found["up"].mean == pytest.approx(83.425)
    assert found["base"].deviation == pytest.approx(1.2909944) and found["base"].p_value is None
    assert found["up"].adjusted == pytest.approx(2 * found["up"].p_value)  # the smallest of two
    assert found["same"].adjusted == pytest.approx(found["same"].p_value)


def test_holm_by_hand():
    # 0.01 * 4; 0.02 * 3; 0.03 * 2 is below the one before it; 0.9 * 1.
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize("values", [[[80.0], [81.0]], [[80.0, 81.0], [80.5, 81.5]]])
def test_no_test_without_a_spread(values):
    """One seed, or the same difference in each of two, says nothing of chance."""
    found = compare({"base": values[0], "other": values[1]}, "base")["other"]
    assert (
        found.p_value is None
        and found.adjusted is None
        and found.difference == pytest.approx(values[1][0] - values[0][0])
    )
    assert found.interval is None and (found.deviation is None) == (len(values[0]) == 1)


def test_one_image_more_with_each_seed_is_no_spread():
    """Percentages of whole images differ by the same in all but the last bits, against which any difference would be large."""
    base, other = ([100 * (right + more) / 359 for right in (352, 349, 351)] for more in (0, 1))
    assert len({b - a for a, b in zip(base, other)}) > 1
    found = compare({"base": base, "other": other, "varied": [98.0, 97.0, 98.5]}, "base")
    assert found["other"].p_value is None and found["other"].interval is None
    assert found["varied"].adjusted == pytest.approx(min(1, 2 * found["varied"].p_value))  # of two that are compared


# Training


def test_all_variants_with_all_seeds(proxy_args, capfd):
    proxy.reproduce(proxy_args, VARIANTS, "base")
    with open(proxy_args.output / "ablations_recipe.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["seed"]) for row in rows] == [
        ("base", "0"),
        ("added", "0"),
        ("base", "1"),
        ("added", "1"),
    ]
    for row in rows:
        run = proxy_args.proxy_runs / "recipe" / "fat_tiny" / f"{row['variant']}_seed{row['seed']}"
        epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert float(row["loss"]) == [r for r in epochs if r["kind"] == "epoch"][-1]["raw"]["loss"]
        trained = yaml.safe_load((run / "config.yaml").read_text())
        assert trained["SEED"] == int(row["seed"])
        assert trained["MODEL"]["FAT"]["interaction"] == {"base": "released", "added": "add"}[row["variant"]]
    assert len({row["loss"] for row in rows}) == 4  # other seeds and variants are other runs
    text = (proxy_args.output / "ablations_recipe.md").read_text()
    mean = sum(float(row["acc1"]) for row in rows if row["variant"] == "added") / 2
    trained = {json.loads(path.read_text())["commit"] for path in proxy_args.proxy_runs.rglob("result.json")}
    assert {row["commit"] for row in rows} == trained and f"commit {', '.join(trained)}; " in text
    assert "says little about ImageNet" in text and f"| added | {mean:.2f} |" in text and "60 images" in text
    assert (proxy_args.output / "ablations_recipe.png").read_bytes().startswith(b"\x89PNG")
    assert capfd.readouterr().out.count("top-1") == 4

    # Again: nothing is trained, and the figures are the same.
    before = {path: path.stat().st_mtime_ns for path in proxy_args.proxy_runs.rglob("*.pth")}
    proxy.reproduce(proxy_args, VARIANTS, "base")
    with open(proxy_args.output / "ablations_recipe.csv") as file:
        assert list(csv.DictReader(file)) == rows
    assert {path: path.stat().st_mtime_ns for path in proxy_args.proxy_runs.rglob("*.pth")} == before

    # Another recipe under the same name is not taken for this one.
    content = yaml.safe_load(proxy_args.proxy.read_text())
    content["TRAIN"]["BASE_LR"] = 0.01
    proxy_args.proxy.write_text(yaml.safe_dump(content))
    with pytest.raises(OutputError, match="was trained with other settings .TRAIN.BASE_LR"):
        proxy.reproduce(proxy_args, VARIANTS, "base")


def test_a_run_that_fails_is_named_and_the_others_saved(proxy_args):
    """With main.py's status; the run beside it is asked to end, which saves it."""
    argv = ("--cfg", str(proxy_args.proxy), "--output", str(proxy_args.proxy_runs))
    long = training.Job(
        "long", (*argv, "--tag", "long", "--opts", "TRAIN.EPOCHS", "5000"), proxy_args.proxy_runs / "long.txt"
    )
    last = proxy_args.proxy_runs / "fat_tiny" / "long" / "last.pth"
    bad = training.Job(
        "bad", (*argv, "--tag", "bad", "--opts", "MODEL.FAT.interaction", "none"), proxy_args.proxy_runs / "bad.txt"
    )

    def done(job, seconds):  # of a first one, so that the long run has begun when the bad one starts
        deadline = time.monotonic() + 60
        while not last.is_file():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    first = training.Job("first", (*argv, "--tag", "first"), proxy_args.proxy_runs / "first.txt")
    with pytest.raises(
        training.TrainingError, match="^bad: its training ended with status 2 .*interaction is 'none'.*bad.txt$"
    ) as caught:
        training.train_all([long, first, bad], 2, done)
    assert caught.value.status == 2 and "stopped by SIGTERM: saved" in long.log.read_text()


def test_runs_end_with_what_runs_them(proxy_args, tmp_path):
    """It is killed; the run saves, so that nothing goes on unseen, nor holds its folder against the next command."""
    script, log = tmp_path / "runs.py", proxy_args.proxy_runs / "long.txt"
    argv = (
        "--cfg",
        str(proxy_args.proxy),
        "--output",
        str(proxy_args.proxy_runs),
        "--tag",
        "long",
        "--opts",
        "TRAIN.EPOCHS",
        "5000",
    )
    script.write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'scripts')!r}]\nfrom pathlib import Path\nfrom parts.reproduce import training\n"
        f"if __name__ == '__main__':\n    training.train_all([training.Job('long', {argv!r}, Path({str(log)!r}))], 1, print)\n"
    )
    process = subprocess.Popen([sys.executable, script])
    for text in ("epoch 1 ", "stopped by SIGTERM: saved"):
        deadline = time.monotonic() + 60
        while not (log.is_file() and text in log.read_text()):
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        process.kill()
    assert process.wait() == -signal.SIGKILL


def test_a_killed_run_is_an_error(proxy_args):
    """As when memory runs out: the status is a shell's."""
    error = training._failed(training.Job("killed", (), proxy_args.proxy_runs / "none.txt"), -signal.SIGKILL)
    assert error.status == 137 and "no output" in str(error)


@pytest.mark.parametrize("values, error, message", [
    ({"seeds": 0}, ConfigError, "--seeds 0"),
    ({"jobs": 0}, ConfigError, "--jobs 0"),
    ({"proxy": ROOT / "configs/no.yaml"}, ConfigError, "--proxy .*no.yaml: no such file"),
])  # fmt: skip
def test_refused(proxy_args, values, error, message):
    with pytest.raises(error, match=message):
        proxy.reproduce(argparse.Namespace(**{**vars(proxy_args), **values}), VARIANTS, "base")
    assert not proxy_args.proxy_runs.exists() and not proxy_args.output.exists()


def test_called_from_another_folder(tmp_path, monkeypatch):
    """The quickstart's images lie in the repository; those of other recipes where these say."""
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    (tmp_path / "datasets/digits").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert quickstart.make_images("datasets/digits") == "datasets/digits"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    images = quickstart.make_images("datasets/digits")
    assert images == str(tmp_path / "datasets/digits") and quickstart.make_images("mine") == "mine"
    argv, cfg, _ = proxy.run_of(
        ROOT / "configs/proxy/tiny.yaml", tmp_path / "runs", images, "base", 3, {"MODEL.FAT.cpe": False}
    )
    parsed = load_config(argv[1], argv[argv.index("--opts") + 1 :])
    assert argv[argv.index("--data-path") + 1] == images == cfg.DATA.DATA_PATH
    assert parsed.SEED == cfg.SEED == 3 and parsed.MODEL.FAT.cpe is cfg.MODEL.FAT.cpe is False


def test_the_last_epoch_counts_not_the_best(tmp_path):
    records = [
        {"kind": "start", "model": "m", "params": 9, "train_images": 60},
        {"kind": "train", "update": 1, "images_per_second": 5.0},
    ]
    for epoch, acc1 in enumerate((50.0, 90.0, 70.0)):
        raw, ema = ({"acc1": value, "loss": value / 100, "num_images": 29} for value in (acc1, 99.0))
        records.append({"kind": "epoch", "epoch": epoch, "train_loss": epoch + 0.5, "raw": raw, "ema": ema})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "result.json").write_text('{"commit": "abc"}')
    found = proxy.figures_of(tmp_path)
    known = {
        "acc1": 70.0,
        "loss": 0.7,
        "train_loss": 2.5,
        "epochs": 3,
        "train_images": 60,
        "val_images": 29,
        "commit": "abc",
        "date": "unknown",
    }
    assert known.items() <= found.items()


def test_what_the_table_calls_different_is_so_after_holm(proxy_args):
    proxy_args.seeds = 3
    figures = {
        "base": [80.0, 81.0, 82.0],
        "far": [90.0, 91.1, 92.0],
        "near": [80.5, 81.7, 82.4],
        "level": [81.0, 82.0, 83.0],
    }
    compared = compare(figures, "base")
    assert compared["near"].p_value < 0.05 < compared["near"].adjusted
    row = {"params": 9, "epochs": 1, "train_images": 60, "val_images": 29, **dict.fromkeys(proxy.TRAINED, "x")}
    proxy.write(proxy_args, load_config(proxy_args.proxy), [row], figures, compared, "base")
    text = (proxy_args.output / "ablations_recipe.md").read_text()
    assert (
        "at Holm's 5 %: far (not tested, as one seed or the same difference with each says nothing of chance: level)."
        in text
    )


def test_the_table_says_where_its_runs_were_trained():
    """Not where it was written."""
    one = {"date": "2026-02-03T10:00:00", "commit": "abc", "machine": "a GPU", "versions": "torch 3"}
    assert proxy.facts_of([one, one]) == ["Trained 2026-02-03, commit abc", "a GPU", "torch 3"]
    other = {**one, "date": "2026-02-01T10:00:00", "commit": "def", "machine": "a CPU"}
    assert proxy.facts_of([one, other]) == [
        "Trained 2026-02-01 to 2026-02-03, commit abc, def",
        "a GPU / a CPU",
        "torch 3",
    ]


# Speed


ROWS = [
    {"task": task, "batch_size": "8", "model": model, "form": form, "precision": "float32", "images_per_second": str(figure), "ratio_to_plain": ""}
    for task, model, form, figure in [
        ("inference", "fat_b0", "plain", 10.0), ("inference", "fat_b0", "fused", 30.0), ("inference", "fat_b1", "fused", 20.0),
        ("inference beside peers", "fat_b0", "plain", 9.0), ("inference beside peers", "fat_b0", "fused", 27.0),
        ("inference beside peers", "pvt_v2_b0", "eager NCHW", 25.0), ("inference beside peers", "pvt_v2_b0", "eager NHWC", 26.0),
        ("inference", "fat_b0", "fused, OpenVINO", 99.0), ("inference beside peers", "fat_b0", "fused, OpenVINO", 98.0),
    ]
]  # fmt: skip


def test_the_speed_table_has_the_fastest_forms(tmp_path):
    source = tmp_path / "benchmark.csv"
    with open(source, "w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    source.with_suffix(".md").write_text("# Benchmark\n\n`python scripts/benchmark.py --rounds 3`. here, today.\n")
    speed.reproduce(argparse.Namespace(csv=source, quick=False, output=tmp_path / "results", command="a command"))
    text = (tmp_path / "results" / "speed.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith(("| **fat", "| pvt"))]
    # FAT-B0's figure is the one of its turn with the peers.
    assert lines == [
        "| **fat_b0** | fused | 27.0 |  | 77.6 |",
        "| pvt_v2_b0 | eager NHWC | 26.0 |  | 70.654 |",
        "| **fat_b1** | fused | 20.0 |  | 80.1 |",
    ]
    assert (
        "timed by `python scripts/benchmark.py --rounds 3`. here, today." in text
        and "Every form and spread: speed.csv." in text
    )
    assert (tmp_path / "results" / "speed.csv").read_text().splitlines() == source.read_text().splitlines()
    measured, published = text.split("## Published, not measured here")
    assert (
        "V100" not in measured
        and "| fat_b3 | NVIDIA V100 | 64 | 474 |" in published
        and "not checked against the paper" in published
    )


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", b"\xff\xfe"])
def test_a_table_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "other.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match="other.csv"):
        speed.read_speed(path)
