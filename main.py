"""Trains, evaluates and times FAT (and any timm model) for image classification.

    python -m torch.distributed.launch --nproc_per_node 8 main.py --cfg configs/fat_b0.yaml --data-path /path/to/imagenet
"""

import argparse
import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn, Optional, Sequence

from data.workers import end_all
from utils.config import load_config
from utils.errors import ConfigError, OutputError, ShortageError, Stopped, UserError, did_you_mean, printable
from utils.restarts import refuse_restart, restarts_left


PARENT = os.getppid()  # the launcher, if there is one; taken early, before it can be gone


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.cfg, args.opts, config_flags(args))
    if args.eval and not (cfg.MODEL.RESUME or cfg.MODEL.PRETRAINED):
        raise ConfigError("--eval: there are no weights to evaluate; add --resume path/to/best.pth")
    if args.cache_mode not in (None, "no") and not (cfg.DATA.ZIP_MODE or cfg.DATA.DATASET.partition("/")[0] in ("zip", "tar")):
        raise ConfigError(f"--cache-mode {args.cache_mode}: DATA.DATASET {cfg.DATA.DATASET} is read from the disk; add --zip, or leave it out")

    # Imported after the checks that need no torch, as it takes seconds.
    try:
        from engine.benchmark_data import benchmark_data
        from engine.preprocessing import take_from_model
        from engine.run import check, evaluate_checkpoint, throughput, train
        from utils.device import is_out_of_memory, select_device, use_deterministic_algorithms
        from utils.distributed import process_group, read_launch
        from utils.malloc import keep_freed_memory
        from utils.peers import Peers
    except ImportError as error:
        raise ConfigError(f"{error.name or 'a package'}: cannot be imported ({error}); pip install -r requirements.txt") from None

    cfg = take_from_model(cfg, given=args.opts[::2])
    keep_freed_memory()
    launch = read_launch(os.environ, args.local_rank)
    device = select_device(cfg.DEVICE, launch.local_rank)
    if cfg.DETERMINISTIC:
        use_deterministic_algorithms()
    run = check if args.check else throughput if args.throughput else evaluate_checkpoint if args.eval else train
    with process_group(launch, device, PARENT) as store:
        peers = Peers(launch, PARENT, store, cfg.RANK_TIMEOUT, on_loss=report)
        good = False
        try:
            if args.benchmark_data is not None:
                benchmark_data(cfg, launch, device, args.benchmark_data)
            else:
                run(cfg, launch, device, peers)
            peers.meet()
            good = True
        except Stopped as stopped:
            good = stopped.together
            stopped.reason = peers.stop.reason
            raise
        except OSError as error:
            raise OutputError(f"{error.filename or 'output'}: {error.strerror or error}; check the path and the disk") from None
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise ShortageError(
                    f"DATA.BATCH_SIZE (--batch-size) is {cfg.DATA.BATCH_SIZE}: {device} is out of memory; use a smaller one "
                    "(with TRAIN.TOTAL_BATCH_SIZE the recipe stays the same) or --use-checkpoint"
                ) from None
            if cfg.DETERMINISTIC and "deterministic" in str(error):
                raise ConfigError(f"DETERMINISTIC: {' '.join(str(error).split('. ')[0].split())}; switch it off") from None
            if "DataLoader worker" in str(error):
                raise ShortageError(
                    f"DATA.NUM_WORKERS is {cfg.DATA.NUM_WORKERS}: a loading process was killed, perhaps as memory ran out "
                    f"({' '.join(str(error).split())[:120]}); use fewer, and start the same command again"
                ) from None
            peers.name_lost()  # a collective operation fails when another process is gone
            raise
        finally:
            peers.close(good)


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def parse_args(self, args=None, namespace=None):
        args, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            self.error(f"{unknown[0]}: unknown; {did_you_mean(unknown[0], flags)}")
        return args

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")


