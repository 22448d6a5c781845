"""What several tests need: small configs, real digits as folders, runs in this process or in several."""

import contextlib
import functools
import gc
import itertools
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Optional

import pytest
import timm
import torch
import torch.multiprocessing as mp
import yaml
from tqdm import tqdm
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parent.parent
if "ATEN_CPU_CAPABILITY" in os.environ:  # torch's cache of compiled graphs mixes up the capabilities, which gives NaN
    os.environ.setdefault(
        "TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/inductor_{os.environ['ATEN_CPU_CAPABILITY']}"
    )
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts"))

import main as cli  # noqa: E402
import models  # noqa: E402, F401  (registers FAT with timm)
from cpu_seconds import CpuSeconds  # noqa: E402
from engine.checkpoints.parts import read_with_parts  # noqa: E402
from utils.errors import UserError  # noqa: E402

torch.set_num_threads(1)  # forked processes must not inherit a thread pool
# The first backward pass decides whether processes forked from this one may have one: not after torch.export or torch.compile,
# which make known devices that would get threads of their own.
torch.ones(1, requires_grad=True).sum().backward()

# tqdm's lock is a semaphore that forked processes share: one that is killed while it writes a line would stop all others.
os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))

# The smallest FAT, for tests of many runs in which the model does not matter: two stages, so that one is reduced.
SMALLEST = {
    **{"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "kernel_sizes": [3, 3], "window_sizes": [4, 2]},
    **{"mlp_ratios": [2, 2], "mlp_kernel_sizes": [3, 3]},
}
# The same for dense heads, which need four stages.
SMALLEST_DENSE = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}

# Of their heads, which have most of what such a model computes.
NARROW_HEADS = {
    "models.dense.segmenter.SemanticFPN.pyramid_channels": 16,
    "models.dense.segmenter.SemanticFPN.head_channels": 16,
    "models.dense.segmenter.UperNet.head_channels": 16,
    "models.dense.segmenter.UperNet.auxiliary_channels": 16,
    "models.detection.pyramid.CHANNELS": 16,
    "models.detection.regions.BOX_FEATURES": 32,
    "models.detection.regions.MASK_CHANNELS": 16,
}
PUBLISHED_HEADS = {name: pkgutil.resolve_name(name) for name in NARROW_HEADS}

SMALL = {
    "DEVICE": "cpu",
    "PRINT_FREQ": 1,
    "DATA": {"DATASET": "folder", "IMG_SIZE": 32, "BATCH_SIZE": 8, "NUM_WORKERS": 0},
    "MODEL": {"NAME": "fat_tiny", "DROP_PATH_RATE": 0.1, "FAT": SMALLEST},
    "TRAIN": {"EPOCHS": 2, "WARMUP_EPOCHS": 1, "BASE_LR": 0.02},
    "EMA": {"ENABLED": True, "DECAY": 0.9},
    "AUG": {"HFLIP": 0.0, "SCALE": [0.5, 1.0]},
}


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch):
    """--throughput times the fewest batches, not seconds of them; in forked processes too."""
    for part in ("WARMUP", "MEASURED"):
        monkeypatch.setattr(f"engine.commands.throughput.{part}_SECONDS", 0)


@pytest.fixture(scope="module")
def narrow_heads():
    """Dense heads have few channels, in processes forked from this one too."""
    with pytest.MonkeyPatch.context() as patch:
        for name, width in NARROW_HEADS.items():
            patch.setattr(name, width)
        yield


@pytest.fixture
def published_heads(monkeypatch):
    """For a test of a file whose other tests have `narrow_heads`."""
    for name, width in PUBLISHED_HEADS.items():
        monkeypatch.setattr(name, width)


