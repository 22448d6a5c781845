"""What a training run says of itself: log lines, epochs, and at its end result.json and mistakes.json."""

import math
import time
from typing import Any

import torch

from utils.device import memory_mib
from utils.files import write_json
from utils.image_size import FrozenSize, size_text
from utils.processes.collectives import sum_over_ranks
from utils.provenance import record
from utils.run_files import MISTAKES, RESULT
from utils.run_log import RunLog

from ..checkpoints.progress import OpenWindow, Progress, Window
from ..evaluation.loop import describe
from ..tasks.base import ClosingEvaluator
from .delays import Delays
from .plan import BatchPlan


class Recorder:
    """Writes a run's figures into its log and records.

    Args:
        progress: where the run stands; the sums since the last log line are counted to its epoch here.
        epochs: of the whole run.
        every: updates between log lines.
        facts: of the run, for its result.
    """

    def __init__(
        self,
        log: RunLog,
        progress: Progress,
        plan: BatchPlan,
        epochs: int,
        every: int,
        delays: Delays,
        device: torch.device,
        facts: dict[str, Any],
    ):
        self.log = log
        self.progress = progress
        self.plan = plan
        self.epochs = epochs
        self.every = every
        self.delays = delays
        self.device = device
        self.facts = facts
        self.img_size: FrozenSize = 0  # px of the training images, where it changes

    def start_epoch(self, img_size: FrozenSize) -> None:
        """Says from which epoch on training images have another size; 0: it never changes."""
        self.delays.start_epoch()
        if img_size != self.img_size:
            self.log.info(f"epoch {self.progress.epoch}: training images of {size_text(img_size)} px")
            self.img_size = img_size

    def is_due(self, steps: int) -> bool:
        """Whether so many updates of an epoch are a time for a log line."""
        return steps % self.every == 0 or steps == self.plan.updates_per_epoch

    def window(self, window: Window, grad_norm: torch.Tensor, lr: float) -> None:
        """Logs what happened since the last log line, and counts it to the epoch; all processes call this."""
        progress = self.progress
        sums = {name: sum_over_ranks(value).item() for name, value in window.sums.items()}  # waits for the device
        seconds = time.perf_counter() - window.started
        progress.this_epoch.loss += sums["loss"]
        progress.this_epoch.images += window.images
        progress.window = OpenWindow()
        losses = {name: value / window.images if window.images else math.nan for name, value in sums.items()}
        learning = {**losses, "lr": lr, "grad_norm": grad_norm.item(), "left_out": progress.left_out[0]}
        speed = {
            "images_per_second": window.timed / seconds,
            "data_wait": window.wait / seconds,
            "memory_mib": memory_mib(self.device),
        }
        self.log.info(self.line(losses, {**learning, **speed}))
        for warning in self.delays.add(window, seconds, window.timed / self.plan.total_batch_size):
            self.log.warning(warning)
        # JSON has no infinities
        values = {name: value if math.isfinite(value) else None for name, value in {**learning, **speed}.items()}
        self.log.record("train", progress.updates, {"epoch": progress.epoch, **values})
        self.log.scalars(
            progress.updates, {f"train/{name}": value for name, value in values.items() if value is not None}
        )

    def line(self, losses: dict[str, float], values: dict[str, Any]) -> str:
        """A line of the log."""
        epoch, step, updates = self.progress.epoch, self.progress.step, self.plan.updates_per_epoch
        images_left = ((self.epochs - epoch) * updates - step) * self.plan.total_batch_size
        means = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        left_out = f" left out {values['left_out']}" if values["left_out"] else ""
        return (
            f"epoch {epoch} [{step}/{updates}] {means} lr {values['lr']:.3e} grad_norm {values['grad_norm']:.3f} "
            f"{values['images_per_second']:.1f} images/s wait {values['data_wait']:.0%} mem {values['memory_mib']:.0f} MiB "
            f"eta {duration(images_left / max(values['images_per_second'], 1e-9))}{left_out}"
        )

    def epoch(self, train_loss: float, results: dict[str, dict[str, Any]], seconds: float) -> None:
        """Logs an epoch that is done, and the best one so far."""
        progress = self.progress
        self.log.info(
            f"epoch {progress.epoch} done in {seconds:.1f} s: train loss {train_loss:.4f}; {describe(results, progress.best)}; "
            f"best {describe_best(progress.best)}"
        )
        self.log.record("epoch", progress.updates, {"epoch": progress.epoch, "train_loss": train_loss, **results})
        suffixes = {"raw": "", "ema": "_ema"}
        self.log.scalars(
            progress.updates,
            {
                f"val/{key}{suffixes[name]}": value
                for name, figures in results.items()
                for key, value in figures.items()
            },
        )

    def write_mistakes(self, evaluators: dict[str, ClosingEvaluator], classes: list[str]) -> None:
        """Writes what the last evaluation showed besides figures, for the report; a failure of that ends no run."""
        try:
            weights = {name: evaluator.sections(classes) for name, evaluator in evaluators.items()}
            value = {"epoch": self.progress.epoch, "update": self.progress.updates, "weights": weights}
            write_json(self.log.directory / MISTAKES, value)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.log.warning(f"{MISTAKES} is not written ({reason[:300]}); the report will do without")

    def write_result(self, last: dict[str, Any], ended: str = "") -> None:
        """Writes result.json: the run's figures as they are in its record, and where they come from; `last` are those of
        the last epoch, `ended` says why it was the last before its time.

        Raises:
            OutputError: it cannot be written.
        """
        if not self.log.enabled:
            return
        progress = self.progress
        figures = {
            "best": {**progress.best, **progress.best_metrics},
            "last": {**last, "epoch": progress.epoch},
            **({"ended": ended} if ended else {}),
            "updates": progress.updates,
            "left_out": progress.left_out[0],
            "unreadable": self.log.count_unreadable(),
            "changes": progress.changes,
        }
        write_json(self.log.directory / RESULT, {**record(self.device), **self.facts, **figures})


def describe_best(best: dict[str, Any]) -> str:
    values = " ".join(f"{name} {value:.3f}" for name, value in best.items() if name not in ("weights", "epoch"))
    return f"{values} ({best['weights']}, epoch {best['epoch']})" if best else "none yet"


def duration(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    return (f"{days}d " if days else "") + time.strftime("%H:%M:%S", time.gmtime(rest))
