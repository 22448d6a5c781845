"""Losses, gradients and weights that are not finite: ends, updates left out, and rollbacks."""

import json
import math
import os

import pytest

from conftest import (
    Job,
    Stop,
    assert_same,
    error_of,
    history,
    load,
    rest,
    run,
    stop_at_update,
    watch,
)
from engine.setup.precision import NativePrecision
from engine.tasks.classification import Classification
from utils.errors import NonFiniteError

RUNS = "output/fat_tiny"


def poison(monkeypatch, places, what, rank=0):
    """Makes the loss, the gradient alone, or the loss alone ('value') of these (epoch, step) not finite on one process."""
    place = {}
    loss = Classification.loss

    def poisoned(self, model, batch):
        losses = loss(self, model, batch)
        if place.get("now") not in places or os.environ.get("RANK", "0") != str(rank):
            return losses
        if what == "value":
            return {"loss": losses["loss"] + math.nan}
        if what == "loss":  # through the whole model, BatchNorm's statistics included
            return loss(self, model, batch._replace(images=batch.images * math.nan))
        nothing = (next(model.parameters()).sum() * 0).sqrt()  # 0, whose gradient is inf * 0
        return {"loss": losses["loss"] + nothing}

    watch(
        monkeypatch,
        before_update=lambda trainer, step: place.update(now=(trainer.progress.epoch, step)),
        after_update=lambda trainer, step: place.update(now=None),
    )
    monkeypatch.setattr(Classification, "loss", poisoned)


@pytest.mark.parametrize("what, print_freq", [("loss", 1), ("gradient", 100), rest("loss", 100), rest("gradient", 1)])
def test_not_finite_raise(write_config, tmp_path, monkeypatch, what, print_freq):
    path = write_config(TRAIN={"EPOCHS": 2, "SAVE_EVERY_STEPS": 2}, PRINT_FREQ=print_freq)
    poison(monkeypatch, {(1, 4)}, what)
    error = error_of("--cfg", path)
    assert error.status == 4 and f"epoch 1, update 5: the {what} is not finite" in str(error)
    folder = tmp_path / RUNS / "default"
    checkpoint = load(folder / "last.pth")
    assert checkpoint["progress"]["step"] == 4 and all(v.isfinite().all() for v in checkpoint["model"].values())
    event = json.loads((folder / "nonfinite/epoch_1_update_5.json").read_text())
    assert str(folder / "nonfinite/epoch_1_update_5.json") in str(error)
    assert len(event["images"]) == 8 and all(os.path.exists(image["image"]) for image in event["images"])
    before = (folder / "last.pth").read_bytes()
    assert error_of("--cfg", path).status == 4  # again from the checkpoint: the same update
    assert (folder / "last.pth").read_bytes() == before


@pytest.mark.parametrize("policy, what", [
    ("raise", "value"), ("rollback", "gradient"), rest("raise", "gradient"), rest("rollback", "value"),
])  # fmt: skip
def test_not_finite_on_one_process_ends_or_rolls_back_both(write_config, tmp_path, monkeypatch, policy, what):
    shard = (
        "optimizer" if policy == "rollback" else "none"
    )  # whose state lies in parts then, empty before the first update
    path = write_config(
        TRAIN={"EPOCHS": 2, "SAVE_EVERY_STEPS": 2, "NONFINITE": policy, "SHARD": shard},
        DATA={"BATCH_SIZE": 4},
        PRINT_FREQ=3,
    )
    poison(monkeypatch, {(1, 4)}, what, rank=1)
    job = Job("--cfg", path, world_size=2)
    assert job.wait() == ([4, 4] if policy == "raise" else [0, 0]), job.text()
    assert "epoch 1, update 5: the" in job.text()
    progress = load(tmp_path / RUNS / "default/last.pth")["progress"]
    assert (progress["epoch"], progress["rolled_back"]) == ((1, []) if policy == "raise" else (2, [[1, 4]]))


