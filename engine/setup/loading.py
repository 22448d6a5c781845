"""How images come to the device, as the config says."""

from typing import Any, Callable, Sequence

import torch
from yacs.config import CfgNode

from data.batches import Finish
from data.cache import plan_caches
from data.loader import Loading
from utils.processes.peers import Peers
from utils.run_log import RunLog


def loading(cfg: CfgNode, device: torch.device) -> Loading:
    return Loading(
        finish=Finish(cfg.DATA.MEAN, cfg.DATA.STD, device, cfg.TRAIN.CHANNELS_LAST),
        num_workers=cfg.DATA.NUM_WORKERS,
        prefetch=cfg.DATA.PREFETCH,
        pin_memory=cfg.DATA.PIN_MEMORY and device.type == "cuda",
        timeout=cfg.DATA.TIMEOUT,
    )


def caches(mode: str, datasets: Sequence[Any], peers: Peers, log: RunLog) -> Callable[[], None]:
    """See `plan_caches`."""
    launch = peers.launch
    return plan_caches(
        [dataset.source for dataset in datasets],
        mode,
        launch.rank,
        launch.world_size,
        peers.gather,
        launch.local_size,
        log.info,
    )
