"""Faults: kills, signals, damaged checkpoints, full disks, lost processes, numbers that are not finite."""

import functools
import hashlib
import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import time
import types
from pathlib import Path

import pytest
import torch

import fault_test
import main as cli
from conftest import (
    Job,
    Stop,
    assert_same,
    assert_same_run,
    config_writer,
    error_of,
    free_port,
    history,
    load,
    rest,
    run,
    stop_at_update,
    watch,
)
from data.workers import Lines
from engine.checkpoints.parts import read_with_parts
from engine.checkpoints.progress import OpenWindow, Progress, Window
from engine.checkpoints.store import Checkpointer
from engine.evaluation.evaluators import ClassEvaluator
from engine.setup.precision import NativePrecision
from engine.tasks.classification import Classification
from engine.training import saver
from launcher import on_this_machine, torchrun
from utils import ending
from utils.errors import NonFiniteError, Stopped
from utils.files import remove_unfinished
from utils.lock import RunLock
from utils.processes.launch import Launch
from utils.processes.members import when_started

RUNS = "output/fat_tiny"


@pytest.fixture(scope="module")
def three_epochs(tmp_path_factory, digits):
    """A config with three epochs of seven updates, saved after each; its runs: "whole", and "kept", cut off at update 10."""
    folder = tmp_path_factory.mktemp("three_epochs")
    path = config_writer(folder, digits)(PRINT_FREQ=3, TRAIN={"EPOCHS": 3, "SAVE_EVERY_STEPS": 1})
    run("--cfg", path, "--tag", "whole")
    cut(path, "cut", 10)
    (folder / RUNS / "cut").rename(folder / RUNS / "kept")
    return path, folder / RUNS


@pytest.fixture
def cut_off(three_epochs):
    """Arguments that go on with the run that was cut off, its folder as it was then, and the whole run's."""
    path, runs = three_epochs
    shutil.rmtree(runs / "cut", ignore_errors=True)
    shutil.copytree(runs / "kept", runs / "cut")
    return ["--cfg", path, "--tag", "cut"], runs / "cut", runs / "whole"


# Kills


def test_the_fault_script_compares_every_bit_in_any_memory_layout():
    def digest(*tensors):
        found = hashlib.sha256()
        fault_test.feed({"a": list(tensors), "b": 1.5}, found)
        return found.hexdigest()

    weights = [
        torch.randn(8, 1, 5, 5),
        torch.randn(8, 4, 3, 3),
        torch.randn(4, 16, 1, 1),
        torch.tensor(3),
        torch.zeros(0),
    ]
    laid_out = [w.to(memory_format=torch.channels_last) if w.ndim == 4 else w for w in weights]
    assert digest(*laid_out) == digest(*weights)
    laid_out[1][7, 3, 2, 2] = torch.nextafter(laid_out[1][7, 3, 2, 2], torch.tensor(9.0))
    assert digest(*laid_out) != digest(*weights)


@pytest.mark.parametrize("world_size, options", [
    rest(1, ["DATA.NUM_WORKERS", 0]),
    rest(1, ["DATA.NUM_WORKERS", 2, "AMP.DTYPE", "bfloat16", "TRAIN.ACCUMULATION_STEPS", 2]),
    (2, ["DATA.NUM_WORKERS", 2, "TRAIN.ACCUMULATION_STEPS", 2]),
    rest(2, ["DATA.NUM_WORKERS", 0, "AMP.DTYPE", "bfloat16"]),
])  # fmt: skip
def test_killed_at_any_moment(write_config, tmp_path, world_size, options):
    """Three kills of the job or of one of its processes; weights, average, optimizer, random numbers, history: the same bits."""
    path = write_config(
        PRINT_FREQ=3, TRAIN={"EPOCHS": 6, "SAVE_EVERY_STEPS": 2}, DATA={"BATCH_SIZE": 4}, MODEL={"DROP_RATE": 0.1}
    )
    command = ["--cfg", path, "--opts", *options, "--tag"]
    whole, killed = (tmp_path / RUNS / tag for tag in ("whole", "killed"))
    assert Job(*command, "whole", world_size=world_size).wait() == [0] * world_size
    delays = random.Random(world_size)
    for kill in range(3):
        job = Job(*command, "killed", world_size=world_size)
        start = position_of(killed)
        if kill:
            job.until(lambda: position_of(killed) > start)
        time.sleep(delays.uniform(0, 0.3))
        if kill and world_size > 1 and delays.random() < 0.7:
            job.send(signal.SIGKILL, rank=delays.randrange(2))
            job.wait(15)  # the other one ends by itself
        else:
            job.kill()
        assert position_of(killed) < 6 * 60 // (4 * world_size), "the run ended before it was killed often enough"
    assert Job(*command, "killed", world_size=world_size).wait() == [0] * world_size
    assert_same_run(whole, killed)


