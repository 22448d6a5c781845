"""ImageNet's own archives -> train/<synset>/*.JPEG and val/<synset>/*.JPEG.

Folders grow in train.unfinished and val.unfinished. Of train, whole classes are kept when the command is started again;
val, a few minutes' work, begins anew.
"""

import contextlib
import os
import shutil
import tarfile
from pathlib import Path
from typing import Iterator, Sequence

from utils.errors import DataError
from utils.files import unreadable

from ..class_maps import read_class_map
from ..sources.archive import read_member, require_end
from .devkit import NAME as DEVKIT
from .devkit import read_devkit
from .images import require_same_classes
from .preparation import Progress, require_room, writing

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
Members = dict[str, tarfile.TarInfo]  # by name
COUNTS = {"train": 1_281_167, "val": 50_000}


def unpack(source: Path, output: Path, splits: Sequence[str], partial: bool) -> None:
    """
    Args:
        source: the folder of the archives.
        partial: take fewer images and classes than ImageNet has.

    Raises:
        DataError: an archive is missing, cut short, holds what it should not, or has another number of images.
        OutputError: no room, now or in the middle; whole classes are kept.
    """
    todo = [split for split in splits if not (output / split).exists()]
    contents = {split: _members(source / ARCHIVES[split]) for split in todo}
    truth = read_devkit(source / DEVKIT) if "val" in todo else []
    needed = 0
    for split in todo:
        done = _finished(output / f"{split}.unfinished") if split == "train" else {}
        needed += sum(member.size for name, member in contents[split].items() if name.removesuffix(".tar") not in done)
    require_room(output, needed)
    for split in todo:
        unfinished = output / f"{split}.unfinished"
        with (
            writing(unfinished),
            tarfile.open(source / ARCHIVES[split], "r:") as archive,
            _readable(source / ARCHIVES[split]),
        ):
            if split == "train":
                _unpack_train(
                    source / ARCHIVES[split], archive, contents[split], unfinished, 0 if partial else COUNTS[split]
                )
            else:
                shutil.rmtree(unfinished, ignore_errors=True)
                _unpack_val(source / ARCHIVES[split], archive, contents[split], truth, unfinished)
        if not partial:
            _require_whole(split, source / ARCHIVES[split], unfinished)
        other = output / ("train" if split == "val" else "val")
        if other.is_dir() and not partial:
            require_same_classes(other, os.listdir(other), unfinished, os.listdir(unfinished))
        with writing(unfinished):
            unfinished.rename(output / split)


def _unpack_train(path: Path, archive: tarfile.TarFile, members: Members, unfinished: Path, total: int) -> None:
    with Progress("train", total) as progress:
        unfinished.mkdir(exist_ok=True)
        done = _finished(unfinished)
        progress.skip(sum(done.values()))
        for name, member in sorted(members.items()):
            synset = name.removesuffix(".tar")
            if not name.endswith(".tar"):
                raise DataError(f"{path}: holds {name!r}, and should hold one .tar of each class; fetch it again")
            if synset in done:
                continue
            folder = unfinished / f".{synset}.tmp"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            where = f"{path}: {name}"
            with _readable(where), tarfile.open(fileobj=archive.extractfile(member), mode="r:") as images:
                inner = _plain_members(images, where)
                if not inner:
                    raise DataError(f"{where}: holds no image; fetch the archive again")
                for file, image in inner.items():
                    progress.add(_copy(images, image, folder / file))
            os.sync()  # once for all its files: what has its name is on the disk
            folder.rename(unfinished / synset)


def _unpack_val(path: Path, archive: tarfile.TarFile, members: Members, truth: list[str], unfinished: Path) -> None:
    with Progress("val", len(members)) as progress:
        unfinished.mkdir()
        for name, member in sorted(members.items()):
            number = name.removeprefix("ILSVRC2012_val_").removesuffix(".JPEG")
            if name != f"ILSVRC2012_val_{number}.JPEG" or not number.isdecimal() or not 0 < int(number) <= len(truth):
                raise DataError(f"{path}: holds {name!r}, of which the devkit says no class; fetch both of ILSVRC2012")
            folder = unfinished / truth[int(number) - 1]
            folder.mkdir(exist_ok=True)
            progress.add(_copy(archive, member, folder / name))
        os.sync()


def _require_whole(split: str, archive: Path, folder: Path) -> None:
    count = sum(_finished(folder).values())
    if count != COUNTS[split]:
        raise DataError(
            f"{archive}: has {count:,} images and ImageNet's has {COUNTS[split]:,}; fetch it again and remove {folder}, or give "
            "--partial to take what there is"
        )
    require_same_classes(Path("ImageNet"), read_class_map("imagenet-1k"), folder, os.listdir(folder))


def _finished(folder: Path) -> dict[str, int]:
    """Whole classes and their numbers of images."""
    if not folder.is_dir():
        return {}
    return {entry.name: len(os.listdir(entry)) for entry in os.scandir(folder) if not entry.name.startswith(".")}


def _members(path: Path) -> dict[str, tarfile.TarInfo]:
    try:
        with _readable(path), tarfile.open(path, "r:") as archive:
            members = _plain_members(archive, path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; put ImageNet's {path.name} there, or choose among --splits") from error
    except OSError as error:
        raise unreadable(path, error, "check its permissions") from error
    if not members:
        raise DataError(f"{path}: is empty; fetch it again")
    return members


def _plain_members(archive: tarfile.TarFile, where: object) -> dict[str, tarfile.TarInfo]:
    """File name -> member. Nothing else may be there: a name that leads elsewhere would be written elsewhere."""
    members: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        name = member.name.removeprefix("./")
        if member.isdir() and name in ("", "."):
            continue
        if not member.isfile() or "/" in name or name.startswith(".") or not name.isprintable():
            raise DataError(
                f"{where}: holds {member.name!r}, which is no plain file of a plain name; nothing was written for it"
            )
        if name in members:
            raise DataError(f"{where}: holds {name!r} twice; fetch the archive again")
        members[name] = member
    require_end(archive)
    return members


def _copy(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    path.write_bytes(read_member(archive, member))
    return member.size


@contextlib.contextmanager
def _readable(where: object) -> Iterator[None]:
    try:
        yield
    except tarfile.TarError as error:
        raise DataError(f"{where}: is no tar archive, or cut short ({error}); fetch the archive again") from error
