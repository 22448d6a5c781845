"""Attention maps and Grad-CAM over an image.

Attention: of FASA in each stage's last block, for single query points, mean over heads. Grad-CAM (arXiv 1610.02391): of the
predicted class, at each stage's output and after the final norm. Each panel has its own scale, from blue (its least value)
to red (its largest).
"""

import argparse
from dataclasses import dataclass
from typing import Sequence

import cv2
import numpy as np
import torch

from models import FAT
from models.inspection import grad_cam, inspect_fasa
from utils.errors import CheckpointError, ConfigError
from utils.files import atomic_write
from utils.pictures import encode_png, grid, overlay, titled
from utils.provenance import environment

from . import checkpoint
from .results import Outcome, markdown_table, write_results

QUERIES = ["0.5,0.5", "0.25,0.5", "0.75,0.25"]
MOST_QUERIES = 8
SIDE = 224  # px of a panel


@dataclass(frozen=True)
class Panel:
    """A map that lies over the image."""

    kind: str  # attention or grad-cam
    stage: str  # 1 .. or norm
    query: str  # x,y of the image, 0 .. 1
    heat: np.ndarray  # (h, w)

    @property
    def peak(self) -> tuple[float, float]:
        """x and y of the largest value's cell, its centre, 0 .. 1 of the image."""
        y, x = np.unravel_index(self.heat.argmax(), self.heat.shape)
        return (x + 0.5) / self.heat.shape[1], (y + 0.5) / self.heat.shape[0]

    @property
    def note(self) -> str:
        """What there is to say of a map without a peak."""
        if self.heat.size == 1:
            return "one key" if self.kind == "attention" else "one position"
        return "" if self.heat.any() else "zero everywhere"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    checkpoint.add_arguments(parser, img_size=None)
    parser.add_argument(
        "--queries", nargs="+", default=QUERIES, metavar="X,Y",
        help=f"points of the image whose attention is shown, from 0,0 (top left) to 1,1 (default: {' '.join(QUERIES)})",
    )  # fmt: skip


def reproduce(args: argparse.Namespace) -> Outcome:
    points = {query: point_of(query) for query in args.queries}
    if len(points) > MOST_QUERIES:
        raise ConfigError(f"--queries: {len(points)} points; give at most {MOST_QUERIES}")
    trained, path = checkpoint.inputs_of(args)
    if trained.cfg.MODEL.FAT.get("interaction") == "local":
        raise CheckpointError(f"{trained.path}: interaction 'local' has no attention; use a checkpoint with global aggregation")
    img_size = trained.own_size if args.img_size is None else args.img_size
    pixels, image = checkpoint.read_image(path, trained, img_size)

    predictions = predict(trained, image)
    own = predict(trained, checkpoint.read_image(path, trained, trained.own_size)[1])
    attention = attention_panels(trained.model, image, points)
    cams = grad_cam_panels(trained.model, image)

    with atomic_write(args.output / "overlays.png") as file:
        title = "\n".join(filter(None, [f"{path}, {trained.introduce(img_size)}", trained.limits]))
        file.write(encode_png(titled(sheet(pixels, points, predictions, attention, cams), title)))
    rows = [prediction_row(rank, *prediction) for rank, prediction in enumerate(predictions, 1)]
    rows += [panel_row(panel) for panel in [*attention, *cams]]
    single = sorted({panel.stage for panel in attention if panel.heat.size == 1})
    body = "\n\n".join(filter(None, [
        f"Image `{path}`, {trained.introduce(img_size)}. {trained.limits}",
        f"At {img_size} px the model takes it for {said(predictions[0])}, at its own {trained.own_size} px for {said(own[0])}."
        if img_size != trained.own_size else "",
        "![](overlays.png)",
        "First row: the image with the numbered query points, and Grad-CAM of the predicted class after the final norm. Then a row "
        "per stage: attention of each point in the stage's last block (softmax over the keys, mean over heads), and Grad-CAM at the "
        "stage's output. Each panel has its own scale, blue for its least and red for its largest value; see the table for these.",
        f"In stage {', '.join(single)} the keys are a single token at this size: every query's attention is 1 there, whatever the image, "
        "and the image is shown in grey." if single else "",
        markdown_table([["rank", "class", "probability, %"], *([r["rank"], r["class"], f"{100 * r['probability']:.2f}"] for r in rows if r["rank"])]),
        markdown_table([
            ["panel", "stage", "query x,y", "map", "least", "largest", "largest at x,y", ""],
            *([r["kind"], r["stage"], r["query"], f"{r['height']} x {r['width']}", f"{r['least']:.4g}", f"{r['largest']:.4g}",
               f"{r['peak_x']:.2f},{r['peak_y']:.2f}" if not r["note"] else "-", r["note"]] for r in rows if not r["rank"]),
        ]),
    ]))  # fmt: skip
    write_results(args.output / "overlays", "Attention and Grad-CAM", args.command, environment(torch.device("cpu")), body, rows)
    return Outcome()


