"""What a trained model takes your pictures for.

    python scripts/predict.py --checkpoint best.pth photo.jpg images/
    find /photos -name '*.jpg' | python scripts/predict.py --checkpoint best.pth --json found.json --sheet found.png -

    python scripts/predict.py --checkpoint output/fat_b0/semantic_fpn/best.pth --output labelled photo.jpg

The checkpoint of a run is enough: it has its config and the names of its classes. Files are taken in the order given, those
of a folder (at any depth, known by their suffix) sorted by path, each once; of an animation the first picture. The table goes
to standard output, all else to standard error.

Exit statuses: 0 done; 1 done, but something that was named has no image that can be read: it is listed at the end; 2 an
argument cannot be used; 3 the checkpoint cannot; 5 a file cannot be written; 130 and 143 stopped by a signal; 141 nobody
reads standard output. A file is written wholly or not at all.
"""

import argparse
import contextlib
import importlib
import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Iterable, Iterator, Mapping, Optional, Sequence

from command_line import Parser, add_weights, importing, run_script, whole_number
from utils.errors import ConfigError, OutputError, printable
from utils.files import atomic_write
from utils.schema import ENGINES

STANDARD = "-"  # input or output
OUTPUTS = ("csv", "json", "sheet")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status."""
    args = parse_args(argv)
    outputs = {kind: path for kind in OUTPUTS if (path := getattr(args, kind)) is not None}
    require_usable(outputs)
    with importing():  # after the checks that need no torch, as it takes seconds
        import parts.predict.outputs  # noqa: F401
        from data.sources.image_paths import find_images

    listed = standard_input() if STANDARD in args.inputs else []
    paths, problems, notes = find_images(
        name for given in args.inputs for name in (listed if given == STANDARD else [given])
    )
    if STANDARD in args.inputs and not listed:
        problems.append("-: standard input has no paths; give one in each line")
    require_no_input(
        outputs, {"images": paths, "files that are read": [str(args.checkpoint), str(args.cfg or ""), args.classes]}
    )
    for line in notes:
        say(f"note: {line}")
    if paths and (task := task_of(args)) != "classification":
        problems += importlib.import_module(f"parts.predict.predict_{task}").predict(args, paths, say)
    elif paths:
        facts, results, failures = predict_all(args, paths, "sheet" in outputs, STANDARD not in outputs.values())
        problems += failures
        write_outputs(outputs, facts, results, problems)
    for line in problems:
        say(f"error: {line}")
    return 1 if problems else 0


def task_of(args: argparse.Namespace) -> str:
    """The TASK that the checkpoint's model was trained for; what is not known is said where the model is loaded."""
    from engine.checkpoints.file import open_checkpoint
    from utils.config import load_config

    if args.cfg:
        return load_config(args.cfg).TASK
    return (open_checkpoint(args.checkpoint).config or {}).get("TASK", "classification")


def predict_all(args: argparse.Namespace, paths: list[str], with_sheet: bool, with_table: bool):
    """What the model takes the images for, a line each on standard output `with_table`.

    Returns:
        What the predictions depend on, the `Results`, and a line for each file that has no image.
    """
    from tqdm import tqdm

    from parts.predict.outputs import Results
    from utils.signals import StopRequest, stop_signals

    predictor, facts = open_predictor(args)
    results = Results(predictor.trained, paths, with_sheet=with_sheet)
    stop = StopRequest()
    with stop_signals(stop), tqdm(total=len(paths), unit=" images", leave=False, disable=None) as bar:
        for prediction in predictor(paths):
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


def open_predictor(args: argparse.Namespace):
    """The checkpoint's model, ready for images, and what its predictions depend on, which is said."""
    from engine.inference.engines import is_deployed
    from engine.inference.predictor import Predictor
    from engine.inference.trained import load_trained
    from utils.device import choose_arithmetic, select_device
    from utils.malloc import keep_freed_memory
    from utils.processes.launch import available_cores

    keep_freed_memory()
    trained = load_trained(args.checkpoint, args.cfg, args.classes, args.weights)
    for line in trained.warnings:
        say(f"warning: {line}")
    device = select_device(args.device, 0)
    choose_arithmetic(
        device, exact=True, deterministic=False, fixed_sizes=False
    )  # as --eval, with images of any number
    workers = min(8, available_cores(1)) if args.workers is None else args.workers
    predictor = Predictor(
        trained, device, args.topk, args.img_size, args.batch_size, workers, args.fused, args.amp, args.engine
    )
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


def write_outputs(outputs: Mapping[str, str], facts: Mapping[str, Any], results, problems: Sequence[str]) -> None:
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


