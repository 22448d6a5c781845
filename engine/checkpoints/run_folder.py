"""A run's folder, made ready for a run that begins or goes on."""

import itertools
import time
from pathlib import Path

from utils.errors import OutputError
from utils.files import remove_unfinished
from utils.run_files import CONFIG, MISTAKES, RECORDS, REPORT, RESULT, SPLIT

from .parts import folders_in, remove_unnamed
from .resume import StartPoint, stamp_of
from .store import checkpoints_of

# Besides checkpoints: what a run that starts over puts away.
OF_ONE_RUN = (
    RECORDS, CONFIG, SPLIT, "tensorboard", "train.csv", "epochs.csv", "wandb_id.txt", RESULT, MISTAKES, REPORT,
)  # fmt: skip


def claim(directory: Path, start: StartPoint, auto_resume: bool) -> None:
    """Makes the run's folder ready: what a killed run left unfinished goes, damaged checkpoints make room, and those of a
    run that is not gone on with (TRAIN.AUTO_RESUME False) are put away.

    Raises:
        OutputError: another run has trained on since the checkpoint was read.
    """
    if auto_resume and stamp_of(directory) != start.stamp:
        raise OutputError(f"{directory}: another run has just written to it; start the same command again")
    remove_unfinished(directory)
    for path in start.damaged:  # or the next save would take it for the last good one, and keep it instead
        names = (f"{path.name}.damaged{number or ''}" for number in itertools.count())
        path.replace(next(away for away in map(path.with_name, names) if not away.exists()))
    remove_unnamed(directory)
    replaced = [] if auto_resume else checkpoints_of(directory)
    if replaced:
        away = directory / time.strftime("replaced_%Y%m%d_%H%M%S")
        away.mkdir(exist_ok=True)
        others = (directory / name for name in OF_ONE_RUN)
        for path in [*folders_in(directory), *replaced, *(path for path in others if path.exists())]:
            path.replace(away / path.name)
