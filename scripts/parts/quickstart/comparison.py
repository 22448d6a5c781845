"""A trained model beside others of its task, on the validation images that its checkpoint's config names."""

from pathlib import Path
from typing import Any, Mapping

import torch
from torch import nn

from engine.inference.examination import Examination
from engine.inference.trained import load_trained
from engine.tasks import create_task
from engine.tasks.base import Evaluator
from utils.errors import ConfigError
from utils.markdown import aligned_table
from utils.rng import seed_all


class Comparison:
    """Opens a checkpoint of a task; `trained` and `untrained` are its model and the same without training.

    Raises:
        ConfigError: it is of another task.
    """

    def __init__(self, checkpoint: Path, task: str):
        trained = load_trained(checkpoint)
        if trained.cfg.TASK != task:
            raise ConfigError(f"{checkpoint}: is of TASK {trained.cfg.TASK}; give one of TASK {task}")
        self.cfg, self.trained, self.task = trained.cfg, trained.model, create_task(trained.cfg)
        seed_all(self.cfg.SEED)
        self.untrained = self.task.build_model(len(trained.classes))
        self.images = self.task.val_dataset(trained.classes)

    def figures_of(self, model: nn.Module) -> tuple[dict[str, Any], Evaluator]:
        """A model's figures, and what has counted them."""
        device = torch.device("cpu")
        examination, evaluator = Examination(self.cfg, model, device), self.task.evaluator("figures", device)
        return examination.run(examination.loader(self.images), evaluator), evaluator


def print_figures(titles: Mapping[str, str], figures: Mapping[str, Mapping[str, float]]) -> None:
    """A table of these figures, by their keys, of each model by its name."""
    rows = [["model", *titles.values()]]
    rows += [[name, *(f"{values[key]:.2f}" for key in titles)] for name, values in figures.items()]
    print(aligned_table(rows))
