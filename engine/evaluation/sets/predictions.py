"""What a model said of each image, and the metrics that follow from it."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Mapping, Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from utils.metrics import ClassificationMetrics, calibration, top_classes


@dataclass
class Records:
    """N images and the K classes (5, or all) that a model found most likely for each, the likeliest first."""

    keys: list[str]
    targets: np.ndarray  # int64 (N,)
    top: np.ndarray  # int64 (N, K)
    probabilities: np.ndarray  # float32 (N, K)
    losses: np.ndarray  # float32 (N,)

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def join(cls, parts: Sequence["Records"]) -> "Records":
        """All images of some parts, at least one of which has images."""
        parts = [part for part in parts if len(part)]
        arrays = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("targets", "top", "probabilities", "losses")
        )
        return cls([key for part in parts for key in part.keys], *arrays)

    def take(self, indices: Sequence[int]) -> "Records":
        where = np.asarray(indices, dtype=np.int64)
        arrays = (values[where] for values in (self.targets, self.top, self.probabilities, self.losses))
        return Records([self.keys[index] for index in where], *arrays)

    def in_order(self) -> "Records":
        """By key, in which no process and no batch has a part."""
        return self.take(sorted(range(len(self)), key=self.keys.__getitem__))

    def within(self, folder: str) -> "Records":
        """With keys that begin with a folder's name, if one is given."""
        return replace(self, keys=[f"{folder}/{key}" for key in self.keys]) if folder else self


class Predictions(ClassificationMetrics):
    """The metrics of a set, with this process' records of its images.

    Args:
        device: of the sums.
        subset: labels of the classes that the model chooses among; None: all. Probabilities and losses are those of the
            softmax over these.
        num_classes: of the model.
    """

    def __init__(self, device: torch.device, subset: Optional[Sequence[int]], num_classes: int):
        super().__init__(device)
        self.subset = torch.tensor(range(num_classes) if subset is None else list(subset), device=device)
        self.place = torch.full((num_classes,), -1, device=device)  # of a label in the subset
        self.place[self.subset] = torch.arange(len(self.subset), device=device)
        empty = np.empty((0, min(5, len(self.subset))))
        self.parts = [
            Records(
                [], empty[:, 0].astype(int), empty.astype(int), empty.astype(np.float32), empty[:, 0].astype(np.float32)
            )
        ]

    def update(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        keys: Sequence[str] = (),
        images: Optional[torch.Tensor] = None,
    ) -> None:
        """As `ClassificationMetrics`; each target is in the subset."""
        logits, places = logits.float()[:, self.subset], self.place[targets]
        super().update(logits, places)
        top = top_classes(logits)
        probabilities = logits.softmax(dim=1).gather(1, top)
        losses = F.cross_entropy(logits, places, reduction="none")
        columns = (targets, self.subset[top], probabilities, losses)
        self.parts.append(Records(list(keys), *(values.cpu().numpy() for values in columns)))

    def records(self) -> Records:
        """What this process has seen."""
        return Records.join(self.parts) if any(map(len, self.parts)) else self.parts[0]


def by_target(records: Records) -> np.ndarray:
    """Which of the K classes are right (N, K), an image having one label."""
    return records.top == records.targets[:, None]


def with_labels(records: Records, labels: Mapping[str, Sequence[int]]) -> tuple[Records, np.ndarray]:
    """The images that have labels, and which of their K classes are among them (N, K).

    Args:
        labels: by key, see `match_labels`.
    """
    counted = records.take([index for index, key in enumerate(records.keys) if labels[key]])
    right = [np.isin(top, labels[key]) for key, top in zip(counted.keys, counted.top)]
    return counted, np.array(right, dtype=bool).reshape(counted.top.shape)


def score(records: Records, right: np.ndarray) -> dict[str, Any]:
    """acc1 and acc5 in percent, num_images, and how good the confidence is, see `calibration`."""
    return {
        "acc1": 100 * int(right[:, 0].sum()) / len(records),
        "acc5": 100 * int(right.any(axis=1).sum()) / len(records),
        "num_images": len(records),
        **calibration(records.probabilities[:, 0], right[:, 0]),
    }


def per_class(records: Records, right: np.ndarray) -> list[dict[str, Any]]:
    """Of each class that has images, in label order: label, images, acc1, acc5."""
    rows = []
    for label in np.unique(records.targets):
        of_class = right[records.targets == label]
        hits = {"acc1": 100 * of_class[:, 0].mean(), "acc5": 100 * of_class.any(axis=1).mean()}
        rows.append(
            {
                "label": int(label),
                "images": len(of_class),
                **{name: round(float(value), 4) for name, value in hits.items()},
            }
        )
    return rows


def confusions(records: Records, right: np.ndarray, most: int = 100) -> list[tuple[int, int, int]]:
    """The most frequent mistakes: (target, predicted, images)."""
    wrong = ~right[:, 0]
    pairs = Counter(zip(records.targets[wrong].tolist(), records.top[wrong, 0].tolist()))
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [(target, predicted, images) for (target, predicted), images in ranked[:most]]
