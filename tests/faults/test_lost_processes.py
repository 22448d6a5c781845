"""Processes, loading processes and launchers that are killed, stopped or fail: who says what, and how the others end."""

import os
import signal
import time
from pathlib import Path

import pytest

import main as cli
from conftest import (
    Job,
    free_port,
    run,
    watch,
)
from data.workers import Lines
from engine.checkpoints.parts import read_with_parts
from engine.evaluation.evaluators import ClassEvaluator
from launcher import on_this_machine, torchrun
from utils import ending
from utils.processes.members import when_started

RUNS = "output/fat_tiny"


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
