"""What is found before the first step, and that finding it changes nothing."""

import random

import torch

from conftest import (
    assert_same_run,
    error_of,
    run,
)
from engine.tasks.classification import Classification

RUNS = "output/fat_tiny"


def test_no_room_for_the_checkpoints_is_found_before_the_first_step(write_config, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 2 * 2**20})
    monkeypatch.setattr("engine.training.preflight.shutil.disk_usage", lambda path: usage)
    error = error_of("--cfg", write_config(SAVE_FREQ=1, TRAIN={"EPOCHS": 20}))
    assert error.status == 5 and "24 checkpoints of" in str(error) and "2 MiB are free" in str(error)
    assert not (tmp_path / "output").exists()


def test_check_says_what_a_run_needs_and_writes_nothing(write_config, tmp_path, capsys):
    run("--cfg", write_config(), "--check")
    out = capsys.readouterr().out
    for part in (
        "60 training and 29 validation images, 3 classes",
        "one micro-batch:",
        "checkpoints:",
        "MiB free",
        "estimated time: ",
        "all checks passed",
    ):
        assert part in out
    assert not (tmp_path / "output").exists()


def test_check_of_a_run_under_way(write_config, tmp_path, capsys):
    path = write_config()
    run("--cfg", path)
    folder = tmp_path / RUNS / "default"
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    run("--cfg", path, "--check", "--opts", "TRAIN.EPOCHS", 3)
    assert "resumed from" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_the_preflight_changes_no_bit(write_config, tmp_path, monkeypatch):
    import engine.training.start

    path = write_config(AMP={"DTYPE": "float16"})
    original, found = engine.training.start.rehearse, {}

    def watched(trainer, optimizer_of):
        before = torch.get_rng_state(), random.getstate()
        found["findings"] = original(trainer, optimizer_of)
        assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
        return found["findings"]

    monkeypatch.setattr(engine.training.start, "rehearse", watched)
    run("--cfg", path, "--tag", "with")
    monkeypatch.setattr(engine.training.start, "rehearse", lambda *args: found["findings"])
    run("--cfg", path, "--tag", "without")
    assert_same_run(tmp_path / RUNS / "with", tmp_path / RUNS / "without")


def test_a_step_that_cannot_be_done_is_found_before_the_first(write_config, tmp_path, monkeypatch):
    original = Classification.loss
    monkeypatch.setattr(
        Classification,
        "loss",
        lambda self, model, batch: original(self, model, batch._replace(targets=batch.targets[:3])),
    )
    error = error_of("--cfg", write_config())
    assert error.status == 2 and "a training step fails" in str(error) and not (tmp_path / "output").exists()


def test_deterministic_algorithms(write_config):
    try:
        run("--cfg", write_config(DETERMINISTIC=True, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
