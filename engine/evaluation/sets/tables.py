"""What an evaluation on sets leaves behind: files of each set, and a table beside published figures."""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Iterable, Mapping, Sequence, cast

import numpy as np
from timm.data import ImageNetInfo

from utils.files import atomic_write, write_json
from utils.image_size import Size, size_text
from utils.markdown import aligned_table
from utils.schema import CONFIGS

from .predictions import Records, confusions, per_class

PUBLISHED = CONFIGS / "published.csv"


@dataclass(frozen=True)
class SetFiles:
    """What is written of evaluation sets.

    Args:
        folder: where the files go.
        classes: the model's.
        facts: goes into each set's JSON.
        predictions: whether each image's is written.
    """

    folder: Path
    classes: Sequence[str]
    facts: Mapping[str, Any]
    predictions: bool

    def write(
        self,
        name: str,
        summary: Mapping[str, Any],
        records: Records,
        right: np.ndarray,
        everything: tuple[Records, list[list[int]]],
    ) -> None:
        """Writes <name>.json, <name>_classes.csv, <name>_confusions.csv and, if asked for, <name>_predictions.csv.

        Args:
            records, right: the images that the figures are of, see `engine.evaluation.sets.predictions`.
            everything: all images, and the labels that are right for each.

        Raises:
            OutputError: a file cannot be written; it is then as it was.
        """
        classes, told = self.classes, meanings(self.classes)
        rows = [
            [classes[r["label"]], told[r["label"]], r["images"], r["acc1"], r["acc5"]]
            for r in per_class(records, right)
        ]
        write_csv(self.folder / f"{name}_classes.csv", ["class", "name", "images", "acc1", "acc5"], rows)
        header = ["class", "name", "predicted", "predicted_name", "images"]
        pairs = [[classes[t], told[t], classes[p], told[p], images] for t, p, images in confusions(records, right)]
        write_csv(self.folder / f"{name}_confusions.csv", header, pairs)
        if self.predictions:
            self._write_predictions(name, *everything)
        write_json(self.folder / f"{name}.json", summary)  # the last one: where it is, the others are

    def _write_predictions(self, name: str, records: Records, labels: list[list[int]]) -> None:
        numbers = range(1, records.top.shape[1] + 1)
        header = ["image", "right", *(f"top{n}" for n in numbers), *(f"probability{n}" for n in numbers)]
        tops, probabilities = records.top.tolist(), records.probabilities.tolist()
        images = (
            [
                key,
                "|".join(self.classes[label] for label in right),
                *(self.classes[label] for label in top),
                *(f"{p:.4f}" for p in shares),
            ]
            for key, right, top, shares in zip(records.keys, labels, tops, probabilities)
        )
        write_csv(self.folder / f"{name}_predictions.csv", header, images)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic_write(path) as file:
        write_rows(file, header, rows)


def write_rows(file: BinaryIO, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """CSV into an open file; names that are no UTF-8 keep their bytes."""
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    try:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        text.flush()
    finally:
        text.detach()  # or the file would be closed with it


def meanings(classes: Sequence[str]) -> list[str]:
    """What classes are called that are WordNet ids; '' for others."""
    if not any(re.fullmatch(r"n\d{8}", name) for name in classes):
        return [""] * len(classes)
    described = cast(dict[str, str], ImageNetInfo("imagenet-22k").label_descriptions(as_dict=True))
    return [described.get(name, "") for name in classes]


def is_imagenet(classes: Sequence[str]) -> bool:
    """Whether these are ImageNet-1k's classes in its order."""
    # The count first, as timm reads its names anew each time.
    return len(classes) == 1000 and list(classes) == ImageNetInfo("imagenet-1k").label_names()


# The table


def table(
    model: str,
    params: int,
    img_size: Size,
    summaries: Mapping[str, Mapping[str, Any]],
    asked: Sequence[str],
    published: Mapping[str, str],
    imagenet: bool,
) -> str:
    """This model's figures in percent, and under them published ones for the same sets where these are ImageNet's.

    Args:
        summaries: of each set, see `engine.evaluation.sets.run`.
        asked: the sets, in the order of the columns.
        published: column of configs/published.csv by set, '' for none.
        imagenet: whether the model's classes are those of the published figures.

    Returns:
        Markdown, with notes below.
    """
    heads, cells, columns = [], [], []
    for name in asked:
        summary = summaries[name]
        corrupted = "mce" in summary
        second = [("top-5", "acc5", "top5")] if published[name] == "top1" else []
        for head, key, column in [("mCE", "mce", "")] if corrupted else [("top-1", "acc1", published[name]), *second]:
            heads.append(f"{name} {head}")
            cells.append(_figure(summary.get(key)) + ("" if summary["complete"] else " *"))
            columns.append(column)
    weights = {summaries[name]["weights"] for name in asked}
    rows = [["model", "px", "params, M", *heads, "source"]]
    rows.append(
        [f"{model} ({', '.join(sorted(weights))})", size_text(img_size), f"{params / 1e6:.2f}", *cells, "measured here"]
    )
    shown = []
    if imagenet:
        with open(PUBLISHED, newline="", encoding="utf-8") as file:
            shown = [row for row in csv.DictReader(file) if any(row.get(column) for column in columns)]
        shown.sort(key=lambda row: (bool(row["weights"]), float(row["params_m"])))  # FAT's own, then timm's, by size
    sources = list(dict.fromkeys(row["source"] for row in shown))
    for row in shown:
        figures = [_figure(row.get(column) or None) for column in columns]
        rows.append(
            [
                row["weights"] or row["model"],
                row["img_size"],
                row["params_m"],
                *figures,
                f"[{sources.index(row['source']) + 1}]",
            ]
        )
    notes = [f"[{number}] {source}" for number, source in enumerate(sources, 1)]
    if any(not summaries[name]["complete"] for name in asked):
        partial = [name for name in asked if not summaries[name]["complete"]]
        notes.append(f"* not of the whole set, see the JSON of {', '.join(partial)}")
    made = {name: s["path"] for name, s in summaries.items() if s.get("path", "").startswith("made from")}
    notes += [f"{name}: {how}, not the published images" for name, how in made.items()]
    if not imagenet:
        notes.append("No published figures: the model's classes are not ImageNet's 1000.")
    return aligned_table(rows) + "\n" + "".join(f"\n{note}\n" for note in notes)


def _figure(value: Any) -> str:
    return "-" if value is None else f"{float(value):.2f}"
