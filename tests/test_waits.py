"""Nothing waits for ever on images, and a request to stop is obeyed while a run waits."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Job, error_of, load, run

from data.batches import Finish
from data.dataset import ImageDataset
from data.loader import EvalLoader
from data.sources.folder import FolderSource
from data.transforms import eval_transform
from utils.errors import OutputError

WORKERS = {"NUM_WORKERS": 2, "TIMEOUT": 2.0}


def a_source_that_blocks(monkeypatch, tmp_path, after: int = 0) -> Path:
    """From its `after`-th read on a process' images are read from a pipe into which nobody writes; returns what counts reads."""
    fifo, log = tmp_path / "fifo", tmp_path / "reads"
    os.mkfifo(fifo)
    log.touch()
    load_image = FolderSource.load
    reads = 0

    def blocking(source, index):
        nonlocal reads
        reads += 1
        if reads > after:
            with open(log, "a") as file:
                file.write("blocked\n")
            with open(fifo, "rb") as file:
                file.read()
        return load_image(source, index)

    monkeypatch.setattr(FolderSource, "load", blocking)
    return log


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("command", ["train", "--eval", "--check", "--benchmark-data"])
def test_a_read_without_an_end_ends_in_a_line_that_names_the_file(write_config, digits, tmp_path, monkeypatch, command, workers):
    config = write_config(DATA={**WORKERS, "NUM_WORKERS": workers})
    flags = [] if command == "train" else [command]
    if command == "--eval":
        run("--cfg", config, "--opts", "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "DATA.NUM_WORKERS", 0)
        flags += ["--resume", tmp_path / "output/fat_tiny/default/last.pth"]
    a_source_that_blocks(monkeypatch, tmp_path, after=8 if command == "train" else 0)
    error = error_of("--cfg", config, *flags)
    assert isinstance(error, OutputError) and error.status == 5
    assert str(error).startswith(str(digits)) and "for 2 s" in str(error) and "DATA.TIMEOUT" in str(error)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_is_obeyed_while_a_run_waits_and_what_is_done_is_saved(write_config, tmp_path, monkeypatch, workers):
    log = a_source_that_blocks(monkeypatch, tmp_path, after=40)
    job = Job("--cfg", write_config(DATA={**WORKERS, "NUM_WORKERS": workers, "TIMEOUT": 0.0}))
    job.until(lambda: log.read_text())
    job.until(lambda: "] loss" in job.text())
    job.send(signal.SIGTERM)
    assert job.wait(60) == [143]
    assert "stopped by SIGTERM while waiting for images: " in job.text() and "Traceback" not in job.text()
    assert load(tmp_path / "output/fat_tiny/default/last.pth")["progress"]["updates"] > 0


def test_a_signal_is_obeyed_while_an_evaluation_waits(write_config, tmp_path, monkeypatch):
    config = write_config(DATA={**WORKERS, "TIMEOUT": 0.0})
    run("--cfg", config, "--opts", "TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "DATA.NUM_WORKERS", 0)
    log = a_source_that_blocks(monkeypatch, tmp_path)
    job = Job("--cfg", config, "--eval", "--resume", tmp_path / "output/fat_tiny/default/last.pth")
    job.until(lambda: log.read_text())
    job.send(signal.SIGTERM)
    assert job.wait(60) == [143], job.text()
    assert "while waiting for images" in job.text()


def test_the_other_process_ends_with_the_one_that_waits(write_config, tmp_path, monkeypatch):
    config = write_config(DATA={**WORKERS, "BATCH_SIZE": 4, "NUM_WORKERS": 0})

    def one_of_them():
        if os.environ["RANK"] == "1":
            a_source_that_blocks(monkeypatch, tmp_path, after=24)

    job = Job("--cfg", config, world_size=2, prepare=one_of_them)
    assert job.wait(90) == [5, 5]
    assert "has been read without an end, for 2 s" in job.text() and "Traceback" not in job.text()


def small_loader(digits: Path, **settings) -> EvalLoader:
    transform = eval_transform(32, "bicubic", 0.875, True, 1)
    dataset = ImageDataset(FolderSource(digits / "val", transform.decode), transform)
    finish = Finish([0.5] * 3, [0.5] * 3, torch.device("cpu"), False)
    return EvalLoader(dataset, 4, 0, 1, finish, prefetch=2, pin_memory=False, **settings)


def test_a_stopped_loading_process_is_named(digits):
    loader = small_loader(digits, num_workers=1, timeout=2.0)
    batches = loader.batches()
    next(batches)
    worker = loader.loader._iterator._workers[0].pid
    os.kill(worker, signal.SIGSTOP)
    with pytest.raises(OutputError, match=rf"loading process 0 \({worker}\).*which is stopped, for 2 s"):
        for _ in batches:
            pass
    os.kill(worker, signal.SIGKILL)


def test_slow_images_are_waited_for(digits, monkeypatch):
    """What is limited is the silence between two batches, not the epoch."""
    import time

    load_image = FolderSource.load
    monkeypatch.setattr(FolderSource, "load", lambda source, index: (time.sleep(0.15), load_image(source, index))[1])
    loader = small_loader(digits, num_workers=0, timeout=2.0)
    assert sum(len(batch.targets) for batch in loader.batches()) == 29


def test_tmpdir_that_is_too_long_for_sockets(write_config, tmp_path):
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    train_in(write_config(DATA={"NUM_WORKERS": 2}), TMPDIR=str(folder))


def test_tmpdir_that_is_missing(write_config, tmp_path):
    train_in(write_config(DATA={"NUM_WORKERS": 2}), TMPDIR=str(tmp_path / "missing"))


def train_in(config: Path, *before: str, status: int = 0, **environment: str) -> str:
    """A short training in a fresh process; returns what it said on standard error."""
    command = [
        sys.executable, str(ROOT / "main.py"), "--cfg", str(config), "--opts", "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([*before, *command], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stderr


def test_shared_memory_that_is_full(write_config):
    private = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]
    tried = subprocess.run([*private, "true"], capture_output=True) if shutil.which("unshare") else None
    if tried is None or tried.returncode:
        pytest.skip("needs the right to mount")
    errors = train_in(write_config(DATA={"NUM_WORKERS": 2, "BATCH_SIZE": 16, "IMG_SIZE": 128}), *private, status=2)
    assert errors.count("\n") == 1 and "no room in /dev/shm, which has 1 MiB" in errors


def test_too_few_open_files(write_config):
    limited = ["sh", "-c", 'ulimit -n 40 && exec "$@"', "sh"]
    errors = train_in(write_config(DATA={"NUM_WORKERS": 8}), *limited, status=2)
    assert "Traceback" not in errors and "`ulimit -n`" in errors.splitlines()[-1]
