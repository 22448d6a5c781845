"""Folders -> data/train-00000-of-000NN.parquet, data/validation-*.parquet, as the Hugging Face Hub lays out images.

As with shards, the arguments alone say which image lies in which file, and files that are there are left alone.
"""

from pathlib import Path

import numpy as np

from utils.cli import importing
from utils.files import atomic_write, remove_unfinished

from .images import Images
from .preparation import Progress, require_room, writing
from .shards import plan

NAMES = {"train": "train", "val": "validation"}
GROUP = 100  # images of a row group, which a reader takes at once
OVERHEAD = 200  # bytes of an image: its path, label and the file's directory, generously


def write_parquet(splits: list[Images], output: Path, shard_bytes: int) -> None:
    """
    Raises:
        ConfigError: datasets is missing.
        OutputError: no room, now or in the middle; whole files are kept.
        DataError: an image cannot be read.
    """
    with importing("datasets"):
        from datasets import ClassLabel, Features, Image

    folder = output / "data"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    remove_unfinished(folder)
    plans: list[list[tuple[Path, list[int]]]] = []
    for images in splits:
        parts = plan(range(len(images)), images.sizes, shard_bytes, len(images))
        names = (f"{NAMES[images.split]}-{number:05d}-of-{len(parts):05d}.parquet" for number in range(len(parts)))
        plans.append([(folder / name, indices) for name, indices in zip(names, parts)])
    todo = [(images, indices) for images, shards in zip(splits, plans) for path, indices in shards if not path.exists()]
    require_room(output, sum(int(images.sizes[indices].sum()) + OVERHEAD * len(indices) for images, indices in todo))
    for images, shards in zip(splits, plans):
        schema = Features({"image": Image(), "label": ClassLabel(names=images.classes)}).arrow_schema
        with Progress(f"{images.split} parquet", len(images)) as progress:
            for path, indices in shards:
                if path.exists():
                    progress.skip(len(indices))
                else:
                    _write(path, images, indices, schema, progress)


def _write(path: Path, images: Images, indices: list[int], schema, progress: Progress) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with writing(path), atomic_write(path) as file:
        # Images neither shrink nor repeat, and their least and greatest bytes say nothing.
        with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
            for group in np.array_split(indices, range(GROUP, len(indices), GROUP)):
                rows = []
                for i, data in images.read_all(group.tolist()):
                    rows.append({"image": {"bytes": data, "path": images.key(i)}, "label": images.label(i)})
                    progress.add(len(data))
                writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=GROUP)
