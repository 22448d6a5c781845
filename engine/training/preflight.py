"""What a long run needs, looked at before its first step: images that can be read, memory, disk space, time."""

import copy
import math
import os
import shutil
import time
from dataclasses import dataclass
from typing import Callable

import torch

from data.batches import collate_items
from utils.device import forget_memory, is_out_of_memory, memory_mib
from utils.errors import ConfigError, OutputError, one_line
from utils.image_size import FrozenSize, height_and_width
from utils.rng import get_rng_state, seed_all, set_rng_state

from ..checkpoints.store import BEST, LAST, PREVIOUS
from . import freeze
from .recorder import duration
from .sharding import ShardedOptimizer
from .trainer import Trainer

SAMPLES = 8  # training images that are read
SPARE = 64 * 2**20  # bytes beside the checkpoints: logs and curves


@dataclass(frozen=True)
class Findings:
    """What one step showed. Times are of this process on this machine at this moment."""

    load_seconds: float  # per image and worker
    step_seconds: float  # forward, backward and optimizer step of one micro-batch
    forward_seconds: float  # of one evaluation batch
    memory_mib: float
    checkpoint_bytes: int

    def lines(self, workers: int) -> list[str]:
        rate = max(workers, 1) / max(self.load_seconds, 1e-9)
        return [
            f"one micro-batch: {self.step_seconds:.3f} s, {self.memory_mib:.0f} MiB; reading images: {rate:.0f} images/s per process"
        ]


def rehearse(trainer: Trainer, optimizer_of: Callable[[torch.nn.Module], torch.optim.Optimizer]) -> Findings:
    """Reads a few images and does one step and one evaluation batch on copies.

    Nothing of the run is changed: neither its weights nor its random numbers.

    Args:
        trainer: a run that has been built; a checkpoint is restored afterwards, as its optimizer state needs memory too.
        optimizer_of: model -> an optimizer as the run's.

    Raises:
        DataError: an image cannot be read.
        ConfigError: the model cannot do a step.
    """
    random_state = get_rng_state()
    try:
        items, load_seconds = read_images(trainer)
        batch = batch_of(trainer, items, trainer.data.plan.batch_size)
        step_seconds, forward_seconds, state_bytes = dry_step(trainer, optimizer_of, batch)
    finally:
        set_rng_state(random_state)
    findings = Findings(load_seconds, step_seconds, forward_seconds, memory_mib(trainer.session.device), state_bytes)
    forget_memory(trainer.session.device)
    return findings


def look_ahead(trainer: Trainer, findings: Findings) -> list[str]:
    """What is left of a run in disk space and time, as lines for the log.

    Raises:
        OutputError: the disk has no room for the checkpoints to come, or the folder cannot be written to.
    """
    needed, free = _disk(trainer, findings.checkpoint_bytes)
    plan, progress = trainer.data.plan, trainer.progress
    epochs = trainer.epochs - progress.epoch
    micro_batches = epochs * plan.batches_per_epoch - progress.step * plan.accumulation_steps
    evaluations = epochs * len(trainer.data.val_loader) * len(trainer.networks.evaluated())
    loading = findings.load_seconds * plan.batch_size / max(trainer.data.train_loader.loader.num_workers, 1)
    seconds = micro_batches * max(findings.step_seconds, loading) + evaluations * max(findings.forward_seconds, loading)
    return [
        f"checkpoints: {findings.checkpoint_bytes / 2**20:.1f} MiB each, {needed / 2**20:.0f} MiB still to be written, "
        f"{free / 2**20:.0f} MiB free",
        f"estimated time: {duration(seconds)} at least (from one step; the log's eta is better)",
    ]


def read_images(trainer: Trainer) -> tuple[list, float]:
    """A few training images of the largest size, and the seconds that each took."""
    largest = max(_sizes(trainer), key=lambda size: math.prod(height_and_width(size)), default=0)
    started = time.perf_counter()
    items = trainer.data.train_loader.first(min(SAMPLES, trainer.data.plan.batch_size), largest)
    return items, (time.perf_counter() - started) / len(items)


def batch_of(trainer: Trainer, items: list, size: int):
    """A micro-batch of so many images, made of these few."""
    repeated = (items * -(-size // len(items)))[:size]
    return collate_items(repeated, trainer.data.train_loader.dataset.collate)[0]


def _sizes(trainer: Trainer) -> set[FrozenSize]:
    """Of training images, if they change."""
    return {size for _, size in trainer.data.train_loader.schedule.sizes}


def dry_step(trainer: Trainer, optimizer_of, batch):
    """Does two training steps and evaluation batches on a copy of the model. Returns the seconds of a training step and of an evaluation batch, the second of two each, and the size of the run's state."""
    model = copy.deepcopy(trainer.networks.model)
    optimizer = optimizer_of(model)
    precision = trainer.optim.precision.rehearsal()
    evaluator = trainer.task.evaluator("figures", trainer.session.device)
    batch = trainer.data.train_loader.finish(batch)
    try:
        for _ in range(2):
            started = _now(trainer.session.device)
            seed_all(0)
            freeze.train(model)
            with precision.autocast():
                loss = trainer.task.loss(model, batch)["loss"]
            precision.backward(loss)
            precision.clip(optimizer, model.parameters(), trainer.optim.clip_grad)
            precision.step(optimizer)
            optimizer.zero_grad()
            step_seconds = _now(trainer.session.device) - started
        for size in _sizes(trainer):
            with torch.no_grad(), precision.autocast():
                trainer.task.loss(model, trainer.task.resized(batch, size))
        batch = trainer.task.evaluation_like(batch)
        for _ in range(2):
            started = _now(trainer.session.device)
            model.eval()
            with torch.inference_mode(), precision.autocast():
                evaluator.step(model, batch)
            forward_seconds = _now(trainer.session.device) - started
    except RuntimeError as error:
        if "deterministic" in str(error) or is_out_of_memory(error):
            raise
        raise ConfigError(
            f"MODEL.NAME: a training step fails ({one_line(error, 300)}); check MODEL and DATA"
        ) from error
    optimizer_bytes = _bytes(optimizer.state_dict())
    if isinstance(optimizer, ShardedOptimizer):
        optimizer_bytes = sum(trainer.session.peers.gather(optimizer_bytes))
    states = [network.state_dict() for network in trainer.networks.evaluated().values()]
    return step_seconds, forward_seconds, optimizer_bytes + sum(map(_bytes, states))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _bytes(value) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = value.values()
    return sum(map(_bytes, value)) if not isinstance(value, (str, int, float, bool, type(None))) else 0


def _disk(trainer: Trainer, checkpoint_bytes: int) -> tuple[int, int]:
    """Bytes that the checkpoints to come need, and that are free.

    Raises:
        OutputError: they do not fit, or the folder cannot be written to.
    """
    directory = trainer.saver.checkpointer.directory
    existing = next(path for path in (directory, *directory.absolute().parents) if path.is_dir())
    missing = sum(not (directory / name).exists() for name in (LAST, PREVIOUS, BEST)) + 1  # and a temporary file
    every = trainer.saver.every_epochs
    if every:
        missing += trainer.epochs // every - trainer.progress.epoch // every
    needed = missing * checkpoint_bytes
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{directory}: cannot be written to; change --output or its permissions")
    if needed + SPARE > free:
        raise OutputError(
            f"{directory}: {missing} checkpoints of {checkpoint_bytes / 2**20:.1f} MiB, and {SPARE // 2**20} MiB of logs, "
            f"are to be written, {free / 2**20:.0f} MiB are free; free space, change --output, or keep fewer with SAVE_FREQ"
        )
    return needed, free
