"""What a training would take on more GPUs than there are, on paper: images/s, what limits them, hours and price.

python scripts/plan_run.py --cfg configs/fat_b0.yaml --images-per-second 1000
python scripts/plan_run.py --cfg configs/fat_b0.yaml --run output/fat_b0/default --price-per-gpu-hour 2.5
"""

import argparse
import math
from pathlib import Path
from statistics import median
from typing import NamedTuple

from torch.nn.modules.batchnorm import _BatchNorm
from yacs.config import CfgNode

from command_line import Parser, not_negative, number, run_script, whole_number
from engine.tasks import create_task
from engine.training.plan import Sharing, plan_batches
from parts.plan_run.links import BETWEEN_NODES, GB, IN_NODE, link_of
from parts.plan_run.scaling import Cluster, Update, Work, update_on
from utils.config import load_config
from utils.conflicts import mixes
from utils.errors import ConfigError, DataError
from utils.markdown import aligned_table
from utils.run_files import RECORDS, read_figures

GPUS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
IMAGENET = 1_281_167
CLASSES = 1000
POSITIVE = number("above 0", lambda value: 0 < value < math.inf)
SHARE = number("above 0 and at most 1", lambda value: 0 < value <= 1)


class Speed(NamedTuple):
    """A run's speed."""

    images_per_second: float  # of all its processes, without the time in which they wait for images
    processes: int
    source: str


def speed_of(run: Path) -> Speed:
    """Raises DataError: the run has no finished epoch, or does not say how many processes it had."""
    records = read_figures(run)
    start = records["start"][-1]
    processes = start.get("processes")
    if type(processes) is not int or processes < 1:
        raise DataError(str(run / RECORDS), "does not say how many processes the run had", "give --images-per-second")
    speed = median(each["images_per_second"] / (1 - min(each.get("data_wait", 0), 0.99)) for each in records["train"])
    return Speed(speed, processes, f"{run}, {start.get('device', f'{processes} processes')}")


def work_of(cfg: CfgNode, images_per_second: float, args: argparse.Namespace) -> Work:
    """What a GPU has to do for the config's model. Its gradients are float32, with autocast too."""
    model = create_task(cfg).build_model(cfg.MODEL.NUM_CLASSES or CLASSES)
    gradient_bytes = 4 * sum(p.numel() for p in model.parameters())
    norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
    synced = 0 if cfg.TRAIN.SYNC_BN == "none" else norms
    return Work(
        images_per_second, gradient_bytes, synced, args.backward_share, args.data_rate, args.least_step_ms / 1e3
    )


def planned(cfg: CfgNode, gpus: int, work: Work, cluster: Cluster, images: int) -> Update:
    """The recipe's update on so many GPUs, in an epoch of so many images.

    Raises:
        ConfigError: they make none.
    """
    if isinstance(cfg.DATA.BATCH_SIZE, str):
        raise ConfigError("DATA.BATCH_SIZE", "is auto, which only the GPU's memory can tell", "give a number by --opts")
    steps, total = cfg.TRAIN.ACCUMULATION_STEPS, cfg.TRAIN.TOTAL_BATCH_SIZE
    plan = plan_batches(images, cfg.DATA.BATCH_SIZE, gpus, steps, total, sharing=Sharing(pairs=mixes(cfg)))
    return update_on(gpus, plan.batch_size, plan.accumulation_steps, work, cluster, plan.total_batch_size)


def row_of(update: Update, cfg: CfgNode, cluster: Cluster, args: argparse.Namespace) -> list[str]:
    hours = cfg.TRAIN.EPOCHS * args.images / update.images_per_second / 3600
    smaller = "*" if update.batch_size < cfg.DATA.BATCH_SIZE else ""
    row = [
        f"{update.gpus}",
        f"{cluster.nodes(update.gpus)}",
        f"{update.batch_size}{smaller} x {update.accumulation_steps}",
        f"{1000 * update.compute:.1f}",
        f"{1000 * update.reducing:.1f}",
        f"{1000 * update.syncing:.1f}",
        f"{update.images_per_second:,.0f}",
        f"{update.efficiency:.0%}",
        update.bottleneck,
        f"{hours:,.1f}",
        f"{hours * update.gpus:,.0f}",
    ]
    return [*row, f"{hours * update.gpus * args.price_per_gpu_hour:,.0f}"] if args.price_per_gpu_hour else row


HEAD = [
    "GPUs", "nodes", "batch x accumulation", "compute, ms", "all-reduce not hidden, ms", "SyncBN, ms", "images/s",
    "of the time computing", "bottleneck", "hours", "GPU-hours",
]  # fmt: skip


