"""Slurm stops a run and starts it again: scripts/slurm/'s files, given to real daemons for two nodes on this machine."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT, load, with_smallest_model
from slurm_cluster import slurm

SMALL = ["--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield {**environment, "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}


@pytest.fixture
def path(write_config):
    return with_smallest_model(write_config)(DATA={"BATCH_SIZE": 4}, TRAIN={"EPOCHS": 3, "WARMUP_EPOCHS": 0})


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
            if time.monotonic() > deadline or self.state() in ("FAILED", "CANCELLED"):
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
    assert load(tmp_path / "output/fat_tiny/job/last.pth")["progress"]["epoch"] == 3


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
