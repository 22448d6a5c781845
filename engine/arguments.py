"""main.py's flags: Swin's, and what of them contradicts. Imports no torch."""

import argparse
import math
from typing import Any, Optional, Sequence, Union

from yacs.config import CfgNode

from utils.cli import Parser
from utils.errors import ConfigError
from utils.schema import AUTO, ENGINES


def parse_args(argv: Optional[Sequence[str]] = None, description: str = "") -> argparse.Namespace:
    """The flags. One that is left out is None or False and changes nothing in the config.

    Raises:
        ConfigError: an unknown flag, a value that it cannot have, or flags that contradict.
    """
    parser = Parser(description=description)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="YAML config, such as configs/fat_b0.yaml")
    parser.add_argument(
        "--opts", nargs="+", action="extend", default=[], metavar="KEY VALUE", help="config keys with other values"
    )
    parser.add_argument("--data-path", metavar="DIR", help="folder that holds train/ and val/")
    parser.add_argument(
        "--batch-size", type=count_or_auto, metavar="N", help="images per process; auto: as many as fit into memory"
    )
    parser.add_argument("--accumulation-steps", type=int, help="micro-batches per update")
    parser.add_argument("--pretrained", metavar="FILE", help="weights to start from")
    parser.add_argument("--resume", metavar="FILE", help="checkpoint to go on from, or to evaluate with --eval")
    parser.add_argument("--use-checkpoint", action="store_true", help="activation checkpointing: less memory, slower")
    parser.add_argument("--disable_amp", action="store_true", help="train and evaluate in float32")
    parser.add_argument(
        "--amp-opt-level", choices=["O0", "O1", "O2"], help="O0: float32, O1: autocast; O2 has gone with apex.amp"
    )
    parser.add_argument("--output", metavar="DIR", help="where runs lie: <output>/<model name>/<tag>")
    parser.add_argument("--tag", help="name of the run")
    parser.add_argument("--eval", action="store_true", help="evaluate the weights of --resume and end")
    parser.add_argument(
        "--check", action="store_true", help="check config, data, disk and one step, estimate the time, and end"
    )
    parser.add_argument("--throughput", action="store_true", help="time the model on synthetic images and end")
    parser.add_argument(
        "--fused", action="store_true", help="with --eval or --throughput: the deployed form of the model"
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="with --eval or --throughput: what computes; cudagraphs on a GPU, onnxruntime and openvino on a CPU, which get the deployed "
        "form, exported in memory",
    )
    parser.add_argument(
        "--benchmark-data", nargs="?", type=float, const=0.0, metavar="IMAGES_PER_SECOND",
        help="time the loading of training images, say how many workers that many images/s of all GPUs take, and end",
    )  # fmt: skip
    parser.add_argument(
        "--zip", action="store_true", help="read Swin's zip files: train.zip and train_map.txt, val.zip and val_map.txt"
    )
    parser.add_argument(
        "--cache-mode",
        choices=["no", "full", "part"],
        help="with zip and tar files: read all of them (full), or this process' share (part), into memory",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help="given by torch.distributed.launch")
    args = parser.parse_args(argv)
    require_no_contradiction(args, parser)
    return args


def count_or_auto(text: str) -> Union[int, str]:
    """A type for argparse: a whole number, whose rule the config has, or auto."""
    return text if text == AUTO else int(text)


def require_no_contradiction(args: argparse.Namespace, parser: Parser) -> None:
    """Raises ConfigError: flags that contradict, or values that no flag takes."""
    for message, found in (
        ("--amp-opt-level O2: was NVIDIA apex's, which has no amp since 2025; use O1, torch's autocast, or O0, float32",
         args.amp_opt_level == "O2"),
        ("--disable_amp contradicts --amp-opt-level O1; give one of them", args.disable_amp and args.amp_opt_level == "O1"),
        ("--check contradicts --eval, it checks a training run; give one of them", args.check and args.eval),
        ("--check contradicts --throughput, it checks a training run; give one of them", args.check and args.throughput),
        *contradictions(args, "--throughput", "times the model alone", ("eval", "resume", "pretrained")),
        ("--fused: the deployed form cannot be trained; add --eval or --throughput",
         args.fused and not (args.eval or args.throughput)),
        ("--engine: training is torch's; add --eval or --throughput", args.engine and not (args.eval or args.throughput)),
        *contradictions(args, "--benchmark-data", "times the loading of images alone",
                        ("eval", "check", "throughput", "resume", "pretrained")),
        (f"--benchmark-data: {args.benchmark_data} is no speed; give the images/s that all GPUs together take, or nothing",
         args.benchmark_data and not 0 < args.benchmark_data < math.inf),
        ("--eval: --resume contradicts --pretrained, either could be meant; give one of them",
         args.eval and args.resume and args.pretrained),
    ):  # fmt: skip
        if found:
            parser.error(message)


def contradictions(
    args: argparse.Namespace, flag: str, what_it_does: str, others: Sequence[str]
) -> list[tuple[str, bool]]:
    """A message for each flag that must not stand beside `flag`, and whether it does."""
    value = vars(args)[flag.removeprefix("--").replace("-", "_")]
    asked = value is not None and value is not False  # a flag's number may be 0
    return [
        (f"--{other} contradicts {flag}, which {what_it_does}; give one of them", asked and bool(vars(args)[other]))
        for other in others
    ]


def command_of(args: argparse.Namespace) -> str:
    """What the flags ask for, by the flag's name; train without one."""
    if args.benchmark_data is not None:
        return "benchmark_data"
    return next((name for name in ("throughput", "eval", "check") if getattr(args, name)), "train")


def config_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The config keys that the given flags set."""
    level = args.amp_opt_level
    flags = {
        "DATA.DATA_PATH": args.data_path,
        "DATA.ZIP_MODE": True if args.zip else None,
        "DATA.CACHE_MODE": args.cache_mode,
        "DATA.BATCH_SIZE": args.batch_size,
        "TRAIN.ACCUMULATION_STEPS": args.accumulation_steps,
        "TRAIN.USE_CHECKPOINT": True if args.use_checkpoint else None,
        "MODEL.PRETRAINED": args.pretrained,
        "MODEL.RESUME": args.resume,
        "TEST.ENGINE": args.engine,
        "TEST.FUSED": True if args.fused else None,
        "OUTPUT": args.output,
        "TAG": args.tag,
        "AMP.ENABLED": False if args.disable_amp or level == "O0" else True if level else None,
    }
    return {key: value for key, value in flags.items() if value is not None}


def require_cache_of_archives(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Raises ConfigError: a flag that the config contradicts."""
    in_archives = cfg.DATA.ZIP_MODE or cfg.DATA.DATASET.partition("/")[0] in ("zip", "tar")
    if args.cache_mode not in (None, "no") and not in_archives:
        raise ConfigError(
            f"--cache-mode {args.cache_mode}: DATA.DATASET {cfg.DATA.DATASET} is read from the disk; add --zip, or leave it out"
        )
