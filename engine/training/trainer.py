"""The training loop: epochs of updates, each of one or more micro-batches; evaluation, logs and checkpoints between.

Read `fit`, `train_epoch` and `update`, in this order. Below them is what they call, then what happens after a fault.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, NoReturn, Sequence

import torch

from utils.errors import ConfigError, NonFiniteError, OutputError, Stopped
from utils.files import write_json
from utils.processes.collectives import broadcast_buffers

from ..checkpoints.parts import read_with_parts
from ..checkpoints.progress import OpenWindow, Progress, Window
from ..checkpoints.store import LAST
from ..evaluation.loop import evaluate, summarize
from ..observer import Observer
from ..session import Session
from ..tasks.base import ChoosingEvaluator, ClosingEvaluator, Task
from .draws import seeded
from .networks import Networks
from .nonfinite import MAX_ROLLBACKS, NonFinite, require_finite_results
from .optim import Optimisation
from .recorder import Recorder
from .run_length import RunLength
from .saver import Saver
from .training_data import TrainingData


@dataclass
class Trainer:
    """A training run: its parts, and the loop over them."""

    session: Session  # device, processes, log
    task: Task  # what is learned
    data: TrainingData  # from which images, and how many make an update
    networks: Networks  # what learns
    optim: Optimisation  # how gradients become an update
    progress: Progress  # where the run stands
    recorder: Recorder  # what it says of itself
    saver: Saver  # when it is saved, and where it goes on from
    observers: Sequence[Observer]  # who else is told of it
    length: RunLength  # how many epochs it has
    seed: int

    @property
    def epochs(self) -> int:
        return self.length.epochs

    def fit(self) -> None:
        """Trains from `progress` to the last epoch.

        Raises:
            ConfigError: TRAIN.MAX_HOURS or TRAIN.BEST_METRIC asks for what cannot be had; the run is saved.
            Stopped: on all processes, after a signal; the run is saved.
            NonFiniteError: a loss or gradient is infinite or not a number; the checkpoints are those of before.
            OutputError: a checkpoint cannot be written.
        """
        with self.saver.until_written():
            self.saver.start_clock()
            self.length.start_clock()
            self.recorder.epochs = self.epochs
            self.networks.compile((len(self.data.train_loader.schedule.sizes) + 1) * self.data.plan.num_sizes)
            self.optim.guard.start(self.progress.left_out)
            if self.optim.guard.policy == "rollback" and not self.saver.newest():
                self.save_for_all()  # something to go back to
            while not self.length.ended_by(self.progress.epoch):
                started = time.perf_counter()
                self.length.start_epoch(self.progress.step)
                try:
                    train_loss = self.train_epoch()
                except NonFinite as failure:
                    self.roll_back(failure)
                    continue
                results = self.evaluate()
                self.finish_epoch(train_loss, results, time.perf_counter() - started)

    def train_epoch(self) -> float:
        """Trains from `progress.step` to the end of the epoch; returns the epoch's mean loss."""
        progress, peers = self.progress, self.session.peers
        epoch, first, steps = progress.epoch, progress.step, self.data.plan.updates_per_epoch
        if not first:
            progress.this_epoch.lanes = self.data.train_loader.lanes
        batches = self.data.batches(epoch, first, progress.this_epoch.lanes)
        self.recorder.start_epoch(self.data.img_size(epoch))
        window = Window(self.session.device, progress, peers.launch)
        self.networks.train()
        for step in self.session.log.progress(range(first, steps), steps, f"epoch {epoch}", done=first):
            for observer in self.observers:
                observer.before_update(self, step)
            grad_norm = self.update(step, batches, window)
            self.networks.compiles_next = False  # the next ones may not last as long, see `Place`
            for observer in self.observers:
                observer.after_update(self, step)
            progress.step = step + 1
            progress.updates += 1
            self.saver.check()
            # A message of a few bytes, so that all processes save and end after the same update.
            stop, due, paced = peers.agree([bool(peers.stop), self.saver.is_due(), self.length.is_due()])
            if self.recorder.is_due(step + 1):
                self.report(window, grad_norm)
                window = Window(self.session.device, progress, peers.launch)
            if paced and self.length.is_open and step + 1 < steps:
                self.note(window)
                self.fit_into_time(self.expected_seconds())
            # An epoch's last update is saved after the evaluation, unless the run is to end before that.
            if stop or ((due or self.saver.is_step(step + 1)) and step + 1 < steps):
                peers.at("saves", may_last=True)
                self.note(window)
                self.save(LAST)
            if stop:
                self.end_stopped()
        return progress.this_epoch.loss / max(progress.this_epoch.images, 1)  # no images: every update was left out

    def update(self, step: int, batches: Iterator, window: Window) -> torch.Tensor:
        """One optimizer step over the update's micro-batches; returns the norm of its gradient, ()."""
        optim, plan, peers = self.optim, self.data.plan, self.session.peers
        epoch, num_batches, images = self.progress.epoch, plan.batches_in_update(step), plan.images_in_update(step)
        place, compiling = f"epoch {epoch}, update {step + 1}", self.networks.compiles_next
        update: Any = self.length.place(epoch, step, plan.updates_per_epoch)  # timm takes parts, which it does not say
        optim.lr_scheduler.step_update(update)
        if [epoch, step] in self.progress.rolled_back:  # it was not finite: its images are passed over
            for _ in range(num_batches):
                next(batches)
            return torch.full((), math.nan)
        optim.guard.before_update()
        sums = {"loss": torch.zeros((), dtype=torch.float64, device=self.session.device)}
        for i in range(num_batches):
            last = i == num_batches - 1
            peers.at(f"{place}: waits for images", may_last=True)
            batch = self.next_batch(batches, window, first=i == 0)
            peers.at(f"{place}: forward", may_last=compiling)
            count = plan.images_in_batch(i, peers.launch.rank)
            with (
                self.networks.synchronised(last),
                self.networks.replayed(keep_gradients=i == 0 and not last),
                seeded(plan, self.seed, (epoch, step), i, peers.launch.rank) as draws,
            ):
                with window.forward.running(), optim.precision.autocast():
                    losses = self.task.loss(self.networks.wrapped, batch)
                peers.at(f"{place}: backward", may_last=compiling)
                draws.begin_backward()
                # The gradient, of which the processes' mean is taken, is the mean over the update's images: an epoch's last
                # update may have fewer micro-batches, and these may have more images than others.
                optim.precision.backward(losses["loss"] / (images / (count * plan.world_size)))
            for name, value in losses.items():
                # In float64, so that a window's sum does not depend on where log lines and saves cut it.
                sums[name] = sums.get(name, 0.0) + value.detach().double() * count
        grad_norm = optim.precision.clip(optim.optimizer, self.networks.model.parameters(), optim.clip_grad)
        if optim.guard.accepts(step, sums["loss"], grad_norm):
            optim.precision.step(optim.optimizer)
            window.add(sums, images)
            self.networks.update_average(self.progress.updates + 1)
        else:
            optim.precision.skip()
            self.describe_update(step, "loss or gradient")
        optim.optimizer.zero_grad()
        return grad_norm

    def next_batch(self, batches: Iterator, window: Window, first: bool) -> Any:
        """A micro-batch; `first` says whether it is an update's first one, before which nothing of the update is done."""
        waiting = time.perf_counter()
        try:
            batch = next(batches)
        except (Stopped, OutputError):  # it does not come
            if first and self.session.launch.world_size == 1:  # several could not agree on a save any more
                self.note(window)
                self.save(LAST)
            raise
        window.wait += time.perf_counter() - waiting
        for observer in self.observers:
            observer.on_batch(self, batch)
        return batch

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """Figures of the raw and, if there is one, the averaged model over the validation images.

        Raises:
            Stopped: as `fit`.
        """
        closing = self.length.may_end(self.progress.epoch + 1)
        # A compiled model is compiled again for another number of images, so the last batch is filled up.
        whole_batches = (self.data.val_loader.loader.batch_size or 0) if self.networks.compile_mode else 0
        results: dict[str, dict[str, Any]] = {}
        evaluators: dict[str, ClosingEvaluator] = {}
        for name, model in self.networks.evaluated().items():
            broadcast_buffers(model)  # BatchNorm's statistics are each process' own until here
            evaluator = self.task.evaluator("closing" if closing else "figures", self.session.device)
            figures = evaluate(
                model, evaluator, self.data.val_loader, self.optim.precision, self.session.log, self.session.peers, whole_batches
            )  # fmt: skip
            if figures is None:  # asked to stop: the run goes on with this evaluation
                self.list_unreadable()
                self.save(LAST)
                self.end_stopped()
            results[name] = figures
            if isinstance(evaluator, ChoosingEvaluator):
                self.progress.chosen[name] = evaluator.chosen()
            if closing and isinstance(evaluator, ClosingEvaluator):
                evaluator.gather(self.session.peers)
                evaluators[name] = evaluator
        for observer in self.observers:
            observer.after_evaluation(self, results)
        if evaluators and self.session.is_first:
            self.recorder.write_mistakes(evaluators, self.data.classes)
        return results

    def finish_epoch(self, train_loss: float, results: dict[str, dict[str, Any]], seconds: float) -> None:
        """Logs the epoch, notes a new best, and saves.

        Raises:
            NonFiniteError: a figure is not finite, so the weights are not worth keeping.
            ConfigError: the figure that best.pth is chosen by is not there.
            Stopped: as `fit`.
        """
        progress, metric, peers = self.progress, self.task.primary, self.session.peers
        require_finite_results(results, progress.epoch)
        summary = self.summary_of(results)
        value, best = summary[metric.key], progress.best.get(metric.key)
        improved = best is None or metric.rank(value) > metric.rank(best)
        progress.length.stale = 0 if improved else progress.length.stale + 1
        if improved:
            progress.best = {metric.key: value, "weights": summary["weights"], "epoch": progress.epoch}
            progress.best_metrics = results[summary["weights"]]
            self.session.log.best(progress.best)
        self.recorder.epoch(train_loss, results, seconds)
        self.list_unreadable()
        if self.length.is_open and self.length.whole_epoch:
            self.fit_into_time(seconds)
        ended = self.length.ended_by(progress.epoch + 1)
        if ended:
            self.recorder.write_result(
                summary, self.length.early(progress.epoch + 1)
            )  # before the save after which the run is finished
        progress.start_epoch(progress.epoch + 1)
        self.save(*self.saver.names_after_epoch(improved))
        if not ended and peers.agree([bool(peers.stop)], now=True)[0]:
            self.end_stopped()

    def summary_of(self, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """See `summarize`; where it raises ConfigError the run is saved before."""
        try:
            return summarize(results, self.task.primary)
        except ConfigError as error:
            self.save_for_all()  # nobody ends the run before that
            raise error.with_remedy(f"{error.remedy}; the run is saved") from error

    # Between updates

    def report(self, window: Window, grad_norm: torch.Tensor) -> None:
        """Logs what happened since the last report, and counts it to the epoch.

        Raises:
            NonFinite: on all processes, if the loss or a gradient of any is not finite.
        """
        self.require_finite_updates()
        self.recorder.window(window, grad_norm, self.optim.lr)

    def note(self, window: Window) -> None:
        """Puts the sums since the last report into `progress`, so that a save between two reports changes none of them.

        Raises:
            NonFinite: as `report`; there is nothing to save then.
        """
        self.require_finite_updates()
        parts = self.session.peers.gather({name: value.item() for name, value in window.sums.items()})
        by_name = {name: [sums[name] for sums in parts] for name in window.sums}
        self.progress.window = OpenWindow(by_name, window.images)
        self.list_unreadable()

    def expected_seconds(self) -> float:
        """Of an epoch, as the clock says that counts: a validation image is taken to cost as much as one of training."""
        if not self.length.keeps_time:
            return 0.0
        plan = self.data.plan
        evaluated = self.data.val_loader.num_images * len(self.networks.evaluated())
        return (plan.updates_per_epoch + evaluated / plan.total_batch_size) * self.length.seconds_per_update()

    def fit_into_time(self, seconds_per_epoch: float) -> None:
        """Chooses how many epochs there is time for, as the clock says that counts; all processes call this.

        Raises:
            ConfigError: not even for the one under way.
        """
        progress, peers = self.progress, self.session.peers
        position = progress.epoch + progress.step / self.data.plan.updates_per_epoch
        fitting = self.length.fitting(position, seconds_per_epoch) if self.length.keeps_time else 0
        epochs, seconds_per_epoch = peers.from_first([fitting, seconds_per_epoch])
        try:
            self.session.log.info(self.length.choose(epochs, position, seconds_per_epoch))
        finally:
            self.recorder.epochs = self.epochs
            if position < progress.epoch + 1:  # else it is saved with the end of the epoch
                self.save_for_all()  # nobody ends the run before that

    def save(self, *names: str) -> None:
        """Saves the run's present state to files of these names, which are written while the run goes on."""
        self.length.note_time()
        for observer in self.observers:
            observer.before_save(self, names)
        self.saver.save(*names)

    def save_for_all(self) -> None:
        """Saves `last.pth`; returns on all processes when it is written."""
        self.save(LAST)
        self.saver.wait()
        self.session.peers.meet()

    def list_unreadable(self) -> None:
        """Adds the training images that no process could read to the run's list (DATA.ON_ERROR skip)."""
        failures: list[str] = sum(self.session.peers.gather(self.data.train_loader.take_failures()), [])
        self.session.log.list_unreadable(failures)

    def end_stopped(self) -> NoReturn:
        """Ends all processes together, once rank 0 has saved.

        Raises:
            Stopped: always.
        """
        progress, peers, log = self.progress, self.session.peers, self.session.log
        self.saver.wait()
        # the exchange holds all of them until rank 0's save is written
        reasons = [reason for reason in peers.gather(peers.stop.reason) if reason]
        log.warning(
            f"stopped by {reasons[0] if reasons else 'a signal'}: saved at epoch {progress.epoch}, update {progress.step}; "
            "the same command goes on from there"
        )
        log.close()
        raise Stopped

    # Faults

    def require_finite_updates(self) -> None:
        """Raises NonFinite or NonFiniteError, by the policy, on all processes, if an update since the last look was not."""
        guard, epoch = self.optim.guard, self.progress.epoch
        self.progress.left_out = guard.counts()
        bad = guard.check(self.progress.left_out[1])
        if not bad:
            return
        step, what = bad
        message = (
            f"epoch {epoch}, update {step + 1}: the {what} is not finite; checkpoints are kept as they were, the "
            f"update's files are in {self.describe_update(step, what)}. Try a smaller TRAIN.BASE_LR, AMP.DTYPE bfloat16 or "
            "--disable_amp, or TRAIN.NONFINITE skip"
        )
        if guard.policy == "rollback":
            raise NonFinite(message, [epoch, step])
        raise NonFiniteError(message)

    def describe_update(self, step: int, what: str) -> Path:
        """Writes which images, with which augmentation, an update has: enough to repeat it from the checkpoint before."""
        epoch, log = self.progress.epoch, self.session.log
        path = log.directory / "nonfinite" / f"epoch_{epoch}_update_{step + 1}.json"
        if log.enabled:
            images = self.data.images_of(epoch, step)
            value = {"epoch": epoch, "update": step + 1, "not_finite": what, "seed": self.seed, "images": images}
            write_json(path, value)
            log.warning(f"epoch {epoch}, update {step + 1}: the {what} is not finite; its images are in {path}")
        return path

    def roll_back(self, failure: NonFinite) -> None:
        """Goes back to the last checkpoint; the update that failed is left out when the run comes to it again.

        Raises:
            NonFiniteError: it has happened too often.
        """
        progress, log = self.progress, self.session.log
        rolled_back, changes = [*progress.rolled_back, failure.place], progress.changes
        if len(rolled_back) > MAX_ROLLBACKS:
            raise NonFiniteError(f"{failure}; the run has gone back {MAX_ROLLBACKS} times")
        path = self.saver.newest()
        assert path is not None  # see `fit`
        self.length.note_time()
        seconds = progress.length.seconds
        self.saver.restore(read_with_parts(path), path)
        progress.rolled_back, progress.changes = rolled_back, changes
        progress.length.seconds = seconds
        progress.judge_by(self.task.primary.key)
        self.optim.optimizer.zero_grad()
        self.optim.guard.start(progress.left_out)
        log.rewind(progress.updates, progress.epoch)
        log.warning(
            f"gone back to {path}: epoch {progress.epoch}, update {progress.step}; update {failure.place[1] + 1} "
            f"of epoch {failure.place[0]} will be left out"
        )
