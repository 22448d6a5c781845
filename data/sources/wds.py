"""WebDataset shards: tar files that are read from the first byte to the last, on disk or in an object store."""

import contextlib
import io
import json
import math
import os
import re
import sys
import tarfile
from typing import Any, BinaryIO, Callable, Iterator, Mapping, NamedTuple, Optional, Sequence

import numpy as np
import webdataset

from utils.errors import DataError, one_line
from utils.files import unreadable
from utils.rng import fingerprint

from ..class_maps import classes_for
from ..image_files import notes_of
from ..label_sets import LabelCells, multi_hot
from ..workers import kill_with_children, reading
from .archive import require_end
from .reading import OR_SKIP, printable, read_image
from .wds_members import Parts, Wanted, samples, wanted_by

INFO = "_info.json"  # beside the shards, as timm's reader has it: what the splits are, with counts
REMOTE = re.compile(r"^(pipe:|[a-z0-9+]+://)")
LAYOUT = "see scripts/prepare_data.py shards"
NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
MAX_IMAGES = 10**12
MAX_SHARDS = 1_000_000  # that a pattern may stand for; more is a slip of the pen, and would fill the memory


class StoredImage(NamedTuple):
    """An image of a shard, not yet decoded."""

    name: str  # for messages
    key: str
    data: bytes
    label: Any  # or, where images may have several, uint8 (classes,), see `label_sets.target_of`