@pytest.mark.parametrize("kills", [8, rest(20)])
def test_killed_inside_a_save(write_config, tmp_path, kills):
    """Kills at random moments after a save has begun: always resumed, the same end, nothing left over."""
    path = write_config(PRINT_FREQ=3, TRAIN={"EPOCHS": kills // 2, "SAVE_EVERY_STEPS": 1})
    whole, killed = (tmp_path / RUNS / tag for tag in ("whole", "killed"))
    run("--cfg", path, "--tag", "whole")
    delays = random.Random(0)
    for _ in range(kills):
        hit = functools.partial(kill_in_save, delays.randrange(2, 4), delays.uniform(1e-4, 0.02))
        assert Job("--cfg", path, "--tag", "killed", prepare=hit).wait() == [128 + signal.SIGALRM]
        assert any((killed / name).exists() for name in ("last.pth", "previous.pth"))
        for path_ in killed.glob("*.pth"):
            load(path_)
    Job("--cfg", path, "--tag", "killed").wait()
    assert_same_run(whole, killed)
    assert not list(killed.glob(".*.tmp"))


def kill_in_save(number, delay):
    """The kernel ends this process `delay` seconds after its save of this number has begun: SIGALRM, which nothing handles."""
    saves, save = itertools.count(1), Checkpointer.save

    def timed(self, *names):
        if next(saves) == number:
            signal.setitimer(signal.ITIMER_REAL, delay)
        save(self, *names)

    Checkpointer.save = timed


def position_of(folder) -> int:
    """Updates that the last checkpoint holds."""
    try:
        progress = torch.load(folder / "last.pth", weights_only=True)["progress"]
        return progress["updates"]
    except Exception:
        return 0


def test_unfinished_files_are_removed_and_others_are_not(tmp_path):
    for name in (".last.pth.123.tmp", ".config.yaml.9.tmp", ".mine.tmp", "x.tmp", ".lock"):
        (tmp_path / name).write_text("")
    assert sorted(remove_unfinished(tmp_path)) == [".config.yaml.9.tmp", ".last.pth.123.tmp"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", ".mine.tmp", "x.tmp"]


# Damaged checkpoints


def cut(path, tag, update):
    """A run that is cut off at an update, as by a kill."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at_update(patch, update)
        with pytest.raises(Stop):
            run("--cfg", path, "--tag", tag)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "bit":
        content[len(content) // 2] ^= 4
    else:
        content = b""
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "bit", "empty"])
def test_the_previous_checkpoint_takes_over_from_a_damaged_one(cut_off, capsys, how):
    argv, folder, whole = cut_off
    assert [load(folder / name)["progress"]["updates"] for name in ("previous.pth", "last.pth")] == [9, 10]
    damage(folder / "last.pth", how)
    bad = (folder / "last.pth").read_bytes()
    capsys.readouterr()
    run(*argv)
    out = capsys.readouterr().out
    what = "is empty" if how == "empty" else "is damaged"
    assert f"warning: {folder / 'last.pth'}: {what}" in out and f"Going on from {folder / 'previous.pth'}" in out
    assert what in (folder / "log.txt").read_text()
    assert (folder / "last.pth.damaged").read_bytes() == bad  # kept, and out of the way of the good ones
    assert_same_run(whole, folder)


def test_a_missing_last_checkpoint_is_the_moment_between_two_renames(cut_off):
    argv, folder, whole = cut_off
    (folder / "last.pth").unlink()
    run(*argv)
    assert_same_run(whole, folder)


def test_older_checkpoints_are_used_when_both_newest_are_damaged(cut_off, capsys):
    argv, folder, whole = cut_off
    for name in ("last.pth", "previous.pth"):
        damage(folder / name, "truncated")
    run(*argv)
    assert f"resumed from {folder / 'best.pth'}: epoch 1, update 0" in capsys.readouterr().out
    assert_same_run(whole, folder)


def test_only_damaged_checkpoints_are_never_a_silent_restart(cut_off, tmp_path):
    argv, folder, _ = cut_off
    for name in ("last.pth", "previous.pth", "best.pth"):
        damage(folder / name, "bit")
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.rglob("*")}
    for more in ([], ["--resume", tmp_path / "other.pth"]):
        error = error_of(*argv, *more)
        assert (
            error.status == 3
            and "none of the run's checkpoints can be read (last.pth, previous.pth, best.pth)" in str(error)
        )
    assert {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.rglob("*")} == before


TAMPERED = {
    "plan is a list": lambda c: c.update(plan=[]),
    "plan lacks counts": lambda c: c.update(plan={"num_images": 60}),
    "plan has a zero": lambda c: c["plan"].update(total_batch_size=0),
    "plan has a text": lambda c: c["plan"].update(updates_per_epoch="3"),
    "classes are a number": lambda c: c.update(classes=5),
    "classes are numbers": lambda c: c.update(classes=[1, 2, 3]),
    "step beyond the epoch": lambda c: c["progress"].update(step=10**6),
    "updates beyond counting": lambda c: c["progress"].update(updates=2**70),
    "rolled back to nowhere": lambda c: c["progress"].update(rolled_back=[[1]]),
    "one count of left-out updates": lambda c: c["progress"].update(left_out=[1]),
    "best is of nothing": lambda c: c["progress"].update(best={"foo": 1}),
    "best is NaN": lambda c: c["progress"].update(best={"acc1": math.nan, "weights": "raw", "epoch": 0}),
    "best has no weights": lambda c: c["progress"].update(best={"acc1": 3.0}),
    "moments of one parameter": lambda c: c["optimizer"].update(state={5: c["optimizer"]["state"][5]}),
    "moments of another shape": lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    "a moment is missing": lambda c: c["optimizer"]["state"][0].pop("exp_avg"),
    "complex weights": lambda c: c["model"].update({"head.weight": c["model"]["head.weight"].to(torch.complex64)}),
    "sparse weights": lambda c: c["model"].update({"head.weight": c["model"]["head.weight"].to_sparse()}),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_tampered_checkpoints_are_one_line_before_anything_is_written(cut_off, what):
    """Whole files with right checksums and odd content."""
    argv, folder, _ = cut_off
    content = load(folder / "last.pth")
    TAMPERED[what](content)
    torch.save(content, folder / "last.pth")
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    error = error_of(*argv)
    assert error.status == 3, error
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_odd_things_in_the_folder_stop_nothing(cut_off):
    argv, folder, _ = cut_off
    (folder / "epoch_1.pth").symlink_to("/nonexistent")
    (folder / ".last.pth.12.tmp").mkdir()
    (folder / "last.pth.damaged").mkdir()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("[" * 200_000 + "\n")
    damage(folder / "last.pth", "bit")
    shutil.copy(folder / "best.pth", folder / "previous.pth")
    run(*argv)
    assert load(folder / "last.pth")["progress"]["epoch"] == 3 and (folder / "last.pth.damaged1").is_file()


# Signals


@pytest.mark.parametrize("number, world_size, workers", [
    rest(signal.SIGTERM, 1, 2), (signal.SIGUSR1, 1, 0), (signal.SIGTERM, 2, 2), rest(signal.SIGUSR1, 2, 0), (signal.SIGINT, 1, 2),
])  # fmt: skip
def test_a_signal_in_training_saves_and_ends(write_config, tmp_path, number, world_size, workers):
    """It goes to all processes, as a scheduler sends it, workers included; then again, while the first is obeyed."""
    path = write_config(
        PRINT_FREQ=4,
        TRAIN={"EPOCHS": 40, "WARMUP_EPOCHS": 0},
        DATA={"BATCH_SIZE": 4, "NUM_WORKERS": workers},
        AMP={"DTYPE": "bfloat16"},
    )
    job = Job("--cfg", path, "--tag", "stopped", world_size=world_size)
    job.until(job.said("epoch 1 [4/"))
    job.send(number)
    job.send(number if number != signal.SIGINT else signal.SIGTERM)  # a second Ctrl-C means at once
    assert job.wait(60) == [143] * world_size
    text = job.text()
    assert "epoch 39" not in text  # the last one
    # Two threads of the process can take two signals, the second one first.
    assert (
        re.search(f"stopped by ({number.name}|SIGTERM): saved at epoch", text)
        and "error" not in text
        and "Traceback" not in text
    )
    last = tmp_path / RUNS / "stopped/last.pth"
    stopped_at = load(last)["progress"]
    assert stopped_at["updates"] >= 15 // world_size + 4
    # To the end of the next epoch, against a run that nobody stopped.
    epochs = ["--opts", "TRAIN.EPOCHS", 40]
    ends = stopped_at["epoch"] + 2
    for tag in ("stopped", "whole"):
        records = tmp_path / RUNS / tag / "metrics.jsonl"
        job = Job("--cfg", path, "--tag", tag, *epochs, world_size=world_size)
        job.until(lambda: records.is_file() and records.read_text().count('"kind": "epoch"') >= ends)
        job.kill()
    folders = [tmp_path / RUNS / tag for tag in ("whole", "stopped")]
    records = [[r for r in history(folder) if r["epoch"] < ends] for folder in folders]
    assert records[0] == records[1] and records[0][-1]["kind"] == "epoch"


def test_a_signal_to_one_process_stops_both_in_one_place(write_config, tmp_path):
    path = write_config(PRINT_FREQ=4, TRAIN={"EPOCHS": 40, "WARMUP_EPOCHS": 0}, DATA={"BATCH_SIZE": 4})
    job = Job("--cfg", path, world_size=2)
    job.until(job.said("epoch 0 [4/"))
    job.send(signal.SIGTERM, rank=1)
    assert job.wait(20) == [143, 143]
    progress = load(tmp_path / RUNS / "default/last.pth")["progress"]
    assert len(progress["window_loss_sums"]) == (2 if progress["window_images"] else 0)


@pytest.mark.parametrize("world_size, epoch", [rest(1, 0), (1, 1), (2, 0), rest(2, 1)])
def test_a_signal_in_evaluation(write_config, tmp_path, monkeypatch, world_size, epoch):
    """The epoch's training is kept; the evaluation is done again. One process gets the signal, both stop soon."""
    path = write_config(DATA={"BATCH_SIZE": 2}, PRINT_FREQ=100)
    Job("--cfg", path, "--tag", "whole", world_size=world_size).wait()
    original = ClassEvaluator.step
    mark = tmp_path / "evaluating"

    def slow(self, *args):
        if os.environ.get("SLOW") == str(place.get("epoch")):
            with open(mark, "a") as file:
                file.write("batch\n")
            time.sleep(1)
        return original(self, *args)

    place = {}
    watch(monkeypatch, before_update=lambda trainer, step: place.update(epoch=trainer.progress.epoch))
    monkeypatch.setattr(ClassEvaluator, "step", slow)
    folder = tmp_path / RUNS / "stopped"
    job = Job("--cfg", path, "--tag", "stopped", world_size=world_size, environment={"SLOW": str(epoch)})
    job.until(mark.exists)
    job.send(signal.SIGTERM, rank=0)
    job.send(signal.SIGTERM, rank=0)
    assert job.wait(60) == [143] * world_size
    assert mark.read_text().count("batch") < 8  # of the 15 or 16 of all processes, and as many again of the average
    progress = load(folder / "last.pth")["progress"]
    assert (progress["epoch"], progress["step"]) == (epoch, 60 // (2 * world_size))
    Job("--cfg", path, "--tag", "stopped", world_size=world_size).wait()
    assert_same_run(folder.with_name("whole"), folder)


def test_a_signal_in_the_last_update_of_the_run(write_config, tmp_path, monkeypatch):
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    run("--cfg", path, "--tag", "whole")

    def stopping(trainer, step):
        if step == 6:
            trainer.session.peers.stop.make("a test")

    watch(monkeypatch, before_update=stopping)
    with pytest.raises(Stopped):
        run("--cfg", path, "--tag", "stopped")
    monkeypatch.undo()
    run("--cfg", path, "--tag", "stopped")
    assert_same_run(tmp_path / RUNS / "whole", tmp_path / RUNS / "stopped")


def test_saving_by_the_clock_changes_nothing(write_config, tmp_path):
    path = write_config(PRINT_FREQ=3, TRAIN={"EPOCHS": 2})
    run("--cfg", path, "--tag", "whole")
    often = ["--opts", "TRAIN.SAVE_EVERY_MINUTES", 1e-6]
    folder = tmp_path / RUNS / "clock"
    job = Job("--cfg", path, "--tag", "clock", *often)
    job.until(lambda: position_of(folder) >= 4)
    job.kill()
    run("--cfg", path, "--tag", "clock", *often)
    saved = sum(1 for line in (folder / "log.txt").read_text().splitlines() if "resumed" in line)
    assert saved == 1
    checkpoints = [load(folder.with_name(tag) / "last.pth") for tag in ("whole", "clock")]
    for checkpoint in checkpoints:
        del checkpoint["config"]
    assert_same(*checkpoints)
    assert history(folder) == history(folder.with_name("whole"))


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_clock_asks_for_a_save_once(write_config, tmp_path, monkeypatch, world_size):
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "SAVE_EVERY_MINUTES": 0.5 / 60}, DATA={"BATCH_SIZE": 2})
    clock = itertools.count(step=0.2)
    now = [0.0]

    def slow(trainer, step):
        now[0] = next(clock)

    def own_clock():
        saver.time = types.SimpleNamespace(monotonic=lambda: now[0])

    def noted(trainer, names):
        with open(tmp_path / "saves", "a") as file:
            file.write(f"{trainer.progress.step}\n" if trainer.session.is_first else "")

    watch(monkeypatch, before_update=slow, before_save=noted)
    assert Job("--cfg", path, world_size=world_size, prepare=own_clock).wait() == [0] * world_size
    steps = [int(step) for step in (tmp_path / "saves").read_text().split()]
    assert len(steps) > 2 and all(b - a in (3, 4) for a, b in zip(steps, steps[1:-1]))


def test_window_sums_go_to_other_processes():
    cut = Progress(window=OpenWindow({"loss": [1.0, 2.0]}, 24))
    for launch, own in (
        (Launch(0, 2), 1.0),
        (Launch(1, 2), 2.0),
        (Launch(0, 1), 3.0),
        (Launch(0, 3), 3.0),
        (Launch(2, 3), 0.0),
    ):
        window = Window(torch.device("cpu"), cut, launch)
        assert (window.sums["loss"].item(), window.images) == (own, 24)


# Another number of processes


@pytest.mark.parametrize("first, then", [
    ((2, 4, 1), (1, 8, 1)), rest((1, 8, 1), (2, 4, 1)), rest((2, 4, 1), (1, 4, 2)), ((2, 4, 1), (1, 4, 1)), ((1, 4, 2), (2, 4, 2)),
])  # fmt: skip
def test_another_number_of_processes_goes_on_with_the_next_image(write_config, tmp_path, monkeypatch, first, then):
    """(processes, batch, accumulated): every image of the epoch once, before and after the change together."""
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "SAVE_EVERY_STEPS": 4}, PRINT_FREQ=1)
    seen = tmp_path / "seen"

    def noted(trainer, step):
        if os.environ.get("CUT") == str(trainer.progress.updates):
            while not (tmp_path / RUNS / "default/last.pth").exists():  # rank 0 would end in the middle of its save
                time.sleep(0.01)
            os._exit(9)
        images = trainer.data.images_of(trainer.progress.epoch, step)
        with open(seen, "a") as file:
            file.writelines(f"{i['image']}\n" for i in images if i["rank"] == trainer.session.launch.rank)

    watch(monkeypatch, before_update=noted)
    flags = lambda plan: ["--batch-size", plan[1], "--accumulation-steps", plan[2]]  # noqa: E731
    Job("--cfg", path, *flags(first), world_size=first[0], environment={"CUT": "4"}).wait()
    assert load(tmp_path / RUNS / "default/last.pth")["progress"]["step"] == 4
    job = Job("--cfg", path, *flags(then), world_size=then[0])
    assert job.wait() == [0] * then[0], job.text()
    images = seen.read_text().split()
    total = then[0] * then[1]
    assert len(images) == len(set(images)) == 60 // total * total
    if math.prod(first) != math.prod(then):
        assert f"total batch size changed from {math.prod(first)} to {math.prod(then)}" in job.text()


