"""Images in folders: DATA_PATH/train/<class>/*, DATA_PATH/val/<class>/*."""

import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, Callable, Mapping, Optional

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from utils.errors import DataError
from utils.rng import fingerprint

from ..decode import decode_image
from .reading import printable, read_image


class FolderSource:
    """One split folder; its sub-folders, sorted by name, are the classes.

    Args:
        root: the folder.
        decode: open file -> image; whatever it raises makes the file one that cannot be read.
        outside_links: whether links may lead out of the folder.
        class_to_idx: the labels of the sub-folders, if they are not their places among the sorted names. It may name
            classes that are not here; sub-folders that it does not name are left out.

    Raises:
        DataError: the folder is missing, has no classes, or a class has no images; a link leads out of it or in a
            circle; at `load`, a file is no image or such a link.
    """

    def __init__(
        self,
        root: Path,
        decode: Callable[[BinaryIO], Any] = decode_image,
        outside_links: bool = False,
        class_to_idx: Optional[Mapping[str, int]] = None,
    ):
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
            found, labels = find_classes(root)
            if class_to_idx is not None:
                labels = {name: class_to_idx[name] for name in found if name in class_to_idx}
            if not labels:
                raise DataError(f"{root}: none of its folders, {found[0]!r} and so on, has a class' name; check DATA.CLASS_MAP")
            samples = make_dataset(str(root), labels, IMG_EXTENSIONS)
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(
                f"{root}: {' '.join(str(error).split())}; every class needs a folder with at least one image"
            ) from None
        self._require_distinct({os.path.dirname(path) for path, _ in samples})
        self.classes = sorted(class_to_idx or labels, key=(class_to_idx or labels).__getitem__)
        self.root = os.fsencode(root)
        # Arrays, not a list of pairs: workers share their memory, as no reference counts in it change.
        self.keys = np.array([os.fsencode(os.path.relpath(path, root)) for path, _ in samples])
        self.labels = np.array([label for _, label in samples])
        self.fingerprint = fingerprint(self.keys.tolist())

    @classmethod
    def open(cls, split: str, data_path: str, decode: Callable, outside_links: bool, class_to_idx, **_) -> "FolderSource":
        if not data_path:
            raise DataError("DATA.DATA_PATH: is not set; give --data-path, the folder that holds train/ and val/")
        return cls(Path(data_path) / split, decode, outside_links, class_to_idx)

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, index: int) -> str:
        return os.fsdecode(self.keys[index])

    def name(self, index: int) -> str:
        return printable(self._path(index))

    def load(self, index: int) -> tuple[Any, int]:
        path = self._path(index)
        self._require_inside(path)

        def opened() -> BinaryIO:
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
                raise OSError("no regular file")
            return open(path, "rb")

        return read_image(self.name(index), opened, self.decode, "replace or remove the file"), int(self.labels[index])

    def _path(self, index: int) -> str:
        return os.fsdecode(os.path.join(self.root, self.keys[index]))

    def _require_inside(self, path: str) -> None:
        target = os.path.realpath(path) if self.inside else path
        if not target.startswith(self.inside):
            raise DataError(
                f"{printable(path)}: is a link out of its folder, to {target!r}; copy what it "
                "leads to, or set DATA.OUTSIDE_LINKS True if you trust it"
            )

    def _require_distinct(self, folders: set[str]) -> None:
        seen: dict[str, str] = {}
        for folder in sorted(folders):
            other = seen.setdefault(os.path.realpath(folder), folder)
            if other != folder:
                raise DataError(f"{folder!r}: is by a link the same folder as {other!r}; remove the link")
            self._require_inside(folder)
