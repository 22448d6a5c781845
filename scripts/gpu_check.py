"""Checks on a GPU what tests on a CPU cannot: values, layouts, kernels, runs of main.py, processes, compilation, speed.

    python scripts/gpu_check.py                          # every stage, in less than 8 minutes
    python scripts/gpu_check.py --stage norm values
    python scripts/gpu_check.py --dry-run                # the same stages on the CPU, with FAT-Tiny: shows that they work

Prints a line `PASS|FAIL stage.name value bound` for each check, and writes all of them, with what they rest on, into
OUTPUT/results.json after each stage. A stage that does not end in time fails, and the next one comes.

Exit statuses: 0 all passed; 1 something failed; 2 there is no GPU, a package is missing, or an argument cannot be used.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple, Optional, Sequence

from command_line import Parser, importing, number, run_script
from utils.errors import ConfigError, did_you_mean, printable
from utils.files import write_json


class Stage(NamedTuple):
    module: str  # of parts/gpu_check/
    seconds: float  # that it may take on a GPU, if so much is left
    text: str


STAGES = {  # in this order; what is left of the time is speed's
    "environment": Stage("surroundings", 40, "machine, versions, what float32 is"),
    "values": Stage("values", 80, "logits, gradients and pixels are the CPU's"),
    "layouts": Stage("memory_layouts", 40, "maps stay channels_last, attention copies none"),
    "fused": Stage("deployed_form", 40, "the deployed form has the model's logits"),
    "norm": Stage("norm_kernel", 50, "the Triton kernel: in use, right, and how fast"),
    "resume": Stage("resumed_runs", 100, "killed and resumed runs have an undisturbed run's bits"),
    "eval": Stage("equal_evaluation", 70, "--eval counts the same on CPU and GPU"),
    "waits": Stage("waits_for_gpu", 60, "an update has no wait for the GPU"),
    "processes": Stage("process_group", 70, "NCCL, DDP, BatchNorm over processes, checkpointing"),
    "compile": Stage("compiled_models", 150, "compiled models have the eager one's losses"),
    "profile": Stage("kernel_profile", 50, "the 25 longest kernels"),
    "speed": Stage("model_speed", 86400, "images/s of every form beside the plain form"),
}
WHEELS = "yacs termcolor webdataset braceexpand"  # what a machine with torch, torchvision and timm may lack


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = build_parser().parse_args(argv)
    until = time.monotonic() + args.seconds
    if args.dry_run:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with importing(f"{WHEELS} (docs/performance.md says how without a network)"):
        import torch

        import engine.commands.evaluate
        import engine.commands.train  # noqa: F401  (a package that a stage lacks is said now)
        import engine.report.page  # noqa: F401
        from parts.gpu_check.setting import Setting
        from parts.gpu_check.stage_process import run_stage
    if not args.dry_run and not torch.cuda.is_available():
        raise ConfigError("torch sees no GPU; check the driver, or go through the stages on the CPU with --dry-run")
    results = []
    for name in args.stage or STAGES:
        stage = STAGES[name]
        limit = min(until, time.monotonic() + (args.seconds if args.dry_run else stage.seconds))
        started = time.monotonic()
        checks = run_stage(stage.module, Setting(args.dry_run, args.output.absolute() / name, limit))
        for check in checks:
            word = "PASS" if check.passed else "FAIL"
            print(printable(f"{word} {name}.{check.name} {shown(check.value)} {check.bound}"), flush=True)
            results.append({"stage": name, **vars(check)})
        print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
        write_json(args.output / "results.json", {"dry_run": args.dry_run, "checks": results})
    failed = sum(not result["passed"] for result in results)
    print(f"{len(results) - failed} passed, {failed} failed; everything is in {args.output / 'results.json'}")
    return 1 if failed else 0


def shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1e3 else str(value)


def known_stage(text: str) -> str:
    if text not in STAGES:
        raise argparse.ArgumentTypeError(f"{text!r} is none; {did_you_mean(text, STAGES)}")
    return text


def build_parser() -> Parser:
    parser = Parser(
        description=__doc__ + "\nStages:\n" + "\n".join(f"  {name:12} {stage.text}" for name, stage in STAGES.items())
    )
    seconds = number("of 10 or more seconds", lambda value: 10 <= value < 86400)
    parser.add_argument("--seconds", type=seconds, default=460.0, help="for all stages (default: 460)")
    parser.add_argument("--stage", type=known_stage, nargs="+", metavar="NAME", help="only these, in this order")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with FAT-Tiny")
    parser.add_argument(
        "--output", type=Path, default=Path("output/gpu_check"), help="folder to write to (default: output/gpu_check)"
    )
    return parser


if __name__ == "__main__":
    run_script(main)
