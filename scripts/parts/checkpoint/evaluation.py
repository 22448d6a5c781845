"""Weights of one model, evaluated one after the other as main.py --eval does; and BatchNorm's statistics, computed anew."""

import itertools
from pathlib import Path
from typing import Any, Sequence

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from yacs.config import CfgNode

from data.loader import train_loader
from data.schedule import Schedule
from engine.checkpoints.load import load_weights
from engine.inference.examination import Examination
from engine.setup.loading import loading
from engine.tasks import create_task
from utils.config import batch_size_of
from utils.conflicts import require_no_conflict
from utils.device import choose_arithmetic, select_device
from utils.errors import CheckpointError
from utils.rng import seed_all

from .weight_files import State


class Evaluation:
    """A config's model, on its device, and its data.

    Raises:
        UserError: model, device or data cannot be used.
    """

    def __init__(self, cfg: CfgNode, classes: Sequence[str], path: Path):
        self.cfg, self.classes, self.path = cfg, list(classes), path
        self.task = create_task(cfg)
        device = select_device(cfg.DEVICE, 0)
        choose_arithmetic(device, exact=True, deterministic=False, fixed_sizes=True)  # as --eval
        self.examination = Examination(cfg, self.task.build_model(len(classes)), device)
        self.model = self.examination.model
        self.loader = None

    def metrics(self, state: State) -> dict[str, Any]:
        """The task's metrics of these weights over all validation images."""
        if self.loader is None:
            self.loader = self.examination.loader(self.task.val_dataset(self.classes))
        load_weights(self.model, state, self.path)
        return self.examination.run(self.loader, self.task.evaluator("figures", self.examination.device))

    @torch.no_grad()
    def recompute_bn(self, state: State, batches: int) -> State:
        """The weights with BatchNorm's statistics as the means over so many batches of augmented training images, in float32
        and without mixup (Izmailov et al. 2018, arXiv 1803.05407, Section 3.2).

        Raises:
            CheckpointError: the model has no BatchNorm.
        """
        load_weights(self.model, state, self.path)
        norms = [
            module
            for module in self.model.eval().modules()
            if isinstance(module, _BatchNorm) and module.track_running_stats
        ]
        if not norms:
            raise CheckpointError(
                f"{self.path}: {self.cfg.MODEL.NAME} has no BatchNorm whose statistics could be recomputed; leave --recompute-bn out"
            )
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
            norm.train()  # only these: drop path would change what later ones see
        cfg = self.cfg
        require_no_conflict(cfg, "benchmark_data")  # which opens the training images, too
        seed_all(cfg.SEED)
        train_set = self.task.train_dataset()
        batch_size = batch_size_of(cfg)
        in_epoch = max(len(train_set) // batch_size, 1)
        drawn: dict[str, Any] = dict(seed=cfg.SEED, repeats=cfg.AUG.REPEATS, balanced=bool(cfg.DATA.SAMPLING))
        schedule = Schedule(in_epoch, batch_size, rank=0, world_size=1, **drawn)
        how = loading(cfg, self.examination.device)
        images = train_loader(train_set, schedule, how, cfg.DATA.SHUFFLE_BUFFER, cache_mode="no")
        epochs = (images.epoch(epoch, 0) for epoch in itertools.count())
        for batch in itertools.islice(itertools.chain.from_iterable(epochs), batches):
            self.model(batch.images)
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
            norm.eval()
        return {key: value.detach().cpu().clone() for key, value in self.model.state_dict().items()}
