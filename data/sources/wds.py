"""WebDataset shards: tar files that are read from the first byte to the last, on disk or in an object store."""

import contextlib
import io
import json
import os
import re
import sys
import tarfile
from typing import Any, BinaryIO, Callable, ContextManager, Iterator, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from utils.errors import DataError, one_line
from utils.rng import fingerprint
from utils.urls import shown

from ..class_maps import classes_for
from ..image_files import notes_of
from ..label_sets import LabelCells, multi_hot
from ..remote.origin import REMOTE
from ..remote.remote_stream import RemoteShard
from ..remote.shelf import Fetching, Shelf
from ..workers import reading
from .archive import require_end
from .reading import OR_SKIP, printable, read_image
from .tar_stream import members
from .wds_members import Parts, Wanted, samples, wanted_by
from .wds_shards import INFO, LAYOUT, divided, find_shards, place, read_info

NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


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
        folder: where the shards and the info lie; a folder, a URL, or a command with {} in the place of a file's name.
            Where it names shards itself, these are the split's that it names, see `wds_shards.divided`.
        split: a name that the info has; or a file, or a pattern such as 'train-{000..127}.tar', with '|number' of images
            behind it where nothing else says it.
        num_classes, class_to_idx: where the info has no `classes`, see `classes_for`.
        decode: open file -> image.
        columns: which members are image and label, see `wds_members.wanted_by`.
        fetching: how shards that lie elsewhere come here, see `data.remote`.
        cells: see `wds_members.Wanted`.

    Raises:
        OutputError, ConfigError: shards that lie elsewhere cannot be fetched just now, or not be kept; also at `read`.
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
        fetching: Fetching = Fetching(),
        cells: Optional[LabelCells] = None,
    ):
        folder, split = divided(folder, split)
        info = read_info(folder, split, fetching.tries)
        shards = find_shards(folder, split, info)
        self.decode, self.wanted = decode, wanted_by(columns, cells)
        places = [place(folder, name) for name in shards.names]
        self.shards = [shown(shard) for shard in places]
        sizes, hashes = shards.sizes or [0] * len(places), shards.sha256 or [""] * len(places)
        remote = {n: RemoteShard(url, sizes[n], hashes[n]) for n, url in enumerate(places) if REMOTE.match(url)}
        self.shelf = Shelf(remote, fetching)
        local = {shard for number, shard in enumerate(self.shards) if number not in remote}
        _require_local(self.shards, local, shards.sizes, split)
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
        self.fingerprint = fingerprint(os.fsencode(shown(name)) for name in shards.names) + f" {self.num_images}"

    @classmethod
    def open(
        cls,
        split: str,
        data_path: str,
        num_classes: int,
        class_to_idx,
        decode: Callable,
        columns,
        fetching,
        cells=None,
        **_,
    ) -> "WdsSource":
        return cls(data_path, split, num_classes, class_to_idx, decode, columns, fetching, cells)

    def __len__(self) -> int:
        return self.num_images

    def read(self, shard: int) -> Iterator[StoredImage]:
        """The samples of a shard, in order."""
        url, count = self.shards[shard], 0
        try:
            with self._opened(shard) as stream:
                for parts in samples(url, members(stream), self.wanted, []):
                    if not shard and not parts.exact and not self.unusual:  # `_look` saw only local shards
                        self._note(url, parts)
                        print(self.unusual, file=sys.stderr, flush=True)
                    yield self._sample(url, parts)
                    count += 1
        except (OSError, ValueError, OverflowError, EOFError, tarfile.TarError) as error:
            words = getattr(error, "strerror", None) or (error.args[0] if error.args else error)
            reason = f"cannot be read as a shard, after {count} images ({one_line(words, 200)})"
            raise DataError(url, reason, "fetch or make it again") from error
        if self.lengths and count != self.lengths[shard]:
            raise DataError(f"{url}: holds {count} images, {INFO} says {self.lengths[shard]}; fetch or make it again")

    def _opened(self, shard: int) -> ContextManager[BinaryIO]:
        if shard in self.shelf.shards:
            return self.shelf.opened(shard)
        return open(self.shards[shard], "rb")

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
        cells = self.wanted.cells
        label = self._label(name, written) if cells is None else self._labels(name, written, cells)
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


def _require_local(shards: Sequence[str], local: set[str], sizes: Sequence[int], split: str) -> None:
    """Raises DataError: one of the local shards is missing, or has another size than the info says."""
    for shard in filter(local.__contains__, shards):
        if not os.path.isfile(shard):
            reason = f"no such shard, of {len(shards)} that {split!r} has"
            raise DataError(shard, reason, "fetch it, or correct DATA.DATA_PATH and the split")
    for shard, size in zip(shards, sizes):
        if shard in local and os.path.getsize(shard) != size:
            reason = f"has {os.path.getsize(shard)} bytes, {INFO} says {size}"
            raise DataError(shard, reason, "fetch or make it again")


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
