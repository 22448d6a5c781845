"""Nothing waits for ever on images, and a request to stop is obeyed while a run waits."""

import contextlib
import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

import command_line
import predict
from conftest import ROOT, Job, config_writer, error_of, load, run
from data.batches import Finish
from data.dataset import ImageDataset
from data.loader import EvalLoader, Loading
from data.sources import Opening, open_source, wds
from data.sources.folder import FolderSource
from data.sources.image_paths import FileSource
from data.transforms import eval_transform
from engine.session import raise_as_ours
from utils.errors import DataError, OutputError, ShortageError
from utils.schema import DEFAULTS

WORKERS = {"NUM_WORKERS": 2, "TIMEOUT": 2.0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, digits) -> Path:
    """Of a run of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    write = config_writer(folder, digits)
    run("--cfg", write(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}))
    return folder / "output/fat_tiny/default/last.pth"


def a_source_that_blocks(monkeypatch, tmp_path, after: int = 0, kind=FolderSource) -> Path:
    """From its `after`-th read on a process' images are read from a pipe into which nobody writes; returns what counts reads."""
    fifo, log = tmp_path / "fifo", tmp_path / "reads"
    os.mkfifo(fifo)
    log.touch()
    load_image = kind.load
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

    monkeypatch.setattr(kind, "load", blocking)
    return log


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("command", ["train", "--eval", "--check", "--benchmark-data"])
def test_a_read_without_an_end_ends_in_a_line_that_names_the_file(
    write_config, digits, tmp_path, monkeypatch, checkpoint, command, workers
):
    config = write_config(DATA={**WORKERS, "NUM_WORKERS": workers})
    flags = [] if command == "train" else [command]
    if command == "--eval":
        flags += ["--resume", checkpoint]
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
    assert job.wait(180) == [143]
    assert "stopped by SIGTERM while waiting for images: " in job.text() and "Traceback" not in job.text()
    assert load(tmp_path / "output/fat_tiny/default/last.pth")["progress"]["updates"] > 0


def test_a_signal_is_obeyed_while_an_evaluation_waits(write_config, tmp_path, monkeypatch, checkpoint):
    config = write_config(DATA={**WORKERS, "TIMEOUT": 0.0})
    log = a_source_that_blocks(monkeypatch, tmp_path)
    job = Job("--cfg", config, "--eval", "--resume", checkpoint)
    job.until(lambda: log.read_text())
    job.send(signal.SIGTERM)
    assert job.wait(180) == [143], job.text()
    assert "while waiting for images" in job.text()


def test_the_other_process_ends_with_the_one_that_waits(write_config, tmp_path, monkeypatch):
    config = write_config(DATA={**WORKERS, "BATCH_SIZE": 4, "NUM_WORKERS": 0})

    def one_of_them():
        if os.environ["RANK"] == "1":
            a_source_that_blocks(monkeypatch, tmp_path, after=24)

    job = Job("--cfg", config, world_size=2, prepare=one_of_them)
    assert job.wait(180) == [5, 5]
    assert "has been read without an end, for 2 s" in job.text() and "Traceback" not in job.text()


# Shards by a command that gives nothing


@pytest.fixture
def shards(digit_shards, tmp_path) -> Path:
    """The digits as shards; beside them a pipe into which nobody writes."""
    folder = tmp_path / "shards"
    shutil.copytree(digit_shards, folder)
    os.mkfifo(folder / "fifo")
    return folder


