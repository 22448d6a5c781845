"""Attention maps and Grad-CAM over an image.

Attention: of FASA in each stage's last block, for single query points, mean over heads. Grad-CAM (arXiv 1610.02391): of the
predicted class, at each stage's output and after the final norm. Each panel has its own scale, from blue (its least value)
to red (its largest).
"""

import argparse
from typing import Sequence

import numpy as np
import torch

from utils.files import atomic_write
from utils.image_size import size_text
from utils.markdown import markdown_table
from utils.pictures import encode_png, grid, overlay, titled
from utils.provenance import environment

from ..visualize.panels import SIDE, Panel, fit, mark, points_of, predict, said
from ..visualize.show_attention import MEAN, attention_panels, require_attention
from ..visualize.show_attention import POINTS as QUERIES
from ..visualize.show_grad_cam import grad_cam_panels, layers_of
from . import figure_inputs
from .results import Outcome, write_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    figure_inputs.add_arguments(parser, img_size=None)
    parser.add_argument(
        "--queries", nargs="+", default=QUERIES, metavar="X,Y",
        help=f"points of the image whose attention is shown, from 0,0 (top left) to 1,1 (default: {' '.join(QUERIES)})",
    )  # fmt: skip


def reproduce(args: argparse.Namespace) -> Outcome:
    points = points_of(args.queries, "--queries")
    trained, path = figure_inputs.inputs_of(args)
    require_attention(trained.model, trained.path)
    img_size = trained.own_size if args.img_size is None else args.img_size
    pixels, image = figure_inputs.read_image(path, trained, img_size)

    predictions = predict(trained, image)
    own = predict(trained, figure_inputs.read_image(path, trained, trained.own_size)[1])
    by_head = [
        panel
        for stage in range(len(trained.model.layers))
        for panel in attention_panels(trained.model, image, points, stage)
    ]
    attention = [panel for panel in by_head if panel.head == MEAN]
    cams = grad_cam_panels(trained.model, image, layers_of(trained))

    with atomic_write(args.output / "overlays.png") as file:
        title = "\n".join(filter(None, [f"{path}, {trained.introduce(img_size)}", trained.limits]))
        file.write(encode_png(titled(sheet(pixels, points, predictions, attention, cams), title)))
    rows = [prediction_row(rank, *prediction) for rank, prediction in enumerate(predictions, 1)]
    rows += [panel_row(panel) for panel in [*attention, *cams]]
    single = sorted({panel.stage for panel in attention if panel.heat.size == 1})
    body = "\n\n".join(filter(None, [
        f"Image `{path}`, {trained.introduce(img_size)}. {trained.limits}",
        f"At {size_text(img_size)} px the model takes it for {said(predictions[0])}, at its own {size_text(trained.own_size)} px for {said(own[0])}."
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
    write_results(
        args.output / "overlays", "Attention and Grad-CAM", args.command, environment(torch.device("cpu")), body, rows
    )
    return Outcome()


def sheet(
    pixels: np.ndarray,
    points: dict[str, tuple[float, float]],
    predictions: Sequence[tuple[str, float]],
    attention: Sequence[Panel],
    cams: Sequence[Panel],
) -> np.ndarray:
    """All panels with captions, RGB (height, width, 3); `cams` end with that of the final norm."""
    image = fit(pixels)
    marked = image.copy()
    for number, (x, y) in enumerate(points.values(), 1):
        mark(marked, x, y, str(number))
    white = np.full_like(image, 255)
    pictures, captions = (
        [marked, overlay(image, cams[-1].heat)],
        [said(predictions[0]), cams[-1].caption("Grad-CAM, norm")],
    )
    columns = max(2, len(points) + 1)
    pictures += [white] * (columns - 2)
    captions += [""] * (columns - 2)
    for cam in cams[:-1]:
        for number, panel in enumerate((p for p in attention if p.stage == cam.stage), 1):
            picture = overlay(image, panel.heat)
            mark(picture, *points[panel.query], str(number))
            pictures.append(picture)
            captions.append(panel.caption(f"stage {panel.stage}, query {number}"))
        pictures.append(overlay(image, cam.heat))
        captions.append(cam.caption(f"Grad-CAM, stage {cam.stage}"))
    return grid(pictures, captions, SIDE, columns)


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