# Files whose tests share nothing that takes long to make: each test may run in another process. A file that is not named
# here stays together, so that what its tests share is made once.
SPREAD = {
    *(
        "test_checkpoint",
        "test_cli",
        "test_engine",
        "test_faults",
        "test_hostile",
        "test_loggers",
        "test_lost_processes",
    ),
    *("test_nonfinite", "test_preflight", "test_waits"),
}
# What stays together and takes longest begins first, so that no process is left alone with it at the end.
LONGEST = ["test_docs", "test_restarts", "test_evaluation_sets", "test_export", "test_finetune", "test_formats"]


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="the whole of the long matrices, not only their diagonals")
    parser.addoption("--seconds", action="store_true", help="show the CPU seconds of folders, files and tests")


def pytest_configure(config):
    if config.getoption("--seconds"):
        config.pluginmanager.register(CpuSeconds())


class ByFile(LoadScopeScheduling):
    """A file's tests run in one process, or each in any, if it is in `SPREAD`.

    Not by xdist's mark `xdist_group`: xdist 3.8 writes the group into a name that pytest 9.2 does not read any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return nodeid if Path(path).stem in SPREAD else path


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        left_out = [item for item in items if item.get_closest_marker("only_all")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("only_all")]
    items.sort(key=lambda item: turn_of(item.path.stem))


def turn_of(file: str) -> int:
    """Long files first, single tests later: they fill the gaps."""
    if file in SPREAD:
        return len(LONGEST) + 1
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test that is marked `own_process` runs in a process forked for it: what OpenVINO and onnxruntime start must not be
    there when a later test forks.
    """
    if not pyfuncitem.get_closest_marker("own_process"):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        outcome = ""
        try:
            pyfuncitem.obj(**arguments)
        except pytest.skip.Exception as skipped:
            outcome = f"skipped: {skipped}"
        except BaseException:
            outcome = traceback.format_exc()
        with os.fdopen(writing, "w") as file:
            file.write(outcome)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        outcome = file.read()
    _, status = os.waitpid(pid, 0)
    if outcome.startswith("skipped: "):
        pytest.skip(outcome.removeprefix("skipped: "))
    if outcome or status:
        pytest.fail(outcome or f"the test's process ended with {os.waitstatus_to_exitcode(status)}", pytrace=False)
    return True


def rest(*values):
    """A case of a matrix that is tested with --all only."""
    return pytest.param(*values, marks=pytest.mark.only_all)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """60 training and 29 validation images of three digits, as folders; 29 is divisible by no 2, 3 or 8."""
    from make_quickstart_data import digits as all_digits

    root = tmp_path_factory.mktemp("digits")
    wanted = {
        ("train", "0"): 20,
        ("train", "1"): 20,
        ("train", "2"): 20,
        ("val", "0"): 10,
        ("val", "1"): 10,
        ("val", "2"): 9,
    }
    for split, label, name, image in all_digits():
        if wanted.get((split, label), 0):
            wanted[split, label] -= 1
            folder = root / split / label
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / name)
    return root


@pytest.fixture(scope="session")
def digit_shards(tmp_path_factory, digits) -> Path:
    """The same as shards of 15 images."""
    import prepare_data

    folder = tmp_path_factory.mktemp("shards")
    how = ["--images-per-shard", "15", "--workers", "0"]
    assert prepare_data.main(["shards", str(digits), "--output", str(folder), *how]) == 0
    return folder


@pytest.fixture
def write_config(tmp_path, digits):
    """Writes a YAML file of `SMALL` with the given values over it; returns its path."""
    return config_writer(tmp_path, digits)


def config_writer(folder: Path, digits: Path):
    """`write_config` for a folder: for fixtures that several tests share."""

    def write(name: str = "small.yaml", **sections) -> Path:
        config = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALL.items()}
        config["DATA"]["DATA_PATH"] = str(digits)
        config["OUTPUT"] = str(folder / "output")
        for section, values in sections.items():
            if isinstance(values, dict):
                config.setdefault(section, {}).update(values)
            else:
                config[section] = values
        path = folder / name
        path.write_text(yaml.safe_dump(config))
        return path

    return write


def smallest_model(**settings) -> torch.nn.Module:
    """The model of `SMALL`, with other arguments, such as num_classes."""
    return timm.create_model("fat_tiny", **{**SMALLEST, **settings})


