"""Stage: BatchNorm over processes and DDP give the values of one process with all images, and checkpointing changes none.

First a group of one process by NCCL, which calls every kernel and exchange, then two processes on one GPU by gloo, as
NCCL refuses to share one.
"""

import multiprocessing
import os
from pathlib import Path
from typing import Callable, Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models.sync_batchnorm import NormaliseOverProcesses, SyncBatchNorm, synchronise_batchnorm
from utils.device import choose_arithmetic

from .setting import Check, Setting, below, distance, equal, gradients_of

BOUND = 2e-3  # statistics are added up in another order, after which the stem's ReLUs may cut elsewhere, see values.py


def checks(setting: Setting) -> Iterator[Check]:
    yield from in_processes(setting, "one", 1, group_of_one)
    yield from in_processes(setting, "two", 2, half_of_the_images)


def in_processes(setting: Setting, name: str, world_size: int, function: Callable) -> list[Check]:
    """What the first process of a group returns of `function(setting, rank)`."""
    context = multiprocessing.get_context(setting.start_method)
    queue = context.SimpleQueue()
    meeting = setting.folder / f"meeting_{name}"
    meeting.unlink(missing_ok=True)
    backend = "nccl" if world_size == 1 and not setting.dry_run else "gloo"
    places = [(setting, backend, meeting, rank, world_size, function, queue) for rank in range(world_size)]
    processes = [context.Process(target=join, args=place) for place in places]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    statuses = [process.exitcode for process in processes]
    return [equal(f"{name}: exit statuses", statuses, [0] * world_size), *([] if queue.empty() else queue.get())]


def join(setting: Setting, backend: str, meeting: Path, rank: int, world_size: int, function, queue) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine, whose name may lead nowhere
    if not setting.dry_run:
        torch.cuda.set_device(setting.device)
    choose_arithmetic(setting.device, exact=True, deterministic=True, fixed_sizes=False)
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    found = function(setting, rank)
    if rank == 0:
        queue.put(found)
    dist.barrier()
    dist.destroy_process_group()


def wrapped(model: nn.Module, setting: Setting) -> nn.Module:
    """As training has it in several processes."""
    model = synchronise_batchnorm(model).to(setting.device, memory_format=torch.channels_last)
    return DistributedDataParallel(model, device_ids=None if setting.dry_run else [setting.device])


def placed(images: torch.Tensor, setting: Setting) -> torch.Tensor:
    return images.to(setting.device, memory_format=torch.channels_last)


def reference_of(setting: Setting, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients and BatchNorm's buffers of a plain model, of all images."""
    model = setting.new_model().to(setting.device, memory_format=torch.channels_last)
    return gradients_of(model, images), buffers_of(model)


def buffers_of(model: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


# One process


def group_of_one(setting: Setting, rank: int) -> list[Check]:
    images = placed(setting.images(4), setting)
    gradients, buffers = reference_of(setting, images)
    model = wrapped(setting.new_model(), setting)
    ours = gradients_of(model, images)
    return [
        equal("one: backend", dist.get_backend(), "gloo" if setting.dry_run else "nccl"),
        below("one: DDP gradients", distance(ours, gradients), BOUND),
        below("one: DDP buffers", distance(buffers_of(model), buffers), 1e-6),
        *(normalised(setting, layout) for layout in (torch.contiguous_format, torch.channels_last)),
    ]


def normalised(setting: Setting, layout: torch.memory_format) -> Check:
    """BatchNorm's result and gradients by the kernels that several processes use."""
    generator = torch.Generator().manual_seed(0)
    images, slopes = (torch.randn(6, 40, 9, 7, generator=generator) + 2 for _ in range(2))
    images, slopes = (t.to(setting.device, memory_format=layout) for t in (images, slopes))
    found = []
    for synchronised in (True, False):
        x = images.clone().requires_grad_()
        norm = nn.BatchNorm2d(40).to(setting.device)
        if synchronised:
            running = (norm.running_mean, norm.running_var)
            y = NormaliseOverProcesses.apply(x, norm.weight, norm.bias, *running, norm.eps, norm.momentum, 1)
        else:
            y = norm(x)
        (y * slopes).sum().backward()
        found.append([y, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var])
    name = "NHWC" if layout is torch.channels_last else "NCHW"
    return below(f"one: SyncBatchNorm {name}", distance(*found), 1e-5)


# Two processes


def half_of_the_images(setting: Setting, rank: int) -> list[Check]:
    """Each has half of the images; both together are a process with all of them."""
    images = setting.images(8)
    # The loss of each half has its own targets, so the reference adds up halves of one batch, too.
    mine = placed(images[4 * rank :][:4], setting)
    found = {}
    for use_checkpoint in (False, True):
        model = setting.new_model()
        model.set_grad_checkpointing(use_checkpoint)
        model = wrapped(model, setting)
        found[use_checkpoint] = gradients_of(model, mine), buffers_of(model)
        synchronised = sum(isinstance(module, SyncBatchNorm) for module in model.modules())
    if rank:
        return []
    gradients, buffers = whole_batch(setting, placed(images, setting))
    kept, recomputed = found[False], found[True]
    return [
        equal("two: no BatchNorm of its own", synchronised > 0, True, layers=synchronised),
        below("two: gradients", distance(kept[0], gradients), BOUND),
        below("two: buffers", distance(kept[1], buffers), 1e-5),
        below("two: gradients with --use-checkpoint", distance(recomputed[0], kept[0]), 1e-5),
        below("two: buffers with --use-checkpoint", distance(recomputed[1], kept[1]), 1e-6),
    ]


def whole_batch(setting: Setting, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients and buffers of one process with both halves, whose targets are those of the halves."""
    model = setting.new_model().to(setting.device, memory_format=torch.channels_last).train()
    targets = torch.arange(len(images) // 2, device=images.device).repeat(2)
    nn.functional.cross_entropy(model(images), targets).backward()
    return [parameter.grad for parameter in model.parameters()], buffers_of(model)
