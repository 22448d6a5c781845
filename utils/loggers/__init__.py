"""Where a run's curves go besides metrics.jsonl: TensorBoard always, others as the config's LOGGERS says; a file each."""

from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from .csv_files import CsvFiles
from .logger import Logger
from .tensorboard_files import TensorBoardFiles
from .wandb_run import WandbRun

# What LOGGERS can name; `utils.schema` has the names too, as its rule.
LOGGERS: dict[str, type[Logger]] = {"csv": CsvFiles, "wandb": WandbRun}


def require_loggers(names: Sequence[str]) -> None:
    """Raises ConfigError: what one of the loggers needs is not there; the message says what to install."""
    for name in names:
        LOGGERS[name].require()


def create_loggers(
    names: Sequence[str], directory: Path, config: Mapping[str, Any], warn: Callable[[str], None]
) -> list[Logger]:
    """The loggers of a run, TensorBoard's first; they write nothing before `open`.

    Args:
        names: of `LOGGERS`.
        directory: the run's folder.
        config: the run's, as plain dictionaries.
        warn: says a line, for failures that end no training.
    """
    kinds: list[type[Logger]] = [TensorBoardFiles, *(LOGGERS[name] for name in names)]
    return [kind(directory, config, warn) for kind in kinds]