def assumptions(cfg: CfgNode, work: Work, speed: Speed, cluster: Cluster, args: argparse.Namespace) -> list[str]:
    data = f"{work.data_per_process:g} images/s per process" if work.data_per_process else "taken to be fast enough"
    return [
        f"speed of a GPU: {work.images_per_second:.4g} images/s ({speed.source}), the same at each batch; at small ones (*) it is slower than "
        f"that: a step takes {args.least_step_ms:g} ms at least (--least-step-ms)",
        f"run: {cfg.TRAIN.EPOCHS} epochs of {args.images:,} images, without evaluation, start and checkpoints",
        f"gradients: {work.gradient_bytes / 1e6:.1f} MB (float32), reduced once an update by a ring, 2 (N - 1) / N of them over each "
        f"link, in buckets of 1 and 25 MiB beside the backward pass, {args.backward_share:.0%} of a step, of the last micro-batch",
        f"in a node, of {args.gpus_per_node} GPUs: {cluster.in_node / GB:g} GB/s each, {args.link_in_node.source}",
        f"between nodes: {cluster.between_nodes / GB:g} GB/s of each node, {args.link_between_nodes.source}",
        f"share of a link's speed that an all-reduce reaches: {cluster.efficiency:.0%}; a message to all takes "
        f"{1e6 * cluster.latency_in_node:g} us in a node and {1e6 * cluster.latency_between:g} us over nodes (assumed, not from a "
        "source; nccl-tests measures both)",
        f"SyncBN: {work.sync_layers} layers, two messages each in a micro-batch, nothing of it hidden",
        f"data: {data}; loaded beside the rest",
    ]


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--cfg", required=True, help="config of the training")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys to change")
    speed = parser.add_mutually_exclusive_group(required=True)
    speed.add_argument("--images-per-second", type=POSITIVE, help="of one GPU in training, images being at hand")
    speed.add_argument("--run", type=Path, help="folder of a run whose speed is taken, best one of a single process")
    parser.add_argument(
        "--compare", type=Path, metavar="RUN", help="folder of a run on more processes: predicted, measured"
    )
    parser.add_argument("--data-rate", type=not_negative, default=0.0,
                        help="images/s that a process loads, as --benchmark-data says (default: enough)")  # fmt: skip
    parser.add_argument("--least-step-ms", type=not_negative, default=0.0,
                        help="what a step takes however small its batch is, as a GPU waits for the CPU (default: 0)")  # fmt: skip
    parser.add_argument("--gpus", type=whole_number(1), nargs="+", default=GPUS, help="default: 1 2 4 ... 512")
    parser.add_argument("--gpus-per-node", type=whole_number(1), default=8, help="default: 8")
    parser.add_argument("--link-in-node", type=link_of(IN_NODE), default=IN_NODE["nvlink4"],
                        help=f"GB/s of a GPU in one direction, or {', '.join(IN_NODE)} (default: nvlink4)")  # fmt: skip
    parser.add_argument("--link-between-nodes", type=link_of(BETWEEN_NODES), default=BETWEEN_NODES["8xib400"],
                        help=f"GB/s of a machine in one direction, or {', '.join(BETWEEN_NODES)} (default: 8xib400)")  # fmt: skip
    parser.add_argument("--link-efficiency", type=SHARE, default=0.8, help="share of it that is reached (default: 0.8)")
    parser.add_argument(
        "--latency-us", type=not_negative, default=20.0, help="of a small message in a node (default: 20)"
    )
    parser.add_argument(
        "--latency-between-us", type=not_negative, default=50.0, help="the same over nodes (default: 50)"
    )
    parser.add_argument("--backward-share", type=SHARE, default=2 / 3, help="of a step's time (default: two thirds)")
    parser.add_argument(
        "--images", type=whole_number(1), default=IMAGENET, help="of an epoch (default: ImageNet's 1281167)"
    )
    parser.add_argument("--price-per-gpu-hour", type=not_negative, default=0.0, help="adds a column, in its currency")
    return parser.parse_args()


def main() -> int:
    args = parse()
    cfg = load_config(args.cfg, args.opts)
    speed = speed_of(args.run) if args.run else Speed(args.images_per_second, 1, "as given")
    work = work_of(cfg, speed.images_per_second / speed.processes, args)
    cluster = Cluster(
        args.gpus_per_node,
        args.link_in_node.bytes_per_second,
        args.link_between_nodes.bytes_per_second,
        args.link_efficiency,
        args.latency_us / 1e6,
        args.latency_between_us / 1e6,
    )
    updates = [planned(cfg, gpus, work, cluster, args.images) for gpus in args.gpus]
    head = [*HEAD, "price"] if args.price_per_gpu_hour else HEAD
    print(aligned_table([head, *(row_of(update, cfg, cluster, args) for update in updates)]))
    print("\nOn paper, not measured. Taken as given:")
    for line in assumptions(cfg, work, speed, cluster, args):
        print(f"- {line}")
    if args.compare:
        measured = speed_of(args.compare)
        predicted = planned(cfg, measured.processes, work, cluster, args.images)
        print(
            f"\n{measured.processes} processes: {predicted.images_per_second:.1f} images/s predicted, "
            f"{measured.images_per_second:.1f} measured ({measured.source}): "
            f"{measured.images_per_second / predicted.images_per_second:.2f} of the prediction"
        )
    return 0


if __name__ == "__main__":
    run_script(main)