def predict(trained: checkpoint.TrainedFAT, image: torch.Tensor) -> list[tuple[str, float]]:
    """The first five classes and their probabilities."""
    with torch.no_grad():
        probabilities = trained.model(image)[0].softmax(dim=0)
    top = probabilities.topk(min(5, len(trained.classes)))
    return [(trained.names[label], share) for label, share in zip(top.indices.tolist(), top.values.tolist())]


def said(prediction: tuple[str, float]) -> str:
    return f"{prediction[0]} ({100 * prediction[1]:.1f} %)"


def point_of(text: str) -> tuple[float, float]:
    """Raises ConfigError for what is no point X,Y of an image."""
    try:
        x, y = (float(number) for number in text.split(","))
    except ValueError:
        x = y = -1.0
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ConfigError(f"--queries: {text!r} is no point of the image; give X,Y between 0,0 (top left) and 1,1")
    return x, y


def attention_panels(model: FAT, image: torch.Tensor, points: dict[str, tuple[float, float]]) -> list[Panel]:
    """Of each stage's last block, of each point."""
    panels = []
    for stage in range(len(model.layers)):
        maps = inspect_fasa(model, image, stage)
        height, width = maps.q.shape[2:]
        weights = maps.attention[0].mean(dim=0)  # (HW, hw)
        for query, (x, y) in points.items():
            row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
            heat = weights[row * width + column].view(maps.key_size)
            panels.append(Panel("attention", str(stage + 1), query, heat.numpy()))
    return panels


def grad_cam_panels(model: FAT, image: torch.Tensor) -> list[Panel]:
    """Of the predicted class, at each stage's output and after the final norm."""
    layers = {**{str(number): layer for number, layer in enumerate(model.layers, 1)}, "norm": model.norm}
    return [Panel("grad-cam", stage, "", grad_cam(model, image, layer)[0][0].numpy()) for stage, layer in layers.items()]


def sheet(
    pixels: np.ndarray,
    points: dict[str, tuple[float, float]],
    predictions: Sequence[tuple[str, float]],
    attention: Sequence[Panel],
    cams: Sequence[Panel],
) -> np.ndarray:
    """All panels with captions, RGB (height, width, 3); `cams` end with that of the final norm."""
    image = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA if len(pixels) > SIDE else cv2.INTER_NEAREST)
    marked = image.copy()
    for number, (x, y) in enumerate(points.values(), 1):
        mark(marked, x, y, str(number))
    white = np.full_like(image, 255)
    pictures, captions = [marked, overlay(image, cams[-1].heat)], [said(predictions[0]), caption("Grad-CAM, norm", cams[-1])]
    columns = max(2, len(points) + 1)
    pictures += [white] * (columns - 2)
    captions += [""] * (columns - 2)
    for cam in cams[:-1]:
        for number, panel in enumerate((p for p in attention if p.stage == cam.stage), 1):
            picture = overlay(image, panel.heat)
            mark(picture, *points[panel.query], str(number))
            pictures.append(picture)
            captions.append(caption(f"stage {panel.stage}, query {number}", panel))
        pictures.append(overlay(image, cam.heat))
        captions.append(caption(f"Grad-CAM, stage {cam.stage}", cam))
    return grid(pictures, captions, SIDE, columns)


def caption(text: str, panel: Panel) -> str:
    return f"{text}: {panel.note}" if panel.note else text


def mark(picture: np.ndarray, x: float, y: float, text: str) -> None:
    """Draws a numbered point, white in black, so that it is seen on anything."""
    place = (min(int(x * SIDE), SIDE - 1), min(int(y * SIDE), SIDE - 1))
    beside = (min(place[0] + 6, SIDE - 12), max(place[1] - 6, 12))
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.circle(picture, place, 4, colour, width, cv2.LINE_AA)
        cv2.putText(picture, text, beside, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, width, cv2.LINE_AA)


def prediction_row(rank: int, name: str, probability: float) -> dict:
    empty = dict.fromkeys(["stage", "query", "height", "width", "least", "largest", "peak_x", "peak_y", "note"], "")
    return {"kind": "prediction", "rank": rank, "class": name, "probability": round(probability, 6), **empty}


def panel_row(panel: Panel) -> dict:
    x, y = panel.peak
    return {
        "kind": panel.kind, "rank": "", "class": "", "probability": "", "stage": panel.stage, "query": panel.query,
        "height": panel.heat.shape[0], "width": panel.heat.shape[1], "least": float(panel.heat.min()), "largest": float(panel.heat.max()),
        "peak_x": round(x, 4), "peak_y": round(y, 4), "note": panel.note,
    }  # fmt: skip
