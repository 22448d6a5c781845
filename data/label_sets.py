"""Labels of images that may have several, or none: how they are written in one cell, and how they are held."""

from typing import Iterable, Sequence, Union

import numpy as np

from utils.errors import DataError

SEPARATORS = ("|", ";")  # between the labels of a cell, where DATA.LABEL_SEPARATOR names no other


class LabelCells:
    """Takes cells apart that name several labels.

    Args:
        separator: between two labels; '': the one of `SEPARATORS` that the first cell with any of them has.
    """

    def __init__(self, separator: str = ""):
        self.is_given = bool(separator)
        self.separator = separator

    def labels_of(self, cell: str, where: str) -> tuple[str, ...]:
        """The labels that a cell names, each once; none of an empty one.

        Args:
            where: it stands, for messages.

        Raises:
            DataError: it has another separator than the cells before, or several.
        """
        present = [] if self.is_given else [one for one in SEPARATORS if one in cell]
        self.separator = self.separator or "".join(present[:1])
        other = next((one for one in present if one != self.separator), "")
        if other:
            reason = f"{cell[:80]!r} has {other!r}, but {self.separator!r} separates labels"
            raise DataError(where, reason, "set DATA.LABEL_SEPARATOR to the one that does")
        parts = cell.split(self.separator) if self.separator else [cell]
        return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


class LabelSets:
    """The labels of N images, of C classes. They lie in two arrays, whose memory loading processes share.

    Args:
        labels: of all images, one after the other.
        ends: (N,), where each image's end.
        num_classes: C.
    """

    def __init__(self, labels: np.ndarray, ends: np.ndarray, num_classes: int):
        self.labels, self.ends, self.num_classes = labels, ends, num_classes

    @classmethod
    def of(cls, sets: Iterable[Union[Sequence[int], np.ndarray]], num_classes: int) -> "LabelSets":
        """Of each image's labels."""
        arrays = [np.array(labels, dtype=np.int32) for labels in sets]
        labels = np.concatenate([np.empty(0, np.int32), *arrays])
        return cls(labels, np.cumsum([len(array) for array in arrays], dtype=np.int64), num_classes)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, indices: np.ndarray) -> "LabelSets":
        """Of some images, by an array of their places, or of truth values of all."""
        places = np.arange(len(self))[indices]
        return LabelSets.of([self.of_image(place) for place in places], self.num_classes)

    def of_image(self, index: int) -> np.ndarray:
        """The labels of an image."""
        start = self.ends[index - 1] if index else 0
        return self.labels[start : self.ends[index]]

    def images_per_class(self) -> np.ndarray:
        """(C,)"""
        return np.bincount(self.labels, minlength=self.num_classes)

    def renumbered(self, table: np.ndarray, num_classes: int) -> "LabelSets":
        """The same images with other labels, as a table by label has them; -1: such labels are left out."""
        sets = [table[self.of_image(index)] for index in range(len(self))]
        return LabelSets.of([labels[labels >= 0] for labels in sets], num_classes)

    def rarest(self) -> np.ndarray:
        """Of each image that of its labels which fewest images have, of equal ones the first; -1 without any: (N,)."""
        counts = self.images_per_class()
        sets = (self.of_image(index).tolist() for index in range(len(self)))
        return np.array([min(labels, key=lambda label: (counts[label], label), default=-1) for labels in sets])


AnyLabels = Union[np.ndarray, LabelSets]  # one label of each image (N,), or several


def target_of(labels: AnyLabels, index: int) -> Union[int, np.ndarray]:
    """What is learned of an image: its label, or uint8 (C,), 1 for each class that it has."""
    if not isinstance(labels, LabelSets):
        return int(labels[index])
    return multi_hot(labels.of_image(index), labels.num_classes)


def multi_hot(labels: Union[np.ndarray, Sequence[int]], num_classes: int) -> np.ndarray:
    """uint8 (num_classes,), 1 at the labels."""
    target = np.zeros(num_classes, np.uint8)
    target[np.asarray(labels, dtype=np.int64)] = 1
    return target


def strata_of(labels: AnyLabels) -> np.ndarray:
    """The one class by which each image is drawn (N,): its label, or the rarest of several; -1: it has none."""
    return labels.rarest() if isinstance(labels, LabelSets) else labels


def images_per_class(labels: AnyLabels, num_classes: int) -> np.ndarray:
    """(num_classes,)"""
    return labels.images_per_class() if isinstance(labels, LabelSets) else np.bincount(labels, minlength=num_classes)


def labels_at(labels: AnyLabels, index: int) -> tuple[int, ...]:
    """All labels of an image, rising."""
    return tuple(sorted(labels.of_image(index).tolist())) if isinstance(labels, LabelSets) else (int(labels[index]),)