def parse_args(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image, folder, or - for a list of these on standard input, one in each line",
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE", help="such as output/fat_b0/default/best.pth"
    )
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="config, for a checkpoint that has none")
    parser.add_argument(
        "--classes",
        default="",
        metavar="LIST",
        help="for a checkpoint that has none: a file with a name in each line, or imagenet-1k",
    )
    add_weights(parser)
    parser.add_argument(
        "--topk",
        type=whole_number(1),
        default=5,
        metavar="K",
        help="likeliest classes that are shown, at most all (default: 5)",
    )
    parser.add_argument(
        "--csv", metavar="FILE", help="a row for each image and class; - is standard output, in place of the table"
    )
    parser.add_argument("--json", metavar="FILE", help="the same as JSON, with what could not be read; or -")
    parser.add_argument(
        "--sheet", metavar="FILE.png", help="contact sheet of the first 100 images with the likeliest class"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="of a segmentation model: for a label map and an overlay of each image"
    )
    parser.add_argument(
        "--img-size",
        type=whole_number(32, 4096),
        default=0,
        metavar="PX",
        help="default: what the model was evaluated on",
    )
    parser.add_argument(
        "--batch-size", type=whole_number(1), default=64, metavar="N", help="images at a time (default: 64)"
    )
    parser.add_argument(
        "--workers", type=whole_number(0, 256), metavar="N", help="loading processes (default: one a core, at most 8)"
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto, a GPU if there is one"
    )
    parser.add_argument("--fused", action="store_true", help="use the model's deployed form, which is faster")
    parser.add_argument("--amp", action="store_true", help="use 16 bits on a GPU, which is faster")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="torch",
        help="what computes on a CPU; others than torch get the deployed form, exported in memory (default: torch)",
    )
    return parser.parse_args(argv)


def say(line: str) -> None:
    """On standard error, above the progress bar."""
    from tqdm import tqdm

    tqdm.write(printable(line), file=sys.stderr)


def standard_input() -> list[str]:
    """The paths on it, one in each line, whatever bytes they are of."""
    lines = sys.stdin.buffer.read().split(b"\n") if sys.stdin else []
    return [os.fsdecode(line.rstrip(b"\r")) for line in lines if line.strip()]


def require_usable(outputs: dict[str, str]) -> None:
    """Finds out before hours of work, and without writing a file, what cannot be written at their end.

    Raises:
        ConfigError: a name that cannot be used.
        OutputError: no place that can be written to.
    """
    places = [os.path.abspath(path) for path in outputs.values()]
    for kind, path in outputs.items():
        if places.count(os.path.abspath(path)) > 1:
            raise ConfigError(f"--{kind} {path}: is another output, too; give each a file of its own")
        if kind == "sheet" and not path.lower().endswith(".png"):
            raise ConfigError(f"--sheet {path}: is written as PNG; give a name that ends with .png")
        if path == STANDARD:
            continue
        # A link would be replaced, not what it leads to; /dev/stdout is one.
        if (
            not path
            or path.endswith(os.sep)
            or os.path.islink(path)
            or (os.path.exists(path) and not os.path.isfile(path))
        ):
            raise ConfigError(f"--{kind} {path or repr(path)}: is no regular file; give a file's name")
        existing = next(folder for folder in Path(path).absolute().parents if folder.exists())
        try:
            with contextlib.suppress(FileNotFoundError):
                os.stat(path)  # refuses a name that is too long
            tempfile.TemporaryFile(dir=existing).close()
        except OSError as error:
            raise OutputError(
                f"--{kind} {path}: cannot be written ({error.strerror}); give a file in another folder"
            ) from error


def require_no_input(outputs: dict[str, str], inputs: Mapping[str, Iterable[str]]) -> None:
    """Raises ConfigError for an output that would replace an input, whatever the names of both; `inputs` says what they are."""
    there = {
        identity: (kind, path) for kind, path in outputs.items() if path != STANDARD and (identity := identity_of(path))
    }
    for what, paths in inputs.items():
        for found in (there.get(identity_of(path)) for path in paths if there):
            if found:
                raise ConfigError(f"--{found[0]} {found[1]}: is one of the {what}, too; give another name")


def identity_of(path: str) -> Optional[tuple[int, int]]:
    """The same for all names of a file; None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: of a name with a NUL
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def opened(kind: str, path: str) -> Iterator[BinaryIO]:
    """An output, to be written to."""
    if path == STANDARD:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with atomic_write(path, flag=f"--{kind}") as file:
        yield file


if __name__ == "__main__":
    run_script(main)
