"""Images in folders: DATA_PATH/train/<class>/*, DATA_PATH/val/<class>/*."""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import pil_loader

from utils.errors import DataError


class FolderSource:
    """One split folder; its sub-folders, sorted by name, are the classes.

    Raises:
        DataError: the folder is missing, has no classes, or a class has no images; at `load`, a file is no image.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise DataError(
                f"{root}: no such folder; DATA.DATA_PATH (--data-path) must hold train/<class>/* and val/<class>/*"
            )
        try:
            folder = ImageFolder(root)
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(
                f"{root}: {' '.join(str(error).split())}; every class needs a folder with at least one image"
            ) from None
        self.classes = folder.classes
        # Arrays, not a list of pairs: workers share their memory, as no reference counts in it change.
        self.paths = np.array([os.fsencode(path) for path, _ in folder.samples])
        self.labels = np.array(folder.targets)

    @classmethod
    def open(cls, split: str, data_path: str, **_) -> "FolderSource":
        if not data_path:
            raise DataError("DATA.DATA_PATH: is not set; give --data-path, the folder that holds train/ and val/")
        return cls(Path(data_path) / split)

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> tuple[Image.Image, int]:
        path = os.fsdecode(self.paths[index])
        try:
            return pil_loader(path), int(self.labels[index])
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{path if path.isprintable() else repr(path)}: cannot be read as an image ({type(error).__name__}); replace or remove the file"
            ) from None
