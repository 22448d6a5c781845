"""Images in folders: DATA_PATH/train/<class>/*, DATA_PATH/val/<class>/*."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Mapping, Optional

import numpy as np

from utils.errors import DataError, one_line
from utils.files import open_regular
from utils.rng import fingerprint

from ..class_maps import unnamed_classes
from ..decode import decode_image
from ..image_files import is_hidden_or_tool, is_image, left_out, notes_of, rule_of
from ..workers import reading
from .labelled_files import LabelledFiles
from .reading import OR_SKIP, printable, read_image


@dataclass(frozen=True)
class Remedies:
    """What a command offers against what is wrong with a folder; the default is that of a run, by its config's keys."""

    trust_links: str = "set DATA.OUTSIDE_LINKS True"
    or_skip: str = OR_SKIP
    or_map: str = (
        ", or name all classes in a text file and give it as DATA.CLASS_MAP, which may name classes without images"
    )
    or_other_folder: str = ", or name another folder with DATA.TRAIN_SPLIT, DATA.VAL_SPLIT"


IN_A_RUN = Remedies()


class FolderSource(LabelledFiles):
    """One split folder; its sub-folders, sorted by name, are the classes. They hold images at any depth.

    Args:
        root: the folder.
        decode: open file -> image; whatever it raises makes the file one that cannot be read.
        outside_links: whether links may lead out of the folder.
        class_to_idx: the labels of the sub-folders, if they are not their places among the sorted names. It may name
            classes that are not here, or have no images; sub-folders that it does not name are left out.
        remedies: of the command that reads the folder, for messages.

    Raises:
        DataError: the folder is missing, has no classes, or, without `class_to_idx`, a class has no images; a link leads out of it or in a
            circle; at `load`, a file is no image or such a link.
    """

    def __init__(
        self,
        root: Path,
        decode: Callable[[BinaryIO], Any] = decode_image,
        outside_links: bool = False,
        class_to_idx: Optional[Mapping[str, int]] = None,
        remedies: Remedies = IN_A_RUN,
    ):
        if not root.is_dir():
            raise DataError(
                f"{root}: no such folder; DATA.DATA_PATH (--data-path) must hold train/<class>/* and val/<class>/*"
            )
        reading(str(root))
        self.decode, self.remedies = decode, remedies
        self.inside = "" if outside_links else os.path.realpath(root) + os.sep
        try:
            folders, others = self._class_folders(root)
            labels = {name: label for label, name in enumerate(folders)}
            unnamed = unnamed_classes(root, folders, class_to_idx)
            if class_to_idx is not None:
                labels = {name: class_to_idx[name] for name in folders if name in class_to_idx}
            if not labels:
                raise DataError(
                    f"{root}: none of its folders, {folders[0]!r} and so on, has a class' name; check DATA.CLASS_MAP"
                )
            keys = {name: list(_files_of(root, name)) for name in labels}
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(f"{root}: {one_line(error)}; every class needs a folder with at least one image") from error
        is_one = rule_of(decode)
        images = {name: [key for key in keys[name] if is_one(key)] for name in labels}
        others += [key for name in labels for key in keys[name] if not is_one(key)]
        empty = [name for name in labels if not images[name]]
        if len(empty) == len(labels) or (empty and class_to_idx is None):
            raise _without_images(root, empty, others, remedies)
        samples = [(key, labels[name]) for name in labels for key in images[name]]
        self._require_distinct({os.path.join(root, os.path.dirname(key)) for key, _ in samples})
        self.classes = sorted(class_to_idx or labels, key=(class_to_idx or labels).__getitem__)
        self.notes = notes_of(root, others) + unnamed
        self.root = os.fsencode(root)
        # Arrays, not a list of pairs: workers share their memory, as no reference counts in it change.
        self.keys = self.paths = np.array([os.fsencode(key) for key, _ in samples])
        self.labels = np.array([label for _, label in samples])
        self.fingerprint = fingerprint(self.keys.tolist())

    @classmethod
    def open(
        cls, split: str, data_path: str, decode: Callable, outside_links: bool, class_to_idx, **_
    ) -> "FolderSource":
        if not data_path:
            raise DataError("DATA.DATA_PATH: is not set; give --data-path, the folder that holds train/ and val/")
        return cls(Path(data_path) / split, decode, outside_links, class_to_idx)

    def load(self, index: int) -> tuple[Any, int]:
        path = self.path(index)
        if os.path.islink(path):  # of its folders it is known since the source was opened
            self._require_inside(path)
        remedy = f"replace or remove the file{self.remedies.or_skip}"
        return read_image(self.name(index), lambda: open_regular(path), self.decode, remedy), int(self.labels[index])

    def _class_folders(self, root: Path) -> tuple[list[str], list[str]]:
        """The folders that are classes, sorted by name, and what else is there."""
        classes, others = [], []
        with os.scandir(root) as entries:
            for entry in entries:
                if not entry.is_dir():
                    others.append(entry.name)
                elif is_hidden_or_tool(entry.name):
                    others.append(entry.name + "/")
                else:
                    self._require_inside(entry.path)
                    classes.append(entry.name)
        if not classes:
            flat = sorted(filter(is_image, others))
            what = (
                f"holds {len(flat)} images, such as {flat[0]!r}, but no class' folder"
                if flat
                else "holds no class' folder"
            )
            remedy = (
                f"every class needs a folder with at least one image ({root.name}/<class>/*; "
                "scripts/prepare_data.py folders makes them of ImageNet's own archives)"
            )
            raise DataError(str(root), what, remedy + self.remedies.or_other_folder)
        return sorted(classes), others

    def _require_inside(self, path: str) -> None:
        target = os.path.realpath(path) if self.inside else path
        if not target.startswith(self.inside):
            remedy = f"copy what it leads to, or {self.remedies.trust_links} if you trust it"
            raise DataError(printable(path), f"is a link out of its folder, to {target!r}", remedy)

    def _require_distinct(self, folders: set[str]) -> None:
        seen: dict[str, str] = {}
        for folder in sorted(folders):
            other = seen.setdefault(os.path.realpath(folder), folder)
            if other != folder:
                raise DataError(f"{folder!r}: is by a link the same folder as {other!r}; remove the link")
            self._require_inside(folder)


def _files_of(root: Path, name: str) -> Iterator[str]:
    """The files of a class' folder at any depth, by folder and name, as paths from `root`; hidden and tool folders as one
    path each.
    """

    def fail(error: OSError) -> None:
        raise error

    places = []
    reading(os.path.join(root, name))
    for place, folders, files in os.walk(os.path.join(root, name), onerror=fail, followlinks=True):
        reading(place)
        hidden = [folder + "/" for folder in folders if is_hidden_or_tool(folder)]
        folders[:] = [folder for folder in folders if not is_hidden_or_tool(folder)]
        places.append((place, sorted(files) + hidden))
    for place, files in sorted(places):
        inner = os.path.relpath(place, root)
        for file in files:
            yield f"{inner}/{file}"


def _without_images(root: Path, empty: list[str], others: list[str], remedies: Remedies) -> DataError:
    """An error about the classes that have no images, and what they have instead."""
    shown = ", ".join(map(repr, empty[:3])) + (", ..." if len(empty) > 3 else "")
    there = left_out([other for other in others if other.split("/")[0] in set(empty) and "/" in other])
    reason = (
        f"no image in the class' {'folder' if len(empty) == 1 else 'folders'} {shown}{f' ({there})' if there else ''}"
    )
    remedy = f"every class needs a folder with at least one image: remove or fill it{remedies.or_map}"
    return DataError(str(root), reason, remedy)
