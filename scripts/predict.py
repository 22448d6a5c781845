"""What a trained model takes your pictures for.

    python scripts/predict.py --checkpoint best.pth photo.jpg images/
    find /photos -name '*.jpg' | python scripts/predict.py --checkpoint best.pth --json found.json --sheet found.png -

    python scripts/predict.py --checkpoint output/fat_b0/semantic_fpn/best.pth --output labelled photo.jpg

    torchrun --nproc_per_node 8 scripts/predict.py --checkpoint best.pth images/ --embeddings vectors.npz

The checkpoint of a run is enough: it has its config and the names of its classes. Files are taken in the order given, those
of a folder (at any depth, known by their suffix) sorted by path, each once; of an animation the first picture. The table goes
to standard output, all else to standard error.

Exit statuses: 0 done; 1 done, but something that was named has no image that can be read: it is listed at the end; 2 an
argument cannot be used; 3 the checkpoint cannot; 5 a file cannot be written; 130 and 143 stopped by a signal; 141 nobody
reads standard output. A file is written wholly or not at all.
"""

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Sequence

from command_line import Parser, add_weights, image_size, importing, run_script, whole_number
from parts.predict.places import OUTPUTS, STANDARD, require_no_input, require_usable, say, standard_input
from utils.errors import ConfigError
from utils.schema import ENGINES

if TYPE_CHECKING:
    from data.sources.image_paths import Files


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status."""
    args = parse_args(argv)
    require_no_contradiction(args)
    outputs = {kind: path for kind in OUTPUTS if (path := getattr(args, kind)) is not None}
    require_usable(outputs)
    with importing():  # after the checks that need no torch, as it takes seconds
        from parts.predict.embedding import predict_embeddings
        from parts.predict.predicting import predict_all, write_outputs

    if args.embeddings:
        return end_with(predict_embeddings(args, lambda: find_inputs(args, outputs)))
    paths, problems, notes = find_inputs(args, outputs)
    for line in notes:
        say(f"note: {line}")
    if paths and (task := task_of(args)) != "classification":
        problems += importlib.import_module(f"parts.predict.predict_{task}").predict(args, paths, say)
    elif paths:
        facts, results, failures = predict_all(args, paths, "sheet" in outputs, STANDARD not in outputs.values())
        problems += failures
        write_outputs(outputs, facts, results, problems)
    return end_with(problems)


def end_with(problems: list[str]) -> int:
    """The exit status, once what could not be done is listed."""
    for line in problems:
        say(f"error: {line}")
    return 1 if problems else 0


def require_no_contradiction(args: argparse.Namespace) -> None:
    """Raises ConfigError: --embeddings beside a flag that is about predictions."""
    others = {"csv": None, "json": None, "sheet": None, "output": None, "fused": False, "engine": "torch"}
    for name, default in others.items():
        if args.embeddings and getattr(args, name) != default:
            raise ConfigError(
                f"--{name} contradicts --embeddings, which are what the model has before its predictions; give one of them"
            )


def find_inputs(args: argparse.Namespace, outputs: dict[str, str]) -> "Files":
    """The images that are named, and what is to be said of the others. Raises ConfigError: an output is one of them."""
    from data.sources.image_paths import find_images

    listed = standard_input() if STANDARD in args.inputs else []
    files = find_images(name for given in args.inputs for name in (listed if given == STANDARD else [given]))
    if STANDARD in args.inputs and not listed:
        files.problems.append("-: standard input has no paths; give one in each line")
    read = [str(args.checkpoint), str(args.cfg or ""), args.classes]
    require_no_input(outputs, {"images": files.paths, "files that are read": read})
    return files


def task_of(args: argparse.Namespace) -> str:
    """The TASK that the checkpoint's model was trained for; what is not known is said where the model is loaded."""
    from engine.checkpoints.file import open_checkpoint
    from utils.config import load_config

    if args.cfg:
        return load_config(args.cfg).TASK
    return (open_checkpoint(args.checkpoint).config or {}).get("TASK", "classification")


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
    add_outputs(parser)
    add_computing(parser)
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # of torch.distributed.launch
    return parser.parse_args(argv)


def add_outputs(parser: Parser) -> None:
    """What is written, and where."""
    parser.add_argument(
        "--csv", metavar="FILE", help="a row for each image and class; - is standard output, in place of the table"
    )
    parser.add_argument("--json", metavar="FILE", help="the same as JSON, with what could not be read; or -")
    parser.add_argument(
        "--sheet", metavar="FILE.png", help="contact sheet of the first 100 images with the likeliest class"
    )
    parser.add_argument(
        "--embeddings",
        metavar="FILE.npz|FILE.parquet",
        help="instead of predictions: path, label (that of a folder named as a class) and pooled features of each image, in "
        "order; several processes of torchrun share the work",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="of a segmentation model: for a label map and an overlay of each image; of a detector: for its boxes",
    )


def add_computing(parser: Parser) -> None:
    """What the model sees at a time, and what computes."""
    parser.add_argument(
        "--img-size",
        type=image_size(),
        default=0,
        metavar="PX",
        help="224, or 192x320 for 192 px high and 320 px wide (default: what the model was evaluated on)",
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
        help="what computes; cudagraphs on a GPU, onnxruntime and openvino on a CPU, which get the deployed form, exported in "
        "memory (default: torch)",
    )


if __name__ == "__main__":
    run_script(main)
