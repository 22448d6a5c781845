"""A training run from its config: data, model, optimizer, schedule and state, each given the values that it uses."""

from pathlib import Path
from typing import Optional

import torch
from timm.utils import ModelEmaV3
from yacs.config import CfgNode

from data.loader import eval_loader, train_loader
from utils.config import to_dict
from utils.distributed import available_cores, local_processes
from utils.errors import ConfigError
from utils.macs import Complexity
from utils.provenance import commit
from utils.rng import seed_all

from ..checkpoints.download import local_file
from ..checkpoints.file import open_checkpoint
from ..checkpoints.load import load_pretrained
from ..checkpoints.progress import Progress
from ..checkpoints.store import Checkpointer
from ..evaluation.sets.tables import is_imagenet
from ..session import Session
from ..setup.complexity import complexity_of
from ..setup.loading import loading
from ..setup.model import place, prepare_model, require_layout, wrap_model
from ..setup.precision import create_precision
from ..setup.preprocessing import input_warnings
from ..tasks import create_task
from ..tasks.distill import (
    Distillation,
    Inputs,
    Teacher,
    pretrained_teacher,
    trained_teacher,
)
from .freeze import freeze
from .nonfinite import FiniteGuard
from .optim import ResumableOptimizer, create_lr_scheduler, create_optimizer
from .plan import accumulation_for, plan_batches
from .trainer import Trainer
from .waits import Waits