def test_other_images_are_refused_within_an_epoch_and_said_between_epochs(write_config, tmp_path, digits, capsys):
    shutil.copytree(digits, tmp_path / "other")
    victim = next((tmp_path / "other/train/0").iterdir())
    victim.rename(victim.with_name("renamed.png"))  # as many, in another order
    path = write_config(TRAIN={"SAVE_EVERY_STEPS": 2})
    cut(path, "default", 3)
    error = error_of("--cfg", path, "--data-path", tmp_path / "other")
    assert error.status == 2 and "is from within epoch 0, with images" in str(error)
    run("--cfg", path)
    run("--cfg", path, "--data-path", tmp_path / "other", "--opts", "TRAIN.EPOCHS", 3)
    assert "since that checkpoint images changed from" in capsys.readouterr().out


# Best


def test_the_best_checkpoint_has_the_metric_that_it_says(write_config, tmp_path):
    run("--cfg", write_config(TRAIN={"EPOCHS": 4, "BASE_LR": 0.1}))
    best = tmp_path / RUNS / "default/best.pth"
    stored = load(best)["progress"]["best"]
    run("--cfg", write_config(), "--eval", "--resume", best, "--tag", "eval")
    measured = json.loads((tmp_path / RUNS / "eval/eval.json").read_text())
    assert (
        measured[stored["weights"]]["acc1"] == stored["acc1"] and load(best)["progress"]["epoch"] == stored["epoch"] + 1
    )
    epochs = [r for r in history(best.parent) if r["kind"] == "epoch"]
    assert stored["acc1"] == max(r[w]["acc1"] for r in epochs for w in ("raw", "ema"))


