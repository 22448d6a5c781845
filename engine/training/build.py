"""A training run from its config: data, model, optimizer, schedule and state, each given the values that it uses."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Optional, cast

import torch
from timm.scheduler.scheduler import Scheduler
from torch import nn
from yacs.config import CfgNode

from data.loader import eval_loader, order_is_of_processes, train_loader
from data.schedule import Schedule
from utils.config import batch_size_of, to_dict
from utils.conflicts import mixes
from utils.errors import ConfigError
from utils.image_size import frozen
from utils.macs import Complexity
from utils.processes.launch import available_cores
from utils.processes.sameness import require_same_images
from utils.provenance import commit
from utils.rng import seed_all
from utils.schema import AUTO

from ..checkpoints.download import local_file
from ..checkpoints.file import open_checkpoint
from ..checkpoints.load import load_pretrained
from ..checkpoints.parts import Parts
from ..checkpoints.progress import Progress
from ..checkpoints.store import Checkpointer
from ..evaluation.sets.tables import is_imagenet
from ..session import Session
from ..setup.compilation import decide_compilation
from ..setup.complexity import complexity_of
from ..setup.group_draws import draw_by_groups
from ..setup.loading import loading
from ..setup.model import TimmModel, place, prepare_model, require_layout, wrap_model
from ..setup.precision import create_precision
from ..setup.preprocessing import input_warnings
from ..tasks import create_task
from ..tasks.base import Task
from ..tasks.distill import (
    Distillation,
    Inputs,
    Teacher,
    pretrained_teacher,
    trained_teacher,
)
from .delays import Delays
from .freeze import freeze
from .model_ema import WeightAverage
from .networks import Networks
from .nonfinite import FiniteGuard
from .observers import CompileTime, TrainBatchPicture
from .optim import LearningRate, Optimisation, create_lr_scheduler, create_optimizer
from .plan import BatchPlan, Sharing, plan_batches, split_update
from .recorder import Recorder
from .run_length import RunLength
from .saver import Saver
from .sharding import ShardedOptimizer, share_out
from .slow_rank import SlowRank
from .trainer import Trainer
from .training_data import TrainingData
from .waits import Waits


def build_trainer(session: Session, pretrained: str, batch_size: int) -> tuple[Trainer, Complexity, list[str]]:
    """Everything that a training run consists of, at its beginning. Writes nothing.

    Args:
        pretrained: weights to start from, '' for none.
        batch_size: DATA.BATCH_SIZE, or what `auto` stands for.

    Returns:
        The trainer, the model's size, and what to say of the weights it started from, by lines.

    Raises:
        UserError: settings, data or weights that cannot be used.
    """
    cfg = session.cfg
    if cfg.TRAIN.TOTAL_BATCH_SIZE:
        split_update(**update_of(session, batch_size))  # refuses before the data set is read
    task = create_task(cfg)
    data = build_data(session, task, batch_size)
    distillation = build_distillation(session, data.classes)
    task.prepare_training(len(data.classes), distillation)
    model, complexity, notes = build_model(session, task, len(data.classes), bool(distillation), pretrained)
    optim = build_optimisation(session, model, data.plan)
    compile_mode = decide_compilation(cfg, session.device).mode
    if data.plan.split and not data.plan.split.keeps_groups and not compile_mode:
        draw_by_groups(model)
    average = WeightAverage(model, cfg.EMA.DECAY, cfg.EMA.WARMUP) if cfg.EMA.ENABLED else None
    networks = Networks(model, wrap_model(model, session.device), average, compile_mode)
    progress = Progress()
    trainer = Trainer(
        session,
        task,
        data,
        networks,
        optim,
        progress,
        recorder=build_recorder(session, data, progress, str(optim.precision)),
        saver=build_saver(session, data, networks, optim, progress),
        observers=[TrainBatchPicture(), *([CompileTime()] if compile_mode else []), *session.observers],
        length=length_of(cfg, progress, keeps_time=session.is_first),
        seed=cfg.SEED,
    )
    return trainer, complexity, notes


# Data


def build_data(session: Session, task: Task, batch_size: int) -> TrainingData:
    cfg, launch = session.cfg, session.launch
    train_set = task.train_dataset()
    classes = list(train_set.classes)
    val_set = task.val_dataset(classes)
    update = update_of(session, batch_size)
    update["sharing"] = replace(update["sharing"], alike=order_is_of_processes(train_set, cfg.DATA.CACHE_MODE))
    plan = plan_batches(len(train_set), **update, lr_scaling=cfg.TRAIN.LR_SCALING)
    ranks: dict[str, Any] = dict(rank=launch.rank, world_size=launch.world_size)
    sizes = [(epoch, frozen(size)) for epoch, size in cfg.TRAIN.IMG_SIZES]
    changing: dict[str, Any] = dict(repeats=cfg.AUG.REPEATS, sizes=sizes, balanced=bool(cfg.DATA.SAMPLING))
    schedule = Schedule(plan.batches_per_epoch, plan.batch_size, seed=cfg.SEED, split=plan.split, **ranks, **changing)
    how = loading(cfg, session.device)
    train_batches = train_loader(train_set, schedule, how, cfg.DATA.SHUFFLE_BUFFER, cfg.DATA.CACHE_MODE)
    require_same_images(session.peers, train_batches.order, val_set.source.fingerprint)
    val_batches = eval_loader(val_set, batch_size, **ranks, loading=how)
    return TrainingData(train_batches, val_batches, plan, classes, batch_size)


def update_of(session: Session, batch_size: int) -> dict[str, Any]:
    """What an update is made of, as `plan_batches` and `split_update` take it."""
    cfg = session.cfg
    return {
        "total_batch_size": cfg.TRAIN.TOTAL_BATCH_SIZE,
        "accumulation_steps": cfg.TRAIN.ACCUMULATION_STEPS,
        "batch_size": batch_size,
        "world_size": session.launch.world_size,
        "sharing": Sharing(mixes(cfg), group_size=batch_size_of(cfg)),
    }


# Model


def build_model(
    session: Session, task: Task, num_classes: int, distilled: bool, pretrained: str
) -> tuple[nn.Module, Complexity, list[str]]:
    """The model on its device, its size, and what to say of the weights it starts from."""
    cfg, device = session.cfg, session.device
    seed_all(cfg.SEED)
    model = task.build_model(num_classes)
    if distilled and hasattr(model, "set_distilled_training"):
        cast(TimmModel, model).set_distilled_training()
    complexity = complexity_of(model, cfg)
    notes = start_from(model, pretrained, cfg)
    require_layout(model, device, cfg.TRAIN.CHANNELS_LAST)
    model = prepare_model(model, device, cfg.TRAIN.CHANNELS_LAST, cfg.TRAIN.USE_CHECKPOINT, sync_bn=cfg.TRAIN.SYNC_BN)
    freeze(model, cfg.TRAIN.FREEZE)
    return model, complexity, notes


def start_from(model: torch.nn.Module, pretrained: str, cfg: CfgNode) -> list[str]:
    """Loads MODEL.PRETRAINED, a file, into the model; returns what to say of it."""
    if not pretrained:
        return []
    checkpoint = open_checkpoint(Path(pretrained))
    name = checkpoint.better
    skipped, how = load_pretrained(model, checkpoint, name)
    note = f"started from {checkpoint.path} ({name} weights{how and ': '}{how})"
    note += f"; not in it or of another size, and initialised anew: {', '.join(skipped)}" if skipped else ""
    warnings = input_warnings(checkpoint.config, cfg, training=True)
    return [note, *(f"warning: {line}" for line in warnings)]


def build_distillation(session: Session, classes: list[str]) -> Optional[Distillation]:
    """What DISTILL.TEACHER adds to the loss; None without one.

    Raises:
        ConfigError: a teacher that timm does not know, or without weights; or one for other classes.
        CheckpointError: DISTILL.WEIGHTS cannot be read, or are another model's.
    """
    cfg, peers, log = session.cfg, session.peers, session.log
    name = cfg.DISTILL.TEACHER
    if not name:
        return None
    if cfg.DISTILL.WEIGHTS:
        path = Path(local_file(cfg.DISTILL.WEIGHTS, peers.launch, peers))
        checkpoint = open_checkpoint(path)
        if checkpoint.classes is not None and checkpoint.classes != classes:
            raise ConfigError(
                f"{path}: the teacher knows other classes than the data set; use one with the same, in the same order"
            )
        data = (checkpoint.config or {}).get("DATA", {})
        model, inputs, note = trained_teacher(name, len(classes), checkpoint, data)
        if note:
            log.info(f"DISTILL.WEIGHTS {path}: {note}")
    else:
        if peers.launch.local_rank:
            peers.gather(None)  # the machine's first process downloads
        model, inputs = pretrained_teacher(name, len(classes))
        if not peers.launch.local_rank:
            peers.gather(None)
    teacher = Teacher(model, inputs, Inputs(cfg.DATA.MEAN, cfg.DATA.STD))
    teacher = place(teacher, session.device, cfg.TRAIN.CHANNELS_LAST)
    return Distillation(teacher, cfg.DISTILL.KIND, cfg.DISTILL.ALPHA, cfg.DISTILL.TAU)


# Optimizer and schedule


def build_optimizer(cfg: CfgNode, model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    optimizer = create_optimizer(
        model,
        name=cfg.TRAIN.OPTIMIZER.NAME,
        lr=lr,
        weight_decay=cfg.TRAIN.WEIGHT_DECAY,
        eps=cfg.TRAIN.OPTIMIZER.EPS,
        betas=cfg.TRAIN.OPTIMIZER.BETAS,
        momentum=cfg.TRAIN.OPTIMIZER.MOMENTUM,
        layer_decay=cfg.TRAIN.LAYER_DECAY,
    )
    return share_out(optimizer) if cfg.TRAIN.SHARD == "optimizer" else optimizer


def build_optimisation(session: Session, model: torch.nn.Module, plan: BatchPlan) -> Optimisation:
    cfg = session.cfg
    precision = create_precision(cfg.AMP.ENABLED, cfg.AMP.DTYPE, session.device)
    optimizer = build_optimizer(cfg, model, plan.scale_lr(cfg.TRAIN.BASE_LR))
    learning_rate = LearningRate(
        name=cfg.TRAIN.LR_SCHEDULER.NAME,
        epochs=cfg.TRAIN.EPOCHS,
        warmup_epochs=cfg.TRAIN.WARMUP_EPOCHS or cfg.TRAIN.WARMUP_UPDATES / plan.updates_per_epoch,
        warmup_lr=plan.scale_lr(cfg.TRAIN.WARMUP_LR),
        min_lr=plan.scale_lr(cfg.TRAIN.MIN_LR),
        warmup_prefix=cfg.TRAIN.LR_SCHEDULER.WARMUP_PREFIX,
        decay_epochs=cfg.TRAIN.LR_SCHEDULER.DECAY_EPOCHS,
        decay_rate=cfg.TRAIN.LR_SCHEDULER.DECAY_RATE,
        power=cfg.TRAIN.LR_SCHEDULER.POWER,
        milestones=cfg.TRAIN.LR_SCHEDULER.MILESTONES,
    )
    lr_scheduler = create_lr_scheduler(optimizer, learning_rate, plan.updates_per_epoch)
    guard = FiniteGuard(cfg.TRAIN.NONFINITE, precision.skips_overflows, model, session.device)
    return Optimisation(optimizer, lr_scheduler, precision, guard, cfg.TRAIN.CLIP_GRAD)


# State and records


def length_of(cfg: CfgNode, progress: Progress, keeps_time: bool = True) -> RunLength:
    return RunLength(cfg.TRAIN.EPOCHS, cfg.TRAIN.PATIENCE, cfg.TRAIN.MAX_HOURS, progress, keeps_time)


def build_saver(
    session: Session, data: TrainingData, networks: Networks, optim: Optimisation, progress: Progress
) -> Saver:
    cfg = session.cfg
    states = {**networks.states(), **optim.states(), "progress": progress}
    parts = Parts(session.directory, session.peers) if isinstance(optim.optimizer, ShardedOptimizer) else None
    checkpointer = Checkpointer(session.directory, metadata_of(session, data, optim.lr_scheduler), parts, **states)
    when = (cfg.SAVE_FREQ, cfg.TRAIN.SAVE_EVERY_STEPS, cfg.TRAIN.SAVE_EVERY_MINUTES)
    return Saver(checkpointer, session.log, progress, session.peers, *when)


def build_recorder(session: Session, data: TrainingData, progress: Progress, precision: str) -> Recorder:
    cfg = session.cfg
    cores = available_cores(session.launch.local_size)
    waits = Waits(cfg.DATA.NUM_WORKERS, cfg.DATA.BACKEND, cores)
    delays = Delays(waits, SlowRank(session.peers.members, session.device))
    facts = result_facts(session, data, precision)
    return Recorder(session.log, progress, data.plan, cfg.TRAIN.EPOCHS, cfg.PRINT_FREQ, delays, session.device, facts)


def metadata_of(session: Session, data: TrainingData, lr_scheduler: Scheduler) -> dict[str, Any]:
    """What goes into every checkpoint as it is."""
    cfg, plan = session.cfg, data.plan
    return {
        "config": to_dict(cfg),
        "classes": data.classes,
        "lr_scheduler": lr_scheduler.state_dict(),
        "plan": {
            "num_images": plan.num_images,
            "images": data.train_loader.order,
            "seed": cfg.SEED,
            "repeats": cfg.AUG.REPEATS,
            "total_batch_size": plan.total_batch_size,
            "updates_per_epoch": plan.updates_per_epoch,
            "world_size": session.launch.world_size,
            **({"batch_size": data.batch_size} if cfg.DATA.BATCH_SIZE == AUTO else {}),
        },
    }


def result_facts(session: Session, data: TrainingData, precision: str) -> dict[str, Any]:
    """What result.json says of the run besides its figures."""
    cfg = session.cfg
    return {
        "cell": cfg.REPRODUCES,
        "model": cfg.MODEL.NAME,
        "epochs": cfg.TRAIN.EPOCHS,
        "seed": cfg.SEED,
        "classes": len(data.classes),
        "imagenet": is_imagenet(data.classes),
        "train_images": len(data.train_loader.dataset),
        "val_images": len(data.val_loader.dataset),
        "total_batch_size": data.plan.total_batch_size,
        "processes": session.launch.world_size,
        "precision": precision,
        "commit": commit(),  # of the code that trains, which may be another one at the end
    }