def let_fat_tiny_be(monkeypatch, settings: dict) -> None:
    """`fat_tiny` is another FAT until the test ends, in forked processes too: for programs that take a model by its name alone."""
    entrypoints = timm.models._registry._model_entrypoints
    monkeypatch.setitem(entrypoints, "fat_tiny", functools.partial(entrypoints["fat_tiny"], **settings))


# A FAT of one block, for what takes long for each, as a compiler does: the config's section MODEL.
ONE_STAGE = {
    "NAME": "one_stage",
    "DROP_PATH_RATE": 0.0,
    "FAT": {
        **{"embed_dims": [16], "depths": [1], "num_heads": [2], "kernel_sizes": [3], "window_sizes": [2]},
        **{"mlp_ratios": [2], "mlp_kernel_sizes": [3]},
    },
}


observers: list = []  # of every run that the tests start, see `watch`


def run(*argv) -> None:
    """main.py in this process."""
    cli.main([str(arg) for arg in argv], observers)


def watch(monkeypatch, **events):
    """Calls functions at events of the runs in this process, and in processes forked from it; see `engine.observer`.

    Returns a function that ends this.
    """
    from engine.observer import Observer

    assert all(hasattr(Observer, name) for name in events)
    here, before = sys.modules[__name__], observers
    monkeypatch.setattr(here, "observers", [*before, type("Watching", (Observer,), {
        name: lambda self, *args, call=call: call(*args) for name, call in events.items()
    })()])  # fmt: skip
    return lambda: monkeypatch.setattr(here, "observers", before)


def error_of(*argv) -> UserError:
    """The error with which main.py ends; its message is one line."""
    with pytest.raises(UserError) as caught:
        run(*argv)
    message = str(caught.value)
    assert message and "\n" not in message
    return caught.value


class Job:
    """main.py as a command, in processes forked from this one, which saves the seconds that its imports take.

    Args:
        argv: of main.py.
        world_size: processes, with a launcher's environment.
        environment: more of it.
        prepare: called in each process first.
    """

    def __init__(self, *argv, world_size: int = 1, environment: Optional[dict] = None, prepare=lambda: None):
        import_what_main_does()
        port, folder = free_port(), Path(tempfile.mkdtemp())
        self.outputs = [folder / str(rank) for rank in range(world_size)]
        self.pids = []
        self.statuses: dict[int, int] = {}
        for rank, output in enumerate(self.outputs):
            pid = os.fork()
            if not pid:
                self._child([str(arg) for arg in argv], rank, world_size, port, output, environment or {}, prepare)
            self.pids.append(pid)

    @staticmethod
    def _child(argv, rank, world_size, port, output, environment, prepare):
        try:
            os.setsid()
            gc.callbacks.clear()  # hypothesis measures in one, and Python drops what a signal's handler raises there
            speak_into(output)
            if world_size > 1:
                os.environ.update(
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(world_size),
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=str(port),
                )
            os.environ.update(environment)
            prepare()
            cli.run_and_leave(argv, observers)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)

    def wait(self, timeout: float = 120) -> list[int]:
        """The exit statuses by rank, as a shell has them; fails if one is not there in time."""
        deadline = time.monotonic() + timeout
        while len(self.statuses) < len(self.pids):
            for rank, pid in enumerate(self.pids):
                if rank not in self.statuses:
                    done, status = os.waitpid(pid, os.WNOHANG)
                    if done:
                        code = os.waitstatus_to_exitcode(status)
                        self.statuses[rank] = code if code >= 0 else 128 - code
            if time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"still running after {timeout} s: {self.text()}")
            time.sleep(0.01)
        return [self.statuses[rank] for rank in range(len(self.pids))]

    def send(self, number: int, rank: Optional[int] = None) -> None:
        """A signal to a rank, or to all of them with their workers, as a scheduler sends it."""
        for pid in self.pids if rank is None else self.pids[rank : rank + 1]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number) if rank is None else os.kill(pid, number)

    def kill(self) -> list[int]:
        self.send(signal.SIGKILL)
        return self.wait()

    def until(self, condition, timeout: float = 60) -> None:
        """Waits until condition() is true."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"nothing after {timeout} s: {self.text()}")
            time.sleep(0.005)

    def text(self) -> str:
        return "".join(output.read_text() for output in self.outputs if output.exists())

    def said(self, text: str):
        """A condition for `until`."""
        return lambda: text in self.text()


def speak_into(output: Path) -> None:
    """In a forked process: what it says, and its own processes say, goes to a file, line by line."""
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))


def run_program(script: str, *argv, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """`python script argv...` in a folder, in a process forked from this one; the script's path is the repository's."""
    texts = [Path(tempfile.mkdtemp()) / name for name in ("stdout", "stderr")]

    def in_place_of_main():
        os.chdir(folder)
        for number, text in enumerate(texts, 1):
            os.dup2(os.open(text, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
        sys.argv = [str(ROOT / script), *map(str, argv)]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            os._exit(ended.code or 0)
        os._exit(0)

    (status,) = Job(prepare=in_place_of_main).wait()
    return subprocess.CompletedProcess([script, *argv], status, *(text.read_text() for text in texts))


@functools.cache
def import_what_main_does() -> None:
    """What main.py imports late: once here, instead of in each process that is forked from this one."""
    import engine.commands.evaluate
    import engine.commands.train
    import engine.report.page  # noqa: F401


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def load(path):
    return torch.load(path, weights_only=True)


def assert_same(a, b, where=""):
    """Equal to the last bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def history(folder):
    """metrics.jsonl without what depends on the clock and the machine."""
    clock = {"images_per_second", "data_wait", "memory_mib"}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in clock} for r in records if r["kind"] != "start"]