# Numbers that are not finite


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


# Disk


@pytest.mark.parametrize("limit", ["checkpoint", "log"])
def test_a_full_disk(cut_off, limit):
    """No file may grow beyond a size, as with `ulimit -f`: exit 5, the checkpoints as they were, whole lines in the logs."""
    argv, folder, _ = cut_off
    before = {name: (folder / name).read_bytes() for name in ("last.pth", "previous.pth", "best.pth")}
    if limit == "log":
        with open(folder / "log.txt", "ab") as file:
            file.write(b"x" * 10_000_000 + b"\n")
    size = 10_000_100 if limit == "log" else len(before["last.pth"]) - 1000
    job = Job(
        *argv, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )  # fmt: skip
    assert job.wait() == [5], job.text()
    said = job.text()
    assert said.splitlines()[-1].startswith(
        f"error: {folder}/{'log.txt' if limit == 'log' else 'last.pth'}: cannot be written (File too large)"
    )
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert not list(folder.glob(".*.tmp")) and (folder / "log.txt").read_bytes().endswith(b"\n")
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    run(*argv)
    assert load(folder / "last.pth")["progress"]["epoch"] == 3


def test_no_room_for_the_checkpoints_is_found_before_the_first_step(write_config, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 2 * 2**20})
    monkeypatch.setattr("engine.training.preflight.shutil.disk_usage", lambda path: usage)
    error = error_of("--cfg", write_config(SAVE_FREQ=1, TRAIN={"EPOCHS": 20}))
    assert error.status == 5 and "24 checkpoints of" in str(error) and "2 MiB are free" in str(error)
    assert not (tmp_path / "output").exists()


