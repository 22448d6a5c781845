"""What a run learns: one file per task.

A task opens its data sets, makes its criterion and metrics, and names the metric that `best.pth` is chosen by; the
trainer and the evaluation know nothing else of it. A new task is a new file and a line in `TASKS`.
"""

from yacs.config import CfgNode

from utils.errors import ConfigError, did_you_mean

from .classification import Classification

TASKS = {"classification": Classification}


def create_task(cfg: CfgNode):
    """The task that the config's TASK names.

    Raises:
        ConfigError: unknown TASK, or settings that the task refuses.
    """
    if cfg.TASK not in TASKS:
        raise ConfigError(f"TASK is {cfg.TASK!r}; {did_you_mean(cfg.TASK, TASKS)}")
    return TASKS[cfg.TASK](cfg)
