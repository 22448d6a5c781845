"""TRAIN.SHARD optimizer: the steps of the whole optimizer, its state in parts, its checkpoints for any number of processes."""

import contextlib
import copy
import errno
import os
import re
import shutil
import signal

import pytest
import torch
import torch.distributed as dist

from conftest import (
    Job,
    assert_same_run,
    config_writer,
    history,
    launch,
    load,
    run,
    run_processes,
)
from engine.checkpoints.parts import Parts, _Writer, folder_of, folders_in, read_with_parts
from engine.checkpoints.store import LAST, Checkpointer
from engine.setup.precision import NativePrecision
from engine.training.optim import ResumableOptimizer, create_optimizer
from engine.training.sharding import ShardedOptimizer, describe_share, local_part, share_out
from utils.errors import OutputError
from utils.processes.launch import Launch
from utils.processes.peers import Peers
from utils.schema import SHARDABLE


def layers():
    """Of several sizes and layouts; both groups of weight decay."""
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    return torch.nn.ModuleList([convolution, torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 16), torch.nn.Linear(16, 5)])


def optimizer_of(name, model):
    settings = dict(lr=1e-3, weight_decay=0.05, eps=1e-8, betas=(0.8, 0.99), momentum=0.7, layer_decay=1.0)
    return create_optimizer(model, name, **settings)


def update(model, optimizer, step, dtype=None, overflow=False):
    """With gradients of a norm of 1, the same on all processes, as DDP leaves them."""
    precision = NativePrecision(torch.device("cpu"), dtype)
    torch.manual_seed(step)
    precision.backward(sum(parameter.sum() for parameter in model.parameters()) * 0)  # begins the scaler's update
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * (torch.inf if overflow else precision.scaler.get_scale())
    precision.clip(optimizer, model.parameters(), 1.0)
    precision.step(optimizer)
    optimizer.zero_grad()


def _step_as_the_whole(names):
    dist.init_process_group("gloo")
    for name in names:
        print(name)
        steps_as_the_whole(name)
    dist.destroy_process_group()


def steps_as_the_whole(name):
    (whole, shared), half = (layers(), layers()), torch.float16 if name == "adamw" else None
    optimizer, sharded = optimizer_of(name, whole), share_out(optimizer_of(name, shared))
    for step in range(3):
        update(whole, optimizer, step, half, overflow=half is not None and step == 0)
        update(shared, sharded, step, half, overflow=half is not None and step == 0)
    assert isinstance(sharded, ShardedOptimizer)
    for a, b in zip(whole.parameters(), shared.parameters()):
        torch.testing.assert_close(a, b)
    kept = sum(value.numel() for entry in local_part(sharded).state.values() for value in entry.values())
    total = sum(value.numel() for entry in optimizer.state.values() for value in entry.values())
    assert 0.3 < kept / total < 0.7 and not sharded.state and describe_share(sharded)

    expected, parts = ResumableOptimizer(optimizer).state_dict(), [None, None]
    dist.all_gather_object(parts, ResumableOptimizer(sharded).state_dict())
    together = {number: entry for part in parts for number, entry in part["state"].items()}
    assert len(together) == sum(len(part["state"]) for part in parts)  # nobody keeps what another one does
    state = {**parts[0], "state": dict(sorted(together.items()))}
    torch.testing.assert_close(state["state"], expected["state"])
    assert state["kind"] == expected["kind"] and list(state["state"]) == list(expected["state"])
    torch.testing.assert_close(
        [g.get("step", 0) for g in state["param_groups"]], [g.get("step", 0) for g in expected["param_groups"]]
    )
    alone, again = copy.deepcopy(whole), copy.deepcopy(shared)
    resumed, resumed_whole = share_out(optimizer_of(name, again)), optimizer_of(name, alone)
    ResumableOptimizer(resumed).load_state_dict(copy.deepcopy(state))
    ResumableOptimizer(resumed_whole).load_state_dict(copy.deepcopy(state))
    for one, its in ((shared, sharded), (again, resumed), (alone, resumed_whole)):
        update(one, its, 7)
    for a, b, c in zip(shared.parameters(), again.parameters(), alone.parameters()):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)


def test_two_processes_step_as_the_whole_optimizer_with_half_its_state_each():
    run_processes(2, _step_as_the_whole, SHARDABLE)


def test_one_process_has_nothing_to_share():
    optimizer = optimizer_of("adamw", layers())
    assert share_out(optimizer) is optimizer and describe_share(optimizer) == ""


@contextlib.contextmanager
def peers_of(world_size):
    dist.init_process_group("gloo")
    peers = Peers(Launch(dist.get_rank(), world_size), store=dist.distributed_c10d._get_default_store())
    yield peers
    peers.meet()
    peers.close(True)


def _save_in_parts(folder):
    """A good save, and two that fail: in `last.pth` lies the whole optimizer's state, in `expected.pth` the same in one file."""
    with peers_of(2) as peers:
        rank = dist.get_rank()
        (whole, shared), directories = (layers(), layers()), [folder, folder / "not_shared"]
        optimizer, sharded = optimizer_of("adamw", whole), share_out(optimizer_of("adamw", shared))
        for step in range(2):
            update(whole, optimizer, step)
            update(shared, sharded, step)
        parts = Parts(folder, peers)
        checkpointer = Checkpointer(folder, {}, parts, model=shared, optimizer=ResumableOptimizer(sharded))
        checkpointer.save(*([] if rank else [LAST]))
        checkpointer.background.wait()
        if not rank:
            torch.save(
                {"model": whole.state_dict(), "optimizer": ResumableOptimizer(optimizer).state_dict()},
                folder / "expected.pth",
            )
        parts.directory = directories[rank]
        assert error_of_save(checkpointer, rank).startswith(str(folder / "optimizer-")) or rank
        parts.directory = folder
        with pytest.MonkeyPatch.context() as monkeypatch:
            if rank:
                monkeypatch.setattr(_Writer, "write_data", full)
            assert "__1_0.distcp: cannot be written (No space left on device)" in error_of_save(checkpointer, rank)