# Two runs, one folder


def test_a_folder_in_use_is_refused_and_a_stale_lock_is_not(write_config, tmp_path):
    path = write_config(TRAIN={"EPOCHS": 40, "WARMUP_EPOCHS": 0}, DATA={"NUM_WORKERS": 2})
    first = Job("--cfg", path)
    first.until(first.said("epoch 0 done"))
    second = Job("--cfg", path)
    assert second.wait() == [5]
    said = second.text().splitlines()[-1]
    holder = json.loads((tmp_path / RUNS / "default/.lock").read_text())
    assert holder["pid"] == first.pids[0]
    assert said.startswith(
        f"error: {tmp_path / RUNS / 'default'}: is in use by process {first.pids[0]} on {holder['host']} since {holder['since']}"
    )
    first.kill()
    third = Job("--cfg", path)
    third.until(third.said("resumed from"))
    third.kill()


def test_a_folder_that_another_run_wrote_to_meanwhile(write_config, tmp_path, monkeypatch):
    path = write_config(TRAIN={"EPOCHS": 2})
    run("--cfg", path)
    last = tmp_path / RUNS / "default/last.pth"
    original = RunLock.acquire
    monkeypatch.setattr(RunLock, "acquire", lambda self: (original(self), os.utime(last))[0])
    assert "another run has just written to it" in str(error_of("--cfg", path, "--opts", "TRAIN.EPOCHS", 3))
    new = tmp_path / RUNS / "new"
    monkeypatch.setattr(RunLock, "acquire", lambda self: (original(self), shutil.copy(last, new))[0])
    assert "another run has just written to it" in str(error_of("--cfg", path, "--tag", "new"))
    assert (new / "last.pth").read_bytes() == last.read_bytes()