@pytest.mark.parametrize("world_size, what", [
    (1, "loss"), (2, "gradient"), (1, "value"), rest(2, "loss"), rest(1, "gradient"), rest(2, "value"),
])  # fmt: skip
def test_not_finite_skip(write_config, tmp_path, monkeypatch, what, world_size):
    """The update leaves no trace: the same end as if its step had not been taken."""
    path = write_config(TRAIN={"EPOCHS": 2, "NONFINITE": "skip"}, DATA={"BATCH_SIZE": 8 // world_size})
    poison(monkeypatch, {(0, 2), (1, 4)}, what, rank=world_size - 1)
    job = Job("--cfg", path, "--tag", "skipped", world_size=world_size)
    assert job.wait() == [0] * world_size, job.text()
    assert "left out 2" in job.text()
    folder = tmp_path / RUNS / "skipped"
    skipped = load(folder / "last.pth")
    assert skipped["progress"]["left_out"] == [2, 0] and skipped["progress"]["updates"] == 14
    assert all(v.isfinite().all() for key in ("model", "ema") for v in skipped[key].values())
    assert [r["loss"] for r in history(folder) if r["kind"] == "train"].count(None) == 2
    assert sorted(p.name for p in (folder / "nonfinite").iterdir()) == [
        "epoch_0_update_3.json",
        "epoch_1_update_5.json",
    ]

    monkeypatch.undo()
    rejected = {(0, 2), (1, 4)}
    step_ = NativePrecision.step
    place = {}

    def before(trainer, step):
        networks = trainer.networks
        place.update(now=(trainer.progress.epoch, step), average=networks.average)
        place["buffers"] = [buffer.clone() for buffer in networks.model.buffers()]
        if place["now"] in rejected:
            networks.average = None

    def after(trainer, step):
        if place["now"] in rejected:
            trainer.networks.average = place["average"]
            for buffer, kept in zip(trainer.networks.model.buffers(), place["buffers"]):
                buffer.copy_(kept)
        place["now"] = None

    watch(monkeypatch, before_update=before, after_update=after)
    monkeypatch.setattr(
        NativePrecision, "step", lambda self, o: None if place.get("now") in rejected else step_(self, o)
    )
    assert Job("--cfg", path, "--tag", "expected", world_size=world_size).wait() == [0] * world_size
    expected = load(folder.with_name("expected") / "last.pth")
    for key in ("model", "ema", "optimizer"):
        assert_same(skipped[key], expected[key])


def test_not_finite_rollback(write_config, tmp_path, monkeypatch, capsys):
    path = write_config(TRAIN={"EPOCHS": 2, "SAVE_EVERY_STEPS": 2, "NONFINITE": "rollback"}, PRINT_FREQ=3)
    poison(monkeypatch, {(1, 4)}, "loss")
    run("--cfg", path)
    folder = tmp_path / RUNS / "default"
    out = capsys.readouterr().out
    assert f"gone back to {folder / 'last.pth'}: epoch 1, update 4; update 5 of epoch 1 will be left out" in out
    checkpoint = load(folder / "last.pth")
    assert checkpoint["progress"]["rolled_back"] == [[1, 4]] and checkpoint["progress"]["epoch"] == 2
    assert all(v.isfinite().all() for v in checkpoint["model"].values())
    updates = [r["update"] for r in history(folder) if r["kind"] == "train"]
    assert updates == sorted(set(updates))
    # the same update left out, the same end
    run("--cfg", path, "--tag", "skipped", "--opts", "TRAIN.NONFINITE", "skip")
    skipped = load(folder.with_name("skipped") / "last.pth")
    for key in ("model", "ema", "optimizer"):
        assert_same(checkpoint[key], skipped[key])


def test_rollback_of_a_run_that_began_elsewhere(write_config, tmp_path, monkeypatch):
    run("--cfg", write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}))
    poison(monkeypatch, {(1, 0)}, "loss")
    path = write_config(TRAIN={"EPOCHS": 2, "NONFINITE": "rollback"})
    run("--cfg", path, "--tag", "new", "--resume", tmp_path / RUNS / "default/last.pth")
    assert load(tmp_path / RUNS / "new/last.pth")["progress"]["rolled_back"] == [[1, 0]]


