"""Where a run stands: what goes into its checkpoints besides weights and optimizer, and the sums since the last log line."""

import itertools
import math
import operator
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from utils.processes.launch import Launch


@dataclass
class Progress:
    """Where a run stands: `epoch` and, within it, `step` (updates done; all of them: only the evaluation is left)."""

    epoch: int = 0
    step: int = 0
    updates: int = 0  # done since the run began; what its records are numbered by
    loss_sum: float = 0.0  # over this epoch's logged images so far, of all processes
    images: int = 0  # how many those are
    window_loss_sums: list[float] = field(default_factory=list)  # since the last log line, of each process
    window_images: int = 0  # of all processes
    window_parts: dict[str, list[float]] = field(default_factory=dict)  # as `window_loss_sums`, of what else is logged
    left_out: list[int] = field(default_factory=lambda: [0, 0])  # updates that were not finite: in all, in a row
    rolled_back: list[list[int]] = field(default_factory=list)  # [epoch, step] of updates to be left out
    best: dict[str, Any] = field(default_factory=dict)  # {metric: value, "weights": "raw" or "ema", "epoch": number}
    best_metrics: dict[str, Any] = field(default_factory=dict)  # all of that evaluation's
    # what had changed each time that the run was gone on with, see `config_changes`
    changes: list[str] = field(default_factory=list)

    def start_epoch(self, epoch: int) -> None:
        self.epoch, self.step, self.loss_sum, self.images = epoch, 0, 0.0, 0
        self.empty_window()

    def empty_window(self) -> None:
        self.window_loss_sums, self.window_images, self.window_parts = [], 0, {}

    def state_dict(self) -> dict[str, Any]:
        state = asdict(self)
        return state if self.window_parts else {key: state[key] for key in state if key != "window_parts"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError for what is no place in a run."""
        loaded = Progress(**{**state, "best": dict(state["best"]), "best_metrics": dict(state.get("best_metrics", {}))})
        counts = (loaded.epoch, loaded.step, loaded.updates, loaded.images, loaded.window_images, *loaded.left_out)
        sums = (loaded.loss_sum, *loaded.window_loss_sums, *itertools.chain(*loaded.window_parts.values()))
        places = [operator.index(number) for place in loaded.rolled_back for number in place]
        if not all(len(place) == 2 for place in loaded.rolled_back) or max(counts) > 2**53:
            raise ValueError("no such place in a run")
        if loaded.best:
            metrics = [value for key, value in loaded.best.items() if key not in ("weights", "epoch")]
            if loaded.best["weights"] not in ("raw", "ema") or not metrics or not all(map(math.isfinite, metrics)):
                raise ValueError("no such best metric")
            operator.index(loaded.best["epoch"])
        if not all(type(value) in (int, float) and math.isfinite(value) for value in loaded.best_metrics.values()):
            raise ValueError("no such metrics")
        if not isinstance(loaded.changes, list) or not all(type(change) is str for change in loaded.changes):
            raise ValueError("no such changes")
        if (
            min(*map(operator.index, counts), 0, *places) < 0
            or not all(map(math.isfinite, sums))
            or len(loaded.left_out) != 2
        ):
            raise ValueError("no such place in a run")
        self.__dict__.update(loaded.__dict__)


class Window:
    """Sums since the last log line, of the loss and of what a task logs besides; they stay on the device until they are asked for.

    It begins with what `progress` holds of a window that a save has cut in two. The sums of single processes are kept
    apart, so that adding them up gives the bits of a run that was not interrupted.
    """

    def __init__(self, device: torch.device, progress: Progress, launch: Launch):
        before = {"loss": progress.window_loss_sums, **progress.window_parts}
        self.sums = {name: own_share(sums, launch, device) for name, sums in before.items()}  # of this process
        self.images = progress.window_images  # of all processes
        self.started = time.perf_counter()
        self.timed = 0  # images since then
        self.wait = 0.0  # seconds spent waiting for data

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
