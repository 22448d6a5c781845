"""The one way to evaluate a model outside training: its task's figures, of a data set's images."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import torch
from torch import nn
from yacs.config import CfgNode

from data.loader import Loader, eval_loader
from utils.config import batch_size_of
from utils.errors import Stopped
from utils.processes.launch import Launch
from utils.processes.peers import Peers
from utils.run_log import RunLog

from ..evaluation.loop import evaluate
from ..setup.loading import loading
from ..setup.model import prepare_model
from ..setup.precision import Precision, create_precision
from ..tasks.base import Evaluator


class Examination:
    """A model on its device, the loaders of its images, and the loop over them.

        examination = Examination(cfg, task.build_model(len(classes)), device)
        figures = examination.run(examination.loader(task.val_dataset(classes)), task.evaluator("figures", device))

    Args:
        cfg: says how images are loaded, and the precision.
        model: it is moved to the device.
        log, peers: of the session, if there is one; else this process is alone and says what there is on the console.
        precision: another one than the config's.

    Raises:
        ConfigError: the precision cannot be had on this device.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        device: torch.device,
        log: Optional[RunLog] = None,
        peers: Optional[Peers] = None,
        precision: Optional[Precision] = None,
    ):
        self.cfg = cfg
        self.device = device
        self.precision = precision or create_precision(cfg.AMP.ENABLED, cfg.AMP.DTYPE, device)
        self.model = prepare_model(model, device, cfg.TRAIN.CHANNELS_LAST, use_checkpoint=False)
        self.log = log or RunLog(Path(), enabled=True)
        self.peers = peers or Peers(Launch())

    def loader(self, dataset, batch_size: int = 0, **changes: Any) -> Loader:
        """This process' share of a data set's images.

        Args:
            batch_size: another one than the config's.
            changes: of how the config says that images are loaded, see `data.loader.Loading`.
        """
        launch, how = self.peers.launch, replace(loading(self.cfg, self.device), **changes)
        return eval_loader(dataset, batch_size or batch_size_of(self.cfg), launch.rank, launch.world_size, how)

    def run(self, images: Loader, evaluator: Evaluator, model: Optional[nn.Module] = None) -> dict[str, Any]:
        """The evaluator's figures of the model, or of another form of it.

        Raises:
            Stopped: the run was asked to stop.
            DataError: no image could be read.
        """
        figures = evaluate(model or self.model, evaluator, images, self.precision, self.log, self.peers)
        if figures is None:
            reason = self.peers.stop.reason or "a signal"
            self.log.info(f"stopped by {reason}; nothing is written of what was not done")
            raise Stopped
        return figures
