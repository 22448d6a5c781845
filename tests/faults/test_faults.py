"""Faults: kills, signals, damaged checkpoints, full disks, and two runs in one folder."""

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

import pytest
import torch

import fault_test
from conftest import (
    Job,
    Stop,
    assert_same,
    assert_same_run,
    config_writer,
    error_of,
    history,
    hold_at_update,
    load,
    rest,
    run,
    stop_at_update,
    watch,
)
from engine.checkpoints.progress import OpenWindow, Progress, Window
from engine.checkpoints.store import Checkpointer
from engine.evaluation.evaluators import ClassEvaluator
from engine.training import saver
from utils.errors import Stopped
from utils.files import remove_unfinished
from utils.lock import RunLock
from utils.processes.launch import Launch

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
    updates = 60 // (4 * world_size * (2 if "TRAIN.ACCUMULATION_STEPS" in options else 1))  # of an epoch
    for kill in range(3):
        job = Job(*command, "killed", world_size=world_size, prepare=hold_at_update((2 * kill + 1) * updates + 2))
        start = position_of(killed)
        if kill:
            job.until(lambda: position_of(killed) > start)
        time.sleep(delays.uniform(0, 0.1 if kill else 0.3))
        if kill and world_size > 1 and delays.random() < 0.7:
            job.send(signal.SIGKILL, rank=delays.randrange(2))
            assert sorted(job.wait()) == [5, 137]  # the other one ends by itself
        else:
            assert job.kill() == [137] * world_size
    assert Job(*command, "killed", world_size=world_size).wait() == [0] * world_size
    assert_same_run(whole, killed)


@pytest.mark.parametrize("kills", [6, rest(20)])
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


@pytest.mark.parametrize("how", [rest("truncated"), "bit", "empty"])  # truncated ones come below
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
        TRAIN={"EPOCHS": 400, "WARMUP_EPOCHS": 0},
        DATA={"BATCH_SIZE": 4, "NUM_WORKERS": workers},
    )
    job = Job("--cfg", path, "--tag", "stopped", world_size=world_size)
    job.until(job.said("epoch 1 [4/"))
    job.send(number)
    job.send(number if number != signal.SIGINT else signal.SIGTERM)  # a second Ctrl-C means at once
    assert job.wait(60) == [143] * world_size
    text = job.text()
    assert "epoch 399" not in text  # the last one
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
    ends = stopped_at["epoch"] + 2
    for tag in ("stopped", "whole"):
        records = tmp_path / RUNS / tag / "metrics.jsonl"
        job = Job("--cfg", path, "--tag", tag, world_size=world_size)
        job.until(lambda: records.is_file() and records.read_text().count('"kind": "epoch"') >= ends)
        job.kill()
    folders = [tmp_path / RUNS / tag for tag in ("whole", "stopped")]
    records = [[r for r in history(folder) if r["epoch"] < ends] for folder in folders]
    assert records[0] == records[1] and records[0][-1]["kind"] == "epoch"


def test_a_signal_to_one_process_stops_both_in_one_place(write_config, tmp_path):
    path = write_config(PRINT_FREQ=4, TRAIN={"EPOCHS": 400, "WARMUP_EPOCHS": 0}, DATA={"BATCH_SIZE": 4})
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
    job = Job("--cfg", path, "--tag", "clock", *often, prepare=hold_at_update(12))
    job.until(lambda: position_of(folder) >= 4)
    assert job.kill() == [137]
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


# Two runs, one folder


def test_a_folder_in_use_is_refused_and_a_stale_lock_is_not(write_config, tmp_path):
    path = write_config(TRAIN={"EPOCHS": 400, "WARMUP_EPOCHS": 0}, DATA={"NUM_WORKERS": 2})
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
