"""The command line as users meet it: flags, launchers, one-line errors, logs."""

import json
import os
import subprocess
import sys

import cv2
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import ROOT, error_of, rest, run, run_program, smallest_model
from utils.device import select_device
from utils.errors import ConfigError
from utils.metrics import MACRO

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*argv, launcher=()):
    return subprocess.run(
        [sys.executable, *launcher, "main.py", *map(str, argv)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("flags, parts", [
    ([], ["--cfg"]),
    (["--cfg", "x.yaml", "--epochs", "3"], ["--epochs", "unknown"]),
    (["--cfg", "x.yaml", "--bach-size", "3"], ["--bach-size", "'--batch-size'"]),
    (["--cfg", "x.yaml", "--batch", "3"], ["--batch", "'--batch-size'"]),  # no abbreviations
    (["--cfg", "x.yaml", "--batch-size", "many"], ["--batch-size", "many"]),
    (["--cfg", "x.yaml", "--disable_amp", "--amp-opt-level", "O1"], ["--disable_amp contradicts --amp-opt-level"]),
    (["--cfg", "x.yaml", "--eval", "--throughput"], ["--eval contradicts --throughput"]),
    (["--cfg", "x.yaml", "--eval", "--resume", "a", "--pretrained", "b"], ["--resume contradicts --pretrained"]),
    (["--cfg", "x.yaml", "--engine", "openvino"], ["--engine: training is torch's"]),
    (["--cfg", "x.yaml", "--eval", "--engine", "tensorrt"], ["--engine", "tensorrt", "onnxruntime"]),
    (["--cfg", "x.yaml", "--resume", "a", "--throughput"], ["--resume contradicts --throughput"]),
    (["--cfg", "configs/fat_b0.yaml", "--cache-mode", "full"], ["--cache-mode full", "--zip"]),
    (["--cfg", "x.yaml"], ["x.yaml", "cannot be read"]),
])  # fmt: skip
def test_refused_flags(flags, parts):
    error = error_of(*flags)
    assert error.status == 2 and all(part in str(error) for part in parts), str(error)


@pytest.mark.parametrize("flags, part", [
    (["--batch-size", 0], "DATA.BATCH_SIZE is 0"), (["--batch-size", -8], "DATA.BATCH_SIZE is -8"),
    (["--accumulation-steps", 0], "ACCUMULATION_STEPS is 0"), (["--accumulation-steps", 9], "ACCUMULATION_STEPS"),
    (["--tag", "../x"], "TAG"), (["--opts", "DEVICE", "gpu"], "auto, cuda, cpu"),
    (["--opts", "TRAIN.MIN_LR", 1], "must not be above"), (["--opts", "MODEL.NAME", "../fat_b0"], "MODEL.NAME"),
    (["--opts", "TRAIN.COMPILE", "True", "--use-checkpoint"], "TRAIN.COMPILE contradicts TRAIN.USE_CHECKPOINT"),
    (["--opts", "MODEL.TYPE", "timm", "MODEL.NAME", "test_vit", "DATA.IMG_SIZE", "37"], "37"),
    (["--opts", "MODEL.TYPE", "timm", "MODEL.NAME", "resnet10t.nonsense"], "resnet10t.nonsense"),
    (["--opts", "TRAIN.OPTIMIZER.NAME", "adan"], "adan"), (["--opts", "TRAIN.OPTIMIZER.NAME", "adahessian"], "second"),
    (["--opts", "AUG.AUTO_AUGMENT", "rand-m9-foo"], "AUG.AUTO_AUGMENT"),
    (["--opts", "AMP.BACKEND", "apex"], "AMP.BACKEND is 'apex'; NVIDIA took apex.amp out"),
    (["--opts", "AMP.OPT_LEVEL", "O2"], "AMP.OPT_LEVEL is 'O2'"), (["--amp-opt-level", "O2"], "--amp-opt-level O2: was NVIDIA apex's"),
])  # fmt: skip
def test_refused_values(write_config, tmp_path, flags, part):
    error = error_of("--cfg", write_config(), *flags)
    assert error.status == 2 and part in str(error)
    assert not (tmp_path / "output").exists()


def test_error_is_one_line_without_traceback(write_config):
    ended = command("--cfg", write_config(), "--opts", "TRAIN.EPOCS", 3)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr == "error: --opts: unknown key TRAIN.EPOCS; did you mean 'TRAIN.EPOCHS'?\n"


def test_launched_error_is_said_once(write_config):
    launcher = ["-m", "torch.distributed.launch", "--nproc_per_node", "2"]
    ended = command("--cfg", write_config(), "--data-path", "nowhere", launcher=launcher)
    assert ended.returncode != 0
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and lines[0].startswith("error: nowhere/train: no such folder")
    assert 'main.py", line' not in ended.stderr  # no traceback of ours; the launcher adds its own report
    assert f"traceback : {lines[0]}" in ended.stderr  # in which our line stands as the cause


@pytest.mark.parametrize("module", ["launch", rest("run")])
def test_launchers_train_b0_itself(tmp_path, module):
    """Two processes, FAT-B0 and the paper's recipe, for two updates on synthetic images."""
    ended = command(
        "--cfg", "configs/fat_b0.yaml", "--batch-size", 2, "--output", tmp_path, "--opts", "DATA.DATASET", "synthetic",
        "DEVICE", "cpu", "DATA.SYNTHETIC_IMAGES", 8, "DATA.NUM_WORKERS", 0, "DATA.IMG_SIZE", 64, "TRAIN.TOTAL_BATCH_SIZE", 4, "TRAIN.EPOCHS", 1,
        "TRAIN.WARMUP_EPOCHS", 0, launcher=["-m", f"torch.distributed.{module}", "--nproc_per_node", "2"],
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "2 processes | float32 | global batch 2 x 2 x 1 accumulated = 4 | lr" in ended.stdout
    assert "4,494,488 parameters" in ended.stdout
    checkpoint = torch.load(tmp_path / "fat_b0/default/last.pth", weights_only=True)
    assert checkpoint["progress"]["epoch"] == 1


def test_no_gpu_is_no_silent_cpu_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        select_device("cuda", 0)
    assert select_device("auto", 0).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device("auto", 1) == torch.device("cuda", 1) and select_device("cpu", 1).type == "cpu"
    with pytest.raises(ConfigError, match="local rank 2 has no GPU"):
        select_device("auto", 2)


def test_throughput(write_config, tmp_path, capsys):
    run("--cfg", write_config(), "--throughput", "--batch-size", 2)
    out = capsys.readouterr().out
    assert "images/s" in out and "ms per batch" in out and "peak memory" in out
    assert not (tmp_path / "output").exists()


def test_logs(write_config, tmp_path, capsys):
    run("--cfg", write_config())
    folder = tmp_path / "output/fat_tiny/default"
    out = capsys.readouterr().out
    text = (folder / "log.txt").read_text()
    assert "\x1b[" not in text and "cpu | 1 process | float32 | global batch 1 x 8 x 1 accumulated = 8 | lr" in text
    parameters = sum(value.numel() for value in smallest_model(num_classes=3).parameters())
    assert f"{parameters:,} parameters" in text and "GMACs in convolutions" in text and "finished: best" in out

    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["kind"] for r in records] == ["start"] + (["train"] * 7 + ["epoch"]) * 2
    assert [r["update"] for r in records if r["kind"] == "train"] == list(range(1, 15))
    epochs = [r for r in records if r["kind"] == "epoch"]
    losses = [r["loss"] for r in records if r["kind"] == "train"]
    assert epochs[1]["train_loss"] == pytest.approx(sum(losses[7:]) / 7)

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss", "train/lr", "train/grad_norm", "train/images_per_second", "train/data_wait", "train/memory_mib", "train/left_out",
        "val/acc1", "val/acc5", "val/loss", "val/num_images", "val/acc1_ema", "val/acc5_ema", "val/loss_ema", "val/num_images_ema",
        *(f"val/{metric.key}{weights}" for metric in MACRO for weights in ("", "_ema")),
    }  # fmt: skip
    assert "acc1" in out and "f1_macro" not in out  # what is chosen by is acc1
    assert [e.value for e in events.Scalars("val/acc1")] == pytest.approx([r["raw"]["acc1"] for r in epochs])
    assert events.Tags()["images"] == ["train_batch"]
    assert cv2.imread(str(folder / "train_batch.png")).shape[2] == 3

    from utils.config import load_config, to_dict

    again, first = (to_dict(load_config(p)) for p in (folder / "config.yaml", tmp_path / "small.yaml"))
    assert again == first


def test_summary_of_a_run(write_config, tmp_path, digits):
    run("--cfg", write_config())
    folder = tmp_path / "output/fat_tiny/default"
    run("--cfg", write_config(), "--eval", "--resume", folder / "best.pth")
    result = json.loads((folder / "eval.json").read_text())
    ended = run_program("scripts/summarize_run.py", folder)
    rows = dict(line.split("  ", 1) for line in ended.stdout.splitlines())
    rows = {name.strip(): value.strip() for name, value in rows.items()}
    assert rows["training images"] == "60" and rows["classes"] == "3" and rows["validation images"] == "29"
    assert rows["majority-class guess"].startswith("34.48 %")
    assert rows["raw acc1 / acc5"] == f"{result['raw']['acc1']:.2f} % / 100.00 %"
    assert rows["ema acc1 / acc5"] == f"{result['ema']['acc1']:.2f} % / 100.00 %"
    assert cv2.imread(str(folder / "curves.png")) is not None
    named = run_program("scripts/summarize_run.py", folder, "--curves", tmp_path / "named.png")
    assert f"{tmp_path}/named.png" in named.stdout
    assert (tmp_path / "named.png").read_bytes() == (folder / "curves.png").read_bytes()
    ended = run_program("scripts/summarize_run.py", tmp_path)
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


def test_quickstart_digits_split_by_position_and_made_once(tmp_path):
    from make_quickstart_data import digits

    images = list(digits())
    assert len(images) == 1797 and {label for _, label, _, _ in images} == set("0123456789")
    for label in "0123456789":
        splits = [split for split, own, _, _ in images if own == label]
        assert splits == sorted(splits) and 0.79 < splits.count("train") / len(splits) < 0.81
    made, again = (
        run_program("scripts/make_quickstart_data.py", "digits", tmp_path / "digits").stdout for _ in range(2)
    )
    assert "1438 training and 359 validation" in made and "nothing to do" in again


def test_the_cause_of_an_error_is_shown_when_asked_for(tmp_path):
    command = [sys.executable, ROOT / "main.py", "--cfg", tmp_path / "none.yaml"]
    plain, shown = (
        subprocess.run(command, env={**os.environ, "FAT_TRACEBACK": value}, capture_output=True, text=True)
        for value in ("", "1")
    )
    assert plain.returncode == shown.returncode == 2
    assert plain.stderr.count("\n") == 1 and plain.stderr.startswith(f"error: {tmp_path}/none.yaml")
    assert "FileNotFoundError" in shown.stderr and "load_config" in shown.stderr
    assert shown.stderr.splitlines()[-1] == plain.stderr.strip()


def test_help_and_config_errors_import_no_torch(tmp_path):
    program = "import runpy, sys; sys.argv = ['main.py', *sys.argv[1:]]\ntry: runpy.run_path('main.py', run_name='__main__')\nexcept SystemExit: assert 'torch' not in sys.modules; print('none')"
    shown = subprocess.run([sys.executable, "-c", program, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.endswith("none\n"), shown.stderr
