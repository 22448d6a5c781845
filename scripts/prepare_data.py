"""Prepares ImageNet, or images in folders, for training: unpacks, packs into other formats, verifies.

    python scripts/prepare_data.py folders /downloads --output /data/imagenet        # from ImageNet's own archives
    python scripts/prepare_data.py zip     /data/imagenet --output /data/imagenet_zip      # Swin's layout
    python scripts/prepare_data.py tar     /data/imagenet --output /data/imagenet_tar
    python scripts/prepare_data.py shards  /data/imagenet --output /data/imagenet_wds      # WebDataset
    python scripts/prepare_data.py parquet /data/imagenet --output /data/imagenet_hf       # Hugging Face
    python scripts/prepare_data.py verify  /data/imagenet_wds
    python scripts/prepare_data.py stats   --cfg configs/fat_b0.yaml --data-path /data/scans --opts DATA.IN_CHANS 1

Whatever ended a command, start the same one again: it goes on. A file that has its name is whole. Exit statuses: 0 done,
1 the data are not right (verify), 2 arguments or data, 5 no room or no permission, 130 and 143 stopped by a signal.
"""

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Optional, Sequence

from command_line import Parser, run_script, whole_number
from utils.ending import say
from utils.errors import DataError

SPLITS = ("train", "val")
FORMATS = ("folder", "zip", "tar", "shards", "parquet")
SEED = 0


def parse_args(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    workers = argparse.ArgumentParser(add_help=False)
    workers.add_argument(
        "--workers",
        type=whole_number(0),
        default=len(os.sched_getaffinity(0)),
        help="processes that verify (default: one a core)",
    )
    writing = argparse.ArgumentParser(add_help=False, parents=[workers])
    writing.add_argument("--output", type=Path, required=True, help="folder to write to")
    writing.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS), help="default: both")
    writing.add_argument("--verify", action="store_true", help="read all of it again and compare with the source")
    packing = argparse.ArgumentParser(add_help=False, parents=[writing])
    packing.add_argument("source", type=Path, help="folder with train/<class>/* and val/<class>/*")
    packing.add_argument("--outside-links", action="store_true", help="follow links out of the source")

    folders = commands.add_parser("folders", parents=[writing], help="ImageNet's own archives to folders")
    folders.add_argument(
        "source", type=Path, help="folder with ILSVRC2012_img_train.tar, _img_val.tar and _devkit_t12.tar.gz"
    )
    folders.add_argument("--partial", action="store_true", help="take fewer images or classes than ImageNet has")
    commands.add_parser("zip", parents=[packing], help="train.zip and train_map.txt, as Swin has them")
    commands.add_parser("tar", parents=[packing], help="train.tar, val.tar")
    shards = commands.add_parser("shards", parents=[packing], help="WebDataset shards with _info.json")
    shards.add_argument("--shard-size", type=whole_number(1), default=128, help="MB at most (default: 128)")
    shards.add_argument("--images-per-shard", type=whole_number(1), default=100_000, help="at most (default: 100000)")
    shards.add_argument(
        "--seed", type=whole_number(0, 2**32 - 1), default=SEED, help=f"of the training images' order (default: {SEED})"
    )
    parquet = commands.add_parser("parquet", parents=[packing], help="parquet files for datasets.load_dataset")
    parquet.add_argument("--shard-size", type=whole_number(1), default=500, help="MB at most (default: 500)")
    verify = commands.add_parser("verify", parents=[workers], help="counts, one hash for all formats, what is wrong")
    verify.add_argument("source", type=Path)
    verify.add_argument("--format", choices=FORMATS, help="default: a guess")
    verify.add_argument(
        "--json", action="store_true", help="print JSON, with counts of each class and all that is wrong"
    )
    add_stats(commands, workers)
    return parser.parse_args(argv)


def add_stats(commands: argparse._SubParsersAction, workers: argparse.ArgumentParser) -> None:
    stats = commands.add_parser("stats", parents=[workers], help="mean and standard deviation of the training images")
    stats.add_argument("--cfg", type=Path, required=True, help="config that says where they are and how they are read")
    stats.add_argument("--data-path", default="", help="DATA.DATA_PATH, where it is another one than the config's")
    stats.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs, such as DATA.IN_CHANS 1")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status; see the module for errors."""
    args = parse_args(argv)
    if args.command == "verify":
        return show(args.source, args.format, args.workers, args.json)
    if args.command == "stats":
        return stats(args)
    args.splits = [split for split in SPLITS if split in args.splits]
    if not args.source.is_dir():
        raise DataError(
            f"{args.source}: no such folder; give the folder {'of the archives' if args.command == 'folders' else 'that holds train/ and val/'}"
        )
    (folders if args.command == "folders" else pack)(args)
    print(f"{args.output}: {' and '.join(args.splits)} done, {args.command}")
    if not args.verify:
        return 0
    kind = {"folders": "folder"}.get(args.command, args.command)
    return show(
        args.output, kind, args.workers, source=None if args.command == "folders" else args.source, splits=args.splits
    )


