"""What a long run needs, looked at before its first step: images that can be read, memory, disk space, time."""

import copy
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from data.dataset import SeededIndex, collate_items
from utils.device import memory_mib, to_device
from utils.errors import ConfigError, OutputError
from utils.rng import get_rng_state, seed_all, set_rng_state

from .checkpoint import BEST, LAST, PREVIOUS
from .trainer import Trainer, duration

SAMPLES = 8  # training images that are read
SPARE = 64 * 2**20  # bytes beside the checkpoints: logs and curves


@dataclass(frozen=True)
class Preflight:
    """What was found. Times are of this process on this machine at this moment."""

    load_seconds: float  # per image and worker
    step_seconds: float  # forward, backward and optimizer step of one micro-batch
    forward_seconds: float  # of one evaluation batch
    memory_mib: float
    checkpoint_bytes: int
    disk_needed: int
    disk_free: int
    run_seconds: float  # what is left of the run, at least

    def lines(self, workers: int) -> list[str]:
        rate = max(workers, 1) / max(self.load_seconds, 1e-9)
        return [
            f"one micro-batch: {self.step_seconds:.3f} s, {self.memory_mib:.0f} MiB; reading images: {rate:.0f} images/s per process",
            f"checkpoints: {self.checkpoint_bytes / 2**20:.1f} MiB each, {self.disk_needed / 2**20:.0f} MiB still to be written, "
            f"{self.disk_free / 2**20:.0f} MiB free",
            f"estimated time: {duration(self.run_seconds)} at least (from one step; the log's eta is better)",
        ]


def preflight(trainer: Trainer, optimizer_of) -> Preflight:
    """Reads a few images, does one step and one evaluation batch on copies, and counts the disk space.

    Nothing of the run is changed: neither its weights nor its random numbers.

    Args:
        trainer: a run that is about to start or to go on.
        optimizer_of: model -> an optimizer as the run's.

    Raises:
        DataError: an image cannot be read.
        ConfigError: the model cannot do a step.
        OutputError: the disk has no room for the checkpoints to come.
    """
    random_state = get_rng_state()
    try:
        batch, load_seconds = _read_images(trainer)
        step_seconds, forward_seconds, state_bytes = _dry_step(trainer, optimizer_of, batch)
    finally:
        set_rng_state(random_state)
    needed, free = _disk(trainer, state_bytes)
    plan, progress = trainer.plan, trainer.progress
    micro_batches = (trainer.epochs - progress.epoch) * plan.batches_per_epoch - progress.step * plan.accumulation_steps
    evaluations = (trainer.epochs - progress.epoch) * len(trainer.val_loader) * (2 if trainer.model_ema else 1)
    workers = max(trainer.train_loader.loader.num_workers, 1)
    loading = load_seconds * plan.batch_size / workers
    return Preflight(
        load_seconds=load_seconds,
        step_seconds=step_seconds,
        forward_seconds=forward_seconds,
        memory_mib=memory_mib(trainer.device),
        checkpoint_bytes=state_bytes,
        disk_needed=needed,
        disk_free=free,
        run_seconds=micro_batches * max(step_seconds, loading) + evaluations * max(forward_seconds, loading),
    )


def _read_images(trainer: Trainer):
    """A micro-batch made of the first training images of this process, and the seconds that each took."""
    dataset = trainer.train_loader.loader.dataset
    size = trainer.plan.batch_size
    started = time.perf_counter()
    items = [dataset[SeededIndex(i * len(dataset) // SAMPLES, i)] for i in range(min(SAMPLES, size))]
    seconds = (time.perf_counter() - started) / len(items)
    batch, _ = collate_items((items * -(-size // len(items)))[:size])
    return batch, seconds


def _dry_step(trainer: Trainer, optimizer_of, batch):
    """Seconds of a training step and of an evaluation batch, the second of two each, and the size of the run's state."""
    model = copy.deepcopy(trainer.model)
    optimizer = optimizer_of(model)
    precision = trainer.precision.rehearsal()
    metrics = trainer.task.metrics(trainer.device)
    batch = to_device(batch, trainer.device, trainer.channels_last)
    try:
        for _ in range(2):
            started = _now(trainer.device)
            seed_all(0)
            model.train()
            with precision.autocast():
                loss = trainer.task.loss(model, batch)
            precision.backward(loss, optimizer, last=True)
            precision.clip(optimizer, model.parameters(), trainer.clip_grad)
            precision.step(optimizer)
            optimizer.zero_grad()
            step_seconds = _now(trainer.device) - started
        for _ in range(2):
            started = _now(trainer.device)
            model.eval()
            with torch.inference_mode(), precision.autocast():
                trainer.task.evaluate_batch(model, batch, metrics)
            forward_seconds = _now(trainer.device) - started
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "deterministic" in str(error):
            raise
        raise ConfigError(f"MODEL.NAME: a training step fails ({' '.join(str(error).split())[:300]}); check MODEL and DATA") from None
    parts = [model.state_dict(), optimizer.state_dict()] + ([trainer.model_ema.module.state_dict()] if trainer.model_ema else [])
    return step_seconds, forward_seconds, sum(map(_bytes, parts))


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
    directory = trainer.checkpointer.directory
    existing = next(path for path in (directory, *directory.absolute().parents) if path.is_dir())
    files = {LAST, PREVIOUS, BEST, "a temporary file"}
    if trainer.save_freq:
        later = range(trainer.progress.epoch + 1, trainer.epochs + 1)
        files |= {f"epoch_{epoch}.pth" for epoch in later if epoch % trainer.save_freq == 0}
    missing = [name for name in files if not (directory / name).exists()]
    needed = len(missing) * checkpoint_bytes
    free = shutil.disk_usage(existing).free
    if needed + SPARE > free:
        raise OutputError(
            f"{directory}: {len(missing)} checkpoints of {checkpoint_bytes / 2**20:.1f} MiB are to be written, "
            f"{free / 2**20:.0f} MiB are free; free space, change --output, or keep fewer with SAVE_FREQ"
        )
    return needed, free
