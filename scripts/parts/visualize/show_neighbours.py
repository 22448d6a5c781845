"""Nearest neighbours: query images at the left, and right of each the images whose vectors are nearest to its own.

Takes a file of scripts/predict.py --embeddings, in which the neighbours are looked for. The queries are some of its images, from
all over the file or those that are named, none of which is its own neighbour; or those of another such file. The distance is
the cosine's, 1 - a . b / (|a| |b|). Writes neighbours.png, and neighbours.csv with all that is in it.
"""

import argparse
from pathlib import Path
from typing import Sequence

import numpy as np
import torch

from data.sources.reading import read_image
from data.transforms import eval_transform
from engine.evaluation.sets.tables import write_csv
from engine.inference.embedding_files import Embeddings, read_embeddings
from engine.inference.neighbours import nearest
from utils.cli import whole_number
from utils.errors import ConfigError, DataError
from utils.files import open_regular
from utils.pictures import grid, titled

from .inputs import Album

SIDE = 144  # px of an image
MARGIN = 6  # white px between a query and its neighbours


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("embeddings", type=Path, metavar="FILE", help="of scripts/predict.py --embeddings")
    parser.add_argument("--queries", type=Path, metavar="FILE", help="another such file, of the same model")
    parser.add_argument("--images", nargs="+", metavar="PATH", help="queries by their paths, as the file has them")
    parser.add_argument(
        "--number", type=whole_number(1, 200), default=8, metavar="N", help="queries, if none are named (default: 8)"
    )
    parser.add_argument("--k", type=whole_number(1, 50), default=6, help="neighbours of each (default: 6)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where the pictures go (default: look/ beside the file)"
    )


def make(args: argparse.Namespace) -> list[str]:
    """Returns what is to be said of the images that could not be read."""
    gallery = read_embeddings(args.embeddings)
    asked = read_embeddings(args.queries) if args.queries else gallery
    if asked.vectors.shape[1] != gallery.vectors.shape[1] or asked.facts.get("model") != gallery.facts.get("model"):
        raise ConfigError(
            f"--queries {args.queries}: is of another model than {args.embeddings}; make both by the same"
        )
    rows = rows_of(asked, args.images, args.number)
    distances, found = neighbours_of(asked, gallery, rows, args.k)
    thumbnails = Thumbnails()
    pictures, captions = [], []
    for row, near, away in zip(rows, found, distances):
        pictures.append(thumbnails.of(asked.paths[row]))
        captions.append(f"{asked.name(row) or '?'}\n{Path(asked.paths[row]).name}")
        for other, distance in zip(near, away):
            pictures.append(thumbnails.of(gallery.paths[other]))
            captions.append(f"{gallery.name(other) or '?'}  {distance:.3g}\n{Path(gallery.paths[other]).name}")
    columns = found.shape[1] + 1
    sheet = with_gap(grid(pictures, captions, SIDE, columns), columns)
    text = f"{gallery.facts.get('model')}: {args.embeddings}\nAt the left {len(rows)} of {len(asked.paths)} images, right of each "
    text += f"the {columns - 1} nearest of {len(gallery.paths)}: class, cosine distance, file"
    with Album(args.output or args.embeddings.parent / "look") as album:
        write_csv(album.folder / "neighbours.csv", ["query", "class", "rank", "path", "neighbour_class", "distance"], (
            [asked.paths[row], asked.name(row), rank, gallery.paths[other], gallery.name(other), f"{distance:.6f}"]
            for row, near, away in zip(rows, found, distances)
            for rank, (other, distance) in enumerate(zip(near, away), 1)
        ))  # fmt: skip
        album.add("neighbours", "neighbours", titled(sheet, text))
    return thumbnails.unreadable


def rows_of(asked: Embeddings, named: Sequence[str], number: int) -> list[int]:
    """The queries' rows: those that are named, or so many from all over the file.

    Raises:
        ConfigError: a path that is not in the file.
    """
    if not named:
        return np.linspace(0, len(asked.paths) - 1, min(number, len(asked.paths))).round().astype(int).tolist()
    places = {path: row for row, path in enumerate(asked.paths)}
    missing = [path for path in named if path not in places]
    if missing:
        raise ConfigError(
            f"--images {missing[0]}: is not in the file; give a path as it has it, such as {asked.paths[0]}"
        )
    return [places[path] for path in named]


def neighbours_of(asked: Embeddings, gallery: Embeddings, rows: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and rows of the gallery of each query, (Q, k), or fewer where the gallery has fewer; none is the query itself.

    Raises:
        ConfigError: there is no other image.
    """
    places = {path: row for row, path in enumerate(gallery.paths)}
    own = [places.get(asked.paths[row]) for row in rows]
    k = min(k, len(places) - any(place is not None for place in own))
    if not k:
        raise ConfigError("FILE: has no other image than the query; make one of more images")
    distances, found = nearest(torch.from_numpy(asked.vectors[rows]), torch.from_numpy(gallery.vectors), k + 1)
    columns = torch.tensor(
        [[column for column, other in enumerate(near) if other != mine][:k] for near, mine in zip(found.tolist(), own)]
    )
    return distances.gather(1, columns).numpy(), found.gather(1, columns).numpy()


class Thumbnails:
    """The images' middle, as an evaluation would crop it; grey for those that cannot be read, which are listed."""

    def __init__(self):
        self.transform = eval_transform(SIDE, "bicubic", 1.0, True, 1)
        self.unreadable: list[str] = []

    def of(self, path: str) -> np.ndarray:
        try:
            image = read_image(path, lambda: open_regular(path), self.transform.decode, "give the images' old places")
        except DataError as error:
            if str(error) not in self.unreadable:
                self.unreadable.append(str(error))
            return np.full((SIDE, SIDE, 3), 128, np.uint8)
        return self.transform.picture(image).pixels


def with_gap(sheet: np.ndarray, columns: int) -> np.ndarray:
    """The sheet with a white gap after its first column."""
    width = sheet.shape[1] // columns
    gap = np.full((len(sheet), MARGIN, 3), 255, np.uint8)
    return np.hstack([sheet[:, :width], gap, sheet[:, width:]])
