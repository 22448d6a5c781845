"""Which shards a split has, and what `_info.json` says of them: how many images, bytes and hashes they have."""

import json
import math
import os
import re
from typing import Any, Mapping, NamedTuple, Optional

import webdataset

from utils.errors import DataError, OutputError
from utils.files import unreadable
from utils.urls import is_http, shown

from ..remote.origin import REMOTE
from ..remote.shelf import read_small
from ..workers import reading

INFO = "_info.json"  # beside the shards, as timm's reader has it: what the splits are, with counts
LAYOUT = "see scripts/prepare_data.py shards"
HERE = "{}"  # in a command: the place of a file's name
PLAIN = re.compile(r"[A-Za-z0-9._/@=+-]+")  # names that mean nothing else to a shell
SHA256 = re.compile("[0-9a-f]{64}")
MAX_IMAGES = 10**12
MAX_SHARDS = 1_000_000  # that a pattern may stand for; more is a slip of the pen, and would fill the memory


class Shards(NamedTuple):
    """The files of a split. Empty lists: not known."""

    names: list[str]
    lengths: list[int]  # images in each
    sizes: list[int]  # bytes of each
    total: int  # images in all; 0: not known
    sha256: list[str] = []  # of each file

    def only(self, numbers: list[int]) -> "Shards":
        """Some of them."""

        def of(values: list[Any]) -> list[Any]:
            return [values[number] for number in numbers] if values else []

        lengths = of(self.lengths)
        return Shards(of(self.names), lengths, of(self.sizes), sum(lengths), of(self.sha256))


def divided(folder: str, split: str) -> tuple[str, str]:
    """Folder and split, where the folder is a URL or a command that names shards: the folder that these lie in, and, if the
    split's name is in theirs, they themselves.

    Raises:
        DataError: a command names those of another split, and so no place of this one's.
    """
    if not REMOTE.match(folder) or HERE in folder:
        return folder, split
    whole, bar, number = folder.rpartition("|") if re.search(r"\|\d+$", folder) else (folder, "", "")
    if folder.startswith("pipe:"):
        named = [word for word in whole.split() if ".tar" in word]
        if not named:
            return folder, split
        mine = ".tar" not in split and split in named[0].rpartition("/")[2]
        if not mine and not REMOTE.match(split):
            raise DataError(
                "DATA.DATA_PATH",
                f"its command gives no shards of {split!r}",
                "name them by a command as the split, too",
            )
        return "", folder if mine else split
    path, mark, query = whole.partition("?")
    before, _, name = path.rpartition("/")
    if ".tar" not in name:
        return folder, split
    mine = ".tar" not in split and split in name
    return before + mark + query, name + bar + number if mine else split


def place(folder: str, name: str) -> str:
    """Where a file of the folder lies: its path or URL, or the command that writes it.

    Raises:
        DataError: a shell would take the name for more than a name.
    """
    if REMOTE.match(name):
        return name
    if folder.startswith("pipe:") and HERE in folder:
        if not PLAIN.fullmatch(name):
            reason = f"names {name!r}, which cannot stand in the command of DATA.DATA_PATH"
            raise DataError(INFO, reason, "name the shards by letters, digits and . _ / @ = + -")
        return folder.replace(HERE, name)
    if is_http(folder):
        before, mark, query = folder.partition("?")
        return f"{before.rstrip('/')}/{name}{mark}{query}"
    return os.path.join(folder, name)


def read_info(folder: str, split: str, tries: int) -> dict[str, Any]:
    """What `_info.json` in the folder holds; nothing, if there is none.

    A command does not say whether there is one: it is not asked where the split says the number of its images.

    Raises:
        DataError: there is no such folder, or the file is none.
        OutputError: it cannot be read just now.
    """
    path = place(folder, INFO)
    reading(shown(path))
    if REMOTE.match(folder):
        text = None if "|" in split and not is_http(folder) else _fetch_info(path, split, tries)
    elif not folder and REMOTE.match(split):
        text = None
    elif not os.path.isdir(folder):
        reason = f"no such folder; DATA.DATA_PATH (--data-path) must hold the shards, {LAYOUT}"
        raise DataError(f"{folder or 'DATA.DATA_PATH'}: {reason}")
    else:
        text = _read_local_info(path)
    try:
        info = {} if text is None else json.loads(text)
        if not isinstance(info, dict):
            raise ValueError
        return info
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown(path)}: is no JSON object; make it anew, {LAYOUT}") from error


def _fetch_info(url: str, split: str, tries: int) -> Optional[bytes]:
    try:
        return read_small(url, tries)
    except OutputError as error:
        instead = f"look at the network and the store, or, where there is no {INFO}, write '{split}|1281167' with the number of images"
        raise error.with_remedy(instead) from error


def _read_local_info(path: str) -> Optional[bytes]:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error, "check it and its permissions") from error


def find_shards(folder: str, split: str, info: dict[str, Any]) -> Shards:
    """The shards of a split, by its name or by a pattern.

    Raises:
        DataError: there are none, or the info or the pattern is none.
    """
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
    of_all = [shards for shards in lists.values() if set(names) <= set(shards.names)]
    if not of_all:
        return Shards(names, [], [], int(number or 0))
    numbers = [of_all[0].names.index(name) for name in names]
    return of_all[0].only(numbers)


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
    hashes = [str(text).lower() for text in entry.get("shard_sha256", [])]
    if not names or len(names) != len(lengths) or {len(sizes), len(hashes)} - {0, len(names)}:
        raise ValueError
    if not all(map(SHA256.fullmatch, hashes)):
        raise ValueError
    if not all(0 <= length < MAX_IMAGES for length in lengths):
        raise ValueError
    if any(REMOTE.match(name) for name in names):  # 'pipe:' would run a program of whoever made the data set
        raise ValueError
    return Shards(names, lengths, sizes, sum(lengths), hashes)