def error_of_save(checkpointer, rank) -> str:
    checkpointer.save(*([] if rank else [LAST]))
    try:
        checkpointer.background.wait()
    except OutputError as error:
        return str(error)
    return ""


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read_as_any(folder, world_size):
    """From the parts and from one file, into shared and whole optimizers: the same state, and the same next step."""
    dist.init_process_group("gloo")
    expected, states = load(folder / "expected.pth")["optimizer"], []
    for path in (folder / LAST, folder / "expected.pth"):
        model = layers()
        model.load_state_dict(load(path)["model"])
        optimizer = share_out(optimizer_of("adamw", model))
        assert isinstance(optimizer, ShardedOptimizer) == (world_size > 1)
        ResumableOptimizer(optimizer).load_state_dict(read_with_parts(path)["optimizer"])
        for number, entry in ResumableOptimizer(optimizer).state_dict()["state"].items():
            torch.testing.assert_close(entry, expected["state"][number])
        update(model, optimizer, 7)
        states.append(list(model.parameters()))
    for a, b in zip(*states):
        torch.testing.assert_close(a, b)
    dist.destroy_process_group()


def test_parts_of_two_processes_are_read_by_one_and_three(tmp_path):
    """And a save that fails on one process fails on all, and leaves the one before as it was."""
    run_processes(2, _save_in_parts, tmp_path)
    content = load(tmp_path / LAST)
    assert [folder.name for folder in folders_in(tmp_path)] == [folder_of(content)]
    assert sorted(content["optimizer"]["parts"]["sha256"]) == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    state, expected = read_with_parts(tmp_path / LAST)["optimizer"], load(tmp_path / "expected.pth")["optimizer"]
    assert list(state["state"]) == list(expected["state"])
    for number, entry in state["state"].items():
        assert list(entry) == list(expected["state"][number])
        torch.testing.assert_close(entry, expected["state"][number])
    for world_size in (1, 3):  # two go on below
        run_processes(world_size, _read_as_any, tmp_path, world_size)


def killed_in_its_part(rank, number):
    """For `Job(prepare=...)`: SIGKILL ends this rank's process while it writes its part of the save of this number."""
    saves = iter(range(1, 100))

    def write_data(writer, *args):
        if next(saves) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(writer, *args)

    original = _Writer.write_data

    def prepare():
        if os.environ["RANK"] == str(rank):
            _Writer.write_data = write_data

    return prepare


def test_a_run_goes_on_with_the_same_and_another_number_of_processes(tmp_path, capsys):
    """One of two is killed within a save: two go on to the same bits; one, whose optimizer is whole, to the same loss; and any
    evaluates it."""
    write_config = config_writer(tmp_path, tmp_path)
    images = {"DATASET": "synthetic", "SYNTHETIC_IMAGES": 32, "BATCH_SIZE": 4}
    path = write_config(
        DATA=images, TRAIN={"SAVE_EVERY_STEPS": 2, "EPOCHS": 2, "TOTAL_BATCH_SIZE": 8, "SHARD": "optimizer"},
        AUG={"MIXUP": 0.0, "CUTMIX": 0.0}, MODEL={"DROP_PATH_RATE": 0.0}, EMA={"ENABLED": True},
    )  # fmt: skip
    folder = tmp_path / "output/fat_tiny"
    launch(2, "--cfg", path, "--tag", "whole")
    other, hit = Job("--cfg", path, "--tag", "cut", world_size=2, prepare=killed_in_its_part(1, number=2)).wait()
    assert hit == 128 + signal.SIGKILL and other and load(folder / "cut/last.pth")["progress"]["step"] == 2  # of 4
    shutil.copytree(folder / "cut", folder / "alone")
    launch(2, "--cfg", path, "--tag", "cut")
    assert_same_run(folder / "whole", folder / "cut")
    named = {folder_of(load(path)) for path in (folder / "cut").glob("*.pth")}
    assert {part.name for part in folders_in(folder / "cut")} == named and len(named) > 1
    run("--cfg", path, "--tag", "alone", "--opts", "TRAIN.SHARD", "none")
    losses = [[r["loss"] for r in history(folder / tag) if r["kind"] == "train"] for tag in ("whole", "alone")]
    assert len(losses[0]) == len(losses[1]) and losses[0] == pytest.approx(losses[1], rel=1e-5), losses
    assert set(read_with_parts(folder / "whole/last.pth")["optimizer"]["state"]) == set(
        load(folder / "alone/last.pth")["optimizer"]["state"]
    )
    sizes = re.findall(r"checkpoints: (\S+) MiB each", (folder / "alone/log.txt").read_text())
    assert len(sizes) == 2 and sizes[0] == sizes[1]  # as much room is asked for with parts and without
    capsys.readouterr()
    run("--cfg", path, "--tag", "alone", "--eval", "--resume", folder / "whole/last.pth")
    assert "acc1" in capsys.readouterr().out
