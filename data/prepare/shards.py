"""Folders -> WebDataset shards train-000000.tar ..., val-000000.tar ..., with _info.json as timm's reader wants it.

Which image lies in which shard follows from the arguments alone, so a command that is started again writes the shards that
are missing. `shard_sha256` in _info.json has each shard's hash, of what was written: whoever fetches a shard compares it. A
sample is `<key>.<jpg or so>` (the file's own bytes), `<key>.cls` (its label) and `<key>.json`.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, BinaryIO, Sequence

import numpy as np

from utils.cli import importing
from utils.files import atomic_write, sha256_of, write_json

from .images import Images
from .preparation import Progress, require_room, writing

BLOCK = 512
INFO = "_info.json"


def write_shards(splits: list[Images], output: Path, shard_bytes: int, shard_images: int, seed: int) -> None:
    """
    Args:
        shard_bytes, shard_images: a shard ends before it would exceed one of them.
        seed: of the order of the training images; those of other splits lie in order.

    Raises:
        ConfigError: webdataset is missing.
        OutputError: no room, now or in the middle; whole shards are kept.
        DataError: an image cannot be read.
    """
    with importing("webdataset"):
        from webdataset import TarWriter

    plans: list[list[tuple[Path, list[int]]]] = []
    for images in splits:
        shuffled = images.split == "train"
        order = np.random.default_rng(seed).permutation(len(images)) if shuffled else np.arange(len(images))
        parts = plan(order.tolist(), _sizes(images), shard_bytes, shard_images)
        plans.append([(output / f"{images.split}-{number:06d}.tar", indices) for number, indices in enumerate(parts)])
    missing = [
        int(_sizes(images)[indices].sum())
        for images, shards in zip(splits, plans)
        for path, indices in shards
        if not path.exists()
    ]
    require_room(output, sum(missing))
    hashes: dict[Path, str] = {}
    for images, shards in zip(splits, plans):
        with Progress(f"{images.split} shards", len(images)) as progress:
            for path, indices in shards:
                if path.exists():
                    progress.skip(len(indices))
                    continue
                with writing(path), atomic_write(path) as file:
                    hashed = Hashed(file)
                    with TarWriter(hashed, encoder=False, mtime=0) as writer:
                        for i, data in images.read_all(indices):
                            writer.write(sample(images, i, data))
                            progress.add(len(data))
                hashes[path] = hashed.digest.hexdigest()
    if not (output / INFO).exists():
        write_info(splits, plans, hashes, output / INFO)


def write_info(
    splits: list[Images], plans: list[list[tuple[Path, list[int]]]], hashes: dict[Path, str], output: Path
) -> None:
    """The file that says what the splits are.

    Args:
        plans: of each split its shards, and the images in each.
        hashes: of the shards that were written just now; the others are read for theirs.
    """
    info: dict[str, Any] = {"classes": splits[0].classes, "splits": {}}
    for images, shards in zip(splits, plans):
        info["splits"][images.split] = {
            "name": images.split,
            "num_samples": len(images),
            "filenames": [path.name for path, _ in shards],
            "shard_lengths": [len(indices) for _, indices in shards],
            "shard_bytes": [path.stat().st_size for path, _ in shards],
            "shard_sha256": [hashes.get(path) or sha256_of(path) for path, _ in shards],
        }
    write_json(output, info)


class Hashed:
    """A file to write to that hashes what is written."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)


def plan(order: Sequence[int], sizes: np.ndarray, most_bytes: int, most_images: int) -> list[list[int]]:
    """The images of each shard; each holds one at least."""
    shards: list[list[int]] = []
    used = 0
    for i in order:
        if not shards or used + sizes[i] > most_bytes or len(shards[-1]) >= most_images:
            shards.append([])
            used = 0
        shards[-1].append(i)
        used += sizes[i]
    return shards


def sample(images: Images, index: int, data: bytes) -> dict:
    """What webdataset's writer takes.

    The key has no dot, at the first of which readers split it, and no slash; the image's number keeps apart files whose
    names differ in those or in their extensions only.
    """
    key, label = images.key(index), images.label(index)
    stem, extension = os.path.splitext(key)
    extension = {"jpeg": "jpg"}.get(extension[1:].lower(), extension[1:].lower())  # jpg is what timm looks for
    about = {"key": key, "label": label, "class": images.classes[label]}
    return {
        "__key__": f"{index:08d}-" + re.sub(r"[^A-Za-z0-9_-]", "_", stem)[:60],
        extension: data,
        "cls": str(label).encode(),
        "json": json.dumps(about).encode(),
    }


def _sizes(images: Images) -> np.ndarray:
    """Of the samples in a shard: each of three members has a header and whole blocks."""
    return (3 + 2) * BLOCK + -(-images.sizes // BLOCK) * BLOCK
