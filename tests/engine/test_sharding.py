"""TRAIN.SHARD optimizer: the steps of the whole optimizer, its state in parts, its checkpoints for any number of processes."""

import copy
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
    kill_at_update,
    launch,
    load,
    run,
    run_processes,
)
from engine.setup.precision import NativePrecision
from engine.training.optim import ResumableOptimizer, create_optimizer
from engine.training.sharding import ShardedOptimizer, describe_share, local_part, share_out
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

    state = ResumableOptimizer(sharded).state_dict()
    if dist.get_rank() == 0:
        expected = ResumableOptimizer(optimizer).state_dict()
        torch.testing.assert_close(state["state"], expected["state"])
        assert state["kind"] == expected["kind"] and list(state["state"]) == list(expected["state"])
        torch.testing.assert_close(
            [g.get("step", 0) for g in state["param_groups"]], [g.get("step", 0) for g in expected["param_groups"]]
        )
    state = [state]
    dist.broadcast_object_list(state)
    alone, again = copy.deepcopy(whole), copy.deepcopy(shared)
    resumed, resumed_whole = share_out(optimizer_of(name, again)), optimizer_of(name, alone)
    ResumableOptimizer(resumed).load_state_dict(copy.deepcopy(state[0]))
    ResumableOptimizer(resumed_whole).load_state_dict(copy.deepcopy(state[0]))
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


def test_a_run_goes_on_with_the_same_and_another_number_of_processes(tmp_path, capsys):
    """One of two is killed: two go on to the same bits; one, whose optimizer is whole, to the same loss; and any evaluates it."""
    write_config = config_writer(tmp_path, tmp_path)
    images = {"DATASET": "synthetic", "SYNTHETIC_IMAGES": 32, "BATCH_SIZE": 4}
    path = write_config(
        DATA=images, TRAIN={"SAVE_EVERY_STEPS": 2, "EPOCHS": 2, "TOTAL_BATCH_SIZE": 8, "SHARD": "optimizer"},
        AUG={"MIXUP": 0.0, "CUTMIX": 0.0}, MODEL={"DROP_PATH_RATE": 0.0}, EMA={"ENABLED": True},
    )  # fmt: skip
    folder = tmp_path / "output/fat_tiny"
    launch(2, "--cfg", path, "--tag", "whole")
    other, hit = Job("--cfg", path, "--tag", "cut", world_size=2, prepare=kill_at_update(3, rank=1)).wait()
    assert hit == 128 + signal.SIGKILL and other and load(folder / "cut/last.pth")["progress"]["step"] == 2  # of 4
    shutil.copytree(folder / "cut", folder / "alone")
    launch(2, "--cfg", path, "--tag", "cut")
    assert_same_run(folder / "whole", folder / "cut")
    run("--cfg", path, "--tag", "alone", "--opts", "TRAIN.SHARD", "none")
    losses = [[r["loss"] for r in history(folder / tag) if r["kind"] == "train"] for tag in ("whole", "alone")]
    assert len(losses[0]) == len(losses[1]) and losses[0] == pytest.approx(losses[1], rel=1e-5), losses
    assert set(load(folder / "whole/last.pth")["optimizer"]["state"]) == set(
        load(folder / "alone/last.pth")["optimizer"]["state"]
    )
    capsys.readouterr()
    run("--cfg", path, "--tag", "alone", "--eval", "--resume", folder / "whole/last.pth")
    assert "acc1" in capsys.readouterr().out