def parse_args(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """Swin's flags. A flag that is left out is None or False and changes nothing in the config."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="YAML config, such as configs/fat_b0.yaml")
    parser.add_argument("--opts", nargs="+", action="extend", default=[], metavar="KEY VALUE", help="config keys with other values")
    parser.add_argument("--data-path", metavar="DIR", help="folder that holds train/ and val/")
    parser.add_argument("--batch-size", type=int, help="images per process")
    parser.add_argument("--accumulation-steps", type=int, help="micro-batches per update")
    parser.add_argument("--pretrained", metavar="FILE", help="weights to start from")
    parser.add_argument("--resume", metavar="FILE", help="checkpoint to go on from, or to evaluate with --eval")
    parser.add_argument("--use-checkpoint", action="store_true", help="activation checkpointing: less memory, slower")
    parser.add_argument("--disable_amp", action="store_true", help="train and evaluate in float32")
    parser.add_argument("--amp-opt-level", choices=["O0", "O1", "O2"], help="O0: float32, O1: autocast; O2 has gone with apex.amp")
    parser.add_argument("--output", metavar="DIR", help="where runs lie: <output>/<model name>/<tag>")
    parser.add_argument("--tag", help="name of the run")
    parser.add_argument("--eval", action="store_true", help="evaluate the weights of --resume and end")
    parser.add_argument("--check", action="store_true", help="check config, data, disk and one step, estimate the time, and end")
    parser.add_argument("--throughput", action="store_true", help="time the model on synthetic images and end")
    parser.add_argument("--fused", action="store_true", help="with --eval or --throughput: the deployed form of the model")
    parser.add_argument(
        "--benchmark-data", nargs="?", type=float, const=0.0, metavar="IMAGES_PER_SECOND",
        help="time the loading of training images, say how many workers that many images/s of all GPUs take, and end",
    )  # fmt: skip
    parser.add_argument("--zip", action="store_true", help="read Swin's zip files: train.zip and train_map.txt, val.zip and val_map.txt")
    parser.add_argument("--cache-mode", choices=["no", "full", "part"], help="with zip and tar files: read all of them (full), or this process' share (part), into memory")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="given by torch.distributed.launch")
    args = parser.parse_args(argv)
    if args.amp_opt_level == "O2":
        parser.error("--amp-opt-level O2: was NVIDIA apex's, which has no amp since 2025; use O1, torch's autocast, or O0, float32")
    if args.disable_amp and args.amp_opt_level == "O1":
        parser.error(f"--disable_amp contradicts --amp-opt-level {args.amp_opt_level}; give one of them")
    if args.check and (args.eval or args.throughput):
        parser.error(f"--check contradicts {'--eval' if args.eval else '--throughput'}, it checks a training run; give one of them")
    for flag, given in (("--eval", args.eval), ("--resume", args.resume), ("--pretrained", args.pretrained)):
        if args.throughput and given:
            parser.error(f"{flag} contradicts --throughput, which times the model alone; give one of them")
    if args.fused and not (args.eval or args.throughput):
        parser.error("--fused: the deployed form cannot be trained; add --eval or --throughput")
    for flag, given in (("--eval", args.eval), ("--check", args.check), ("--throughput", args.throughput),
                        ("--resume", args.resume), ("--pretrained", args.pretrained)):  # fmt: skip
        if args.benchmark_data is not None and given:
            parser.error(f"{flag} contradicts --benchmark-data, which times the loading of images alone; give one of them")
    if args.benchmark_data and not (0 < args.benchmark_data < math.inf):
        parser.error(f"--benchmark-data: {args.benchmark_data} is no speed; give the images/s that all GPUs together take, or nothing")
    if args.eval and args.resume and args.pretrained:
        parser.error("--eval: --resume contradicts --pretrained, either could be meant; give one of them")
    return args


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
        "TEST.FUSED": True if args.fused else None,
        "OUTPUT": args.output,
        "TAG": args.tag,
        "AMP.ENABLED": False if args.disable_amp or level == "O0" else True if level else None,
    }
    return {key: value for key, value in flags.items() if value is not None}


_reporting = threading.Lock()


def report(error: UserError) -> NoReturn:
    """Prints the error as the one last line and exits with its status.

    When every process meets the same error, rank 0 says it and its exit makes the launcher end the others, which wait
    here for that. An error that only another rank meets is said by that rank.
    """
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) not in ("0", str(error.speaker)):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(3)
    if not _reporting.acquire(blocking=False):  # another thread of this process says it and exits
        time.sleep(60)
    line = f"error: {printable(error)}"
    if not error.retry and restarts_left():
        line += " (no restart mends this: the launcher is told to end)"
    with contextlib.suppress(OSError, ValueError):  # nowhere left to say it: the status still does
        print(line, file=sys.stderr, flush=True)
    if os.environ.get("TORCHELASTIC_ERROR_FILE"):  # the launcher shows this in its own closing report
        with contextlib.suppress(OSError), open(os.environ["TORCHELASTIC_ERROR_FILE"], "w") as file:
            json.dump({"message": line, "timestamp": int(time.time())}, file)
    if not error.retry:
        refuse_restart(PARENT)
    leave(error.status)


def leave(status: int) -> NoReturn:
    """Ends at once: unlike after sys.exit, other processes and workers are not waited for."""
    with contextlib.suppress(OSError):
        end_all()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def run_and_leave(argv: Optional[Sequence[str]] = None) -> None:
    """`main`, with its errors as one line and an exit status."""
    try:
        main(argv)
        leave(0)  # Python's own end would unwind threads that wait in torch.distributed's C++ code, which can abort the process
    except UserError as error:
        report(error)
    except Stopped as stopped:
        if str(stopped):
            with contextlib.suppress(OSError, ValueError):
                print(printable(stopped), file=sys.stderr, flush=True)
        if stopped.reason in ("SIGUSR1", "SIGINT"):  # SIGTERM is also how the launcher ends its processes to restart them
            refuse_restart(PARENT)
        leave(stopped.status)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run_and_leave()
