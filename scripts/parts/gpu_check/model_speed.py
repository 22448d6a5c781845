"""Stage: images/s of FAT's forms, in turns with its plain form under the same autocast, until the time is up."""

import gc
from statistics import median
from typing import Any, Callable, Iterator, NamedTuple
from unittest.mock import patch

import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

import models
from engine.inference.engines.cuda_graphs import CudaGraphEngine
from engine.inference.engines.torch_engine import TorchEngine
from engine.setup.precision import NativePrecision
from models.fuse import is_native_on_cpu
from models.layers import norm
from utils.device import choose_arithmetic

from ..benchmark.candidates import Candidate, call, compiled, step
from ..benchmark.plain_fat import PlainFAT
from ..benchmark.turns import time_in_turns, warm_up
from .setting import Check, Setting, at_least, equal, measured

# Wanted on an H100 or H200, to the plain form.
GOALS = {"inference": 5.0, "train": 3.0}
OTHER_NORM = "eager, torch's norm"
PEERS = ("repvit_m1", "fastvit_t8")  # of FAT-B0's size


class Group(NamedTuple):
    """Forms of a model that take turns."""

    model: str
    task: str  # inference or train
    forms: tuple[str, ...]  # besides the plain one
    batch_size: int
    seconds: float = 12.0  # that it is started with at least; more where something is compiled


def groups(setting: Setting) -> list[Group]:
    """What does not have to be compiled comes first."""
    if setting.dry_run:
        return [
            Group("fat_tiny", "inference", ("eager", OTHER_NORM, "fused"), 2, 0.0),
            Group("fat_tiny", "train", ("eager", OTHER_NORM), 2, 0.0),
        ]
    quick = [
        [
            Group(name, "inference", ("eager", OTHER_NORM, "fused", "graph"), 256),
            Group(name, "train", ("eager", OTHER_NORM), 128),
        ]
        for name in ("fat_b0", "fat_b3", "fat_b1", "fat_b2")
    ]
    by_compiler = [
        [
            Group(name, "inference", ("fused, compiled",), 256, seconds),
            Group(name, "train", ("compiled",), 128, 2 * seconds),
        ]
        for name, seconds in (("fat_b0", 40.0), ("fat_b3", 70.0))
    ]
    single = [Group("fat_b0", "inference", ("eager", "fused", "graph"), 1)]
    beside_peers = [Group("fat_b0", "inference", ("graph", *PEERS), 256)]
    return [*quick[0], *quick[1], *single, *beside_peers, *by_compiler[0], *by_compiler[1], *quick[2], *quick[3]]


def checks(setting: Setting) -> Iterator[Check]:
    best: dict[tuple[str, str], float] = {}  # of model and task, to the plain form
    hopper = not setting.dry_run and torch.cuda.get_device_capability() == (9, 0)
    for group in groups(setting):
        name = f"{group.model} {group.task} {group.batch_size}"
        if setting.seconds_left < group.seconds:
            yield measured(f"{name} {', '.join(group.forms)}", "left out, the time is up")
            continue
        try:
            speeds = images_per_second(setting, group)
        except torch.OutOfMemoryError:
            yield measured(f"{name} {', '.join(group.forms)}", "left out, it takes more memory than the GPU has")
            continue
        for form, speed in speeds.items():
            ratio = speed / speeds["plain"]
            yield measured(
                f"{name} {form}, images/s", round(speed, 1), ratio_to_plain=round(ratio, 2), **group._asdict()
            )
            if form not in (*PEERS, OTHER_NORM) and group.batch_size > 1:
                best[group.model, group.task] = max(best.get((group.model, group.task), 0.0), ratio)
        for peer in set(PEERS) & set(speeds):
            yield equal(f"fat_b0 ahead of {peer}", speeds["graph"] > speeds[peer], True)
    for (model, task), ratio in best.items():
        name, ratio = f"{model} {task}, ratio to the plain form", round(ratio, 2)
        yield at_least(name, ratio, GOALS[task]) if hopper else measured(name, ratio)


def number_format(setting: Setting) -> torch.dtype:
    """bfloat16; float32 in a dry run on a processor that would emulate it, for which there is no deployed form."""
    emulated = setting.dry_run and not is_native_on_cpu(torch.bfloat16)
    return torch.float32 if emulated else torch.bfloat16


def images_per_second(setting: Setting, group: Group) -> dict[str, float]:
    """By form; the medians of turns."""
    choose_arithmetic(setting.device, exact=group.task == "inference", deterministic=False, fixed_sizes=True)
    torch._dynamo.reset()
    images = setting.images(group.batch_size).to(setting.device)
    dtype = number_format(setting)
    make = inference_form if group.task == "inference" else train_form
    candidates = [
        Candidate(group.model, form, str(dtype).removeprefix("torch."), make(setting, group.model, form, images))
        for form in ("plain", *group.forms)
    ]
    for candidate in candidates:
        warm_up(candidate, setting.device, with_memory=False)
    rounds, seconds = (1, 0.01) if setting.dry_run else (5, 0.15)
    time_in_turns(candidates, rounds, setting.device, seconds)
    speeds = {candidate.form: group.batch_size / median(candidate.seconds) for candidate in candidates}
    del candidates
    gc.collect()
    if not setting.dry_run:
        torch.cuda.empty_cache()
    return speeds


def inference_form(setting: Setting, name: str, form: str, images: torch.Tensor) -> Callable[[], Any]:
    dtype = number_format(setting)
    if form in PEERS:
        peer = reparameterize_model(timm.create_model(form).eval()).to(images.device, dtype)
        peer = peer.to(memory_format=torch.channels_last)
        return call(in_graphs(peer, images.device), images.to(dtype), torch.float32, "NHWC")
    model = setting.new_model(name).eval().to(images.device)
    if form == "plain":
        return call(PlainFAT(model).eval().to(images.device), images, dtype)
    model = model.to(memory_format=torch.channels_last)
    if form in ("eager", OTHER_NORM):
        run = call(model, images, dtype, "NHWC")
        return without_kernel(run) if form == OTHER_NORM else run
    fused = models.fuse(model, dtype)
    if form == "fused, compiled":
        fused = compiled(fused, "default")
    return call(in_graphs(fused, images.device) if form == "graph" else fused, images, torch.float32, "NHWC")


def train_form(setting: Setting, name: str, form: str, images: torch.Tensor) -> Callable[[], Any]:
    dtype = number_format(setting)
    model = setting.new_model(name).to(images.device)
    if form == "plain":
        return step(PlainFAT(model).to(images.device), images, dtype, fused=False)
    model = model.to(memory_format=torch.channels_last)
    run = step(compiled(model, "default") if form == "compiled" else model, images, dtype, "NHWC")
    return without_kernel(run) if form == OTHER_NORM else run


def without_kernel(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same as with FAT_TRITON=0."""

    def run_without() -> Any:
        with patch.object(norm, "find_kernel", lambda device: None):
            return run()

    return run_without


def in_graphs(model: nn.Module, device: torch.device) -> nn.Module:
    """As `--engine cudagraphs` has it, in the model's number format."""
    return CudaGraphEngine(TorchEngine(model, NativePrecision(device, None), fused=False))
