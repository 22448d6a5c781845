"""Image files that somebody names, without labels: single ones, and those in folders."""

import os
from typing import Any, BinaryIO, Callable, Iterable, NamedTuple, Sequence

import numpy as np

from utils.errors import DataError, OutputError
from utils.files import open_regular
from utils.rng import fingerprint

from ..decode import decode_image, frames_of, open_image
from ..image_files import IMAGE_SUFFIXES, is_hidden_or_tool, is_image
from .reading import printable, read_image

SHOWN = 3  # names in a line


class Files(NamedTuple):
    """What was found where somebody said that there are images."""

    paths: list[str]  # each file once, in the order in which they were named; those of a folder sorted
    problems: list[str]  # a line for each place where there are none
    notes: list[str]  # a line for each folder with other things, which are left out


def find_images(names: Iterable[str]) -> Files:
    """The files that are named, whatever they are, and those with an image's suffix in the folders, at any depth.

    Links to folders inside of a folder are not followed.
    """
    by_place: dict[str, str] = {}  # by absolute path
    problems: list[str] = []
    notes: list[str] = []
    for name in names:
        paths, others = _in_folder(name, problems) if os.path.isdir(name) else ([name], [])
        if not paths:
            problems.append(f"{printable(name)}: is a folder without images (*{', *'.join(IMAGE_SUFFIXES)})")
        if others:
            shown = ", ".join(map(printable, others[:SHOWN])) + (", ..." if len(others) > SHOWN else "")
            notes.append(f"{printable(name)}: left out what is no image by its name: {len(others)} ({shown})")
        for path in paths:
            by_place.setdefault(os.path.abspath(path), path)
    return Files(list(by_place.values()), problems, notes)


def _in_folder(root: str, problems: list[str]) -> tuple[list[str], list[str]]:
    """The images, sorted by path, and the names of what else is there."""

    def note(error: OSError) -> None:
        problems.append(f"{printable(error.filename)}: cannot be looked into ({error.strerror})")

    images, others = [], []
    for folder, folders, files in os.walk(root, onerror=note):
        others += [name + "/" for name in folders if is_hidden_or_tool(name)]
        folders[:] = [name for name in folders if not is_hidden_or_tool(name)]
        here = [os.path.join(folder, name) for name in files if is_image(name)]
        if folder != root and is_image(os.path.basename(folder)) and not here and not folders:
            problems.append(f"{printable(folder)}: is a folder, no image")
        images += here
        others += [name for name in files if not is_image(name)]
        others += [f"{name} (a link to a folder)" for name in folders if os.path.islink(os.path.join(folder, name))]
    return sorted(images), sorted(others)


class FileSource:
    """Files by their paths. They have no labels: in a label's place stands how many pictures the file has, see `frames_of`.

    Args:
        paths: of the files.
        decode: open file -> image; its method `frames`, if it has one, says how many pictures a file has.

    Raises:
        DataError: at `load`, a file is no image or cannot be read.
    """

    classes: list[str] = []

    def __init__(self, paths: Sequence[str], decode: Callable[[BinaryIO], Any] = decode_image):
        self.paths = np.array([os.fsencode(path) for path in paths])  # no list: see `FolderSource`
        self.decode = decode
        self.frames = getattr(decode, "frames", lambda file: frames_of(open_image(file)))
        self.fingerprint = fingerprint(self.paths.tolist())

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def name(self, index: int) -> str:
        return printable(self.key(index)) or "''"

    def load(self, index: int) -> tuple[Any, int]:
        def decode(file: BinaryIO) -> tuple[Any, int]:
            frames = self.frames(file)
            file.seek(0)
            return self.decode(file), frames

        try:
            return read_image(self.name(index), lambda: open_regular(self.key(index)), decode, "give an image file")
        except OutputError as error:  # a bad place of the disk is no reason to lose the other files
            raise DataError(error.where, error.reason, error.remedy) from error
