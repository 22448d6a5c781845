"""WebDataset shards: tar files that are read from the first byte to the last, on disk or in an object store."""

import contextlib
import io
import json
import math
import os
import re
import tarfile
from typing import Any, BinaryIO, Callable, Iterator, Mapping, NamedTuple, Optional

import webdataset

from utils.errors import DataError
from utils.rng import fingerprint

from ..class_maps import classes_for
from ..workers import kill_with_children, reading
from .archive import inner_name, is_image, require_end
from .reading import printable, read_image

INFO = "_info.json"  # beside the shards, as timm's reader has it: what the splits are, with counts
REMOTE = re.compile(r"^(pipe:|[a-z0-9+]+://)")
LAYOUT = "see scripts/prepare_data.py shards"
MAX_IMAGES = 10**12
MAX_SHARDS = 1_000_000  # that a pattern may stand for; more is a slip of the pen, and would fill the memory


class Sample(NamedTuple):
    """An image of a shard, not yet decoded."""

    name: str  # for messages
    key: str
    data: bytes
    label: int


class WdsSource:
    """Shards of samples with an image (.jpg, .png, ...) and its label as a number (.cls, or `label` in .json).

    It is read in streams (`read`), not by index. How many images the shards hold is said by `_info.json` beside them; local
    shards without it are counted.

    Args:
        folder: where the shards and the info lie; a folder, or a URL that `webdataset` opens.
        split: a name that the info has; or a file, or a pattern such as 'train-{000..127}.tar', with '|number' of images
            behind it where nothing else says it.
        num_classes, class_to_idx: where the info has no `classes`, see `classes_for`.
        decode: open file -> image.

    Raises:
        DataError: shards are missing, cut short, or of another size than the info says; at `read`, a shard is damaged, or
            a sample has no image or no label.
    """

    def __init__(
        self,
        folder: str,
        split: str,
        num_classes: int,
        class_to_idx: Optional[Mapping[str, int]],
        decode: Callable[[BinaryIO], Any],
    ):
        info = _read_info(folder)
        shards = _find_shards(folder, split, info)
        self.decode = decode
        self.shards = [name if REMOTE.match(name) else os.path.join(folder, name) for name in shards.names]
        local = {shard for shard in self.shards if not REMOTE.match(shard)}
        for shard, size in zip(self.shards, shards.sizes or [None] * len(self.shards)):
            if shard in local and not os.path.isfile(shard):
                raise DataError(f"{shard}: no such shard, of {len(self.shards)} that {split!r} has; fetch it, or correct DATA.DATA_PATH and the split")
            if shard in local and size is not None and os.path.getsize(shard) != size:
                raise DataError(f"{shard}: has {os.path.getsize(shard)} bytes, {INFO} says {size}; fetch or make it again")
        self.lengths = shards.lengths
        if not self.lengths and len(local) == len(self.shards) and not shards.total:
            self.lengths = [_count(shard) for shard in self.shards]
        self.num_images = sum(self.lengths) if self.lengths else shards.total
        if not self.num_images:
            raise DataError(
                f"{folder}: nothing says how many images {split!r} has; put {INFO} beside the shards ({LAYOUT}), or write "
                f"'{split}|1281167' with their number as the split"
            )
        own = info.get("classes")
        self.classes = [str(name) for name in own] if isinstance(own, list) and own else classes_for(num_classes, class_to_idx)
        self.table = list(range(len(self.classes)))  # label in the shards -> label; -1: left out
        if class_to_idx is not None and own:
            self.table = [class_to_idx.get(name, -1) for name in self.classes]
            self.classes = sorted(class_to_idx, key=class_to_idx.__getitem__)
            if min(self.table) < 0:
                raise DataError(f"{folder}: its class {own[self.table.index(-1)]!r} is not in the class map, and shards cannot be read in part; correct DATA.CLASS_MAP")
        self.fingerprint = fingerprint(os.fsencode(name) for name in shards.names) + f" {self.num_images}"

    @classmethod
    def open(cls, split: str, data_path: str, num_classes: int, class_to_idx, decode: Callable, **_) -> "WdsSource":
        return cls(data_path, split, num_classes, class_to_idx, decode)

    def __len__(self) -> int:
        return self.num_images

    def read(self, shard: int) -> Iterator[Sample]:
        """The samples of a shard, in order."""
        url, count = self.shards[shard], 0
        try:
            with _opened(url) as stream:
                files = webdataset.tariterators.tar_file_expander(iter([{"url": url, "stream": stream}]))
                for parts in webdataset.tariterators.group_by_keys(files):
                    yield self._sample(url, parts)
                    count += 1
        except DataError:
            raise
        except (OSError, ValueError, OverflowError, EOFError, tarfile.TarError) as error:
            said = getattr(error, "strerror", None) or (error.args[0] if error.args else error)
            ended = re.search(r"\): exit (\d+) \(read\)", str(error))  # webdataset's words about a child process
            reason = f"the command that fetches it ended with status {ended[1]}" if ended else " ".join(str(said).split(" @ ")[0].split())[:200]
            raise DataError(f"{url}: cannot be read as a shard, after {count} images ({reason}); fetch or make it again") from None
        if self.lengths and count != self.lengths[shard]:
            raise DataError(f"{url}: holds {count} images, {INFO} says {self.lengths[shard]}; fetch or make it again")

    def image(self, sample: Sample) -> Any:
        """Raises DataError: it is no image."""
        return read_image(sample.name, lambda: io.BytesIO(sample.data), self.decode, "make the shard anew without it")

    def _sample(self, url: str, parts: dict[str, Any]) -> Sample:
        stem = parts["__key__"]
        name = printable(f"{url}:{stem}")
        inner_name(url, stem)
        extension = next((part for part in parts if is_image("." + part)), None)
        if extension is None:
            raise DataError(f"{name}: has no image, but {', '.join(part for part in parts if part[:2] != '__')}; each sample needs a .jpg, .png or the like")
        try:
            meta = json.loads(parts["json"]) if "json" in parts else {}
            meta = meta if isinstance(meta, dict) else {}
            label = int(parts["cls"] if "cls" in parts else meta["label"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise DataError(f"{name}: has no label; each sample needs one as a number in .cls, or as 'label' in .json") from None
        if not 0 <= label < len(self.table):
            raise DataError(f"{name}: has label {label}, of {len(self.table)} classes; correct MODEL.NUM_CLASSES or the shards")
        key = meta.get("key") or meta.get("filename") or f"{stem}.{extension}"
        return Sample(f"{name}.{extension}", str(key), parts[extension], self.table[label])


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
            raise DataError(f"{folder or 'DATA.DATA_PATH'}: no such folder; DATA.DATA_PATH (--data-path) must hold the shards, {LAYOUT}")
        else:
            with open(path, "rb") as file:
                text = file.read()
    except OSError as error:
        if not REMOTE.match(folder) and not isinstance(error, FileNotFoundError):
            raise DataError(f"{path}: cannot be read ({error.strerror}); check it and its permissions") from None
        return {}
    try:
        info = json.loads(text)
        if not isinstance(info, dict):
            raise ValueError
        return info
    except (ValueError, RecursionError):
        raise DataError(f"{path}: is no JSON object; make it anew, {LAYOUT}") from None


def _find_shards(folder: str, split: str, info: dict[str, Any]) -> Shards:
    known = info.get("splits") if isinstance(info.get("splits"), dict) else {}
    try:
        lists = {name: _as_shards(entry) for name, entry in known.items()}
    except (TypeError, KeyError, ValueError, OverflowError):
        raise DataError(
            f"{os.path.join(folder, INFO)}: its splits need filenames, of files beside it, and as many shard_lengths; make it anew, {LAYOUT}"
        ) from None
    for name in (split, "validation") if split == "val" else (split,):
        if name in lists:
            return lists[name]
    pattern, bar, number = split.rpartition("|")  # a pipe's command can have more of them
    if not bar:
        pattern, number = split, ""
    if bar and not (number.isdecimal() and int(number[:20]) < MAX_IMAGES):
        raise DataError(f"DATA.TRAIN_SPLIT or DATA.VAL_SPLIT is {split!r}: what follows '|' must be the number of images")
    if ".tar" not in pattern:
        found = sorted(name for name in os.listdir(folder) if re.fullmatch(re.escape(pattern) + r"-\d+\.tar", name)) if os.path.isdir(folder) else []
        if not found:
            there = f"{INFO} has {', '.join(known)}" if known else f"there is no {pattern}-000000.tar and no {INFO}"
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
        ) from None


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


def _count(path: str) -> int:
    """Images in a local shard, by its members' headers."""
    reading(path)
    try:
        with tarfile.open(path, "r:*") as archive:
            count, last = 0, None
            for member in archive:
                archive.members = []
                stem, _ = webdataset.tariterators.base_plus_ext(member.name)
                if member.isreg() and is_image(member.name) and stem not in (None, last):
                    count, last = count + 1, stem
            require_end(archive)
            return count
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        reason = "no tar file" if "method tar" in str(error) else " ".join(str(error).split())
        raise DataError(f"{path}: is no whole shard ({reason}); fetch or make it again") from None
