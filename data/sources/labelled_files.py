"""Image files on the disk with a label each, read by index: what a folder and a list of them share."""

import os
from typing import Any

import numpy as np

from utils.files import open_regular

from .reading import printable


class LabelledFiles:
    """What a subclass sets, in the order of the images; bytes, as names of files need be no text."""

    root: bytes
    paths: np.ndarray  # of bytes, below the root
    keys: np.ndarray  # of bytes
    labels: Any  # (N,) of integers; of a list also `LabelSets`

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Of an image's file."""
        return os.fsdecode(os.path.join(self.root, self.paths[index]))

    def key(self, index: int) -> str:
        return os.fsdecode(self.keys[index])

    def name(self, index: int) -> str:
        return printable(self.path(index))

    def read(self, index: int) -> bytes:
        """The bytes of an image's file. Raises OSError."""
        with open_regular(self.path(index)) as file:
            return file.read()
