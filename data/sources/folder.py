"""Images in folders: DATA_PATH/train/<class>/*, DATA_PATH/val/<class>/*."""

import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, Callable

import numpy as np
from torchvision.datasets import ImageFolder

from utils.errors import DataError, OutputError
from utils.files import is_of_the_machine
from utils.rng import fingerprint

from ..decode import decode_image


class FolderSource:
    """One split folder; its sub-folders, sorted by name, are the classes.

    Args:
        root: the folder.
        decode: open file -> image; whatever it raises makes the file one that cannot be read.
        outside_links: whether links may lead out of the folder.

    Raises:
        DataError: the folder is missing, has no classes, or a class has no images; a link leads out of it or in a
            circle; at `load`, a file is no image or such a link.
    """

    def __init__(self, root: Path, decode: Callable[[BinaryIO], Any] = decode_image, outside_links: bool = False):
        if not root.is_dir():
            raise DataError(
                f"{root}: no such folder; DATA.DATA_PATH (--data-path) must hold train/<class>/* and val/<class>/*"
            )
        self.decode = decode
        self.inside = "" if outside_links else os.path.realpath(root) + os.sep
        try:
            for entry in os.scandir(root):
                if entry.is_dir():
                    self._require_inside(entry.path)
            folder = ImageFolder(root)
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(
                f"{root}: {' '.join(str(error).split())}; every class needs a folder with at least one image"
            ) from None
        self._require_distinct({os.path.dirname(path) for path, _ in folder.samples})
        self.classes = folder.classes
        # Arrays, not a list of pairs: workers share their memory, as no reference counts in it change.
        self.paths = np.array([os.fsencode(path) for path, _ in folder.samples])
        self.labels = np.array(folder.targets)
        self.fingerprint = fingerprint(os.fsencode(os.path.relpath(path, root)) for path, _ in folder.samples)

    @classmethod
    def open(cls, split: str, data_path: str, decode: Callable, outside_links: bool, **_) -> "FolderSource":
        if not data_path:
            raise DataError("DATA.DATA_PATH: is not set; give --data-path, the folder that holds train/ and val/")
        return cls(Path(data_path) / split, decode, outside_links)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        path = os.fsdecode(self.paths[index])
        return path if path.isprintable() else repr(path)

    def load(self, index: int) -> tuple[Any, int]:
        path = os.fsdecode(self.paths[index])
        self._require_inside(path)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
                raise OSError("no regular file")
            with open(path, "rb") as file:
                return self.decode(file), int(self.labels[index])
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise of many kinds at damaged files
            if is_of_the_machine(error):
                raise OutputError(f"{self.name(index)}: cannot be read just now ({error.strerror}); start the same command again") from None
            kind = type(error).__name__
            reason = f"{kind}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
            if os.path.basename(path).startswith("._"):
                reason = "it holds macOS metadata of another file"
            elif kind == "UnidentifiedImageError":
                reason = "empty" if not os.path.getsize(path) else "no image of a known format"
            raise DataError(
                f"{self.name(index)}: cannot be read as an image ({' '.join(reason.split())}); replace or remove the file, "
                "or set DATA.ON_ERROR skip"
            ) from None

    def _require_inside(self, path: str) -> None:
        target = os.path.realpath(path) if self.inside else path
        if not target.startswith(self.inside):
            raise DataError(
                f"{path if path.isprintable() else repr(path)}: is a link out of its folder, to {target!r}; copy what it "
                "leads to, or set DATA.OUTSIDE_LINKS True if you trust it"
            )

    def _require_distinct(self, folders: set[str]) -> None:
        seen: dict[str, str] = {}
        for folder in sorted(folders):
            other = seen.setdefault(os.path.realpath(folder), folder)
            if other != folder:
                raise DataError(f"{folder!r}: is by a link the same folder as {other!r}; remove the link")
            self._require_inside(folder)
