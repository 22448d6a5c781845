"""Times FAT's forms against a plain implementation and against timm's models of the same size.

    python scripts/benchmark.py                                  # everything that this machine can do
    python scripts/benchmark.py --models fat_b0 --peers --tasks inference --batch-sizes 1 16 --rounds 5

All candidates of a task and batch size take turns, A B A B ..., in one process; a figure is the median over the rounds, its
spread the quartiles. On a CPU with one thread the time is the process', so images/s are per core; on a GPU it is that of
CUDA events. Synthetic images, no data loading. Writes OUTPUT.csv, OUTPUT.md and OUTPUT.png.
"""

import argparse
import csv
import functools
import gc
import importlib.util
import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Callable, Iterator, Optional, Sequence

from command_line import ROOT, Parser, run_script

# Else the many models' convolutions push one another out of oneDNN's cache, and each call compiles its kernel again.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "100000")

import timm  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from timm.utils import reparameterize_model  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed._tools.mem_tracker import MemTracker  # noqa: E402

import models  # noqa: E402
from models.fuse import is_native_on_cpu  # noqa: E402
from plain_fat import PlainFAT  # noqa: E402
from utils import provenance  # noqa: E402
from utils.device import choose_arithmetic  # noqa: E402
from utils.malloc import keep_freed_memory  # noqa: E402
from utils.markdown import markdown_table  # noqa: E402

FATS = ["fat_b0", "fat_b1", "fat_b2", "fat_b3"]
PEERS = [
    "repvit_m0_9", "repvit_m1", "fastvit_t8", "edgenext_small", "efficientformerv2_s1", "mobilenetv4_conv_medium", "pvt_v2_b0",
    "pvt_v2_b1", "pvt_v2_b2", "convnext_atto", "convnext_pico", "convnext_tiny", "swin_tiny_patch4_window7_224",
]  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PLAIN = "plain"


@dataclass
class Candidate:
    """Something to be timed: `run()` handles a batch once."""

    model: str
    form: str
    precision: str
    run: Callable[[], object]
    first_seconds: float = 0.0  # of the first call, with what is compiled in it
    memory_mib: float = float("nan")  # not measured
    seconds: list[float] = field(default_factory=list)  # per batch


# What is timed


def inference_candidates(
    names: Sequence[str], images: torch.Tensor, precisions: Sequence[str], mode: str, openvino: bool = False
) -> Iterator[Candidate]:
    """Every form of every model in evaluation mode; FAT's plain form first."""
    for name in names:
        model = timm.create_model(name).eval().to(images.device)
        fat = isinstance(model, models.FAT)
        if not fat:
            model = reparameterize_model(model)
        for precision in precisions:
            dtype = DTYPES[precision]
            if fat:
                yield Candidate(name, PLAIN, precision, call(PlainFAT(model).eval().to(images.device), images, dtype))
            for layout in ("NCHW", "NHWC"):
                yield Candidate(
                    name, f"eager {layout}", precision, call(in_layout(model, layout), images, dtype, layout)
                )
            if fat:
                fused = models.fuse(model, dtype)
                yield Candidate(name, "fused", precision, call(fused, images, torch.float32, "NHWC"))
                if openvino:
                    yield Candidate(
                        name, "fused, OpenVINO", precision, in_openvino(models.fuse(model), images, precision)
                    )
                if mode:
                    yield Candidate(
                        name,
                        "compiled",
                        precision,
                        call(compiled(in_layout(model, "NHWC"), mode), images, dtype, "NHWC"),
                    )
                    fused = compiled(models.fuse(model, dtype), mode)
                    yield Candidate(name, "fused, compiled", precision, call(fused, images, torch.float32, "NHWC"))


def train_candidates(
    names: Sequence[str], images: torch.Tensor, precisions: Sequence[str], mode: str
) -> Iterator[Candidate]:
    """A training step (forward, backward, AdamW) of every form of every FAT model, and of the peers as they are."""
    for name in names:
        for precision in precisions:
            dtype = DTYPES[precision]
            model = timm.create_model(name).to(images.device)
            if isinstance(model, models.FAT):
                yield Candidate(
                    name, PLAIN, precision, step(PlainFAT(model).to(images.device), images, dtype, fused=False)
                )
            for layout in ("NCHW", "NHWC"):
                yield Candidate(
                    name, f"eager {layout}", precision, step(in_layout(model, layout), images, dtype, layout)
                )
            if isinstance(model, models.FAT):
                frugal = in_layout(model, "NHWC")
                frugal.set_grad_checkpointing(True)
                yield Candidate(name, "activation checkpointing", precision, step(frugal, images, dtype, "NHWC"))
                if mode:
                    yield Candidate(
                        name,
                        "compiled",
                        precision,
                        step(compiled(in_layout(model, "NHWC"), mode), images, dtype, "NHWC"),
                    )


