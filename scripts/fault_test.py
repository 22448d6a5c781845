"""Kills a training run again and again at random moments and compares its end with that of an uninterrupted one.

    python scripts/fault_test.py --kills 50

Half of the kills hit a run of one process (float32, two loading workers), half a run of two under torchrun's launcher
(bfloat16, accumulation); there the whole job is killed, or one process of it, or the launcher. After each kill the same
command is given again. At the end the weights, their average, the optimizer, the scaler, the random numbers, the
progress and the history of all metrics must have the same hash. Exit status 0 if they all do, 1 if not, 2 for arguments or data, 5 if a run ends
by itself with an error.

It trains FAT-Tiny on the quickstart's digits (bash scripts/quickstart.sh makes them), for some ten seconds per kill.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from command_line import ROOT, Parser, run_script
from engine.checkpoints.file import read_checkpoint
from engine.checkpoints.parts import read_with_parts
from utils.errors import ConfigError, ProcessError
from utils.run_files import RECORDS

CLOCK = {"images_per_second", "data_wait", "memory_mib"}  # of a record, what depends on the machine
RUNS = {
    1: ["DATA.NUM_WORKERS", "2", "AMP.ENABLED", "False"],
    2: ["DATA.NUM_WORKERS", "0", "AMP.DTYPE", "bfloat16", "TRAIN.ACCUMULATION_STEPS", "2"],
}


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--data-path", type=Path, default=ROOT / "datasets/digits")
    parser.add_argument("--output", type=Path, default=ROOT / "output/fault_test")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    if not (args.data_path / "train").is_dir():
        raise ConfigError(f"--data-path {args.data_path}: no such data set; bash scripts/quickstart.sh makes it")
    if args.kills < 2:
        raise ConfigError(f"--kills {args.kills}: must be 2 or more")
    shutil.rmtree(args.output, ignore_errors=True)
    draw = random.Random(args.seed)
    done = differences = 0
    for processes, kills in ((1, args.kills // 2), (2, args.kills - args.kills // 2)):
        made, same = survives(args, processes, kills, draw)
        done, differences = done + made, differences + (not same)
    print(f"{done} kills over 1 and 2 processes, {differences} differences")
    return 1 if differences else 0


def survives(args, processes: int, kills: int, draw: random.Random) -> tuple[int, bool]:
    """How often a run was killed, and whether it ended as one that was not."""
    folder = args.output / "fat_tiny"
    port = 20000 + os.getpid() % 20000

    def command(tag: str) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(port)]
        epochs = 3 + kills // 2  # of some four seconds: the run must still be under way at its last kill
        return [
            sys.executable, *(launcher if processes > 1 else []), "main.py", "--cfg", "configs/fat_quickstart.yaml",
            "--data-path", str(args.data_path), "--output", str(args.output), "--tag", tag, "--batch-size", "64",
            "--opts", "DEVICE", "cpu", "PRINT_FREQ", "7", "TRAIN.EPOCHS", str(epochs), "TRAIN.WARMUP_EPOCHS", "1",
            "TRAIN.SAVE_EVERY_STEPS", "1", "TRAIN.TOTAL_BATCH_SIZE", "0", "AUG.MIXUP", "0.8", "AUG.CUTMIX", "1.0", *RUNS[processes],
        ]  # fmt: skip

    whole, killed = (folder / f"{name}_{processes}" for name in ("whole", "killed"))
    started = time.monotonic()
    end(start(command(whole.name)))
    seconds = time.monotonic() - started
    for kill in range(kills):
        process = start(command(killed.name))
        if draw.random() < 0.1:
            time.sleep(draw.uniform(0, 8))  # while it starts
        else:
            before = size(killed / "log.txt")
            while process.poll() is None and size(killed / "log.txt") == before:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 3))
        if process.poll() is not None:
            print(f"the run of {processes} processes ended before kill {kill + 1}", flush=True)
            kills = kill
            break
        hit(process, draw.choice(["all", "all", "rank", "launcher"] if processes > 1 else ["all"]), processes)
        progress = read_checkpoint(newest(killed))["progress"] if newest(killed) else {"epoch": 0, "step": 0}
        print(
            f"{processes} processes, kill {kill + 1}: epoch {progress['epoch']}, update {progress['step']}", flush=True
        )
    end(start(command(killed.name)))
    hashes = [digest(folder) for folder in (whole, killed)]
    print(
        f"{processes} processes: {kills} kills, hashes {hashes[0]} (uninterrupted, {seconds:.0f} s) and {hashes[1]}",
        flush=True,
    )
    return kills, hashes[0] == hashes[1]


def start(command: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **quiet)


def end(process: subprocess.Popen) -> None:
    if process.wait():
        raise ProcessError(f"{' '.join(process.args)}: exit status {process.returncode}; run it to see why")


def hit(process: subprocess.Popen, what: str, processes: int) -> None:
    """SIGKILL to the job, to one of its training processes, or to its launcher; waits until all of it is gone."""
    ranks = children(process.pid) if processes > 1 else []
    if what == "rank" and ranks:
        os.kill(ranks[-1], signal.SIGKILL)
    elif what == "launcher":
        process.kill()
    else:
        for pid in [process.pid, *ranks]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def newest(folder: Path):
    return next((folder / name for name in ("last.pth", "previous.pth") if (folder / name).exists()), None)


def digest(folder: Path) -> str:
    """Of everything that a run is, without its name and the clock's figures."""
    checkpoint = read_with_parts(folder / "last.pth")
    del checkpoint["config"]
    digest = hashlib.sha256()
    feed(checkpoint, digest)
    for line in (folder / RECORDS).read_text().splitlines():
        record = json.loads(line)
        if record["kind"] != "start":
            feed({key: value for key, value in record.items() if key not in CLOCK}, digest)
    return digest.hexdigest()[:16]


def feed(value, digest) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(repr((value.dtype, tuple(value.shape))).encode())
        digest.update(value.numpy().tobytes())  # in the order of the indices, whatever the memory layout
    elif isinstance(value, dict):
        for key in value:
            digest.update(repr(key).encode())
            feed(value[key], digest)
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            feed(item, digest)
    else:
        digest.update(repr(value).encode())


if __name__ == "__main__":
    run_script(main)
