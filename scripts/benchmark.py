"""Times FAT's forms against a plain implementation and against timm's models of the same size.

    python scripts/benchmark.py                                  # everything that this machine can do
    python scripts/benchmark.py --models fat_b0 --peers --tasks inference --batch-sizes 1 16 --rounds 5

All candidates of a task and batch size take turns, A B A B ..., in one process; a figure is the median over the rounds, its
spread the quartiles. On a CPU with one thread the time is the process', so images/s are per core; on a GPU it is that of
CUDA events. Synthetic images, no data loading. Writes OUTPUT.csv, OUTPUT.md and OUTPUT.png.
"""

import argparse
import functools
import gc
import os
import shlex
import sys
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence

from command_line import Parser, image_size, run_script

# Else the many models' convolutions push one another out of oneDNN's cache, and each call compiles its kernel again.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "100000")

import timm  # noqa: E402
import torch  # noqa: E402

from engine.inference.engines import require_engine  # noqa: E402
from engine.setup.precision import NativePrecision  # noqa: E402
from models.fuse import is_native_on_cpu  # noqa: E402
from parts.benchmark.candidates import (  # noqa: E402
    DTYPES,
    LABELS,
    Candidate,
    inference_candidates,
    train_candidates,
)
from parts.benchmark.speed_report import environment, rows_of, write_results  # noqa: E402
from parts.benchmark.turns import time_in_turns, warm_up  # noqa: E402
from utils.device import choose_arithmetic  # noqa: E402
from utils.image_size import Size, height_and_width  # noqa: E402
from utils.malloc import keep_freed_memory  # noqa: E402

FATS = ["fat_b0", "fat_b1", "fat_b2", "fat_b3"]
PEERS = [
    "repvit_m0_9", "repvit_m1", "fastvit_t8", "edgenext_small", "efficientformerv2_s1", "mobilenetv4_conv_medium", "pvt_v2_b0",
    "pvt_v2_b1", "pvt_v2_b2", "convnext_atto", "convnext_pico", "convnext_tiny", "swin_tiny_patch4_window7_224",
]  # fmt: skip


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
    facts, rows = environment(device, keep_freed_memory()), []
    command = shlex.join(["python", "scripts/benchmark.py", *(sys.argv[1:] if argv is None else argv)])
    for task in args.tasks:
        # as main.py has it
        arithmetic = choose_arithmetic(device, exact=task == "inference", deterministic=False, fixed_sizes=True)
        facts += [f"{task}: {arithmetic}"] if arithmetic else []
        for batch_size in args.batch_sizes if task == "inference" else args.train_batch_sizes:
            images = torch.randn(batch_size, 3, *height_and_width(args.img_size), device=device)
            for new_rows in measured(args, task, images):
                rows += new_rows
                for row in new_rows:
                    print(" ".join(f"{key}={value}" for key, value in row.items() if value != ""), flush=True)
                gc.collect()
                write_results(Path(args.output), rows, facts, command)  # what there is, should it be cut off
    print(f"wrote {args.output}.csv, .md and .png")
    return 0


def measured(args: argparse.Namespace, task: str, images: torch.Tensor) -> Iterator[list[dict]]:
    """The rows of each group of candidates that take turns: a FAT's forms, and the peers beside those of the first FAT."""
    for name in args.models:
        yield rows_of(task, len(images), timed(args, task, images, [name], args.compile_mode))
    if args.peers:
        names = [args.models[0], *args.peers]
        yield rows_of(f"{task} beside peers", len(images), timed(args, task, images, names, compile_mode=""))


def timed(
    args: argparse.Namespace, task: str, images: torch.Tensor, names: Sequence[str], compile_mode: str
) -> list[Candidate]:
    """The candidates of these models, with their seconds."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    make: Callable = train_candidates
    if task == "inference":
        make = functools.partial(inference_candidates, engines=args.engines)
    candidates = list(make(names, images, args.precisions, compile_mode))
    for candidate in candidates:
        warm_up(candidate, images.device, with_memory=task == "train" or images.is_cuda)
    time_in_turns(candidates, args.rounds, images.device, args.seconds)
    return candidates


def parse_args(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=FATS, choices=timm.list_models(module="fat"), metavar="MODEL")
    parser.add_argument("--peers", nargs="*", default=PEERS, metavar="MODEL", help="timm's models; none: without them")
    parser.add_argument("--tasks", nargs="+", default=["inference", "train"], choices=["inference", "train"])
    parser.add_argument("--precisions", nargs="+", default=None, choices=list(DTYPES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=None, help="of inference")
    parser.add_argument("--train-batch-sizes", nargs="+", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each candidate in each round, about")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--img-size", type=image_size(least=1), default=224, help="224, or 192x320: height x width")
    parser.add_argument(
        "--compile-mode", default="default", choices=["", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
        help="of torch.compile; empty: nothing is compiled",
    )  # fmt: skip
    parser.add_argument(
        "--engines",
        nargs="+",
        default=[],
        choices=list(LABELS),
        help="on a CPU: every model in these, too, exported; FAT in its deployed form",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--output", default="", help="path without a suffix; results/benchmark_<device>")
    args = parser.parse_args(argv)
    cuda = args.device == "cuda"
    require_usable(parser, args, cuda)
    if args.precisions is None:
        args.precisions = ["float32", "bfloat16"] if cuda or is_native_on_cpu(torch.bfloat16) else ["float32"]
    args.batch_sizes = args.batch_sizes or ([1, 16, 256] if cuda else [1, 16])
    args.train_batch_sizes = args.train_batch_sizes or ([128] if cuda else [16])
    args.output = args.output or f"results/benchmark_{args.device}"
    try:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output: {error.filename}: {error.strerror}; give another path")
    return args


def require_usable(parser: Parser, args: argparse.Namespace, cuda: bool) -> None:
    """Raises ConfigError for what this machine or a model cannot do."""
    if cuda and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU; use cpu")
    if args.engines and cuda:
        parser.error("--engines: compute on a CPU; add --device cpu, or leave it out")
    if args.engines and "float16" in (args.precisions or []):
        parser.error("--engines: compute in float32 or bfloat16; leave float16 out of --precisions, or the engines")
    for name in args.engines:
        require_engine(name, torch.device("cpu"), NativePrecision(torch.device("cpu"), None))
    for name in args.peers:
        require_peer(parser, name, args.img_size)
    if not 0 < args.seconds < 3600:
        parser.error(f"--seconds: {args.seconds} is no such time; give some tenths of a second")
    for precision in args.precisions or []:
        if not cuda and not is_native_on_cpu(DTYPES[precision]):
            parser.error(f"--precisions: {precision} is emulated on this CPU; leave it out")
    counts = [args.rounds, args.threads, *(args.batch_sizes or []), *(args.train_batch_sizes or [])]
    if min(counts) < 1 or min(height_and_width(args.img_size)) < 32:
        parser.error("--rounds, --threads and batch sizes must be 1 or greater, --img-size 32 or greater")


def require_peer(parser: Parser, name: str, img_size: Size) -> None:
    """Raises ConfigError for no model of timm, or one of other images."""
    if not timm.is_model(name):
        parser.error(f"--peers: {name} is unknown to timm {timm.__version__}")
    published = timm.get_pretrained_cfg(name)
    if published and published.fixed_input_size and published.input_size[1:] != height_and_width(img_size):
        parser.error(f"--peers: {name} takes images of {published.input_size[-1]} px only; leave it out, or --img-size")


if __name__ == "__main__":
    run_script(main)