class WdsSource:
    """Shards of samples with an image (.jpg, .png, ...) and its label, a number or a class' name (.cls, `label` in
    .json, .txt); see `wds_members`.

    It is read in streams (`read`), not by index. How many images the shards hold is said by `_info.json` beside them; local
    shards without it are counted.

    Args:
        folder: where the shards and the info lie; a folder, or a URL that `webdataset` opens.
        split: a name that the info has; or a file, or a pattern such as 'train-{000..127}.tar', with '|number' of images
            behind it where nothing else says it.
        num_classes, class_to_idx: where the info has no `classes`, see `classes_for`.
        decode: open file -> image.
        columns: which members are image and label, see `wds_members.wanted_by`.
        cells: take the labels of an image apart, which may have several, or none; None: each image has one.

    Raises:
        DataError: shards are missing, cut short, or of another size than the info says; where they are counted and at
            `read`, a shard is damaged, or a sample has no image or no label, or several.
    """

    def __init__(
        self,
        folder: str,
        split: str,
        num_classes: int,
        class_to_idx: Optional[Mapping[str, int]],
        decode: Callable[[BinaryIO], Any],
        columns: Sequence[str] = ("image", "label"),
        cells: Optional[LabelCells] = None,
    ):
        info = _read_info(folder)
        shards = _find_shards(folder, split, info)
        self.decode, self.cells, self.wanted = decode, cells, wanted_by(columns, several=cells is not None)
        self.shards = [name if REMOTE.match(name) else os.path.join(folder, name) for name in shards.names]
        local = {shard for shard in self.shards if not REMOTE.match(shard)}
        sizes: Sequence[Optional[int]] = shards.sizes or [None] * len(self.shards)
        for shard, size in zip(self.shards, sizes):
            if shard in local and not os.path.isfile(shard):
                raise DataError(
                    f"{shard}: no such shard, of {len(self.shards)} that {split!r} has; fetch it, or correct DATA.DATA_PATH and the split"
                )
            if shard in local and size is not None and os.path.getsize(shard) != size:
                raise DataError(
                    f"{shard}: has {os.path.getsize(shard)} bytes, {INFO} says {size}; fetch or make it again"
                )
        self.lengths = shards.lengths
        self.unusual = ""  # what is to be said of which member is the image
        others: list[str] = []
        if not self.lengths and len(local) == len(self.shards) and not shards.total:
            self.lengths = [self._count(shard, others) for shard in self.shards]
        elif self.shards[0] in local:
            self._look()
        self.notes = notes_of(folder, others) + ([self.unusual] if self.unusual else [])  # see `data.sources`
        self.num_images = sum(self.lengths) if self.lengths else shards.total
        if not self.num_images:
            raise DataError(
                f"{folder}: nothing says how many images {split!r} has; put {INFO} beside the shards ({LAYOUT}), or write "
                f"'{split}|1281167' with their number as the split"
            )
        listed = info.get("classes")
        self.classes = (
            [str(name) for name in listed]
            if isinstance(listed, list) and listed
            else classes_for(num_classes, class_to_idx)
        )
        self.table = list(range(len(self.classes)))  # label in the shards -> label; -1: left out
        if class_to_idx is not None and listed:
            self.table = [class_to_idx.get(name, -1) for name in self.classes]
            self.classes = sorted(class_to_idx, key=class_to_idx.__getitem__)
            if min(self.table) < 0:
                raise DataError(
                    f"{folder}: its class {listed[self.table.index(-1)]!r} is not in the class map, and shards cannot be read in part; correct DATA.CLASS_MAP"
                )
        self.labels = {name: label for label, name in enumerate(self.classes)}  # of labels that are names
        self.fingerprint = fingerprint(os.fsencode(name) for name in shards.names) + f" {self.num_images}"

    @classmethod
    def open(
        cls, split: str, data_path: str, num_classes: int, class_to_idx, decode: Callable, columns, cells=None, **_
    ) -> "WdsSource":
        return cls(data_path, split, num_classes, class_to_idx, decode, columns, cells)

    def __len__(self) -> int:
        return self.num_images

    def read(self, shard: int) -> Iterator[StoredImage]:
        """The samples of a shard, in order."""
        url, count = self.shards[shard], 0
        try:
            for parts in samples(url, _files(url), self.wanted, []):
                if not shard and not parts.exact and not self.unusual:  # `_look` saw only local shards
                    self._note(url, parts)
                    print(self.unusual, file=sys.stderr, flush=True)
                yield self._sample(url, parts)
                count += 1
        except DataError:
            raise
        except (OSError, ValueError, OverflowError, EOFError, tarfile.TarError) as error:
            words = getattr(error, "strerror", None) or (error.args[0] if error.args else error)
            ended = re.search(r"\): exit (\d+) \(read\)", str(error))  # webdataset's words about a child process
            reason = (
                f"the command that fetches it ended with status {ended[1]}"
                if ended
                else " ".join(str(words).split(" @ ")[0].split())[:200]
            )
            reason = f"cannot be read as a shard, after {count} images ({reason})"
            raise DataError(url, reason, "fetch or make it again") from error
        if self.lengths and count != self.lengths[shard]:
            raise DataError(f"{url}: holds {count} images, {INFO} says {self.lengths[shard]}; fetch or make it again")

    def load(self, stored: StoredImage) -> tuple[Any, Any]:
        """The decoded image and its label, or labels. Raises DataError: it is no image."""
        remedy = f"make the shard anew without it{OR_SKIP}"
        return read_image(stored.name, lambda: io.BytesIO(stored.data), self.decode, remedy), stored.label

    def _count(self, shard: str, others: list[str]) -> int:
        """Images in a local shard, by its members' headers."""
        count = 0
        for parts in _headers(shard, self.wanted, others):
            count += 1
            self._note(shard, parts)
        return count

    def _look(self) -> None:
        """At the first sample of a local shard; what is wrong with it is said when it is read."""
        with contextlib.suppress(DataError):
            for parts in _headers(self.shards[0], self.wanted, []):
                return self._note(self.shards[0], parts)

    def _note(self, shard: str, parts: Parts) -> None:
        if not parts.exact and not self.unusual:
            self.unusual = printable(
                f"{shard}: the image of {parts.key} is taken to be its member {parts.image}, likewise in other "
                "samples; DATA.COLUMNS names another"
            )

    def _sample(self, url: str, parts: Parts[bytes]) -> StoredImage:
        name = printable(f"{url}:{parts.key}")
        about = _as_json(parts.members.get("json", b""))
        key = about.get("key") or about.get("filename") or f"{parts.key}.{parts.image}"
        written = self._written_label(parts)
        label = self._label(name, written) if self.cells is None else self._labels(name, written, self.cells)
        return StoredImage(f"{name}.{parts.image}", str(key), parts.members[parts.image], label)

    def _written_label(self, parts: Parts[bytes]) -> Any:
        data = parts.members[parts.label]
        if parts.label.rpartition(".")[2] == "json":
            about = _as_json(data)
            return next((about[field] for field in self.wanted.fields if field in about), None)
        return data.decode("utf-8-sig", "replace")

    def _labels(self, name: str, written: Any, cells: LabelCells) -> np.ndarray:
        """The labels of a list, or of what a cell of a list could hold; none of [] or ''."""
        if written is None:
            raise DataError(
                f"{name}: has no labels; an image without any has an empty .cls, or 'labels': [] in .json; DATA.COLUMNS "
                "names another member, or another field as json:<field>"
            )
        each = cells.labels_of(written, name) if isinstance(written, str) else written
        each = each if isinstance(each, (list, tuple)) else [each]
        return multi_hot([self._label(name, label) for label in each], len(self.classes))

    def _label(self, name: str, written: Any) -> int:
        """The label that is written as a number or as a class' name."""
        if isinstance(written, float) and written.is_integer():
            written = int(written)
        text = str(written).strip()
        if not isinstance(written, (int, str)) or not text:
            raise DataError(
                f"{name}: has no label; each sample needs one, a number or a class' name, in .cls, as 'label' in "
                ".json, or in .txt; DATA.COLUMNS names another member, or another field as json:<field>"
            )
        if not NUMBER.fullmatch(text):
            if text in self.labels:
                return self.labels[text]
            raise DataError(
                f"{name}: has label {text[:60]!r}, which is no number and none of the {len(self.classes)} classes; "
                "name the classes in DATA.CLASS_MAP, a text file with a name in each line, in label order"
            )
        if not 0 <= int(text) < len(self.table):
            raise DataError(
                f"{name}: has label {text}, of {len(self.table)} classes; correct MODEL.NUM_CLASSES or the shards"
            )
        return self.table[int(text)]