# Lost processes

SOONER = 40  # seconds, a slow machine's too, but less than the default RANK_TIMEOUT of 60


def training_job(write_config, world_size=2, **settings):
    path = write_config(
        TRAIN={"EPOCHS": 200, "WARMUP_EPOCHS": 0, "SAVE_EVERY_STEPS": 1}, DATA={"BATCH_SIZE": 4}, **settings
    )
    job = Job("--cfg", path, world_size=world_size)
    job.until(job.said("epoch 0 [4/"))
    return job


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_others_and_is_named(write_config, lost):
    job = training_job(write_config)
    job.send(signal.SIGKILL, rank=lost)
    statuses = job.wait(SOONER)
    assert statuses[1 - lost] == 5
    assert f"error: rank {lost} (process {job.pids[lost]} on " in job.text() and "Traceback" not in job.text()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_stopped_process_ends_the_others_after_the_timeout_and_is_named(write_config, lost):
    job = training_job(write_config, RANK_TIMEOUT=4)
    started = time.monotonic()
    job.send(signal.SIGSTOP, rank=lost)
    statuses = job.wait(SOONER)
    assert 3 < time.monotonic() - started and statuses[1 - lost] == 5
    text = job.text()
    assert f"error: rank {lost} (process {job.pids[lost]} on " in text and "Traceback" not in text


