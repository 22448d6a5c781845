"""Trains, evaluates and times FAT (and any timm model) for image classification.

python -m torch.distributed.launch --nproc_per_node 8 main.py --cfg configs/fat_b0.yaml --data-path /path/to/imagenet
"""

from typing import Optional, Sequence

from engine.arguments import command_of, config_flags, parse_args, require_cache_of_archives
from engine.commands import run_command
from engine.observer import Observer
from utils import ending
from utils.config import load_config


def main(argv: Optional[Sequence[str]] = None, observers: Sequence[Observer] = ()) -> None:
    """Does what the command line asks for; `observers` are told of a training run's events."""
    args = parse_args(argv, __doc__)
    name = command_of(args)
    cfg = load_config(args.cfg, args.opts, config_flags(args), name)
    require_cache_of_archives(args, cfg)
    run_command(name, cfg, args.opts[::2], args.local_rank, observers, args.benchmark_data)


def run_and_leave(argv: Optional[Sequence[str]] = None, observers: Sequence[Observer] = ()) -> None:
    """`main`, with its errors as one line and an exit status."""
    ending.run_rank(lambda: main(argv, observers))


if __name__ == "__main__":
    run_and_leave()
