"""Going on: which checkpoint a run goes on from, whether it fits, and what has changed since."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Optional

from data.lanes import Lanes
from utils.config import to_dict
from utils.errors import CheckpointError, ConfigError
from utils.schema import DEFAULTS, KEYS
from utils.urls import shown

from .parts import read_with_parts
from .progress import Progress
from .store import checkpoints_of

# In the order of images of checkpoints that note no lanes.
OLDER_LANES = re.compile(r" by (\d+) x (\d+) readers of (\d+)(?= among )")

ORDER = ("num_images", "images", "seed", "repeats")  # of a plan: what the order of an epoch's images depends on


@dataclass
class StartPoint:
    """A checkpoint to go on from, if `path` is not None, and what was found to be damaged on the way to it."""

    path: Optional[Path] = None
    checkpoint: Optional[dict[str, Any]] = None
    damaged: dict[Path, str] = field(default_factory=dict)
    stamp: Any = None  # of the run's newest checkpoint when it was read

    @property
    def is_own(self) -> bool:
        """Whether it is the run's own, not one that was named."""
        return self.stamp is not None


def stamp_of(directory: Path) -> Any:
    """Changes whenever the run's newest checkpoint is replaced; None if it has none."""
    for path in checkpoints_of(directory)[:1]:
        stat = path.stat()
        return path.name, stat.st_ino, stat.st_mtime_ns
    return None


def find_checkpoint(directory: Path, auto_resume: bool, resume: str) -> StartPoint:
    """The run's newest checkpoint that can be read, else the named one, else none.

    Raises:
        CheckpointError: the run has checkpoints and none can be read, or the named one cannot.
    """
    start = StartPoint(stamp=stamp_of(directory) if auto_resume else None)
    for path in checkpoints_of(directory) if auto_resume else []:
        try:
            start.checkpoint, start.path = read_with_parts(path), path
            return start
        except CheckpointError as error:
            start.damaged[path] = str(error)
    if start.damaged:
        raise CheckpointError(
            f"{directory}: none of the run's checkpoints can be read ({', '.join(p.name for p in start.damaged)}); "
            "restore one of them, or start another run with --tag"
        )
    if resume:
        start.path = Path(resume)
        start.checkpoint = read_with_parts(start.path)
    return start


def fit_progress(progress: Progress, old: dict[str, Any], new: dict[str, Any], path: Path) -> list[str]:
    """Carries the place within an epoch over from a checkpoint to the run that goes on from it.

    The order of an epoch's images depends on the data set, the seed and the repeats only, and updates take them in turn. So another
    number of processes or images per update goes on with the next image of the same order, if the images seen so far
    are whole updates of the new size. (Of shards the order is that of the processes with which the epoch began, see
    `data.lanes`. With DATA.CACHE_MODE part each process has images of its own, which `plan["images"]` says: there an epoch is
    finished with as many.)

    Args:
        progress: the checkpoint's; its `step` is changed, and its lanes, where the checkpoint is of before they were noted.
        old, new: the `classes` and `plan` of the checkpoint and of the run.

    Returns:
        What has changed, a line each.

    Raises:
        CheckpointError: the checkpoint's `classes` or `plan` are none.
        ConfigError: the classes are other ones; or within an epoch the images already seen would not be known.
    """
    _require_plan(old, path)
    if progress.step > old["plan"]["updates_per_epoch"]:
        raise CheckpointError(
            f"{path}: is of update {progress.step} of {old['plan']['updates_per_epoch']}; use another one"
        )
    if old["classes"] != new["classes"]:
        differ = [f"{a!r} is now {b!r}" for a, b in zip(old["classes"], new["classes"]) if a != b][:3]
        raise ConfigError(
            f"{path}: was trained on other classes ({', '.join(differ) or len(old['classes'])}, now {len(new['classes'])} "
            "classes); start with another --tag"
        )
    # checkpoints of before there were repeats
    before, after = ({"repeats": 1, **entry["plan"]} for entry in (old, new))
    _note_older_lanes(progress, before)
    keys = ("num_images", "images", "total_batch_size", "seed", "repeats")
    changed = [key for key in keys if before.get(key) != after[key]]
    changes = [f"{key.replace('_', ' ')} changed from {before.get(key)} to {after[key]}" for key in changed]
    changes += _fit_step(progress, before, after, path) if progress.step else []
    return changes + _change_of_processes(progress, before, after)