def test_a_killed_process_is_found_by_others_that_hang(write_config, monkeypatch):
    """As in a collective operation of NCCL, which does not fail; the default timeout is 60 s. All name the same one."""

    def hanging(trainer, step):
        if trainer.progress.updates == 2:
            print("hangs", flush=True)
            time.sleep(120)

    watch(monkeypatch, before_update=hanging)
    job = Job("--cfg", write_config(DATA={"BATCH_SIZE": 4}), world_size=3)
    job.until(lambda: job.text().count("hangs") == 3)
    job.send(signal.SIGKILL, rank=2)
    assert job.wait(SOONER) == [5, 5, 137]
    assert f"error: rank 2 (process {job.pids[2]} on " in job.text() and "error: rank 0" not in job.text()


@pytest.mark.parametrize("moment", ["as they start", "as they wait"])
def test_loading_processes_end_with_theirs(write_config, monkeypatch, moment):
    """They hold its connections: the other processes would take a killed one for a silent one."""
    prepare_worker = Lines.prepare_worker

    def slowly(lines, worker):
        time.sleep(1 if moment == "as they start" else 0)
        prepare_worker(lines, worker)
        print("ready", flush=True)

    monkeypatch.setattr(Lines, "prepare_worker", slowly)
    job = Job("--cfg", write_config(DATA={"NUM_WORKERS": 2}, TRAIN={"EPOCHS": 200, "WARMUP_EPOCHS": 0}))
    children = Path(f"/proc/{job.pids[0]}/task/{job.pids[0]}/children")
    job.until(
        lambda: len(children.read_text().split()) >= 2 and (moment == "as they start" or job.text().count("ready") >= 2)
    )
    workers = children.read_text().split()
    job.send(signal.SIGKILL, rank=0)
    assert job.wait() == [137]
    job.until(lambda: not any(when_started(int(worker)) for worker in workers), timeout=3)


def with_a_launcher_that_ends(seconds=4):
    """Goes on in a child process, whose parent is taken for the launcher and soon ends."""
    if os.fork():
        time.sleep(seconds)
        os._exit(0)
    ending.LAUNCHER = os.getppid()


def test_processes_end_that_wait_for_a_launcher_which_was_killed(write_config, tmp_path, monkeypatch):
    """Killed before all have met: rank 1 of two, alone, would wait for minutes."""
    ended = tmp_path / "ended"
    monkeypatch.setattr(
        "utils.processes.group.os._exit", lambda status, leave=os._exit: (ended.write_text(str(status)), leave(status))
    )
    environment = {
        "TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    Job("--cfg", write_config(), environment=environment, prepare=lambda: with_a_launcher_that_ends(1)).wait()
    deadline = time.monotonic() + 20
    while not (ended.exists() and ended.read_text() == "143") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ended.read_text() == "143"


def test_an_evaluation_whose_launcher_was_killed(write_config, tmp_path, monkeypatch):
    """The parent process is the launcher: here one that ends at once."""
    run("--cfg", write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}))
    original = ClassEvaluator.step
    monkeypatch.setattr(ClassEvaluator, "step", lambda self, *args: (time.sleep(1), original(self, *args)))
    status = tmp_path / "status"

    monkeypatch.setattr("utils.ending.leave", lambda code: (status.write_text(str(code)), os._exit(code)))
    Job(
        "--eval", "--resume", tmp_path / RUNS / "default/last.pth", "--cfg", write_config(DATA={"BATCH_SIZE": 2}),
        environment={"TORCHELASTIC_RUN_ID": "x"}, prepare=with_a_launcher_that_ends,
    ).wait()  # fmt: skip
    deadline = time.monotonic() + 20
    while not status.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert status.read_text() == "143"


