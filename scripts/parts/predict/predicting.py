"""What a trained model takes the images for, and the files that say so."""

import argparse
import signal
import sys
from functools import partial
from typing import Any, Mapping, Sequence

from tqdm import tqdm

from engine.inference.engines import is_deployed
from engine.inference.predictor import Predictor
from engine.inference.trained import load_trained
from utils.device import choose_arithmetic, select_device
from utils.malloc import keep_freed_memory
from utils.processes.launch import available_cores
from utils.signals import StopRequest, stop_signals

from .outputs import Results
from .places import opened, say


def predict_all(
    args: argparse.Namespace,
    paths: Sequence[str],
    with_sheet: bool,
    with_table: bool,
    kinds: tuple[type[Predictor], type[Results]] = (Predictor, Results),
) -> tuple[dict[str, Any], Results, list[str]]:
    """What the model takes the images for, a line each on standard output `with_table`.

    Args:
        kinds: what predicts, and what is kept of it.

    Returns:
        What the predictions depend on, the `Results`, and a line for each file that has no image.
    """
    predictor, facts = open_predictor(args, kinds[0])
    results = kinds[1](predictor, paths, with_sheet=with_sheet)
    stop = StopRequest()
    with stop_signals(stop), tqdm(total=len(paths), unit=" images", leave=False, disable=None) as bar:
        for prediction in predictor(paths, args.topk):
            if stop:  # not in the middle of what a worker sends, which it would say with a traceback
                sys.exit(128 + signal.Signals[stop.reason])
            results.add(prediction)
            if with_table:
                tqdm.write(results.rows(prediction), file=sys.stdout)
            if prediction.frames > 1:
                say(f"note: {prediction.path}: has {prediction.frames} pictures, the first one is taken")
            bar.update()
    sys.stdout.flush()
    return facts, results, predictor.failures


def open_predictor(args: argparse.Namespace, kind: type[Predictor]) -> tuple[Predictor, dict[str, Any]]:
    """The checkpoint's model, ready for images, and what its predictions depend on, which is said."""
    keep_freed_memory()
    trained = load_trained(args.checkpoint, args.cfg, args.classes, args.weights)
    for line in trained.warnings:
        say(f"warning: {line}")
    device = select_device(args.device, 0)
    choose_arithmetic(
        device, exact=True, deterministic=False, fixed_sizes=False
    )  # as --eval, with images of any number
    workers = min(8, available_cores(1)) if args.workers is None else args.workers
    predictor = kind(trained, device, args.img_size, args.batch_size, workers, args.fused, args.amp, args.engine)
    facts = {
        "checkpoint": str(args.checkpoint), "model": trained.cfg.MODEL.NAME, "weights": trained.weights,
        "classes": len(trained.classes), "img_size": predictor.img_size, "device": str(device),
        "precision": str(predictor.engine.precision), "fused": is_deployed(args.engine, trained.model, args.fused),
        "engine": args.engine,
    }  # fmt: skip
    say(", ".join(f"{key} {value}" for key, value in facts.items()))
    if trained.note:
        say(f"note: {args.checkpoint}: {trained.note}")
    return predictor, facts


def write_outputs(
    outputs: Mapping[str, str], facts: Mapping[str, Any], results: Results, problems: Sequence[str]
) -> None:
    write = {
        "csv": results.write_csv,
        "json": partial(results.write_json, facts, problems),
        "sheet": results.write_sheet,
    }
    for kind, path in outputs.items():
        if kind == "sheet" and not results.tiles:
            say(f"{path}: is not written, as no image could be read")
            continue
        with opened(kind, path) as file:
            shown = write[kind](file)
        say(f"wrote {path}: {shown}")
