"""A map of images: each a point, near to those with vectors like its own, coloured by its class.

Takes a file of scripts/predict.py --embeddings. `pca`, the default, is the plane of the two principal components: exact, and the
same picture for the same file. `tsne` shows groups better, where distances between groups say little; it needs scikit-learn,
and takes minutes of ten thousands of images. Writes map.png, and map.csv with each image's place.
"""

import argparse
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from engine.evaluation.sets.tables import meanings, write_csv
from engine.inference.embedding_files import UNKNOWN, Embeddings, read_embeddings
from engine.inference.neighbours import principal_plane
from utils.cli import importing
from utils.errors import ConfigError

from .inputs import Album

LEGEND = 20  # classes that have a colour of their own
LEAST = 3  # images
OTHERS = (0.8, 0.8, 0.8)  # the colour of the rest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("embeddings", type=Path, metavar="FILE", help="of scripts/predict.py --embeddings")
    parser.add_argument("--method", choices=["pca", "tsne"], default="pca", help="(default: pca)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where the picture goes (default: look/ beside the file)"
    )


def make(args: argparse.Namespace) -> list[str]:
    """Returns nothing: no image is read."""
    values = read_embeddings(args.embeddings)
    if len(values.paths) < LEAST or values.vectors.shape[1] < 2:
        raise ConfigError(f"{args.embeddings}: has {len(values.paths)} images; a map needs {LEAST}")
    points, axes = placed(values, args.method)
    with Album(args.output or args.embeddings.parent / "look") as album:
        write_csv(album.folder / "map.csv", ["path", "class", "x", "y"], (
            [path, values.name(row), f"{x:.6g}", f"{y:.6g}"] for row, (path, (x, y)) in enumerate(zip(values.paths, points))
        ))  # fmt: skip
        title = f"{values.facts.get('model')}: {len(points)} images of {args.embeddings}"
        album.add("map", "map", drawn(points, values, title, axes))
    return []


def placed(values: Embeddings, method: str) -> tuple[np.ndarray, tuple[str, str]]:
    """Each image's place (N, 2), and what the axes are.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    if method == "pca":
        points, shares = principal_plane(torch.from_numpy(values.vectors))
        first, second = (
            f"component {number}: {100 * share:.1f} % of the variance" for number, share in enumerate(shares, 1)
        )
        return points.numpy(), (first, second)
    with importing("scikit-learn"):
        from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(values.paths) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(values.vectors)
    return points, (f"t-SNE, perplexity {perplexity:g}", "")


def groups_of(values: Embeddings) -> list[tuple[str, np.ndarray]]:
    """What is drawn in one colour, and its rows: the classes with the most images in label order, the other ones, those
    without.
    """
    counts = Counter(values.labels.tolist())
    counts.pop(UNKNOWN, None)
    shown = sorted(label for label, _ in counts.most_common(LEGEND))
    names = [text.split(",")[0] or name for text, name in zip(meanings(values.classes), values.classes)]
    groups = [(names[label], values.labels == label) for label in shown]
    others = len(counts) - len(shown)
    if others:
        groups.append((f"{others} other classes", ~np.isin(values.labels, [*shown, UNKNOWN])))
    if (values.labels == UNKNOWN).any():
        groups.append(("class not known", values.labels == UNKNOWN))
    return groups


def drawn(points: np.ndarray, values: Embeddings, title: str, axes: tuple[str, str]) -> np.ndarray:
    """The map as an RGB picture (height, width, 3)."""
    figure = Figure(figsize=(9, 6.5), dpi=110, layout="constrained")
    canvas, plot = FigureCanvasAgg(figure), figure.add_subplot()
    size = max(3.0, min(24.0, 6000 / len(points)))
    groups = groups_of(values)
    colours = colormaps["tab10" if len(groups) <= 10 else "tab20"]
    classes = len(set(values.labels.tolist()) - {UNKNOWN})
    for number, (name, rows) in enumerate(groups):
        colour = colours(number) if number < min(LEGEND, classes) else OTHERS
        label = f"{name} ({rows.sum()})".replace("$", r"\$")
        plot.scatter(*points[rows].T, s=size, color=[colour], label=label, linewidths=0)
    plot.set_title(title.replace("$", r"\$"), fontsize=9)
    plot.set_xlabel(axes[0], fontsize=8)
    plot.set_ylabel(axes[1], fontsize=8)
    plot.tick_params(labelsize=7)
    figure.legend(*plot.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    canvas.draw()
    return cv2.cvtColor(np.asarray(canvas.buffer_rgba()), cv2.COLOR_RGBA2RGB)
