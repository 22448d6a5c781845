"""Slurm stops a run and starts it again: scripts/slurm/'s files, given to real daemons for two nodes on this machine."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT, load
from slurm_cluster import kill_node, slurm, slurmd

SMALL = ["--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield {**environment, "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}


@pytest.fixture
def path(write_config):
    return write_config(DATA={"BATCH_SIZE": 4}, TRAIN={"EPOCHS": 9, "WARMUP_EPOCHS": 0})


@pytest.mark.parametrize("status, restarts, back", [
    (0, "", False), (143, "", True), (143, "40", True), (138, "", True), (5, "", True), (5, "4", True), (5, "5", False), (2, "", False), (1, "", False),
])  # fmt: skip
def test_which_ends_put_a_job_back_into_the_queue(tmp_path, status, restarts, back):
    """The script alone, with commands in place of Slurm's."""
    for name, line in {"srun": f"exit {status}", "scontrol": f'echo "$@" > {tmp_path}/asked'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path)}
    environment |= {"SLURM_RESTART_COUNT": restarts} if restarts else {}
    ended = subprocess.run(
        ["bash", ROOT / "scripts/slurm/train.sbatch"], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == status and not ended.stderr
    assert (tmp_path / "asked").exists() == back == ("put back into the queue" in ended.stdout)
    assert not back or (tmp_path / "asked").read_text() == "requeue 7\n"


class Submitted:
    """A job by sbatch, or the one with this number, and its log."""

    def __init__(self, cluster, log: Path, *argv, number: str = ""):
        self.cluster, self.log = cluster, log
        self.number = number or self.ask("sbatch", "--parsable", f"--output={log}", *SMALL, *argv).strip()

    def ask(self, *command) -> str:
        ended = subprocess.run([*map(str, command)], cwd=ROOT, env=self.cluster, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def state(self) -> str:
        return re.search(r"JobState=(\w+)", self.ask("scontrol", "show", "job", self.number))[1]

    def until(self, condition, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or self.state() in ("FAILED", "TIMEOUT"):
                self.ask("scancel", self.number)
                pytest.fail(f"{self.state()}: {self.text()}")
            time.sleep(0.2)


@pytest.mark.only_all
@pytest.mark.parametrize("script, argv, signals", [
    ("train.sbatch", ["--cfg"], ["--signal=USR1"]),  # to the tasks
    ("train_elastic.sbatch", [], ["--signal=USR1", "--batch"]),  # to the script, as by --signal=B:USR1@180
])  # fmt: skip
def test_a_job_saves_at_a_signal_and_is_put_back_into_the_queue(cluster, path, tmp_path, script, argv, signals):
    flags = [*argv, path, *(["1"] if script == "train_elastic.sbatch" else []), "--tag", "job"]
    job = Submitted(cluster, tmp_path / "log", f"scripts/slurm/{script}", *flags)
    job.until(lambda: "epoch 0 [2/" in job.text())
    job.ask("scancel", *signals, job.number)
    job.until(lambda: job.state() == "COMPLETED")
    text = job.text()
    assert text.count("| 2 processes |") == 2, text
    (saved,) = re.findall(r"warning: stopped by SIG\w+: saved at (epoch \d, update \d)", text)
    assert f"job {job.number}: stopped by a signal" in text and "put back into the queue" in text, text
    assert f"last.pth: {saved}" in text and "finished: best " in text, text
    assert load(tmp_path / "output/fat_tiny/job/last.pth")["progress"]["epoch"] == 9


@pytest.mark.only_all
def test_submitit_puts_a_job_back_into_the_queue(cluster, path, tmp_path):
    pytest.importorskip("submitit", reason="needs submitit (tests/requirements.txt)")
    flags = [
        "--cluster",
        "slurm",
        "--folder",
        tmp_path / "jobs",
        "--nodes",
        2,
        "--gpus-per-node",
        1,
        "--cpus-per-task",
        1,
    ]
    argv = [sys.executable, "scripts/submit.py", *flags, "--", "--cfg", path, "--tag", "job"]
    said = subprocess.run([*map(str, argv)], cwd=ROOT, env=cluster, capture_output=True, text=True)
    number, log = re.fullmatch(r"job (\d+): log in (\S+)\n", said.stdout).groups()
    job = Submitted(cluster, Path(log), number=number)
    job.until(lambda: "epoch 0 [2/" in job.text())
    job.ask("scancel", "--signal=USR2", number)
    job.until(lambda: job.state() == "COMPLETED")
    assert job.text().count("| 2 processes |") == 2, job.text()
    (saved,) = re.findall(r"warning: stopped by SIGUSR1: saved at (epoch \d, update \d)", job.text())
    assert f"last.pth: {saved}" in job.text() and "finished: best " in job.text()


@pytest.mark.only_all
def test_a_job_whose_time_is_up_saves_and_is_put_back_into_the_queue(cluster, write_config, tmp_path):
    """A minute, the shortest time that Slurm knows; it sends the signal when it looks at its jobs, each half a minute."""
    settings = dict(DATA={"BATCH_SIZE": 4}, TRAIN={"EPOCHS": 60, "WARMUP_EPOCHS": 0})
    path = write_config(**settings)
    flags = ["--time=1", "--signal=USR1@25", "scripts/slurm/train.sbatch", "--cfg", path, "--tag", "job"]
    job = Submitted(cluster, tmp_path / "log", *flags)
    job.until(lambda: job.text().count("resumed from") == 1)
    job.ask("scancel", job.number)
    job.until(lambda: job.state() == "CANCELLED")  # by a user: it is not put back again
    assert job.text().count("warning: stopped by SIGUSR1: saved") == 1, job.text()
    assert job.text().count("put back into the queue") == 1, job.text()


@pytest.mark.only_all
def test_a_job_whose_node_is_lost_goes_on_when_it_is_back(cluster, write_config, tmp_path):
    train = {"EPOCHS": 8, "WARMUP_EPOCHS": 0, "SAVE_EVERY_STEPS": 2}
    path = write_config(DATA={"BATCH_SIZE": 4}, TRAIN=train)
    job = Submitted(cluster, tmp_path / "log", "scripts/slurm/train.sbatch", "--cfg", path, "--tag", "job")
    job.until(lambda: "epoch 0 [4/" in job.text())
    kill_node(cluster, 1)
    job.until(lambda: job.state() == "PENDING")
    daemon = subprocess.Popen(
        slurmd(cluster, "127.0.0.2"), env=cluster, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        job.until(lambda: job.state() == "COMPLETED")
    finally:
        daemon.terminate()
        daemon.wait()
    assert "Node failure on 127.0.0.2" in job.text() and "finished: best " in job.text(), job.text()
    (resumed,) = re.findall(r"resumed from \S+last.pth: epoch (\d), update (\d)", job.text())
    assert resumed >= ("0", "4"), job.text()
