"""What a task is: all that training, evaluation and reports ask of it. `Classification` is an example.

A run asks in this order:

    task.train_dataset(), task.val_dataset(classes)    what is learned from, and what is measured on
    task.prepare_training(num_classes, distillation)
    task.build_model(num_classes)                      what learns
    task.loss(model, batch)                            for each micro-batch
    evaluator = task.evaluator(purpose, device)        after each epoch
    evaluator.step(model, batch)                       for each batch of the validation images
    evaluator.compute()                                figures, of which `task.primary` chooses best.pth
    evaluator.chosen()                                 what goes with the weights from then on, of one that chooses
    evaluator.gather(peers), .sections(classes)        after the last epoch: what the report shows besides
"""

from typing import Any, BinaryIO, Callable, Literal, Mapping, Optional, Protocol, Sequence, Union, runtime_checkable

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from data.loader import AnyDataset
from data.sources.source import AnySource
from utils.errors import ConfigError
from utils.image_size import Size
from utils.metrics import ClassificationMetrics, Metric
from utils.processes.peers import Peers

from .distill import Distillation

Batch = Any  # what the task's data sets give, collated, on the device: see `data.batches.Examples`
Purpose = Literal["figures", "closing"]
Decode = Callable[[BinaryIO], Any]  # an open file -> its image


class Evaluator(Protocol):
    """Goes once over a data set's batches; each process sees its share."""

    def step(self, model: Callable[[Any], Any], batch: Batch) -> None:
        """Adds what the model, or what calls it with whole batches, says of a batch."""

    def compute(self) -> dict[str, Any]:
        """The figures over all processes, all of which call this: finite numbers by name, the task's first one first.
        "num_images" says how many images they are of; a "loss" is shown beside the training's, and need not be there.
        """


@runtime_checkable
class ClosingEvaluator(Evaluator, Protocol):
    """Gathers on the way what a run's report shows besides figures."""

    def gather(self, peers: Peers) -> None:
        """Brings together what the processes have; all of them call this."""

    def sections(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Sections of `title` and `text`, with `pictures` or with `columns` and `rows`, as JSON can hold them."""


@runtime_checkable
class ChoosingEvaluator(Evaluator, Protocol):
    """Chooses something by its images, such as thresholds, that goes with the weights from then on."""

    def chosen(self) -> dict[str, Any]:
        """After `compute` plain values, for a checkpoint; the same in all processes."""

    def use(self, chosen: Mapping[str, Any]) -> str:
        """Takes what an earlier evaluation of these weights chose, {} if none did, instead of choosing; returns a line of
        what is taken. Raises CheckpointError: it is of other classes.
        """


@runtime_checkable
class PerClassEvaluator(Evaluator, Protocol):
    """Has figures of each class besides, which --eval writes into a file of their own."""

    def class_table(self, classes: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
        """After `compute`: names of columns, the first of them "class", and rows of names, numbers and None, as a CSV file holds
        them.
        """


class Task(Protocol):
    """What is learned, from which images, and how well. It may have `notes`, lines to be said of it when a run begins."""

    primary: Metric  # says which weights are better, see `choose_metric`

    @property
    def figures(self) -> Sequence[Metric]:
        """What an evaluation gives, as reports show it."""

    @property
    def eval_size(self) -> Size:
        """Of the images in evaluation."""

    def train_dataset(self) -> AnyDataset:
        """The augmented training images. Raises ConfigError, DataError."""

    def val_dataset(self, classes: Optional[Sequence[str]] = None) -> AnyDataset:
        """The validation images; `classes` are those the model knows, in label order. Raises ConfigError, DataError."""

    def build_model(self, num_classes: int) -> nn.Module:
        """The config's model. Raises ConfigError."""

    def prepare_training(self, num_classes: int, distillation: Optional[Distillation] = None) -> None:
        """Makes what `loss` needs; `distillation` is what a teacher adds to it."""

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Means over the batch: "loss", which is minimised, and more to log, such as its parts.

        The trainer weights them, and the gradients, by the images of micro-batches, so that each image counts the same in an
        update. A task that counts something else (pixels, boxes) gives the mean over what its batch has, as the published
        ones of its kind do.
        """

    def evaluator(self, purpose: Purpose, device: torch.device) -> Evaluator:
        """A new one, of 'figures' alone or, for the evaluation after the last epoch, a `ClosingEvaluator`."""

    def resized(self, batch: Batch, size: Size) -> Batch:
        """A batch of training with images of another size, and what of its targets lies on them (masks, boxes), to
        rehearse with: the pixels do not matter.
        """

    def evaluation_like(self, batch: Batch) -> Batch:
        """A batch of evaluation's shape, made of one of training, to rehearse with."""

    def preview(self, batch: Batch, classes: Sequence[str]) -> np.ndarray:
        """A picture, uint8 (H, W, 3), of a batch's first images as the model gets them, with their targets."""


class TaskKind(Protocol):
    """A class of tasks, as `engine.tasks.TASKS` lists them. A report asks it without a task."""

    primary: Metric  # where the config names no other

    @property
    def figures(self) -> Sequence[Metric]:
        """As `Task.figures`."""

    def __call__(self, cfg: CfgNode) -> Task:
        """Raises ConfigError: settings that the task refuses."""


def choose_metric(task: Union[Task, TaskKind], name: str) -> Metric:
    """What says which weights are better: the task's figure of this name (TRAIN.BEST_METRIC), its `primary` where there is none.

    Raises:
        ConfigError: the task gives no such figure.
    """
    # counts, which have no digits behind the point, say nothing of weights
    choices = {metric.key: metric for metric in (task.primary, *task.figures) if metric.digits}
    if name and name not in choices:
        raise ConfigError(
            "TRAIN.BEST_METRIC", f"{name!r} is no figure of this task", f"use one of {', '.join(choices)}"
        )
    return choices[name] if name else task.primary


@runtime_checkable
class ClassTask(Task, Protocol):
    """What TEST.SETS and TEST.KNN ask of a task besides: its targets are labels of whole images."""

    def set_dataset(self, open_: Callable[[Decode], AnySource], crop_pct: float = 0.0) -> AnyDataset:
        """The images of an evaluation set; `open_` makes the set's source of a decoder of files."""

    def set_evaluator(self, metrics: ClassificationMetrics) -> Evaluator:
        """One that adds to such metrics."""

    def feature_datasets(self, classes: Sequence[str]) -> tuple[AnyDataset, AnyDataset]:
        """The training and validation images, both as evaluation sees them."""

    def features(self, model: nn.Module) -> nn.Module:
        """The model that gives what images are compared by: (B, 3, H, W) -> (B, D)."""