def _as_json(data: bytes) -> dict[str, Any]:
    """What a JSON object holds; nothing, if it is none."""
    try:
        about = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


class Shards(NamedTuple):
    """The files of a split."""

    names: list[str]
    lengths: list[int]  # images in each; empty: not known
    sizes: list[int]  # bytes of each; empty: not known
    total: int  # images in all; 0: not known


@contextlib.contextmanager
def _opened(url: str) -> Iterator[BinaryIO]:
    """A file, or what a command writes that fetches it; the command ends with the block, or `close` would wait for it."""
    stream = webdataset.gopen(url)
    try:
        yield stream
    finally:
        command = getattr(stream, "proc", None)
        if command and command.poll() is None:
            kill_with_children(command.pid)
        with contextlib.suppress(OSError):
            stream.close()


def _read_info(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, INFO)
    reading(path)
    try:
        if REMOTE.match(folder):
            with _opened(path) as file:
                text = file.read()
                file.close()  # raises OSError if the command failed
        elif not os.path.isdir(folder):
            raise DataError(
                f"{folder or 'DATA.DATA_PATH'}: no such folder; DATA.DATA_PATH (--data-path) must hold the shards, {LAYOUT}"
            )
        else:
            with open(path, "rb") as file:
                text = file.read()
    except OSError as error:
        if not REMOTE.match(folder) and not isinstance(error, FileNotFoundError):
            raise unreadable(path, error, "check it and its permissions") from error
        return {}
    try:
        info = json.loads(text)
        if not isinstance(info, dict):
            raise ValueError
        return info
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON object; make it anew, {LAYOUT}") from error