def folders(args: argparse.Namespace) -> None:
    from data.prepare.imagenet import ARCHIVES, unpack
    from data.prepare.preparation import holding

    arguments = {"--splits": args.splits}
    for split in args.splits:
        path = args.source / ARCHIVES[split]
        if path.exists():
            arguments[path.name] = [path.stat().st_size, path.stat().st_mtime_ns]
        elif not (args.output / split).exists():
            raise DataError(f"{path}: no such file; put ImageNet's {path.name} there, or choose among --splits")
    made = [f"{split}{end}" for split in args.splits for end in ("", ".unfinished")]
    with holding(args.output, "folders", arguments, made):
        unpack(args.source, args.output, args.splits, args.partial)


def pack(args: argparse.Namespace) -> None:
    from data.prepare.archives import Tar, Zip, write_archives
    from data.prepare.images import open_splits
    from data.prepare.parquet import NAMES, write_parquet
    from data.prepare.preparation import holding
    from data.prepare.shards import INFO, write_shards

    splits = open_splits(args.source, args.splits, args.outside_links)
    for note in (note for images in splits for note in images.source.notes):
        print(f"note: {note}")
    arguments = {"--splits": args.splits}
    for name in ("shard_size", "images_per_shard", "seed"):
        if hasattr(args, name):
            arguments[f"--{name.replace('_', '-')}"] = getattr(args, name)
    arguments |= {f"{images.split}'s images": images.fingerprint for images in splits}
    made = {
        "zip": ["{}.zip*", "{}_map.txt"],
        "tar": ["{}.tar*"],
        "shards": ["{}-*.tar", INFO],
        "parquet": ["data/{}-*.parquet"],
    }[args.command]
    names = NAMES if args.command == "parquet" else {split: split for split in SPLITS}
    with holding(
        args.output,
        args.command,
        arguments,
        [pattern.format(names[split]) for pattern in made for split in args.splits],
    ):
        if args.command == "shards":
            write_shards(splits, args.output, args.shard_size * 10**6, args.images_per_shard, args.seed)
        elif args.command == "parquet":
            write_parquet(splits, args.output, args.shard_size * 10**6)
        else:
            write_archives(Zip if args.command == "zip" else Tar, splits, args.output)


def stats(args: argparse.Namespace) -> int:
    """Prints the keys that bring the training images to mean 0 and standard deviation 1; returns the exit status."""
    from utils.config import load_config

    given = {"DATA.DATA_PATH": args.data_path} if args.data_path else {}
    any_classes = {"DATA.BACKEND": "pil", "MODEL.NUM_CLASSES": 0}  # whose number does not matter here
    cfg = load_config(args.cfg, args.opts, {**given, **any_classes})
    import torch

    from data.batches import Finish
    from data.loader import Loading
    from data.pixel_statistics import measure
    from engine.tasks import create_task

    finish = Finish(cfg.DATA.MEAN, cfg.DATA.STD, torch.device("cpu"))
    how = Loading(finish, args.workers, cfg.DATA.PREFETCH, pin_memory=False, timeout=cfg.DATA.TIMEOUT)
    source = create_task(cfg).train_dataset().source
    for note in getattr(source, "notes", ()):
        print(f"# {note}")
    measured = measure(source, cfg.DATA.ON_ERROR, how)
    for line in measured.failures:
        say(f"warning: left out {line}")
    numbers = {"MEAN": measured.mean, "STD": measured.std}
    print(f"# of {measured.pixels} pixels of {measured.images} training images, each pixel counted once")
    print(f"DATA:\n  IN_CHANS: {cfg.DATA.IN_CHANS}")
    for key, values in numbers.items():
        print(f"  {key}: [{', '.join(f'{value:.5g}' for value in values)}]")
    return 0


def show(
    path: Path, kind: Optional[str], workers: int, as_json: bool = False, source: Optional[Path] = None, splits=SPLITS
) -> int:
    """Verifies, and compares with the source if there is one; returns the exit status."""
    from data.prepare.verify import as_text, verify

    report = verify(path, kind, workers)
    if source:
        before = verify(source, "folder", workers=0, decode=False)["splits"]
        for split in splits:
            if report["splits"].get(split, {}).get("hash") != before[split]["hash"]:
                report["problems"].append(
                    f"{path}: {split} is not what {source} holds, whose hash is {before[split]['hash']}"
                )
    print(json.dumps(report, indent=2) if as_json else as_text(report))
    return 1 if report["problems"] else 0


def _stop(number, frame) -> None:
    raise KeyboardInterrupt(number)  # no Exception, which readers of images take for a damaged one


def run() -> int:
    """`main`; says what to do after a signal."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        return main()
    except KeyboardInterrupt as stopped:
        say("stopped; start the same command again, it goes on")
        return 128 + stopped.args[0]


if __name__ == "__main__":
    run_script(run)
