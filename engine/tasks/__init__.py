"""What a run learns: one file per task.

`base.Task` is all that training, evaluation and reports know of one. A new task is a new file and a line in `TASKS`.
"""

from yacs.config import CfgNode

from utils.errors import ConfigError, did_you_mean

from .base import Task, TaskKind, choose_metric
from .classification import Classification
from .detection import Detection
from .multilabel import Multilabel
from .segmentation import Segmentation

TASKS: dict[str, TaskKind] = {
    "classification": Classification,
    "multilabel": Multilabel,
    "segmentation": Segmentation,
    "detection": Detection,
}


def create_task(cfg: CfgNode) -> Task:
    """The task that the config's TASK names, which goes by TRAIN.BEST_METRIC.

    Raises:
        ConfigError: unknown TASK, settings that the task refuses, or a metric that it does not give.
    """
    if cfg.TASK not in TASKS:
        raise ConfigError(f"TASK is {cfg.TASK!r}; {did_you_mean(cfg.TASK, TASKS)}")
    task = TASKS[cfg.TASK](cfg)
    task.primary = choose_metric(task, cfg.TRAIN.BEST_METRIC)
    return task