def _find_shards(folder: str, split: str, info: dict[str, Any]) -> Shards:
    splits = info.get("splits")
    entries = splits if isinstance(splits, dict) else {}
    try:
        lists = {name: _as_shards(entry) for name, entry in entries.items()}
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise DataError(
            f"{os.path.join(folder, INFO)}: its splits need filenames, of files beside it, and as many shard_lengths; make it anew, {LAYOUT}"
        ) from error
    for name in (split, "validation") if split == "val" else (split,):
        if name in lists:
            return lists[name]
    pattern, bar, number = split.rpartition("|")  # a pipe's command can have more of them
    if not bar:
        pattern, number = split, ""
    if bar and not (number.isdecimal() and int(number[:20]) < MAX_IMAGES):
        raise DataError(
            f"DATA.TRAIN_SPLIT or DATA.VAL_SPLIT is {split!r}: what follows '|' must be the number of images"
        )
    if ".tar" not in pattern:
        found = (
            sorted(name for name in os.listdir(folder) if re.fullmatch(re.escape(pattern) + r"-\d+\.tar", name))
            if os.path.isdir(folder)
            else []
        )
        if not found:
            there = f"{INFO} has {', '.join(entries)}" if entries else f"there is no {pattern}-000000.tar and no {INFO}"
            raise DataError(
                f"{folder}: has no shards of {split!r} ({there}); name them in DATA.TRAIN_SPLIT and DATA.VAL_SPLIT, as {pattern}-{{000..127}}.tar"
            )
        return Shards(found, [], [], 0)
    names = _expand(pattern)
    by_name = {name: length for shards in lists.values() for name, length in zip(shards.names, shards.lengths)}
    lengths = [by_name[name] for name in names] if all(name in by_name for name in names) else []
    return Shards(names, lengths, [], int(number or 0))


def _expand(pattern: str) -> list[str]:
    """The names that a pattern such as 'train-{000..127}.tar' stands for."""
    ranges = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(\d+)\.\.(\d+)", pattern)]
    try:
        if math.prod(ranges) > MAX_SHARDS:
            raise ValueError(f"{math.prod(ranges)} shards")
        return webdataset.shardlists.expand_urls(pattern)
    except ValueError as error:  # braceexpand's are of that kind
        raise DataError(
            f"DATA.TRAIN_SPLIT or DATA.VAL_SPLIT is {pattern!r}: is no pattern of shards ({error}); write it as 'train-{{000..127}}.tar'"
        ) from error


def _as_shards(entry: Mapping[str, Any]) -> Shards:
    names, lengths = [str(name) for name in entry["filenames"]], [int(length) for length in entry["shard_lengths"]]
    sizes = [int(size) for size in entry.get("shard_bytes", [])]
    if not names or len(names) != len(lengths) or len(sizes) not in (0, len(names)):
        raise ValueError
    if not all(0 <= length < MAX_IMAGES for length in lengths):
        raise ValueError
    if any(REMOTE.match(name) for name in names):  # 'pipe:' would run a program of whoever made the data set
        raise ValueError
    return Shards(names, lengths, sizes, sum(lengths))


def _files(url: str) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of a shard's members."""
    with _opened(url) as stream:
        streams = iter([{"url": url, "stream": stream}])
        for file in webdataset.tariterators.tar_file_expander(streams, eof_value=None):
            yield file["fname"], file["data"]


def _headers(path: str, wanted: Wanted, others: list[str]) -> Iterator[Parts[None]]:
    """The samples of a local shard, without their bytes."""
    reading(path)
    try:
        with tarfile.open(path, "r:*") as archive:
            yield from samples(path, _names(archive), wanted, others)
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        reason = "no tar file" if "method tar" in str(error) else one_line(error)
        raise DataError(f"{path}: is no whole shard ({reason}); fetch or make it again") from error


def _names(archive: tarfile.TarFile) -> Iterator[tuple[str, None]]:
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # tarfile keeps them all; typeshed does not list it
        if member.isreg():
            yield member.name, None
    require_end(archive)
