"""The training loop: epochs of updates, each of one or more micro-batches; evaluation, logs and checkpoints between."""

import contextlib
import math
import operator
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Iterator, Optional

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.loader import EvalLoader, TrainLoader
from utils.device import memory_mib, to_device
from utils.distributed import broadcast_buffers, sum_over_ranks
from utils.errors import NonFiniteError
from utils.rng import seed_all
from utils.run_log import RunLog

from .checkpoint import BEST, LAST, Checkpointer
from .evaluate import describe, evaluate, summarize
from .plan import BatchPlan


@dataclass
class Progress:
    """Where a run stands: `epoch` and, within it, `step` (updates done), and the best metric so far."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0  # over this epoch's images so far, of all processes
    images: int = 0  # how many those are
    best: dict[str, Any] = field(default_factory=dict)  # {metric: value, "weights": "raw" or "ema", "epoch": number}

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if min(state["epoch"], state["step"], state["images"]) < 0 or not math.isfinite(state["loss_sum"]):
            raise ValueError("no such place in a run")
        self.epoch, self.step, self.images = (operator.index(state[name]) for name in ("epoch", "step", "images"))
        self.loss_sum, self.best = float(state["loss_sum"]), dict(state["best"])


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
            NonFiniteError: a loss or gradient is infinite or not a number; the checkpoints are those of before.
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
        return self.progress.loss_sum / self.progress.images

    def update(self, step: int, batches: Iterator, window: "Window") -> torch.Tensor:
        """One optimizer step over the update's micro-batches; returns the norm of its gradient."""
        update = self.progress.epoch * self.plan.updates_per_epoch + step
        num_batches = self.plan.batches_in_update(step)
        self.lr_scheduler.step_update(update)
        for i in range(num_batches):
            last = i == num_batches - 1
            waiting = time.perf_counter()
            batch = next(batches)
            window.wait += time.perf_counter() - waiting
            if update == 0 and i == 0:
                self.log.picture("train_batch", self.task.preview(batch, self.train_loader.loader.dataset.classes))
            batch = to_device(batch, self.device, self.channels_last)
            # Mixup, dropout and drop path draw from here on: the same draws whatever ran before.
            seed_all(self.seed, self.progress.epoch, step, i, self.rank)
            with self.synchronised(last):
                with self.precision.autocast():
                    loss = self.task.loss(self.wrapped_model, batch)
                self.precision.backward(loss / num_batches, self.optimizer, last)
            window.add(loss, self.plan.batch_size)
        grad_norm = self.precision.step(self.optimizer, self.model.parameters(), self.clip_grad)
        if not self.precision.skips_overflows:
            window.finite &= torch.isfinite(grad_norm)
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
            NonFiniteError: on all processes, if the loss or a gradient of any is not finite.
        """
        epoch, step = self.progress.epoch, self.progress.step
        images = window.images * self.plan.world_size
        loss_sum = sum_over_ranks(window.loss_sum).item()  # waits for the device
        seconds = time.perf_counter() - window.started
        loss = loss_sum / images
        self.require_finite(loss, f"update {step}: the loss")
        if not window.finite.item():  # gradients are the same on all processes
            self.require_finite(math.nan, f"update {step} or up to {self.print_freq} before it: the gradient")
        self.progress.loss_sum += loss_sum
        self.progress.images += images
        update = epoch * self.plan.updates_per_epoch + step
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        images_per_second = images / seconds
        wait = window.wait / seconds
        remaining = (self.epochs * self.plan.updates_per_epoch - update) * self.plan.total_batch_size / images_per_second
        days, eta = int(remaining // 86400), time.strftime("%H:%M:%S", time.gmtime(remaining % 86400))
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

    def require_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise NonFiniteError(
                f"epoch {self.progress.epoch}, {what} is {value}; checkpoints are kept as they were. "
                "Try a smaller TRAIN.BASE_LR, AMP.DTYPE bfloat16 or --disable_amp"
            )

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
        """Logs the epoch, notes a new best, and saves.

        Raises:
            NonFiniteError: a validation loss is not finite, so the weights are not worth keeping.
        """
        progress, metric = self.progress, self.task.best_metric
        for name, metrics in results.items():
            self.require_finite(metrics["loss"], f"validation: the loss of the {name} weights")
        summary = summarize(results, metric)
        improved = not progress.best or summary[metric] > progress.best[metric]
        if improved:
            progress.best = {metric: summary[metric], "weights": summary["weights"], "epoch": progress.epoch}
        update = (progress.epoch + 1) * self.plan.updates_per_epoch
        self.log.info(
            f"epoch {progress.epoch} done in {seconds:.1f} s: train loss {train_loss:.4f}; {describe(results)}; "
            f"best {describe_best(progress.best)}"
        )
        self.log.record("epoch", update, {"epoch": progress.epoch, "train_loss": train_loss, **results})
        self.log.scalars(
            update, {f"val/{k}{'_ema' if n == 'ema' else ''}": v for n, r in results.items() for k, v in r.items()}
        )
        progress.epoch, progress.step, progress.loss_sum, progress.images = progress.epoch + 1, 0, 0.0, 0
        names = [BEST] if improved else []
        if self.save_freq and progress.epoch % self.save_freq == 0:
            names.append(f"epoch_{progress.epoch}.pth")
        self.save(*names, LAST)

    def save(self, *names: str) -> None:
        if self.log.enabled:
            self.log.flush()  # a resumed run repeats no update before this
            self.checkpointer.save(*names)


def describe_best(best: dict[str, Any]) -> str:
    values = " ".join(f"{name} {value:.3f}" for name, value in best.items() if name not in ("weights", "epoch"))
    return f"{values} ({best['weights']}, epoch {best['epoch']})" if best else "none yet"


class Window:
    """Sums since the last report; the loss stays on the device until it is asked for."""

    def __init__(self, device: torch.device):
        self.started = time.perf_counter()
        self.wait = 0.0  # seconds spent waiting for data
        self.images = 0  # of this process
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)  # all gradients so far

    def add(self, loss: torch.Tensor, images: int) -> None:
        self.loss_sum += loss.detach().double() * images
        self.images += images