def build_trainer(session: Session, pretrained: str) -> tuple[Trainer, Complexity, list[str]]:
    """Everything that a training run consists of, at its beginning. Writes nothing.

    Args:
        pretrained: weights to start from, '' for none.

    Returns:
        The trainer, the model's size, and what to say of the weights it started from, by lines.

    Raises:
        UserError: settings, data or weights that cannot be used.
    """
    cfg, launch, device, peers, log = session.cfg, session.launch, session.device, session.peers, session.log

    # Data
    accumulation_for(  # refuses before the data set is read
        cfg.TRAIN.TOTAL_BATCH_SIZE, cfg.TRAIN.ACCUMULATION_STEPS, cfg.DATA.BATCH_SIZE, launch.world_size
    )
    precision = create_precision(cfg.AMP.ENABLED, cfg.AMP.DTYPE, device)
    task = create_task(cfg)
    train_set = task.train_dataset()
    classes = list(train_set.classes)
    val_set = task.val_dataset(classes)
    plan = plan_batches(
        len(train_set),
        cfg.DATA.BATCH_SIZE,
        launch.world_size,
        cfg.TRAIN.ACCUMULATION_STEPS,
        cfg.TRAIN.TOTAL_BATCH_SIZE,
    )
    placing = dict(
        batch_size=cfg.DATA.BATCH_SIZE,
        rank=launch.rank,
        world_size=launch.world_size,
        **loading(cfg, device),
    )
    epochs = dict(num_batches=plan.batches_per_epoch, seed=cfg.SEED, repeats=cfg.AUG.REPEATS, sizes=cfg.TRAIN.IMG_SIZES)
    reading = dict(buffer=cfg.DATA.SHUFFLE_BUFFER, cache_mode=cfg.DATA.CACHE_MODE)
    train_batches = train_loader(train_set, **epochs, **reading, **placing)
    val_batches = eval_loader(val_set, **placing)
    distillation = build_distillation(session, classes)
    task.prepare_training(len(classes), distillation)

    # Model
    seed_all(cfg.SEED)
    model = task.build_model(len(classes))
    if distillation and hasattr(model, "set_distilled_training"):
        model.set_distilled_training()
    complexity = complexity_of(model, cfg)
    pretrained_notes = start_from(model, pretrained, cfg)
    require_layout(model, device, cfg.TRAIN.CHANNELS_LAST)
    model = prepare_model(model, device, cfg.TRAIN.CHANNELS_LAST, cfg.TRAIN.USE_CHECKPOINT)
    freeze(model, cfg.TRAIN.FREEZE)

    # Optimizer, schedule, average
    optimizer = build_optimizer(cfg, model, plan.scale_lr(cfg.TRAIN.BASE_LR))
    model_ema = ModelEmaV3(model, decay=cfg.EMA.DECAY, use_warmup=cfg.EMA.WARMUP) if cfg.EMA.ENABLED else None
    lr_scheduler = create_lr_scheduler(
        optimizer,
        name=cfg.TRAIN.LR_SCHEDULER.NAME,
        epochs=cfg.TRAIN.EPOCHS,
        warmup_epochs=cfg.TRAIN.WARMUP_EPOCHS,
        warmup_lr=plan.scale_lr(cfg.TRAIN.WARMUP_LR),
        min_lr=plan.scale_lr(cfg.TRAIN.MIN_LR),
        warmup_prefix=cfg.TRAIN.LR_SCHEDULER.WARMUP_PREFIX,
        decay_epochs=cfg.TRAIN.LR_SCHEDULER.DECAY_EPOCHS,
        decay_rate=cfg.TRAIN.LR_SCHEDULER.DECAY_RATE,
        updates_per_epoch=plan.updates_per_epoch,
    )

    # State
    progress = Progress()
    checkpointer = Checkpointer(
        session.directory,
        metadata={
            "config": to_dict(cfg),
            "classes": classes,
            "lr_scheduler": lr_scheduler.state_dict(),
            "plan": {
                "num_images": plan.num_images,
                "images": train_batches.order,
                "seed": cfg.SEED,
                "repeats": cfg.AUG.REPEATS,
                "total_batch_size": plan.total_batch_size,
                "updates_per_epoch": plan.updates_per_epoch,
                "world_size": launch.world_size,
            },
        },
        model=model,
        ema=model_ema and model_ema.module,
        optimizer=ResumableOptimizer(optimizer),
        scaler=precision,
        progress=progress,
    )
    trainer = Trainer(
        model=model,
        wrapped_model=wrap_model(model, device),
        task=task,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        precision=precision,
        model_ema=model_ema,
        train_loader=train_batches,
        val_loader=val_batches,
        plan=plan,
        progress=progress,
        checkpointer=checkpointer,
        log=log,
        device=device,
        peers=peers,
        guard=FiniteGuard(cfg.TRAIN.NONFINITE, precision.skips_overflows, model, device),
        waits=Waits(cfg.DATA.NUM_WORKERS, cfg.DATA.BACKEND, available_cores(local_processes(launch.world_size))),
        epochs=cfg.TRAIN.EPOCHS,
        seed=cfg.SEED,
        clip_grad=cfg.TRAIN.CLIP_GRAD,
        compile_mode=cfg.TRAIN.COMPILE_MODE if cfg.TRAIN.COMPILE else "",
        print_freq=cfg.PRINT_FREQ,
        save_freq=cfg.SAVE_FREQ,
        save_every_steps=cfg.TRAIN.SAVE_EVERY_STEPS,
        save_every_minutes=cfg.TRAIN.SAVE_EVERY_MINUTES,
        facts={
            "cell": cfg.REPRODUCES,
            "model": cfg.MODEL.NAME,
            "epochs": cfg.TRAIN.EPOCHS,
            "seed": cfg.SEED,
            "classes": len(classes),
            "imagenet": is_imagenet(classes),
            "train_images": len(train_set),
            "val_images": len(val_set),
            "total_batch_size": plan.total_batch_size,
            "processes": launch.world_size,
            "precision": str(precision),
            "commit": commit(),  # of the code that trains, which may be another one at the end
        },
    )
    return trainer, complexity, pretrained_notes


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
        model, own, note = trained_teacher(name, len(classes), checkpoint, data)
        if note:
            log.info(f"DISTILL.WEIGHTS {path}: {note}")
    else:
        if peers.launch.local_rank:
            peers.gather(None)  # the machine's first process downloads
        model, own = pretrained_teacher(name, len(classes))
        if not peers.launch.local_rank:
            peers.gather(None)
    teacher = Teacher(model, own, Inputs(cfg.DATA.MEAN, cfg.DATA.STD))
    teacher = place(teacher, session.device, cfg.TRAIN.CHANNELS_LAST)
    return Distillation(teacher, cfg.DISTILL.KIND, cfg.DISTILL.ALPHA, cfg.DISTILL.TAU)


def build_optimizer(cfg: CfgNode, model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    return create_optimizer(
        model,
        name=cfg.TRAIN.OPTIMIZER.NAME,
        lr=lr,
        weight_decay=cfg.TRAIN.WEIGHT_DECAY,
        eps=cfg.TRAIN.OPTIMIZER.EPS,
        betas=cfg.TRAIN.OPTIMIZER.BETAS,
        momentum=cfg.TRAIN.OPTIMIZER.MOMENTUM,
        layer_decay=cfg.TRAIN.LAYER_DECAY,
    )


def start_from(model: torch.nn.Module, pretrained: str, cfg: CfgNode) -> list[str]:
    """Loads MODEL.PRETRAINED, a file, into the model; returns what to say of it."""
    if not pretrained:
        return []
    checkpoint = open_checkpoint(Path(pretrained))
    name = checkpoint.better
    skipped, how = load_pretrained(model, checkpoint, name)
    note = f"started from {checkpoint.path} ({name} weights{how and ': '}{how})"
    note += f"; of another size and initialised anew: {', '.join(skipped)}" if skipped else ""
    warnings = input_warnings(checkpoint.config, cfg, training=True)
    return [note, *(f"warning: {line}" for line in warnings)]