def test_rollback_over_a_change_of_the_update_s_size_goes_to_the_same_image(
    write_config, tmp_path, monkeypatch, capsys
):
    """32 images were seen in updates of 8 when the run was cut; those are two updates of 16, of which the third fails."""
    path = write_config(TRAIN={"SAVE_EVERY_STEPS": 2, "TOTAL_BATCH_SIZE": 8, "NONFINITE": "rollback"})
    undo = stop_at_update(monkeypatch, 4)
    with pytest.raises(Stop):
        run("--cfg", path)
    undo()
    poison(monkeypatch, {(0, 2)}, "loss")
    run("--cfg", path, "--opts", "TRAIN.TOTAL_BATCH_SIZE", "16")
    assert "epoch 0, update 2; update 3 of epoch 0 will be left out" in capsys.readouterr().out
    progress = load(tmp_path / RUNS / "default/last.pth")["progress"]
    assert progress["rolled_back"] == [[0, 2]] and progress["epoch"] == 2


def test_rollback_in_the_first_update_has_somewhere_to_go(write_config, tmp_path, monkeypatch):
    poison(monkeypatch, {(0, 0)}, "loss")
    run("--cfg", write_config(TRAIN={"NONFINITE": "rollback"}))
    assert load(tmp_path / RUNS / "default/last.pth")["progress"]["rolled_back"] == [[0, 0]]


def test_rollback_is_not_for_ever(write_config, monkeypatch):
    poison(monkeypatch, {(epoch, step) for epoch in range(2) for step in range(7)}, "loss")
    error = error_of("--cfg", write_config(TRAIN={"NONFINITE": "rollback"}))
    assert error.status == 4 and "has gone back 10 times" in str(error)


@pytest.mark.parametrize("options", [
    rest(["TRAIN.NONFINITE", "skip"]), ["AMP.DTYPE", "float16"], ["TRAIN.NONFINITE", "skip", "AMP.DTYPE", "float16"],
])  # fmt: skip
def test_a_run_that_only_leaves_out_updates_ends(write_config, monkeypatch, options):
    poison(monkeypatch, {(epoch, step) for epoch in range(20) for step in range(7)}, "gradient")
    error = error_of("--cfg", write_config(TRAIN={"EPOCHS": 20}), "--opts", *options)
    assert error.status == 4 and "updates in a row" in str(error)


def test_float16_skips_are_counted_shown_and_resumed(write_config, tmp_path, monkeypatch, capsys):
    path = write_config(AMP={"DTYPE": "float16"}, TRAIN={"EPOCHS": 2})
    poison(monkeypatch, {(0, 3), (0, 4)}, "gradient")
    run("--cfg", path)
    run("--cfg", path, "--opts", "TRAIN.EPOCHS", 3)
    out = capsys.readouterr().out
    count = load(tmp_path / RUNS / "default/last.pth")["progress"]["left_out"][0]
    assert count >= 2 and f"left out {count}" in out
    left_out = [r["left_out"] for r in history(tmp_path / RUNS / "default") if r["kind"] == "train"]
    assert left_out == sorted(left_out) and left_out[-1] == count


def test_not_finite_weights_of_the_validation_are_not_saved(write_config, tmp_path, monkeypatch):
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    run("--cfg", path)
    last = tmp_path / RUNS / "default/last.pth"
    before = last.read_bytes()
    watch(monkeypatch, after_evaluation=lambda trainer, results: results["raw"].update(loss=math.nan))
    error = error_of("--cfg", path, "--opts", "TRAIN.EPOCHS", 2)
    assert isinstance(error, NonFiniteError) and last.read_bytes() == before