def in_openvino(model: nn.Module, images: torch.Tensor, precision: str) -> Callable[[], object]:
    """A forward pass by another engine, which shows what this CPU can do."""
    import openvino

    with torch.no_grad():
        converted = openvino.convert_model(torch.export.export(model, (images,)))
    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": hint}
    request = openvino.Core().compile_model(converted, "CPU", settings).create_infer_request()
    array = images.numpy()
    return lambda: request.infer({0: array})


def in_layout(model: nn.Module, layout: str) -> nn.Module:
    """A copy of the model in that memory layout."""
    copied = timm.create_model(model.default_cfg["architecture"])
    if not model.training:
        copied = reparameterize_model(copied.eval())
    copied.load_state_dict(model.state_dict())
    copied.train(model.training).to(next(model.parameters()).device)
    return copied.to(memory_format=torch.channels_last if layout == "NHWC" else torch.contiguous_format)


def compiled(model: nn.Module, mode: str) -> nn.Module:
    model.compile(mode=mode)
    return model


def laid_out(images: torch.Tensor, layout: str) -> torch.Tensor:
    return images.to(memory_format=torch.channels_last) if layout == "NHWC" else images


def call(
    model: nn.Module, images: torch.Tensor, dtype: torch.dtype, layout: str = "NCHW"
) -> Callable[[], torch.Tensor]:
    """A forward pass; in 16 bits under autocast, as a model is used that was not made for them."""
    images = laid_out(images, layout)

    def run() -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(images.device.type, dtype, enabled=dtype is not torch.float32):
            return model(images)

    run.parts = (model,)
    return run


