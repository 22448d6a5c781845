"""Saves are written beside the training: the same bytes, nothing lost, and who needs a file waits for it."""

import contextlib
import copy
import io
import threading

import pytest
import timm
import torch

from conftest import config_writer, error_of, load, watch
from engine.checkpoints.host_copy import copy_to_host
from engine.checkpoints.store import LAST, PREVIOUS, Checkpointer
from engine.training.optim import ResumableOptimizer
from engine.training.saver import Saver
from utils.errors import OutputError, Stopped
from utils.files import atomic_write
from utils.processes.launch import Launch
from utils.processes.peers import Peers
from utils.rng import get_rng_state
from utils.run_log import RunLog

STORE_WRITES = "engine.checkpoints.store.atomic_write"


@pytest.fixture
def gate(monkeypatch):
    """An event: while it is cleared, nothing is written."""
    opened = threading.Event()

    @contextlib.contextmanager
    def gated(*args, **options):
        assert opened.wait(60)
        with atomic_write(*args, **options) as file:
            yield file

    monkeypatch.setattr(STORE_WRITES, gated)
    opened.set()
    return opened


@pytest.fixture
def layer():
    return torch.nn.Linear(2, 2)


def saver_of(checkpointer):
    """As a run's first process has it; its log writes nothing yet."""
    log = RunLog(None, enabled=True)
    return Saver(checkpointer, log, None, Peers(Launch()), 0, 0, 0.0)


def test_the_copy_is_saved_as_the_same_bytes_and_keeps_its_values():
    """Of a run's state: views of one memory, objects in several places, a state dict's metadata, maps in channels_last."""
    model = timm.create_model("fat_tiny").to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW([{"params": [p]} for p in model.parameters()][:9], fused=True)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    base = torch.arange(6.0)
    state = {"model": model.state_dict(), "ema": copy.deepcopy(model).state_dict(), "rng": get_rng_state()}
    state |= {"optimizer": ResumableOptimizer(optimizer).state_dict(), "views": [base[:2], base[2:].view(2, 2).T, base]}
    state |= {"empty": torch.zeros(0, 3), "none": None, "pair": ("a", [1, {"b": (base, 2)}])}

    def saved(value):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()

    before, copied = saved(state), copy_to_host(state)
    assert saved(copied) == before
    with torch.no_grad():
        base.add_(1)
        for parameter in model.parameters():
            parameter.add_(1)
    assert saved(copied) == before != saved(state)


def test_a_save_holds_nobody_up_and_has_the_state_of_its_moment(tmp_path, gate, layer):
    checkpointer = Checkpointer(tmp_path, {}, model=layer)
    value = layer.weight.detach().clone()
    gate.clear()
    checkpointer.save(LAST)  # returns, though nothing can be written
    layer.weight.data.zero_()
    assert not (tmp_path / LAST).exists()
    gate.set()
    checkpointer.save(LAST)  # waits for the first
    assert torch.equal(load(tmp_path / LAST)["model"]["weight"], value)
    checkpointer.background.wait()
    assert torch.equal(load(tmp_path / PREVIOUS)["model"]["weight"], value)
    assert not load(tmp_path / LAST)["model"]["weight"].any()


@pytest.mark.parametrize("end", [None, Stopped(), RuntimeError("a bug"), OutputError("images: do not come")])
def test_whatever_ends_a_run_what_it_has_saved_is_written(tmp_path, gate, layer, end):
    saver = saver_of(Checkpointer(tmp_path, {}, model=layer))
    gate.clear()
    threading.Timer(0.05, gate.set).start()
    with contextlib.suppress(Stopped, RuntimeError, OutputError), saver.until_written():
        saver.save(LAST)
        if end:
            raise end
    assert (tmp_path / LAST).exists()


def test_a_second_ctrl_c_does_not_wait(tmp_path, gate, layer):
    saver = saver_of(Checkpointer(tmp_path, {}, model=layer))
    gate.clear()
    with pytest.raises(KeyboardInterrupt), saver.until_written():
        saver.save(LAST)
        raise KeyboardInterrupt
    assert not (tmp_path / LAST).exists() and saver.checkpointer.background.thread.daemon
    gate.set()
    saver.wait()


def test_who_looks_for_the_newest_waits_for_it(tmp_path, gate, layer):
    saver = saver_of(Checkpointer(tmp_path, {}, model=layer))
    gate.clear()
    saver.save(LAST)
    threading.Timer(0.05, gate.set).start()
    assert saver.newest() == tmp_path / LAST


def test_whether_there_is_a_checkpoint_is_what_the_first_process_sees(tmp_path, layer):
    """Else a process that comes later finds what the first one has just written, and leaves it alone in their meeting."""
    saver = saver_of(Checkpointer(tmp_path, {}, model=layer))
    saver.save(LAST)
    saver.wait()
    saver.peers.from_first = lambda value: ""
    assert saver.newest() is None


def test_a_file_that_cannot_be_written_ends_the_run_after_the_update(tmp_path, monkeypatch):
    """Not only at the next save, and in the one line of a save that is waited for."""

    @contextlib.contextmanager
    def full(path, keep=None):
        raise OutputError(str(path), "cannot be written (No space left on device)", "free space or change --output")
        yield

    def written(trainer, step):  # the update after the save lasts until the disk has said no
        if trainer.saver.checkpointer.background.thread:
            trainer.saver.checkpointer.background.thread.join()
        steps.append(step)

    steps = []
    monkeypatch.setattr(STORE_WRITES, full)
    watch(monkeypatch, before_update=written)
    write_config = config_writer(tmp_path, tmp_path)
    images = {"DATASET": "synthetic", "SYNTHETIC_IMAGES": 64}
    path = write_config(TRAIN={"SAVE_EVERY_STEPS": 3, "EPOCHS": 1, "WARMUP_EPOCHS": 0}, DATA=images)
    error = error_of("--cfg", path)
    assert error.status == 5 and str(error).endswith(
        "last.pth: cannot be written (No space left on device); free space or change --output"
    )
    assert steps == [0, 1, 2, 3]
