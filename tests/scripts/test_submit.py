"""scripts/submit.py: main.py as a job of submitit, on this machine, which is started again after submitit's signal."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT, load, rest, run_program

pytest.importorskip("submitit", reason="needs submitit (tests/requirements.txt)")


@pytest.fixture
def path(write_config):
    return write_config(DATA={"BATCH_SIZE": 4}, TRAIN={"EPOCHS": 9, "WARMUP_EPOCHS": 0})


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("tasks", [1, rest(2)])
def test_a_job_saves_at_submitit_s_signal_and_goes_on(path, tmp_path, tasks):
    flags = ["--cluster", "local", "--tasks-per-node", str(tasks), "--folder", str(tmp_path / "jobs"), "--wait"]
    command = [
        sys.executable,
        "scripts/submit.py",
        *flags,
        "--",
        "--cfg",
        str(path),
        "--tag",
        "job",
        "--opts",
        "SEED",
        "3",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    submitted = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    job, log = re.fullmatch(r"job (\d+): log in (\S+)\n", submitted.stdout.readline()).groups()
    deadline = time.monotonic() + 120
    while not (Path(log).exists() and "epoch 0 [2/" in Path(log).read_text()):
        assert time.monotonic() < deadline and submitted.poll() is None, submitted.communicate()
        time.sleep(0.02)
    for task in children(int(job)):
        os.kill(task, signal.SIGUSR2)
    _, said = submitted.communicate(timeout=180)
    text = Path(log).read_text()
    assert submitted.returncode == 0, said + text
    assert f"| {tasks} process" in text and "stopped by SIGUSR1: saved at epoch " in text, text
    (saved,) = re.findall(r"saved at (epoch \d, update \d)", text)
    assert f"last.pth: {saved}" in text and "finished: best " in text, text
    checkpoint = load(tmp_path / "output/fat_tiny/job/last.pth")
    assert checkpoint["progress"]["epoch"] == 9 and checkpoint["config"]["SEED"] == 3


@pytest.mark.parametrize("argv, part", [
    (["--cluster", "local", "--cfg", "x.yaml"], "--: missing; main.py's flags come after it"),
    (["--cluster", "local", "--", "--cfg", "x.yaml"], "x.yaml: "),
    (["--cluster", "local", "--", "--cfg", "configs/fat_b0.yaml", "--epocs", "3"], "--epocs: unknown"),
    (["--cluster", "local", "--nodes", "2", "--", "--cfg", "configs/fat_b0.yaml", "--opts", "DATA.DATASET", "synthetic"], "submitit: LocalExecutor can use only one node"),
    (["--slurm", "partition", "--", "--cfg", "configs/fat_b0.yaml", "--opts", "DATA.DATASET", "synthetic"], "--slurm partition: settings are NAME=VALUE"),
])  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_submitted(tmp_path, argv, part):
    ended = run_program("scripts/submit.py", "--folder", tmp_path / "jobs", *argv)
    assert ended.returncode == 2 and ended.stderr.startswith(f"error: {part}"), ended.stderr
    assert "\n" not in ended.stderr.strip() and not list((tmp_path / "jobs").glob("*.pkl"))


@pytest.mark.only_all
def test_a_run_that_fails_is_said_by_who_waits_for_it(path, tmp_path):
    argv = [
        "--cluster",
        "local",
        "--folder",
        tmp_path / "jobs",
        "--wait",
        "--",
        "--cfg",
        path,
        "--data-path",
        tmp_path / "no",
    ]
    ended = run_program("scripts/submit.py", *argv)
    assert ended.returncode == 5
    line = re.fullmatch(
        r"error: job \d+: .*main.py has ended with exit status 2; its log (\S+) has the line that says why\n",
        ended.stderr,
    )
    assert line and f"error: {tmp_path}/no" in Path(line[1]).read_text(), ended.stderr