def assert_same_run(folder_a, folder_b):
    a, b = (read_with_parts(folder / "last.pth") for folder in (folder_a, folder_b))
    for checkpoint in (a, b):
        del checkpoint["config"]["TAG"]
    assert_same(a, b)
    assert history(folder_a) == history(folder_b)


class Stop(Exception):
    pass


def stop_at_update(monkeypatch, update):
    """Makes the run in this process (and in processes forked from it) end before this update as if it were cut off."""
    count = itertools.count()

    def stop(trainer, step):
        if next(count) == update:
            raise Stop

    return watch(monkeypatch, before_update=stop)


def hold_at_update(update: int):
    """For `Job(prepare=...)`: the run waits before this update until it is killed or asked to stop, so that a test which waits
    for something before it is never late, on any machine.
    """

    def hold(trainer, step):
        while trainer.progress.updates == update and not trainer.session.peers.stop:
            time.sleep(0.01)

    return lambda: watch(pytest.MonkeyPatch(), before_update=hold)  # of a process that ends: nothing has to be restored


def kill_at_update(update: int, rank: int = 0):
    """For `Job(prepare=...)`: SIGKILL ends this rank's process within this update, after its first images have been loaded."""

    def hit(trainer, batch):
        if trainer.progress.updates == update:
            trainer.saver.wait()  # so that it is known what is there; kills within a save have tests of their own
            os.kill(os.getpid(), signal.SIGKILL)

    def prepare():
        if int(os.environ.get("RANK", 0)) == rank:
            watch(pytest.MonkeyPatch(), on_batch=hit)  # of a process that ends: nothing has to be restored

    return prepare


def _process(rank: int, world_size: int, port: int, function, args) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    try:
        function(*args)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run_processes(world_size: int, function, *args) -> None:
    """function(*args) in `world_size` forked processes with a launcher's environment; all must end well."""
    import_what_main_does()
    port = free_port()
    mp.start_processes(_process, (world_size, port, function, args), nprocs=world_size, join=True, start_method="fork")


def launch(world_size: int, *argv) -> None:
    """main.py as a launcher starts it, with `world_size` processes."""
    run_processes(world_size, run, *argv)