def _note_older_lanes(progress: Progress, before: dict[str, Any]) -> None:
    """Of checkpoints in which the order of shards' images says the lanes."""
    images = str(before.get("images"))
    lanes = OLDER_LANES.search(images)
    if lanes:
        progress.this_epoch.lanes = Lanes(*map(int, lanes.groups()))
        before["images"] = images.replace(lanes.group(), "")


def _change_of_processes(progress: Progress, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    if before["world_size"] == after["world_size"]:
        return []
    change = f"the number of processes changed from {before['world_size']} to {after['world_size']}"
    within = 0 < progress.step < after["updates_per_epoch"]
    return [f"{change}; the epoch goes on with its next image, update {progress.step + 1}" if within else change]


def _fit_step(progress: Progress, before: dict[str, Any], after: dict[str, Any], path: Path) -> list[str]:
    """The place within an epoch; see `fit_progress`."""
    for key in ORDER:
        if before.get(key) != after[key]:
            remedy = "Finish the epoch with the old one, or start with another --tag"
            if key == "images" and " shares" in after[key]:
                remedy = (
                    "With DATA.CACHE_MODE part each process has images of its own: finish the epoch with as many processes and the same "
                    "DATA.CACHE_MODE, or start with another --tag"
                )
            raise ConfigError(
                f"{path}: is from within epoch {progress.epoch}, with {key} {before.get(key)}; now it is {after[key]}. {remedy}"
            )
    if progress.step >= before["updates_per_epoch"]:
        progress.step = after["updates_per_epoch"]  # only the evaluation is left
        return []
    if before["total_batch_size"] == after["total_batch_size"]:
        return []
    seen = progress.step * before["total_batch_size"]
    if seen % after["total_batch_size"]:
        raise ConfigError(
            f"{path}: is from within epoch {progress.epoch}, after {seen} images in updates of total_batch_size "
            f"{before['total_batch_size']}; now it is {after['total_batch_size']}, of which {seen} is no multiple. "
            f"Finish the epoch with TRAIN.TOTAL_BATCH_SIZE {before['total_batch_size']}"
        )
    progress.step = min(seen // after["total_batch_size"], after["updates_per_epoch"])
    here = [place for place in progress.rolled_back if place[0] == progress.epoch]
    if not here:
        return []
    # they are other images now
    progress.rolled_back = [place for place in progress.rolled_back if place not in here]
    return [f"updates of epoch {progress.epoch} are others: those left out by a rollback are no more"]


def _require_plan(checkpoint: dict[str, Any], path: Path) -> None:
    classes, plan = checkpoint["classes"], checkpoint["plan"]
    counts = ("num_images", "total_batch_size", "updates_per_epoch", "world_size")
    good = isinstance(classes, list) and all(isinstance(name, str) for name in classes) and isinstance(plan, dict)
    if not good or not all(type(plan.get(key)) is int and plan[key] > 0 for key in counts):
        raise CheckpointError(f"{path}: its 'classes' or 'plan' is no run's; use another one")


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between a checkpoint's config and this one, a line per key."""
    changes, defaults = [], to_dict(DEFAULTS)
    for key in KEYS:
        before, after, default = (_value(config, key) for config in (old, new, defaults))
        if before != after and not (before is None and after == default):  # a key that is younger than the checkpoint
            changes.append(f"{key} changed from {before!r} to {after!r}")
    return changes


def _value(config: Mapping[str, Any], key: str) -> Any:
    """A key's value, None where the config has no such key; of a URL what may be said, as a new key to it is no change."""
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return shown(value) if isinstance(value, str) else value
