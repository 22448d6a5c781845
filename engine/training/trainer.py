"""The training loop: epochs of updates, each of one or more micro-batches; evaluation, logs and checkpoints between."""

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.loader import Loader
from utils.errors import CheckpointError, NonFiniteError, OutputError, Stopped
from utils.files import write_json
from utils.processes.collectives import broadcast_buffers
from utils.processes.peers import Peers
from utils.rng import seed_all
from utils.run_log import RunLog

from ..checkpoints.file import read_checkpoint
from ..checkpoints.progress import Progress, Window
from ..checkpoints.store import LAST, checkpoints_of
from ..evaluation.loop import evaluate, summarize
from ..tasks.base import Task
from . import freeze
from .nonfinite import MAX_ROLLBACKS, FiniteGuard, NonFinite
from .plan import BatchPlan
from .recorder import Recorder
from .saver import Saver


@dataclass
class Trainer:
    """Everything a training run consists of, and the loop over it."""

    model: nn.Module  # without wrappers: what is evaluated, averaged and saved
    wrapped_model: nn.Module  # as it is called in training
    task: Task
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any
    precision: Any
    model_ema: Optional[ModelEmaV3]
    train_loader: Loader
    val_loader: Loader
    plan: BatchPlan
    progress: Progress
    saver: Saver
    recorder: Recorder
    log: RunLog
    device: torch.device
    peers: Peers
    guard: FiniteGuard
    epochs: int
    seed: int
    clip_grad: float
    compile_mode: str  # of torch.compile; empty: not compiled
    print_freq: int
    compiling: bool = False  # the next update begins with that
    img_size: int = 0  # of the training images, where it changes

    def fit(self) -> None:
        """Trains from `progress` to the last epoch.

        Raises:
            Stopped: on all processes, after a signal; the run is saved.
            NonFiniteError: a loss or gradient is infinite or not a number; the checkpoints are those of before.
            OutputError: a checkpoint cannot be written.
        """
        self.start()
        while self.progress.epoch < self.epochs:
            started = time.perf_counter()
            try:
                train_loss = self.train_epoch()
            except NonFinite as found:
                self.roll_back(found)
                continue
            results = self.evaluate()
            self.finish_epoch(train_loss, results, time.perf_counter() - started)

    def start(self) -> None:
        self.saver.start_clock()
        self.compiling = bool(self.compile_mode)
        if self.compiling:
            for model in filter(None, [self.model, self.model_ema and self.model_ema.module]):
                model.compile(mode=self.compile_mode)  # both share one graph, and training has another
        self.guard.start(self.progress.left_out)
        if self.guard.policy == "rollback" and not checkpoints_of(self.saver.checkpointer.directory):
            self.saver.save(LAST)  # something to go back to
            self.peers.from_first(None)

    # One epoch

    def train_epoch(self) -> float:
        """Trains from `progress.step` to the end of the epoch; returns the epoch's mean loss."""
        progress, steps = self.progress, self.plan.updates_per_epoch
        epoch, first_step = progress.epoch, progress.step
        batches = self.train_loader.epoch(epoch, first_step * self.plan.accumulation_steps)
        size, self.img_size = self.img_size, self.train_loader.schedule.size_at(epoch)
        if self.img_size != size:
            self.log.info(f"epoch {epoch}: training images of {self.img_size} px")
        window = Window(self.device, progress, self.peers.launch)
        self.recorder.waits.start_epoch()
        freeze.train(self.wrapped_model)
        for step in self.log.progress(range(first_step, steps), steps, f"epoch {epoch}", done=first_step):
            started = time.perf_counter()
            grad_norm = self.update(step, batches, window)
            if self.compiling:
                self.log.info(f"torch.compile: the first update took {time.perf_counter() - started:.1f} s")
                self.compiling = False
            progress.step = step + 1
            progress.updates += 1
            stop, due = self.peers.agree([self.peers.stop, self.saver.is_due()])
            if (step + 1) % self.print_freq == 0 or step + 1 == steps:
                self.report(window, grad_norm)
                window = Window(self.device, progress, self.peers.launch)
            if stop or ((due or self.saver.is_step(step + 1)) and step + 1 < steps):
                self.peers.at("saves", may_last=True)
                self.note(window)
                self.saver.save(LAST)
            if stop:
                self.end_stopped()
        return progress.loss_sum / max(progress.images, 1)

    def update(self, step: int, batches: Iterator, window: Window) -> torch.Tensor:
        """One optimizer step over the update's micro-batches; returns the norm of its gradient."""
        epoch, rank = self.progress.epoch, self.peers.launch.rank
        place = f"epoch {epoch}, update {step + 1}"
        num_batches = self.plan.batches_in_update(step)
        self.lr_scheduler.step_update(epoch * self.plan.updates_per_epoch + step)
        if [epoch, step] in self.progress.rolled_back:
            for _ in range(num_batches):
                next(batches)
            return torch.full((), math.nan)
        self.guard.before_update()
        sums = {"loss": torch.zeros((), dtype=torch.float64, device=self.device)}
        for i in range(num_batches):
            self.peers.at(f"{place}: waits for images", may_last=True)
            batch = self.next_batch(batches, window, first=i == 0)
            self.peers.at(f"{place}: forward", may_last=self.compiling)
            # Mixup, dropout and drop path draw from here on: the same draws whatever ran before.
            seed_all(self.seed, epoch, step, i, rank)
            with self.synchronised(last=i == num_batches - 1):
                with self.precision.autocast():
                    losses = self.task.loss(self.wrapped_model, batch)
                self.peers.at(f"{place}: backward", may_last=self.compiling)
                self.precision.backward(losses["loss"] / num_batches)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach().double() * self.plan.batch_size
        grad_norm = self.precision.clip(self.optimizer, self.model.parameters(), self.clip_grad)
        if self.guard.accepts(step, sums["loss"], grad_norm):
            self.precision.step(self.optimizer)
            window.add(sums, num_batches * self.plan.batch_size * self.plan.world_size)
            if self.model_ema:
                self.model_ema.update(self.model, step=self.progress.updates + 1)
        else:
            self.precision.skip()
            self.describe_update(step, "loss or gradient")
        self.optimizer.zero_grad()
        return grad_norm

    def next_batch(self, batches: Iterator, window: Window, first: bool) -> Any:
        """A micro-batch; `first` says whether it is an update's first one, before which nothing of the update is done."""
        waiting = time.perf_counter()
        try:
            batch = next(batches)
        except (Stopped, OutputError):  # it does not come
            if first and self.peers.launch.world_size == 1:
                self.note(window)
                self.saver.save(LAST)
            raise
        window.wait += time.perf_counter() - waiting
        if self.progress.updates == 0 and first:
            self.log.picture("train_batch", self.task.preview(batch, self.train_loader.dataset.classes))
        return batch

    def synchronised(self, last: bool):
        """Gradients are averaged over processes once per update, with its last micro-batch."""
        wrapped = isinstance(self.wrapped_model, DistributedDataParallel)
        return contextlib.nullcontext() if last or not wrapped else self.wrapped_model.no_sync()

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """Figures of the raw and, if there is one, the averaged model over the validation images.

        Raises:
            Stopped: as `fit`.
        """
        models = {"raw": self.model}
        if self.model_ema:
            models["ema"] = self.model_ema.module
        closing = self.progress.epoch + 1 == self.epochs
        whole_batches = self.plan.batch_size if self.compile_mode else 0
        results, evaluators = {}, {}
        for name, model in models.items():
            broadcast_buffers(model)
            evaluator = self.task.evaluator("closing" if closing else "figures", self.device)
            figures = evaluate(model, evaluator, self.val_loader, self.precision, self.log, self.peers, whole_batches)
            if figures is None:
                self.list_unreadable()
                self.saver.save(LAST)
                self.end_stopped()
            results[name] = figures
            if closing:
                evaluator.gather(self.peers)
                evaluators[name] = evaluator
        if closing and self.log.enabled:
            self.recorder.write_mistakes(evaluators, self.train_loader.dataset.classes)
        return results

    def finish_epoch(self, train_loss: float, results: dict[str, dict[str, Any]], seconds: float) -> None:
        """Logs the epoch, notes a new best, and saves.

        Raises:
            NonFiniteError: a validation loss is not finite, so the weights are not worth keeping.
            Stopped: as `fit`.
        """
        progress, metric = self.progress, self.task.primary
        self.require_finite_results(results)
        summary = summarize(results, metric)
        value, best = summary[metric.key], progress.best.get(metric.key)
        improved = best is None or metric.rank(value) > metric.rank(best)
        if improved:
            progress.best = {metric.key: value, "weights": summary["weights"], "epoch": progress.epoch}
            progress.best_metrics = results[summary["weights"]]
            self.log.best(progress.best)
        self.recorder.epoch(train_loss, results, seconds)
        self.list_unreadable()
        if progress.epoch + 1 == self.epochs:
            self.recorder.write_result(summary)  # before the save after which the run is finished
        progress.start_epoch(progress.epoch + 1)
        self.saver.save_epoch(improved)
        if progress.epoch < self.epochs and self.peers.agree([self.peers.stop], now=True)[0]:
            self.end_stopped()

    # Between updates

    def report(self, window: Window, grad_norm: torch.Tensor) -> None:
        """Logs what happened since the last report, and counts it to the epoch.

        Raises:
            NonFinite: on all processes, if the loss or a gradient of any is not finite.
        """
        self.require_finite_updates()
        self.recorder.window(window, grad_norm, max(group["lr"] for group in self.optimizer.param_groups))

    def note(self, window: Window) -> None:
        """Puts the sums since the last report into `progress`, so that a save between two reports changes none of them.

        Raises:
            NonFinite: as `report`; there is nothing to save then.
        """
        self.require_finite_updates()
        parts = self.peers.gather({name: value.item() for name, value in window.sums.items()})
        by_name = {name: [sums[name] for sums in parts] for name in window.sums}
        self.progress.window_loss_sums, self.progress.window_parts = by_name.pop("loss"), by_name
        self.progress.window_images = window.images
        self.list_unreadable()

    def list_unreadable(self) -> None:
        """Adds the training images that no process could read to the run's list (DATA.ON_ERROR skip)."""
        failures = sum(self.peers.gather(self.train_loader.take_failures()), [])
        self.log.list_unreadable(failures)

    def end_stopped(self) -> None:
        """Ends all processes together, once rank 0 has saved.

        Raises:
            Stopped: always.
        """
        # all wait for rank 0's save
        reasons = [reason for reason in self.peers.gather(self.peers.stop.reason) if reason]
        progress = self.progress
        self.log.warning(
            f"stopped by {reasons[0] if reasons else 'a signal'}: saved at epoch {progress.epoch}, update {progress.step}; "
            "the same command goes on from there"
        )
        self.log.close()
        raise Stopped

    # Faults

    def require_finite_updates(self) -> None:
        """Raises NonFinite or NonFiniteError, by the policy, on all processes, if an update since the last look was not."""
        self.progress.left_out = self.guard.counts()
        found = self.guard.check(self.progress.left_out[1])
        if not found:
            return
        step, what = found
        message = (
            f"epoch {self.progress.epoch}, update {step + 1}: the {what} is not finite; checkpoints are kept as they were, the "
            f"update's files are in {self.describe_update(step, what)}. Try a smaller TRAIN.BASE_LR, AMP.DTYPE bfloat16 or "
            "--disable_amp, or TRAIN.NONFINITE skip"
        )
        if self.guard.policy == "rollback":
            raise NonFinite(message, [self.progress.epoch, step])
        raise NonFiniteError(message)

    def require_finite_results(self, results: dict[str, dict[str, Any]]) -> None:
        """Raises NonFiniteError if a validation loss is none; not every task has one."""
        for name, figures in results.items():
            loss = figures.get("loss", 0.0)
            if not math.isfinite(loss):
                raise NonFiniteError(
                    f"epoch {self.progress.epoch}, validation: the loss of the {name} weights is {loss}; checkpoints "
                    "are kept as they were. Try a smaller TRAIN.BASE_LR, AMP.DTYPE bfloat16 or --disable_amp"
                )

    def describe_update(self, step: int, what: str) -> Path:
        """Writes which images, with which augmentation, an update has: enough to repeat it from the checkpoint before."""
        epoch = self.progress.epoch
        path = self.log.directory / "nonfinite" / f"epoch_{epoch}_update_{step + 1}.json"
        if self.log.enabled:
            images = self.train_loader.images_of(
                epoch, step * self.plan.accumulation_steps, self.plan.batches_in_update(step)
            )
            value = {"epoch": epoch, "update": step + 1, "not_finite": what, "seed": self.seed, "images": images}
            write_json(path, value)
            self.log.warning(f"epoch {epoch}, update {step + 1}: the {what} is not finite; its images are in {path}")
        return path

    def roll_back(self, found: NonFinite) -> None:
        """Goes back to the last checkpoint; the update that was found is left out when the run comes to it again.

        Raises:
            NonFiniteError: it has happened too often.
        """
        rolled_back, changes = [*self.progress.rolled_back, found.place], self.progress.changes
        if len(rolled_back) > MAX_ROLLBACKS:
            raise NonFiniteError(f"{found}; the run has gone back {MAX_ROLLBACKS} times")
        path = Path(self.peers.from_first(str(checkpoints_of(self.saver.checkpointer.directory)[0])))
        self.saver.checkpointer.restore(read_checkpoint(path), path)
        require_same_place(self.progress, self.peers, path)
        self.progress.rolled_back, self.progress.changes = rolled_back, changes
        self.optimizer.zero_grad()
        self.guard.start(self.progress.left_out)
        self.log.rewind(self.progress.updates, self.progress.epoch)
        self.log.warning(
            f"gone back to {path}: epoch {self.progress.epoch}, update {self.progress.step}; update {found.place[1] + 1} "
            f"of epoch {found.place[0]} will be left out"
        )


def require_same_place(progress: Progress, peers: Peers, path: Path) -> None:
    """Raises CheckpointError if the processes read different checkpoints, as a file system's caches can make them."""
    places = peers.gather([progress.epoch, progress.step, progress.updates])
    if any(place != places[0] for place in places):
        raise CheckpointError(f"{path}: is another one for some processes ({places}); start the same command again")
