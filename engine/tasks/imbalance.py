"""Against classes that differ in their number of images: weights in the loss, priors added to logits, and what to say of both."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Sequence

import numpy as np
import torch
from yacs.config import CfgNode

from data.class_balance import labels_in
from data.sources.source import AnySource
from utils.errors import ConfigError
from utils.files import unreadable

BALANCED, EFFECTIVE = "balanced", "effective"  # TRAIN.CLASS_WEIGHTS that are made of the numbers of images
BETA = 0.999  # of the effective numbers, as in the paper for its smaller sets
RAREST = 5  # classes that are named
KEY = "TRAIN.CLASS_WEIGHTS"


@dataclass
class Imbalance:
    """What is done about it in the loss."""

    weights: Optional[torch.Tensor] = None  # (C,) of classes; None: all alike
    adjustment: Optional[torch.Tensor] = None  # (C,) that is added to logits; None: nothing
    notes: list[str] = field(default_factory=list)  # lines to be said of it


def read_imbalance(cfg: CfgNode, source: AnySource) -> Imbalance:
    """What a config asks for, of its training images.

    Raises:
        ConfigError: the number of images of each class is not known; the file of weights cannot be used.
    """
    kind, tau, sampling = cfg.TRAIN.CLASS_WEIGHTS, cfg.TRAIN.LOGIT_ADJUSTMENT, cfg.DATA.SAMPLING
    keys = [
        name for name, value in ((KEY, kind), ("TRAIN.LOGIT_ADJUSTMENT", tau), ("DATA.SAMPLING", sampling)) if value
    ]
    imbalance = Imbalance()
    if not keys:
        return imbalance
    classes = list(source.classes)
    counts = np.bincount(labels_in(source, keys[0]), minlength=len(classes))
    imbalance.notes.append(describe_counts(counts, classes))
    if kind:
        imbalance.weights = class_weights(kind, counts, classes)
        least, most = imbalance.weights.min().item(), imbalance.weights.max().item()
        imbalance.notes.append(
            f"{KEY} {kind}: losses are multiplied by {least:.4g} to {most:.4g}, as a mean over classes by 1"
        )
    if tau:
        imbalance.adjustment = tau * log_priors(counts)
        imbalance.notes.append(
            f"TRAIN.LOGIT_ADJUSTMENT {tau}: the loss sees logits + {tau} x the logarithm of a class' share of images"
        )
    if sampling:
        each = counts.sum() / (counts > 0).sum()
        imbalance.notes.append(
            f"DATA.SAMPLING {sampling}: an epoch has {each:.1f} images of each class, each image of the rarest "
            f"{each / counts[counts > 0].min():.4g} times, of the most frequent {each / counts.max():.4g} times"
        )
    return imbalance


def class_weights(kind: str, counts: np.ndarray, classes: Sequence[str]) -> torch.Tensor:
    """A weight for each class, float32 (C,), whose mean over the classes with images is 1; one without any has 1.

    'balanced' weights are as 1 / n, with n the images of a class. 'effective' ones are as (1 - beta) / (1 - beta^n), the
    inverse of the effective number of images (Cui et al., CVPR 2019, arXiv 1901.05555). Any other `kind` is a file of them.

    Raises:
        ConfigError: the file cannot be used.
    """
    there = counts > 0
    images = np.maximum(counts, 1)
    if kind == BALANCED:
        weights = 1 / images
    elif kind == EFFECTIVE:
        weights = (1 - BETA) / (1 - BETA**images)
    else:
        weights = np.array(read_weights(Path(kind), classes))
    return torch.tensor(np.where(there, weights / weights[there].mean(), 1.0), dtype=torch.float32)


def log_priors(counts: np.ndarray) -> torch.Tensor:
    """The logarithm of each class' share of the images, float32 (C,), for logit adjustment (Menon et al., ICLR 2021, arXiv
    2007.07314): a class without images counts as if it had one.
    """
    images = np.maximum(counts, 1)
    return torch.tensor(np.log(images / images.sum()), dtype=torch.float32)


def read_weights(path: Path, classes: Sequence[str]) -> list[float]:
    """The weights of a CSV file with the columns class and weight, in the order of the classes.

    Raises:
        ConfigError: there is no such file, or it has not one number above 0 for each class.
    """
    remedy = "give balanced, effective, or a CSV file with a line class,weight and one for each class"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        if isinstance(error, OSError):
            raise unreadable(f"{KEY}: {path}", error, remedy, ConfigError) from error
        raise ConfigError(f"{KEY}: {path}", "is no CSV text", remedy) from error
    if not rows or rows[0][1] != ["class", "weight"]:
        raise ConfigError(f"{KEY}: {path}", "its first line is not class,weight", remedy)
    weights: dict[str, float] = {}
    for number, row in rows[1:]:
        where = f"{KEY}: {path}, line {number}"
        if len(row) != 2 or row[0] not in classes or row[0] in weights:
            reason = (
                "another line has it" if row[0] in weights else "it is no class of the training images with its weight"
            )
            raise ConfigError(where, f"{','.join(row)!r}: {reason}", "correct it")
        weights[row[0]] = _weight(row[1], where)
    missing = [name for name in classes if name not in weights]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ConfigError(f"{KEY}: {path}", f"has no line for {', '.join(missing[:3])}{more}", "add one for each class")
    return [weights[name] for name in classes]


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ConfigError(where, f"the weight is {text!r}", "give a number above 0")
    return weight


def describe_counts(counts: np.ndarray, classes: Sequence[str]) -> str:
    """A line of how many training images classes have, the rarest by name."""
    order = np.argsort(counts, kind="stable")
    rarest = ", ".join(f"{classes[label]}: {counts[label]}" for label in order[:RAREST])
    return f"training images of a class: {counts.min()} to {counts.max()}; the rarest: {rarest}"
