"""One checkpoint's accuracy over the same images in every format, and how fast each format is loaded.

    python scripts/compare_formats.py --cfg configs/fat_quickstart.yaml --checkpoint output/fat_tiny/digits/best.pth \\
        --data-path datasets/digits --speed-data datasets/photos

Makes the formats with scripts/prepare_data.py in a temporary folder and evaluates each with main.py. For the speed one
process loads augmented training images of --speed-data; the formats take turns, and a figure is the median over the rounds.
Writes OUTPUT.md. Ends with status 1 if a format gives another accuracy.
"""

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from command_line import ROOT, Parser, run_script
from data.loader import dataset_of
from data.sources import open_source
from data.transforms import Augmentation, train_transform
from utils.config import load_config
from utils.errors import ConfigError
from utils.markdown import markdown_table
from utils.provenance import environment
from utils.rng import seed_cpu
from utils.run_files import EVAL

PREPARED = {"zip": "zip", "tar": "tar", "wds": "shards", "hfds": "parquet"}  # DATA.DATASET: prepare_data.py's command
METRICS = ("acc1", "acc5", "loss", "num_images")


def call(*command: str) -> None:
    """Runs one of the project's scripts."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise ConfigError(
            f"{shlex.join(command)}: {(done.stderr.strip().splitlines() or ['ended with an error'])[-1].removeprefix('error: ')}"
        )


def prepare(folder: Path, work: Path) -> dict[str, Path]:
    """Makes all formats of a folder's images; DATA.DATASET -> DATA.DATA_PATH."""
    paths = {"folder": folder}
    for name, command in PREPARED.items():
        paths[name] = work / name
        call("scripts/prepare_data.py", command, str(folder), "--output", str(work / name))
    return paths


def evaluate(paths: dict[str, Path], cfg: str, checkpoint: str, work: Path) -> dict[str, dict]:
    """main.py's metrics for each format."""
    results = {}
    for name, path in paths.items():
        opts = ["--opts", "DATA.DATASET", name]
        call(
            "main.py",
            "--cfg",
            cfg,
            "--eval",
            "--resume",
            checkpoint,
            "--data-path",
            str(path),
            "--output",
            str(work / "output"),
            "--tag",
            name,
            *opts,
        )
        found = next((work / "output").glob(f"*/{name}/{EVAL}"))
        results[name] = json.loads(found.read_text())
    return results


def measure(paths: dict[str, Path], cfg: str, images: int, rounds: int) -> dict[str, list[float]]:
    """Images per second of one process that reads, decodes and augments, by format and round."""
    cfg = load_config(cfg, command="benchmark_data")
    datasets = {}
    for name, path in paths.items():
        augmentation = Augmentation(
            cfg.AUG.SCALE, cfg.AUG.RATIO, cfg.AUG.HFLIP, cfg.AUG.COLOR_JITTER, cfg.AUG.AUTO_AUGMENT, cfg.AUG.REPROB,
            cfg.AUG.REMODE, cfg.AUG.RECOUNT,
        )  # fmt: skip
        colours, files = cfg.DATA.MEAN, (cfg.DATA.EXIF, cfg.DATA.BACKEND)
        transform = train_transform(cfg.DATA.IMG_SIZE, cfg.DATA.INTERPOLATION, colours, augmentation, *files)
        datasets[name] = dataset_of(open_source(name, "train", str(path), transform.decode), transform, "raise")
    speeds: dict[str, list[float]] = {name: [] for name in datasets}
    for _ in range(rounds + 1):
        for name, dataset in datasets.items():
            started, count = time.perf_counter(), 0
            for load in dataset.loads(min(images, len(dataset))):
                seed_cpu(count)
                dataset.transform(load())
                count += 1
            speeds[name].append(count / (time.perf_counter() - started))
    return {name: values[1:] for name, values in speeds.items()}  # the first round warms up


def table(results: dict[str, dict], speeds: dict[str, list[float]]) -> str:
    rows = [["format", "top-1, %", "top-5, %", "loss", "images", "images/s, one process", "to folders"]]
    for name, metrics in results.items():
        speed = median(speeds[name]) if speeds else None
        measured = [f"{speed:.0f}", f"{speed / median(speeds['folder']):.2f}"] if speed else ["", ""]
        rows.append([name, *(metrics[key] for key in METRICS), *measured])
    return markdown_table(rows)


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--cfg", required=True, help="the checkpoint's config")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data-path", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument(
        "--speed-data", type=Path, help="another such folder, of larger images (default: no speed is measured)"
    )
    parser.add_argument("--images", type=int, default=64, help="timed in each round (default: 64)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("results/formats"))
    args = parser.parse_args()
    if args.images < 1 or args.rounds < 1:
        raise ConfigError("--images, --rounds: must be 1 or more")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        results = evaluate(prepare(args.data_path.absolute(), work / "accuracy"), args.cfg, args.checkpoint, work)
        speed_data = args.speed_data and prepare(args.speed_data.absolute(), work / "speed")
        speeds = measure(speed_data, args.cfg, args.images, args.rounds) if speed_data else {}
    lines = [
        "# Formats",
        "",
        f"`{shlex.join(['python', 'scripts/compare_formats.py', *sys.argv[1:]])}`. {'; '.join(environment(torch.device('cpu')))}. "
        "The accuracy is of the one checkpoint on the same images; the speed is that of reading, decoding and augmenting, in turns, "
        f"medians of {args.rounds} rounds, files in the page cache.",
        "",
        table(results, speeds),
    ]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines[4:]))
    first = {key: results["folder"][key] for key in METRICS}
    other = [name for name, metrics in results.items() if {key: metrics[key] for key in METRICS} != first]
    if other:
        print(f"error: {', '.join(other)}: another accuracy than that of the folders", file=sys.stderr)
    return 1 if other else 0


if __name__ == "__main__":
    run_script(main)
