"""Swin's zip files: DATA_PATH/train.zip with DATA_PATH/train_map.txt, and val likewise; or without a map."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Callable, Mapping, NamedTuple, Optional, Sequence

from utils.errors import DataError

from ..class_maps import classes_for, unnamed_classes
from ..image_files import notes_of, rule_of
from .archive import ArchiveSource, Entry, by_class, describe_leading, inner_name, leading_folders, require_file

LAYOUT = "DATA.DATA_PATH (--data-path) must hold train.zip, train_map.txt, val.zip and val_map.txt, see scripts/prepare_data.py zip"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a file in a zip: signature, ..., lengths of its name and extra field
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class ZipSource(ArchiveSource):
    """The files that a map names, in its order; each of its lines is `<class>/<file>`, a tab, and the label. Without a map
    the images of the zip, `<class>/<file>`, labelled and ordered as `FolderSource` does it.

    Folders that all of it lies in are taken off, see `leading_folders`. zipfile reads the directory of the archive; a file
    is then read by one call, without a lock and without an object for each file in each process.

    Raises:
        DataError: the zip is missing, it or its map is damaged, or the map names a file that the zip has not.
    """

    def __init__(
        self,
        path: Path,
        decode: Callable[[BinaryIO], Any],
        class_to_idx: Optional[Mapping[str, int]] = None,
        split: str = "",
    ):
        require_file(path, LAYOUT)
        try:
            with zipfile.ZipFile(path) as archive:
                members, folders, backslashes = _content(path, archive.infolist())
        except (zipfile.BadZipFile, EOFError, struct.error, UnicodeDecodeError) as error:
            raise DataError(f"{path}: is no whole zip file ({error}); make or fetch it again") from error
        map_path = path.with_name(path.stem + "_map.txt")
        is_one = rule_of(decode)
        prefix = leading_folders(filter(is_one, members), split, class_to_idx)
        if map_path.is_file():
            content = _by_map(map_path, path, members, prefix, split, class_to_idx)
        else:
            content = _by_folders(map_path, path, members, folders, prefix, class_to_idx, is_one)
        for member in content.members.values():
            if members[member].compress_type not in METHODS or members[member].flag_bits & 1:
                raise DataError(
                    f"{path}: {member!r} is encrypted or of a compression other than 'stored' and 'deflated'; make the zip anew"
                )
        entries = [
            Entry(name, label, _place(members[content.members[name]]), members[content.members[name]].file_size)
            for name, label in content.listed
        ]
        super().__init__(path, content.classes, entries, decode)
        self.notes = [*backslashes, *content.notes, *describe_leading(path, prefix)]

    @classmethod
    def open(cls, split: str, data_path: str, decode: Callable, class_to_idx, **_) -> "ZipSource":
        name = split if split.endswith(".zip") else split + ".zip"
        return cls(Path(data_path) / name, decode, class_to_idx, Path(name).stem)

    def extract(self, place: Sequence[int]) -> bytes:
        start, length, method, crc, name_length, size = place
        guess = LOCAL_HEADER.size + name_length + 64  # the lengths in the directory may be other ones
        data = self.pread(start, min(guess + length, self.length - start))
        signature, *lengths = LOCAL_HEADER.unpack_from(data)
        if signature != b"PK\3\4":
            raise zipfile.BadZipFile("bad header")
        first = LOCAL_HEADER.size + sum(lengths)
        content = data[first : first + length]
        if len(content) < length:
            content = self.pread(start + first, length)
        if method == zipfile.ZIP_DEFLATED:
            # no more than it says, or memory could run out
            content = zlib.decompressobj(wbits=-15).decompress(content, size + 1)
        if zlib.crc32(content) != crc:
            raise zipfile.BadZipFile("bad checksum")
        return content


class Content(NamedTuple):
    """The images of a zip, as a map or its folders say it."""

    classes: list[str]
    listed: list[tuple[str, int]]  # name and label of each image, in order
    members: dict[str, str]  # the zip's members by these names
    notes: list[str]  # lines of what is left out


def _place(info: zipfile.ZipInfo) -> tuple[int, ...]:
    """What `ZipSource.extract` needs."""
    name_length = len(info.filename)
    return info.header_offset, info.compress_size, info.compress_type, info.CRC, name_length, info.file_size


def _content(path: Path, infos: Sequence[zipfile.ZipInfo]) -> tuple[dict[str, zipfile.ZipInfo], list[str], list[str]]:
    r"""The files by name, the folders' names, which end with '/', and a line if all names have Windows' \ in place of it,
    as .NET wrote them for years.
    """
    backslashes = any("\\" in info.filename for info in infos) and not any("/" in info.filename for info in infos)
    members, folders = {}, []
    for info in infos:
        name = info.filename.replace("\\", "/") if backslashes else info.filename
        if name.endswith("/"):
            folders.append(inner_name(path, name).rstrip("/") + "/")
        else:
            members[inner_name(path, name)] = info
    return (
        members,
        folders,
        [f"{path}: its names have \\ between folders, as of Windows; it is read as /"] if backslashes else [],
    )


def _by_folders(
    map_path: Path,
    path: Path,
    found: Mapping[str, Any],
    folders: Sequence[str],
    prefix: str,
    class_to_idx: Optional[Mapping[str, int]],
    is_one: Callable[[str], bool],
) -> Content:
    """The content by the folders in the zip; `is_one` says which files are images, for the others see `_by_map`."""
    members = {name[len(prefix) :]: name for name in found if is_one(name)}
    others = [name for name in found if not is_one(name)]
    rest = [name[len(prefix) :] for name in [*others, *folders] if name.startswith(prefix)]
    try:
        classes, listed, unnamed = by_class(path, members, class_to_idx, rest)
    except DataError as error:
        beside = f", or put {map_path.name} beside it, which labels the files"
        raise error.with_remedy(error.remedy + beside) from error
    no_map = f"{map_path}: no such file; the classes are the folders in the zip"
    return Content(classes, listed, members, [*notes_of(path, others), *unnamed, no_map])


def _by_map(
    map_path: Path,
    path: Path,
    found: Mapping[str, Any],
    prefix: str,
    split: str,
    class_to_idx: Optional[Mapping[str, int]],
) -> Content:
    """The content as the map names it, and in its order.

    Args:
        found: the zip's members by name.
        prefix: leading folders of the zip's images.
    """
    listed = _read_map(map_path)
    leading = leading_folders((name for name, _ in listed), split, class_to_idx)
    members: dict[str, str] = {}
    for name, _ in listed:
        inner = name[len(leading) :]
        member = name if name in found else prefix + inner
        if member not in found:
            raise DataError(
                f"{map_path}: names {name!r}, which {path.name} does not hold; make both anew with scripts/prepare_data.py zip"
            )
        members[inner] = member
    listed = [(name[len(leading) :], label) for name, label in listed]
    classes = _classes(map_path, listed, class_to_idx)
    unnamed = unnamed_classes(map_path, classes, class_to_idx)
    if class_to_idx is not None:
        listed = [(name, class_to_idx[classes[label]]) for name, label in listed if classes[label] in class_to_idx]
        classes = sorted(class_to_idx, key=class_to_idx.__getitem__)
    if not listed:
        raise DataError(f"{map_path}: names no image of a class; check it and DATA.CLASS_MAP")
    others = sorted(set(found) - set(members.values()))
    left_out = (
        [f"{path}: left out what {map_path.name} does not name: {len(others)} (such as {others[0]})"] if others else []
    )
    return Content(classes, listed, members, left_out + unnamed)


def _read_map(path: Path) -> list[tuple[str, int]]:
    listed = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no text; each line must be <class>/<file>, a tab, and the label") from error
    for number, line in enumerate(lines, 1):
        name, tab, label = line.partition("\t")
        if not (tab and name and label.strip().isdecimal()):
            raise DataError(
                f"{path}: line {number} is {line[:80]!r}; it must be <class>/<file>, a tab, and the label, a number from 0"
            )
        listed.append((inner_name(path, name), int(label)))
    if not listed:
        raise DataError(f"{path}: is empty; each line must be <class>/<file>, a tab, and the label")
    return listed


def _classes(path: Path, listed: Sequence[tuple[str, int]], class_to_idx: Optional[Mapping[str, int]]) -> list[str]:
    """The name of each label: the folder that its files lie in; where they lie in none, as in Swin's own val.zip, see
    `classes_for`.
    """
    folders: dict[int, set[str]] = {}
    for name, label in listed:
        folders.setdefault(label, set()).add(name.split("/")[0] if "/" in name else "")
    count = max(folders) + 1
    if len(folders) < count:
        missing = next(label for label in range(count) if label not in folders)
        raise DataError(
            f"{path}: has labels up to {count - 1}, but no image of label {missing}; number the classes from 0, without gaps"
        )
    names = [folders[label] for label in range(count)]
    if all(found == {""} for found in names):
        flat = classes_for(count, class_to_idx)
        if len(flat) < count:
            raise DataError(
                f"{path}: has labels up to {count - 1}, but the class map names {len(flat)} classes; correct DATA.CLASS_MAP"
            )
        return flat
    for label, found in enumerate(names):
        if len(found) > 1:
            raise DataError(
                f"{path}: label {label} is that of the folders {', '.join(map(repr, sorted(found)[:3]))}; a class needs one of its own"
            )
    flat = [next(iter(found)) for found in names]
    if len(set(flat)) < count:
        twice = next(name for name in flat if flat.count(name) > 1)
        raise DataError(f"{path}: the folder {twice!r} has several labels; a class needs one of its own")
    return flat