@pytest.fixture
def stuck(write_config, shards, checkpoint):
    """Arguments of a training or an evaluation whose second shard a command reads from that pipe."""

    def arguments(command: str, workers: int, timeout: float) -> list:
        data = {"DATASET": "wds", "DATA_PATH": str(shards), "TIMEOUT": timeout}
        config = write_config(DATA=data, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
        split = "train" if command == "train" else "val"
        flags = []
        if command == "--eval":
            flags = ["--eval", "--resume", checkpoint]
        images = f"pipe:cat {shards}/{{{split}-000000.tar,fifo}}|29"
        return ["--cfg", config, *flags, "--opts", f"DATA.{split.upper()}_SPLIT", images, "DATA.NUM_WORKERS", workers]

    return arguments


def commands_of(path: Path) -> list[bytes]:
    """Those of all processes that name it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes()
            found += [line] if os.fsencode(path) in line else []
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("command", ["train", "--eval"])
def test_a_command_that_gives_nothing_ends_in_a_line(stuck, shards, command, workers):
    job = Job(*stuck(command, workers, timeout=4.0))
    assert job.wait(300) == [5], job.text()
    line = job.text().splitlines()[-1]
    assert line.startswith(f"error: pipe:cat {shards}/fifo: ") and "for 4 s" in line and "Traceback" not in job.text()
    job.until(lambda: not commands_of(shards / "fifo"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("command", ["train", "--eval"])
def test_a_signal_is_obeyed_while_a_command_gives_nothing(stuck, shards, command, workers):
    """It reaches the command too, as a scheduler's does."""
    job = Job(*stuck(command, workers, timeout=0.0))
    job.until(lambda: commands_of(shards / "fifo"), 180)
    if command == "train" and workers:
        job.until(lambda: "[1/" in job.text(), 180)  # the images of the first shard
    job.send(signal.SIGTERM)
    assert job.wait(300) == [143], job.text()
    assert "stopped by SIGTERM" in job.text().splitlines()[-1] and "Traceback" not in job.text()
    if command == "train" and not workers:
        assert "while waiting for images: pipe:cat" in job.text()
    job.until(lambda: not commands_of(shards / "fifo"))


# The opening of a data set


def test_an_opening_without_an_end_ends_in_a_line(write_config, shards):
    (shards / "_info.json").unlink()
    (shards / "fifo").rename(shards / "_info.json")
    error = error_of(
        "--cfg", write_config(DATA={"DATASET": "wds", "DATA_PATH": str(shards), "TIMEOUT": 2.0}), "--check"
    )
    assert isinstance(error, OutputError)
    assert str(error).startswith(f"{shards}/_info.json: has been read without an end, for 2 s")


def test_a_folder_that_is_listed_without_an_end_is_named(write_config, digits, tmp_path, monkeypatch):
    walk = os.walk
    os.mkfifo(tmp_path / "fifo")

    def blocking(folder, **how):
        if folder == str(digits / "val/1"):
            (tmp_path / "fifo").read_bytes()
        return walk(folder, **how)

    monkeypatch.setattr(os, "walk", blocking)
    error = error_of("--cfg", write_config(DATA={"TIMEOUT": 2.0}), "--check")
    assert str(error).startswith(f"{digits}/val/1: has been read without an end, for 2 s")


def test_a_slow_opening_is_waited_for(shards, monkeypatch):
    """What is limited is the silence between two files."""
    count = wds.WdsSource._count
    monkeypatch.setattr(wds.WdsSource, "_count", lambda *args: (time.sleep(1), count(*args))[1])
    (shards / "_info.json").unlink()
    assert len(open_source("wds", "train", str(shards), opening=Opening(num_classes=3, timeout=3.0))) == 60


def test_a_signal_is_obeyed_while_a_data_set_is_opened(write_config, shards):
    (shards / "_info.json").unlink()
    (shards / "fifo").rename(shards / "_info.json")
    job = Job("--cfg", write_config(DATA={"DATASET": "wds", "DATA_PATH": str(shards), "TIMEOUT": 0.0}))
    held = []

    def is_waited_for() -> bool:
        with contextlib.suppress(OSError):  # of a pipe that nobody reads
            held.append(os.open(shards / "_info.json", os.O_WRONLY | os.O_NONBLOCK))
        return bool(held)

    job.until(is_waited_for, 180)
    job.send(signal.SIGTERM)
    assert job.wait(300) == [143] and "Traceback" not in job.text()
    os.close(held[0])


@pytest.mark.parametrize("command", ["train", "--check", "--benchmark-data"])
def test_a_pipe_among_the_images_is_refused_and_named(write_config, digits, tmp_path, command):
    shutil.copytree(digits, tmp_path / "copy")
    for path in (tmp_path / "copy/train/0").iterdir():
        path.unlink()
        os.mkfifo(path)
    error = error_of(
        "--cfg", write_config(DATA={"DATA_PATH": str(tmp_path / "copy")}), *([] if command == "train" else [command])
    )
    assert isinstance(error, DataError)
    assert str(error).startswith(f"{tmp_path}/copy/train/0/") and "no regular file" in str(error)


def test_a_pipe_in_a_shard_s_place_is_refused(shards):
    (shards / "train-000001.tar").unlink()
    (shards / "fifo").rename(shards / "train-000001.tar")
    with pytest.raises(DataError, match="train-000001.tar: no such shard"):
        open_source("wds", "train", str(shards), opening=Opening(num_classes=3, timeout=2.0))


# predict.py


@pytest.fixture
def predicting(checkpoint, digits, tmp_path, monkeypatch):
    """Arguments of predict.py for files that are read without an end, and what counts the reads."""

    def arguments(workers: int, timeout: float) -> tuple[list[str], Path]:
        content = load(checkpoint)
        content["config"]["DATA"]["TIMEOUT"] = timeout
        torch.save(content, tmp_path / "last.pth")
        log = a_source_that_blocks(monkeypatch, tmp_path, kind=FileSource)
        flags = ["--checkpoint", tmp_path / "last.pth", digits / "val", "--workers", workers, "--batch-size", 2]
        return [str(flag) for flag in flags], log

    return arguments


@pytest.mark.parametrize("workers", [0, 2])
def test_predict_of_a_file_that_is_read_without_an_end(predicting, digits, workers):
    arguments, _ = predicting(workers, timeout=2.0)
    with pytest.raises(OutputError) as caught:
        predict.main(arguments)
    said = str(caught.value)
    assert said.startswith(f"{digits}/val/") and "for 2 s" in said and "leave the file out" in said


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_is_obeyed_while_predict_waits(predicting, workers):
    arguments, log = predicting(workers, timeout=0.0)

    def in_place_of_main():
        try:
            command_line.run_script(lambda: predict.main(arguments))
        except SystemExit as end:
            os._exit(end.code)

    job = Job(prepare=in_place_of_main)
    job.until(lambda: log.read_text(), 180)
    job.send(signal.SIGTERM)
    assert job.wait(300) == [143], job.text()
    assert "stopped by SIGTERM while waiting for images: " in job.text() and "Traceback" not in job.text()


def small_loader(digits: Path, **settings) -> EvalLoader:
    transform = eval_transform(32, "bicubic", 0.875, True, 1)
    dataset = ImageDataset(FolderSource(digits / "val", transform.decode), transform)
    finish = Finish([0.5] * 3, [0.5] * 3, torch.device("cpu"), False)
    return EvalLoader(dataset, 4, 0, 1, Loading(finish, prefetch=2, pin_memory=False, **settings))


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


@pytest.mark.parametrize("blocked", [False, True])
def test_loading_processes_end_with_a_loader_in_a_cycle(digits, monkeypatch, tmp_path, blocked):
    """An error's traceback makes one, where a notebook or a test keeps the error. What is left then is collected at any time."""
    log = a_source_that_blocks(monkeypatch, tmp_path, after=4 if blocked else 100)
    loader = small_loader(digits, num_workers=2)
    next(loader.batches())
    while blocked and log.read_text().count("blocked") < 2:
        time.sleep(0.01)
    workers = loader.loader._iterator._workers
    cycle = [loader]
    cycle.append(cycle)
    del loader, cycle
    gc.collect()
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_loading_process_that_is_killed_while_it_sends_is_named(digits, monkeypatch, error):
    loader = small_loader(digits, num_workers=1, timeout=60.0)
    batches = loader.batches()
    next(batches)

    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(loader.loader._iterator._data_queue, "get", broken)
    with pytest.raises(RuntimeError, match="DataLoader worker: its batch broke off") as caught:
        next(batches)
    with pytest.raises(ShortageError, match="DATA.NUM_WORKERS is 8: a loading process was killed"):
        raise_as_ours(caught.value, DEFAULTS, torch.device("cpu"))


def test_a_process_that_is_killed_while_it_writes_a_line_stops_no_other():
    """Jobs are forked from the tests' process, and tqdm's own lock is one for all of them."""
    lock = tqdm.get_lock()
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        tqdm.get_lock().acquire()
        os.write(writing, b"x")
        signal.pause()
    os.read(reading, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)
    semaphore, of_threads = lock.locks
    assert semaphore.acquire(timeout=10) and of_threads.acquire(timeout=10)
    lock.release()


def test_slow_images_are_waited_for(digits, monkeypatch):
    """What is limited is the silence between two batches, not the epoch."""
    load_image = FolderSource.load
    monkeypatch.setattr(FolderSource, "load", lambda source, index: (time.sleep(0.15), load_image(source, index))[1])
    loader = small_loader(digits, num_workers=0, timeout=2.0)
    assert sum(len(batch.targets) for batch in loader.batches()) == 29


@pytest.mark.parametrize(
    "name, exists", [("x" * 120, True), ("missing", False)], ids=["too long for sockets", "missing"]
)
def test_tmpdir_that_cannot_be_used(write_config, tmp_path, name, exists):
    if exists:
        (tmp_path / name).mkdir()

    def forget_the_folder():
        tempfile.tempdir = None
        multiprocessing.current_process()._config.pop("tempdir", None)

    config = write_config(DATA={"NUM_WORKERS": 2}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    job = Job("--cfg", config, environment={"TMPDIR": str(tmp_path / name)}, prepare=forget_the_folder)
    assert job.wait() == [0], job.text()


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
