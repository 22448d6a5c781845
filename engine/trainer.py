"""The training loop: epochs of updates, each of one or more micro-batches; evaluation, logs and checkpoints between."""

import contextlib
import math
import resource
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Iterator, Optional

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.loader import EvalLoader, TrainLoader
from utils.distributed import broadcast_buffers, sum_over_ranks
from utils.errors import NonFiniteError
from utils.rng import seed_all
from utils.run_log import RunLog

from .checkpoint import BEST, LAST, Checkpointer
from .evaluate import describe, evaluate, summarize, to_device
from .plan import BatchPlan


@dataclass
class Progress:
    """Where a run stands: `epoch` and, within it, `step` (updates done), and the best metric so far."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0  # of this epoch's images so far
    best: dict[str, Any] = field(default_factory=dict)  # {metric: value, "weights": "raw" or "ema", "epoch": number}

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.step, self.loss_sum = state["epoch"], state["step"], state["loss_sum"]
        self.best = dict(state["best"])


@dataclass
class Trainer:
    """Everything a training run consists of, and the loop over it."""

    model: nn.Module  # without wrappers: what is evaluated, averaged and saved
    wrapped_model: nn.Module  # as it is called in training
    task: Any
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any
    precision: Any
    model_ema: Optional[ModelEmaV3]
    train_loader: TrainLoader
    val_loader: EvalLoader
    plan: BatchPlan
    progress: Progress
    checkpointer: Checkpointer
    log: RunLog
    device: torch.device
    rank: int
    epochs: int
    seed: int
    clip_grad: float
    channels_last: bool
    print_freq: int
    save_freq: int
    save_every_steps: int

    def fit(self) -> None:
        """Trains from `progress` to the last epoch.

        Raises:
            NonFiniteError: the loss is infinite or not a number; the checkpoints are those of before.
            OutputError: a checkpoint cannot be written.
        """
        while self.progress.epoch < self.epochs:
            started = time.perf_counter()
            train_loss = self.train_epoch()
            results = self.evaluate()
            self.finish_epoch(train_loss, results, time.perf_counter() - started)

    # One epoch

    def train_epoch(self) -> float:
        """Trains from `progress.step` to the end of the epoch; returns the epoch's mean loss."""
        epoch, first_step, steps = self.progress.epoch, self.progress.step, self.plan.updates_per_epoch
        batches = self.train_loader.epoch(epoch, first_step * self.plan.accumulation_steps)
        window = Window(self.device)
        self.wrapped_model.train()
        for step in self.log.progress(range(first_step, steps), steps, f"epoch {epoch}", done=first_step):
            grad_norm = self.update(step, batches, window)
            self.progress.step = step + 1
            save = self.save_every_steps and (step + 1) % self.save_every_steps == 0 and step + 1 < steps
            if (step + 1) % self.print_freq == 0 or step + 1 == steps or save:
                self.report(window, grad_norm)
                window = Window(self.device)
            if save:
                self.save(LAST)
        return self.progress.loss_sum / self.plan.batches_per_epoch

    def update(self, step: int, batches: Iterator, window: "Window") -> torch.Tensor:
        """One optimizer step over the update's micro-batches; returns the norm of its gradient."""
        update = self.progress.epoch * self.plan.updates_per_epoch + step
        num_batches = self.plan.batches_in_update(step)
        self.lr_scheduler.step_update(update)
        for i in range(num_batches):
            last = i == num_batches - 1
            waiting = time.perf_counter()
            images, targets = batch = next(batches)
            window.wait += time.perf_counter() - waiting
            if update == 0 and i == 0:
                self.log.picture("train_batch", self.task.preview(batch, self.train_loader.loader.dataset.classes))
            images = to_device(images, self.device, self.channels_last)
            targets = targets.to(self.device, non_blocking=True)
            # Mixup, dropout and drop path draw from here on: the same draws whatever ran before.
            seed_all(self.seed, self.progress.epoch, step, i, self.rank)
            with self.synchronised(last):
                with self.precision.autocast():
                    loss = self.task.loss(self.wrapped_model, (images, targets))
                self.precision.backward(loss / num_batches, self.optimizer, last)
            window.add(loss)
        grad_norm = self.precision.step(self.optimizer, self.model.parameters(), self.clip_grad)
        self.optimizer.zero_grad()
        if self.model_ema:
            self.model_ema.update(self.model, step=update + 1)
        return grad_norm

    def synchronised(self, last: bool):
        """Gradients are averaged over processes once per update, with its last micro-batch."""
        wrapped = isinstance(self.wrapped_model, DistributedDataParallel)
        return contextlib.nullcontext() if last or not wrapped else self.wrapped_model.no_sync()

    def report(self, window: "Window", grad_norm: torch.Tensor) -> None:
        """Logs what happened since the last report.

        Raises:
            NonFiniteError: on all processes, if the loss of any is not finite.
        """
        epoch, step = self.progress.epoch, self.progress.step
        world_size = self.plan.world_size
        loss_sum = sum_over_ranks(window.loss_sum).item() / world_size  # waits for the device
        seconds = time.perf_counter() - window.started
        self.progress.loss_sum += loss_sum
        loss = loss_sum / window.batches
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"epoch {epoch}, update {step}: the loss is {loss}; checkpoints are kept as they were. "
                "Try a smaller TRAIN.BASE_LR, AMP.DTYPE bfloat16 or --disable_amp"
            )
        update = epoch * self.plan.updates_per_epoch + step
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        images_per_second = window.batches * self.plan.batch_size * world_size / seconds
        wait = window.wait / seconds
        remaining = self.epochs * self.plan.updates_per_epoch - update
        eta = time.strftime("%H:%M:%S", time.gmtime(remaining * seconds / window.updates(self.plan) % 86400))
        days = int(remaining * seconds / window.updates(self.plan) // 86400)
        self.log.info(
            f"epoch {epoch} [{step}/{self.plan.updates_per_epoch}] loss {loss:.4f} lr {lr:.3e} "
            f"grad_norm {grad_norm.item():.3f} {images_per_second:.1f} images/s wait {wait:.0%} "
            f"mem {memory_mib(self.device):.0f} MiB eta {f'{days}d ' if days else ''}{eta}"
        )
        values = {"loss": loss, "lr": lr, "grad_norm": grad_norm.item()}
        speed = {"images_per_second": images_per_second, "data_wait": wait, "memory_mib": memory_mib(self.device)}
        self.log.record("train", update, {"epoch": epoch, **values, **speed})
        self.log.scalars(update, {f"train/{name}": value for name, value in {**values, **speed}.items()})

    # Between epochs

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """Metrics of the raw and, if there is one, the averaged model over the validation images."""
        found = {"raw": self.model}
        if self.model_ema:
            found["ema"] = self.model_ema.module
        results = {}
        for name, model in found.items():
            broadcast_buffers(model)
            results[name] = evaluate(
                model, self.task, self.val_loader, self.precision, self.device, self.log, self.channels_last
            )
        return results

    def finish_epoch(self, train_loss: float, results: dict[str, dict[str, Any]], seconds: float) -> None:
        """Logs the epoch, notes a new best, and saves."""
        progress, metric = self.progress, self.task.best_metric
        summary = summarize(results, metric)
        improved = not progress.best or summary[metric] > progress.best[metric]
        if improved:
            progress.best = {metric: summary[metric], "weights": summary["weights"], "epoch": progress.epoch}
        update = (progress.epoch + 1) * self.plan.updates_per_epoch
        self.log.info(
            f"epoch {progress.epoch} done in {seconds:.1f} s: train loss {train_loss:.4f}; {describe(results)}; "
            f"best {metric} {progress.best[metric]:.3f} ({progress.best['weights']}, epoch {progress.best['epoch']})"
        )
        self.log.record("epoch", update, {"epoch": progress.epoch, "train_loss": train_loss, **results})
        self.log.scalars(
            update, {f"val/{k}{'_ema' if n == 'ema' else ''}": v for n, r in results.items() for k, v in r.items()}
        )
        progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0
        names = [BEST] if improved else []
        if self.save_freq and progress.epoch % self.save_freq == 0:
            names.append(f"epoch_{progress.epoch}.pth")
        self.save(*names, LAST)

    def save(self, *names: str) -> None:
        if self.log.enabled:
            self.checkpointer.save(*names)


class Window:
    """Sums since the last report; the loss stays on the device until it is asked for."""

    def __init__(self, device: torch.device):
        self.started = time.perf_counter()
        self.wait = 0.0  # seconds spent waiting for data
        self.batches = 0  # micro-batches of this process
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, loss: torch.Tensor) -> None:
        self.loss_sum += loss.detach().double()
        self.batches += 1

    def updates(self, plan: BatchPlan) -> float:
        return self.batches / plan.accumulation_steps


def memory_mib(device: torch.device) -> float:
    """The largest memory so far: what torch allocated on a GPU, else this process' resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