def step(
    model: nn.Module, images: torch.Tensor, dtype: torch.dtype, layout: str = "NCHW", fused: bool = True
) -> Callable[[], None]:
    """A training step on one batch; the plain form steps with AdamW as PyTorch sets it up by default."""
    images = laid_out(images, layout)
    targets = torch.arange(len(images), device=images.device) % 1000
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused or None)
    scaler = torch.amp.GradScaler(images.device.type, enabled=dtype is torch.float16)

    def run() -> None:
        with torch.autocast(images.device.type, dtype, enabled=dtype is not torch.float32):
            loss = F.cross_entropy(model(images), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    run.parts = (model, optimizer)
    return run


# How it is timed


def warm_up(candidate: Candidate, device: torch.device, with_memory: bool) -> None:
    """Calls a candidate for the first time, which compiles what is to be compiled, and once more to see what memory it takes."""
    before = allocated(device) - bytes_of(candidate.run.parts) if with_memory else 0
    started = time.perf_counter()
    candidate.run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    candidate.first_seconds = time.perf_counter() - started
    if with_memory:
        candidate.memory_mib = peak_memory(candidate.run, device, before)


def time_in_turns(candidates: Sequence[Candidate], rounds: int, device: torch.device, seconds: float) -> None:
    """Times each once per round, for about `seconds` each; they have been warmed up."""
    repeats = []
    for candidate in candidates:
        elapsed(candidate.run, 1, device)
        repeats.append(max(1, round(seconds / elapsed(candidate.run, 1, device))))
    for _ in range(rounds):
        for candidate, number in zip(candidates, repeats):
            candidate.seconds.append(elapsed(candidate.run, number, device))


def elapsed(run: Callable, number: int, device: torch.device) -> float:
    """Seconds of one call, over `number` calls."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(number):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / number
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    for _ in range(number):
        run()
    return (clock() - started) / number


def peak_memory(run: Callable, device: torch.device, others: int) -> float:
    """MiB of tensors at the fullest moment of a call, parameters, gradients and optimizer state among them.

    Args:
        others: bytes on a GPU that are not the candidate's, as other candidates wait there for their turn.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - others) / 2**20
    if getattr(run.parts[0], "_compiled_call_impl", None):
        return float("nan")  # the tracker sees eager operators only
    tracker = MemTracker()
    tracker.track_external(*run.parts)
    with tracker:
        run()
    return sum(part["Total"] for part in tracker.get_tracker_snapshot("peak").values()) / 2**20


def allocated(device: torch.device) -> int:
    """Bytes of tensors on a GPU; a CPU has no such count, and needs none."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def bytes_of(parts: Sequence) -> int:
    """Of a model's parameters and buffers, before its first call: an optimizer beside it has no state yet."""
    return sum(tensor.nbytes for tensor in (*parts[0].parameters(), *parts[0].buffers()))


# What comes of it


def rows_of(task: str, batch_size: int, candidates: Sequence[Candidate]) -> list[dict]:
    base = {c.model: median(c.seconds) for c in candidates if c.form == PLAIN and c.precision == "float32"}
    same = {(c.model, c.precision): median(c.seconds) for c in candidates if c.form == PLAIN}
    rows = []
    for c in candidates:
        middle = median(c.seconds)
        low, _, high = quantiles(c.seconds, n=4, method="inclusive") if len(c.seconds) > 1 else (middle,) * 3
        rows.append({
            "task": task, "batch_size": batch_size, "model": c.model, "form": c.form, "precision": c.precision,
            "images_per_second": round(batch_size / middle, 2),
            "lower_quartile": round(batch_size / high, 2), "upper_quartile": round(batch_size / low, 2),
            "ratio_to_plain_float32": round(base[c.model] / middle, 2) if c.model in base else "",
            "ratio_to_plain": round(same[c.model, c.precision] / middle, 2) if (c.model, c.precision) in same else "",
            "memory_mib": round(c.memory_mib, 1) if c.memory_mib == c.memory_mib else "", "first_seconds": round(c.first_seconds, 2),
        })  # fmt: skip
    return rows


def environment(device: torch.device, kept: bool) -> list[str]:
    """What the figures depend on, a line each."""
    memory = (
        "freed memory is kept (mallopt), for all candidates"
        if kept
        else "the C library's memory settings are the environment's"
    )
    return [*provenance.environment(device), memory]


def write_results(output: Path, rows: list[dict], facts: list[str], command: str) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = ["# Benchmark", "", f"`{command}`, synthetic images. " + "; ".join(facts) + ".", ""]
    text += [
        "Ratios are to the plain form (`scripts/plain_fat.py`: NCHW, one operator after the other) of the same model in float32,",
        "and of the same precision. 16 bits: autocast for the plain and eager forms, rounded weights for the fused one. Memory: tensors",
        "at the fullest moment. First call: with compilation.",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        for batch_size in dict.fromkeys(row["batch_size"] for row in rows if row["task"] == task):
            text += ["", f"## {task}, batch {batch_size}", ""]
            text.append(table([row for row in rows if (row["task"], row["batch_size"]) == (task, batch_size)]))
    output.with_suffix(".md").write_text("\n".join(text) + "\n")
    draw(output.with_suffix(".png"), rows, facts)


def table(rows: Sequence[dict]) -> str:
    head = [
        "model", "form", "precision", "images/s", "quartiles", "ratio to plain float32", "same precision", "memory, MiB", "first call, s",
    ]  # fmt: skip
    lines = [
        [
            row["model"], row["form"], row["precision"], f"{row['images_per_second']:.1f}",
            f"{row['lower_quartile']:.1f} to {row['upper_quartile']:.1f}", row["ratio_to_plain_float32"], row["ratio_to_plain"],
            row["memory_mib"], row["first_seconds"],
        ]
        for row in rows
    ]  # fmt: skip
    return markdown_table([head, *lines])


def draw(path: Path, rows: list[dict], facts: list[str]) -> None:
    """Published accuracy over measured inference speed, each model in torch's fastest form of each precision."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with open(ROOT / "configs" / "published.csv") as file:
        top1 = {row["model"]: (float(row["top1"]), row["img_size"]) for row in csv.DictReader(file)}
    timed = [
        r for r in rows if r["task"].startswith("inference") and r["model"] in top1 and "OpenVINO" not in r["form"]
    ]
    if not timed:
        return
    batch_size = max(r["batch_size"] for r in timed)
    figure, axes = plt.subplots(figsize=(9, 6))
    for precision, marker in zip(dict.fromkeys(r["precision"] for r in timed), "os^"):
        for fat, color in ((True, "tab:red"), (False, "tab:gray")):
            best: dict[str, float] = {}
            for r in timed:
                if (r["batch_size"], r["precision"], r["model"] in FATS) == (batch_size, precision, fat):
                    best[r["model"]] = max(best.get(r["model"], 0), r["images_per_second"])
            label = f"{'FAT (paper)' if fat else 'peers (timm)'}, {precision}"
            axes.scatter(best.values(), [top1[m][0] for m in best], c=color, marker=marker, label=label)
            if precision == timed[0]["precision"]:
                for m, speed in best.items():
                    size = f" ({top1[m][1]} px)" if top1[m][1] != "224" else ""
                    text, place = m.replace("_patch4_window7_224", "") + size, (speed, top1[m][0])
                    axes.annotate(text, place, fontsize=8, xytext=(4, 4), textcoords="offset points")
    axes.set(
        xscale="log",
        xlabel=f"images/s, inference, batch {batch_size}, measured, fastest form",
        ylabel="ImageNet top-1, %, published",
    )
    axes.set_title("; ".join(facts[:2]), fontsize=8)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
    kept = keep_freed_memory()
    facts, rows = environment(device, kept), []
    command = shlex.join(["python", "scripts/benchmark.py", *(sys.argv[1:] if argv is None else argv)])
    for task in args.tasks:
        # as main.py has it
        arithmetic = choose_arithmetic(device, exact=task == "inference", deterministic=False, fixed_sizes=True)
        facts += [f"{task}: {arithmetic}"] if arithmetic else []
        for batch_size in args.batch_sizes if task == "inference" else args.train_batch_sizes:
            images = torch.randn(batch_size, 3, args.img_size, args.img_size, device=device)
            make = (
                functools.partial(inference_candidates, openvino=args.openvino)
                if task == "inference"
                else train_candidates
            )
            # A FAT's forms take turns with one another, the peers with one another and with the forms of the first FAT.
            groups = [[name] for name in args.models] + ([args.models[:1] + args.peers] if args.peers else [])
            for number, names in enumerate(groups):
                torch.manual_seed(0)
                torch._dynamo.reset()
                candidates = list(
                    make(names, images, args.precisions, "" if number == len(args.models) else args.compile_mode)
                )
                for candidate in candidates:
                    warm_up(candidate, device, with_memory=task == "train" or device.type == "cuda")
                time_in_turns(candidates, args.rounds, device, args.seconds)
                found = rows_of(task, batch_size, candidates)
                if number == len(args.models):
                    task_rows = [{**row, "task": f"{task} beside peers"} for row in found]
                else:
                    task_rows = found
                rows += task_rows
                for row in task_rows:
                    print(" ".join(f"{key}={value}" for key, value in row.items() if value != ""), flush=True)
                del candidates
                gc.collect()
                write_results(Path(args.output), rows, facts, command)  # what there is, should it be cut off
    print(f"wrote {args.output}.csv, .md and .png")
    return 0


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
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument(
        "--compile-mode", default="default", choices=["", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
        help="of torch.compile; empty: nothing is compiled",
    )  # fmt: skip
    parser.add_argument("--openvino", action="store_true", help="on a CPU: FAT in OpenVINO, too (pip install openvino)")
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
    if args.openvino and (cuda or not importlib.util.find_spec("openvino") or "float16" in (args.precisions or [])):
        parser.error(
            "--openvino: needs a CPU, float32 or bfloat16, and the package; pip install openvino, or leave it out"
        )
    for name in args.peers:
        require_peer(parser, name, args.img_size)
    if not 0 < args.seconds < 3600:
        parser.error(f"--seconds: {args.seconds} is no such time; give some tenths of a second")
    for precision in args.precisions or []:
        if not cuda and not is_native_on_cpu(DTYPES[precision]):
            parser.error(f"--precisions: {precision} is emulated on this CPU; leave it out")
    counts = [args.rounds, args.threads, *(args.batch_sizes or []), *(args.train_batch_sizes or [])]
    if min(counts) < 1 or args.img_size < 32:
        parser.error("--rounds, --threads and batch sizes must be 1 or greater, --img-size 32 or greater")


def require_peer(parser: Parser, name: str, img_size: int) -> None:
    """Raises ConfigError for no model of timm, or one of other images."""
    if not timm.is_model(name):
        parser.error(f"--peers: {name} is unknown to timm {timm.__version__}")
    published = timm.get_pretrained_cfg(name)
    if published and published.fixed_input_size and published.input_size[-1] != img_size:
        parser.error(f"--peers: {name} takes images of {published.input_size[-1]} px only; leave it out, or --img-size")


if __name__ == "__main__":
    run_script(main)
