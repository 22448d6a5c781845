"""Where a run stands: what goes into its checkpoints besides weights and optimizer, and the sums since the last log line."""

import itertools
import math
import operator
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import torch

from data.lanes import Lanes
from utils.processes.launch import Launch
from utils.stopwatch import Stopwatch


@dataclass(frozen=True)
class OpenWindow:
    """What has been summed up since the last log line, where a save comes between two."""

    sums: dict[str, list[float]] = field(default_factory=dict)  # of each process, by name: "loss", and more to log
    images: int = 0  # of all processes


@dataclass
class ThisEpoch:
    """What is of the present epoch alone."""

    loss: float = 0.0  # of its log lines so far, the sum over the images of all processes
    images: int = 0  # these
    lanes: Optional[Lanes] = None  # with which it began, of shards; None: images by index, or it has not begun


@dataclass
class Length:
    """What decides when the run ends, see `engine.training.run_length`."""

    stale: int = 0  # epochs since the best one
    seconds: float = 0.0  # of all starts; counted where there is a TRAIN.MAX_HOURS
    epochs: int = 0  # that it was found to give time for; 0: not known yet
    decided_at: float = 0.0  # epochs that were done then


@dataclass
class Progress:
    """Where a run stands: `epoch` and, within it, `step` (updates done; all of them: only the evaluation is left)."""

    epoch: int = 0
    step: int = 0
    updates: int = 0  # done since the run began; what its records are numbered by
    this_epoch: ThisEpoch = field(default_factory=ThisEpoch)
    window: OpenWindow = field(default_factory=OpenWindow)  # since the last log line
    left_out: list[int] = field(default_factory=lambda: [0, 0])  # updates that were not finite: in all, in a row
    rolled_back: list[list[int]] = field(default_factory=list)  # [epoch, step] of updates to be left out
    # {metric: value, "weights": "raw" or "ema", "epoch": number}, by which best.pth was chosen
    best: dict[str, Any] = field(default_factory=dict)
    best_metrics: dict[str, Any] = field(default_factory=dict)  # all of that evaluation's
    # of the last evaluation, by weights ('raw', 'ema'), what it chose that goes with them, see `tasks.base.ChoosingEvaluator`
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)
    # what had changed each time that the run was gone on with, see `config_changes`
    changes: list[str] = field(default_factory=list)
    length: Length = field(default_factory=Length)

    def start_epoch(self, epoch: int) -> None:
        self.epoch, self.step = epoch, 0
        self.this_epoch, self.window = ThisEpoch(), OpenWindow()

    def judge_by(self, metric: str) -> str:
        """From here on the best so far is compared by this metric. Returns what to say if that was another one (TRAIN.BEST_METRIC has
        changed), else ''.
        """
        if not self.best or metric in self.best:
            return ""
        self.length.stale = 0
        (before,) = {*self.best} - {"weights", "epoch"}
        place = f"of epoch {self.best['epoch']}, chosen by {before}"
        if metric not in self.best_metrics:
            self.best, self.best_metrics = {}, {}
            return f"TRAIN.BEST_METRIC: the {metric} of best.pth, {place}, is not known; the next epoch takes its place"
        value = self.best_metrics[metric]
        self.best = {metric: value, "weights": self.best["weights"], "epoch": self.best["epoch"]}
        return f"TRAIN.BEST_METRIC: best.pth, {place}, stays until an epoch has a better {metric} than its {value:.3f}"

    def state_dict(self) -> dict[str, Any]:
        """Plain values, sums beside the others: {"epoch": 0, ..., "loss_sum": 0.0, "images": 0, "window_loss_sums": [], ...}"""
        state: dict[str, Any] = {}
        for key, value in asdict(self).items():
            if key == "window":
                sums = dict(self.window.sums)
                state |= {"window_loss_sums": sums.pop("loss", []), "window_images": self.window.images}
                state |= {"window_parts": sums} if sums else {}
            elif key == "this_epoch":
                state |= {"loss_sum": value["loss"], "images": value["images"]}
                state |= {"lanes": value["lanes"]} if value["lanes"] else {}
            elif value or key != "chosen":  # most tasks choose nothing
                state[key] = value
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError for what is no place in a run."""
        state = {**state, "best": dict(state["best"]), "best_metrics": dict(state.get("best_metrics", {}))}
        losses, images = state.pop("window_loss_sums", []), state.pop("window_images", 0)
        sums = {**({"loss": losses} if losses else {}), **state.pop("window_parts", {})}
        lanes = Lanes.load(state.pop("lanes")) if "lanes" in state else None
        this_epoch = ThisEpoch(state.pop("loss_sum", 0.0), state.pop("images", 0), lanes)
        length = Length(**state.pop("length", {}))
        loaded = Progress(**state, this_epoch=this_epoch, window=OpenWindow(sums, images), length=length)
        loaded._require_place()
        loaded._require_figures()
        self.__dict__.update(loaded.__dict__)

    def _require_place(self) -> None:
        """Raises TypeError or ValueError for counts and sums that no run has."""
        length = self.length
        counts = (self.epoch, self.step, self.updates, self.this_epoch.images, self.window.images, *self.left_out)
        counts = (*counts, length.stale, length.epochs)
        sums = (self.this_epoch.loss, length.seconds, length.decided_at, *itertools.chain(*self.window.sums.values()))
        places = [operator.index(number) for place in self.rolled_back for number in place]
        if (
            not all(len(place) == 2 for place in self.rolled_back)
            or len(self.left_out) != 2
            or max(counts) > 2**53
            or min(*map(operator.index, counts), 0, *places) < 0
            or not all(map(math.isfinite, sums))
        ):
            raise ValueError("no such place in a run")

    def _require_figures(self) -> None:
        """Raises KeyError, TypeError or ValueError for a best evaluation, or changes, that no run has."""
        if self.best:
            metrics = [value for key, value in self.best.items() if key not in ("weights", "epoch")]
            if self.best["weights"] not in ("raw", "ema") or not metrics or not all(map(math.isfinite, metrics)):
                raise ValueError("no such best metric")
            operator.index(self.best["epoch"])
        if not all(type(value) in (int, float) and math.isfinite(value) for value in self.best_metrics.values()):
            raise ValueError("no such metrics")
        if not all(isinstance(chosen, dict) for chosen in self.chosen.values()):
            raise ValueError("nothing that an evaluation chooses")
        if not isinstance(self.changes, list) or not all(type(change) is str for change in self.changes):
            raise ValueError("no such changes")


class Window:
    """Sums since the last log line, of the loss and of what a task logs besides; they stay on the device until they are asked for.

    It begins with what `progress` holds of a window that a save has cut in two. The sums of single processes are kept
    apart, so that adding them up gives the bits of a run that was not interrupted.
    """

    def __init__(self, device: torch.device, progress: Progress, launch: Launch):
        before = {"loss": [], **progress.window.sums}
        self.sums = {name: own_share(sums, launch, device) for name, sums in before.items()}  # of this process
        self.images = progress.window.images  # of all processes
        self.started = time.perf_counter()
        self.timed = 0  # images since then
        self.wait = 0.0  # seconds spent waiting for data
        self.forward = Stopwatch(device)  # on forward passes

    def add(self, sums: dict[str, torch.Tensor], images: int) -> None:
        """Counts an update: the sums over this process' images, and the number of images of all processes."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.images += images
        self.timed += images


def own_share(sums: list[float], launch: Launch, device: torch.device) -> torch.Tensor:
    """This process' part of sums by process; that of another number of processes goes to the first one."""
    if len(sums) != launch.world_size:
        sums = [math.fsum(sums)] + [0.0] * (launch.world_size - 1)
    return torch.tensor(sums[launch.rank], dtype=torch.float64, device=device)