def test_a_failure_at_the_very_end_is_said_once(write_config, monkeypatch):
    from utils.errors import OutputError
    from utils.run_log import RunLog

    def failing(self):
        if self.enabled:
            raise OutputError("log.txt: cannot be written; free space")

    monkeypatch.setattr(RunLog, "close", failing)
    job = Job("--cfg", write_config(DATA={"BATCH_SIZE": 4}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}), world_size=2)
    assert job.wait(30) == [5, 5] and "Traceback" not in job.text()


def test_the_status_is_right_where_nothing_can_be_said(write_config):
    def mute():
        for number in (1, 2):
            os.dup2(os.open("/dev/full", os.O_WRONLY), number)

    assert Job("--cfg", write_config(), "--data-path", "nowhere", prepare=mute).wait() == [2]


def test_three_processes_one_lost(write_config):
    job = training_job(write_config, world_size=3)
    job.send(signal.SIGKILL, rank=2)
    statuses = job.wait(15)
    assert statuses[2] == 137 and statuses[0] == 5 and f"error: rank 2 (process {job.pids[2]} on " in job.text()


def test_an_error_of_one_process_is_said_once(write_config, monkeypatch):
    from utils.errors import DataError

    def failing(trainer, step):
        if trainer.session.launch.rank == 1 and trainer.progress.updates == 3:
            raise DataError("x.png: cannot be read; replace it")

    watch(monkeypatch, before_update=failing)
    job = Job("--cfg", write_config(DATA={"BATCH_SIZE": 4}), world_size=2)
    job.until(job.said("error: x.png"))
    time.sleep(1)
    job.send(signal.SIGTERM, rank=0)  # as the launcher does then
    statuses = job.wait(30)
    assert statuses[1] == 2 and job.text().count("error: ") == 1 and "Traceback" not in job.text(), job.text()


def test_processes_whose_launcher_was_killed_save_and_end(write_config, tmp_path):
    """The launcher's own processes: nobody else would end them, and they hold the run's folder. Each writes a part of the save."""
    path = write_config(TRAIN={"EPOCHS": 400, "WARMUP_EPOCHS": 0, "SHARD": "optimizer"}, DATA={"BATCH_SIZE": 4})
    folder = tmp_path / RUNS / "default"
    launcher = torchrun(lambda: cli.run_and_leave(["--cfg", str(path)]), *on_this_machine(2))
    (agent,) = launcher.pids
    launcher.until((folder / "last.pth").exists)
    ranks = [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]
    launcher.kill()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ranks and not any(os.path.exists(f"/proc/{pid}") for pid in ranks)
    assert "stopped by the launcher's end: saved at epoch" in (folder / "log.txt").read_text(), launcher.text()
    last = (folder / "log.txt").read_text().splitlines()[-1]
    progress = read_with_parts(folder / "last.pth")["progress"]
    assert f"epoch {progress['epoch']}, update {progress['step']}" in last


def test_a_killed_loading_process_is_one_line(write_config):
    path = write_config(TRAIN={"EPOCHS": 200, "WARMUP_EPOCHS": 0}, DATA={"NUM_WORKERS": 2})
    job = Job("--cfg", path)
    job.until(job.said("epoch 0 [4/"))
    with open(f"/proc/{job.pids[0]}/task/{job.pids[0]}/children") as children:
        os.kill(int(children.read().split()[0]), signal.SIGKILL)
    assert job.wait(60) == [2], job.text()
    assert "error: DATA.NUM_WORKERS is 2: a loading process was killed" in job.text()
    assert "Traceback" not in job.text()


def test_starting_over_puts_the_old_checkpoints_away(write_config, tmp_path):
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    run("--cfg", path)
    folder = tmp_path / RUNS / "default"
    before = {file.name: file.read_bytes() for file in folder.glob("*.pth")}
    run("--cfg", path, "--opts", "TRAIN.AUTO_RESUME", "False", "SEED", 5)
    (away,) = folder.glob("replaced_*")
    assert {file.name: file.read_bytes() for file in away.glob("*.pth")} == before
    assert len((away / "metrics.jsonl").read_text().splitlines()) == 9 and (away / "config.yaml").exists()
    assert load(folder / "last.pth")["progress"]["updates"] == 7


# Before the first step


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
