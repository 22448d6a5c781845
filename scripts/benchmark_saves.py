"""Times how long a save holds a training up, where it is written meanwhile and where it is waited for, in turns.

The state is that of a model with AdamW and an average of its weights after one step. Waited for, a save is timed with the copy
of the state, which the other kind waits for alone.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Optional, Sequence

from command_line import Parser, run_script, whole_number


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fat_b0", help="name of a model of this project or of timm")
    parser.add_argument(
        "--rounds", type=whole_number(1), default=7, help="saves of each kind, after one of each that is not counted"
    )
    parser.add_argument(
        "--output", type=Path, help="folder on the disk that is meant; default: that of temporary files"
    )
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    with tempfile.TemporaryDirectory(dir=args.output) as folder:
        waited, begun, size = measure(args.model, Path(folder), args.rounds)
    print(
        f"{args.model}, a file of {size / 2**20:.1f} MiB, medians of {args.rounds}: a save that is waited for {1e3 * waited:.0f} ms, "
        f"one that is written meanwhile {1e3 * begun:.0f} ms, {begun / waited:.1%}"
    )
    return 0


def measure(name: str, folder: Path, rounds: int) -> tuple[float, float, int]:
    """Median seconds of a save that is waited for and of one that is not, and the file's bytes."""
    from engine.checkpoints.store import LAST
    from utils.malloc import keep_freed_memory

    keep_freed_memory()  # as a run does
    checkpointer = checkpointer_of(name, folder)
    waited, begun = [], []
    for _ in range(rounds + 1):
        for seconds, waits in ((waited, True), (begun, False)):
            started = time.perf_counter()
            checkpointer.save(LAST)
            if waits:
                checkpointer.background.wait()
            seconds.append(time.perf_counter() - started)
            checkpointer.background.wait()
    return statistics.median(waited[1:]), statistics.median(begun[1:]), (folder / LAST).stat().st_size


def checkpointer_of(name: str, folder: Path):
    """Of a state as a run's that has done a step."""
    import timm
    import torch

    import models  # noqa: F401  (registers them)
    from engine.checkpoints.store import Checkpointer
    from engine.training.optim import ResumableOptimizer, create_optimizer

    model = timm.create_model(name)
    optimizer = create_optimizer(model, "adamw", 1e-3, 0.05, 1e-8, (0.9, 0.999), 0.9, layer_decay=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return Checkpointer(folder, {}, model=model, ema=copy.deepcopy(model), optimizer=ResumableOptimizer(optimizer))


if __name__ == "__main__":
    run_script(main)
