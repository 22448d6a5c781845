"""The three things `main.py` does: train, evaluate, measure throughput. Each reads the config and names its parts."""

from pathlib import Path
from typing import Any, Optional

import torch
from timm.utils import ModelEmaV3
from yacs.config import CfgNode

from data.loader import EvalLoader, TrainLoader
from utils.config import leaf_keys, to_dict
from utils.distributed import Launch
from utils.errors import CheckpointError, ConfigError
from utils.files import write_json, write_text
from utils.macs import Complexity, measure_complexity
from utils.rng import seed_all
from utils.run_log import RunLog

from .checkpoint import LAST, Checkpointer, load_pretrained, load_weights, read_checkpoint, weights_of
from .evaluate import describe, evaluate, summarize
from .model import prepare_model, wrap_model
from .optim import ResumableOptimizer, create_lr_scheduler, create_optimizer
from .plan import accumulation_for, plan_batches
from .precision import create_precision
from .tasks import create_task
from .throughput import measure_throughput
from .trainer import Progress, Trainer, describe_best


INPUT_KEYS = ("DATA.IMG_SIZE", "DATA.INTERPOLATION", "DATA.MEAN", "DATA.STD", "TEST.CROP_PCT", "MODEL.FAT")  # shape what a model sees


def placement(launch: Launch, device: torch.device) -> str:
    return f"{device} | {launch.world_size} process{'es' if launch.world_size > 1 else ''}"


def run_directory(cfg: CfgNode) -> Path:
    """OUTPUT/MODEL.NAME/TAG, where everything of a run lies."""
    return Path(cfg.OUTPUT) / cfg.MODEL.NAME / cfg.TAG


def train(cfg: CfgNode, launch: Launch, device: torch.device) -> None:
    """Trains to the last epoch, from the run's last checkpoint if it has one; a finished run is left alone."""
    directory = run_directory(cfg)
    log = RunLog(directory, enabled=launch.rank == 0)

    # A run to go on with?
    resume = find_resume(directory, cfg.TRAIN.AUTO_RESUME, cfg.MODEL.RESUME)
    checkpoint = read_checkpoint(resume) if resume else None
    if checkpoint and resume == directory / LAST:
        progress = progress_of(checkpoint, resume)
        if progress.epoch >= cfg.TRAIN.EPOCHS:
            log.info(f"{directory} is finished: {progress.epoch} epochs, best {describe_best(progress.best)}; nothing to do")
            return

    # Data
    if cfg.TRAIN.COMPILE and cfg.TRAIN.USE_CHECKPOINT:
        raise ConfigError("TRAIN.COMPILE contradicts TRAIN.USE_CHECKPOINT (--use-checkpoint); switch one of them off")
    accumulation_for(  # refuses before the data set is read
        cfg.TRAIN.TOTAL_BATCH_SIZE, cfg.TRAIN.ACCUMULATION_STEPS, cfg.DATA.BATCH_SIZE, launch.world_size
    )
    precision = build_precision(cfg, device)
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
        num_workers=cfg.DATA.NUM_WORKERS,
        pin_memory=cfg.DATA.PIN_MEMORY and device.type == "cuda",
    )
    train_loader = TrainLoader(train_set, num_batches=plan.batches_per_epoch, seed=cfg.SEED, **placing)
    val_loader = EvalLoader(val_set, **placing)
    task.prepare_training(len(classes))

    # Model
    seed_all(cfg.SEED)
    model = task.build_model(len(classes))
    complexity = complexity_of(model, cfg)
    pretrained_note = "" if resume else start_from(model, cfg.MODEL.PRETRAINED)
    model = prepare_model(model, device, cfg.TRAIN.CHANNELS_LAST, cfg.TRAIN.USE_CHECKPOINT)

    # Optimizer, schedule, average
    lr = plan.scale_lr(cfg.TRAIN.BASE_LR)
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
    model_ema = ModelEmaV3(model, decay=cfg.EMA.DECAY, use_warmup=cfg.EMA.WARMUP) if cfg.EMA.ENABLED else None
    model, optimizer = precision.prepare(model, optimizer)
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
        directory,
        metadata={
            "config": to_dict(cfg),
            "classes": classes,
            "lr_scheduler": lr_scheduler.state_dict(),
            "plan": {"num_images": plan.num_images, "total_batch_size": plan.total_batch_size, "seed": cfg.SEED},
        },
        model=model,
        ema=model_ema and model_ema.module,
        optimizer=ResumableOptimizer(optimizer),
        scaler=precision,
        progress=progress,
    )
    if checkpoint:
        checkpointer.restore(checkpoint, resume)
        check_resumable(progress, checkpoint, checkpointer.metadata, resume)
        if progress.epoch >= cfg.TRAIN.EPOCHS:
            raise ConfigError(
                f"{resume}: is finished, epoch {progress.epoch} of TRAIN.EPOCHS {cfg.TRAIN.EPOCHS}; to train on from its "
                "weights use --pretrained, or set more epochs"
            )

    # Log
    log.open()
    log.open_records(progress.epoch * plan.updates_per_epoch + progress.step if checkpoint else -1)
    if launch.rank == 0:
        write_text(directory / "config.yaml", cfg.dump())
    log.info(
        f"{placement(launch, device)} | {precision} | global batch "
        f"{launch.world_size} x {plan.batch_size} x {plan.accumulation_steps} accumulated = {plan.total_batch_size} | "
        f"lr {lr:.3e}"
    )
    if cfg.DEVICE == "auto" and device.type == "cpu":
        log.warning("no GPU found, training on the CPU")
    log.info(f"{cfg.MODEL.NAME} at {cfg.DATA.IMG_SIZE} px: {complexity}")
    log.info(
        f"{cfg.DATA.DATA_PATH or cfg.DATA.DATASET}: {len(train_set)} training and {len(val_set)} validation images, "
        f"{len(classes)} classes; {plan.updates_per_epoch} updates per epoch; run in {directory}"
    )
    log.record(
        "start",
        progress.epoch * plan.updates_per_epoch + progress.step,
        {
            "model": cfg.MODEL.NAME,
            "img_size": cfg.DATA.IMG_SIZE,
            "params": complexity.params,
            "conv_macs": complexity.conv_macs,
            "macs": complexity.macs,
            "data_path": cfg.DATA.DATA_PATH,
            "train_images": len(train_set),
            "val_images": len(val_set),
            "classes": len(classes),
            "device": f"{launch.world_size} x {device.type}",
        },
    )
    if pretrained_note:
        log.info(pretrained_note)
    if checkpoint:
        log.info(f"resumed from {resume}: epoch {progress.epoch}, update {progress.step}")
        for change in config_changes(checkpoint["config"], to_dict(cfg)):
            log.warning(f"since that checkpoint {change}")
        if cfg.MODEL.RESUME and Path(cfg.MODEL.RESUME) != resume:
            log.warning(f"MODEL.RESUME {cfg.MODEL.RESUME} is not used: the run has its own {resume}")

    # Train
    if cfg.TRAIN.COMPILE:
        model.compile()
    Trainer(
        model=model,
        wrapped_model=wrap_model(model, device),
        task=task,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        precision=precision,
        model_ema=model_ema,
        train_loader=train_loader,
        val_loader=val_loader,
        plan=plan,
        progress=progress,
        checkpointer=checkpointer,
        log=log,
        device=device,
        rank=launch.rank,
        epochs=cfg.TRAIN.EPOCHS,
        seed=cfg.SEED,
        clip_grad=cfg.TRAIN.CLIP_GRAD,
        channels_last=cfg.TRAIN.CHANNELS_LAST,
        print_freq=cfg.PRINT_FREQ,
        save_freq=cfg.SAVE_FREQ,
        save_every_steps=cfg.TRAIN.SAVE_EVERY_STEPS,
    ).fit()
    log.info(f"finished: best {describe_best(progress.best)}; everything is in {directory}")
    log.close()


def evaluate_checkpoint(cfg: CfgNode, launch: Launch, device: torch.device) -> None:
    """Evaluates MODEL.RESUME (or MODEL.PRETRAINED) on the validation images and writes eval.json into the run's folder."""
    directory = run_directory(cfg)
    log = RunLog(directory, enabled=launch.rank == 0)
    path = Path(cfg.MODEL.RESUME or cfg.MODEL.PRETRAINED)
    checkpoint = read_checkpoint(path)
    weights = weights_of(checkpoint, path)

    precision = build_precision(cfg, device)
    task = create_task(cfg)
    classes = checkpoint.get("classes")
    val_set = task.val_dataset(classes if isinstance(classes, list) else None)  # other tools' files may have none
    loader = EvalLoader(
        val_set,
        batch_size=cfg.DATA.BATCH_SIZE,
        rank=launch.rank,
        world_size=launch.world_size,
        num_workers=cfg.DATA.NUM_WORKERS,
        pin_memory=cfg.DATA.PIN_MEMORY and device.type == "cuda",
    )
    model = prepare_model(
        task.build_model(len(val_set.classes)), device, cfg.TRAIN.CHANNELS_LAST, use_checkpoint=False
    )
    for state_dict in weights.values():
        load_weights(model, state_dict, path)

    log.open()
    log.info(f"evaluating {path} on {len(val_set)} images | {placement(launch, device)} | {precision}")
    if isinstance(checkpoint.get("config"), dict):
        for change in config_changes(checkpoint["config"], to_dict(cfg)):
            if change.startswith(INPUT_KEYS):
                log.warning(f"since training {change}")
    results = {}
    for name, state_dict in weights.items():
        load_weights(model, state_dict, path)
        results[name] = evaluate(model, task, loader, precision, device, log, cfg.TRAIN.CHANNELS_LAST)
    log.info(describe(results))
    if launch.rank == 0:
        summary = summarize(results, task.best_metric)
        where = {"checkpoint": str(path), "dataset": cfg.DATA.DATASET, "data_path": cfg.DATA.DATA_PATH}
        write_json(directory / "eval.json", {**summary, **where, "precision": str(precision)})
        log.info(f"wrote {directory / 'eval.json'}")
    log.close()


def throughput(cfg: CfgNode, launch: Launch, device: torch.device) -> None:
    """Prints the model's inference speed on synthetic images; reads and writes no files."""
    log = RunLog(run_directory(cfg), enabled=launch.rank == 0)
    precision = build_precision(cfg, device)
    model = create_task(cfg).build_model(cfg.MODEL.NUM_CLASSES or 1000)
    log.info(f"{cfg.MODEL.NAME} at {cfg.DATA.IMG_SIZE} px: {complexity_of(model, cfg)}")
    model = prepare_model(model, device, cfg.TRAIN.CHANNELS_LAST, use_checkpoint=False)
    if cfg.TRAIN.COMPILE:
        model.compile()
    log.info(f"{device} | {precision} | batch {cfg.DATA.BATCH_SIZE}")
    speed = measure_throughput(
        model, precision, device, cfg.DATA.BATCH_SIZE, cfg.DATA.IMG_SIZE, cfg.TRAIN.CHANNELS_LAST
    )
    log.info(str(speed))


def build_precision(cfg: CfgNode, device: torch.device):
    return create_precision(cfg.AMP.ENABLED, cfg.AMP.DTYPE, cfg.AMP.BACKEND, cfg.AMP.OPT_LEVEL, device)


def complexity_of(model: torch.nn.Module, cfg: CfgNode) -> Complexity:
    try:
        return measure_complexity(model, (3, cfg.DATA.IMG_SIZE, cfg.DATA.IMG_SIZE))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise ConfigError(
            f"DATA.IMG_SIZE: {cfg.MODEL.NAME} cannot take images of {cfg.DATA.IMG_SIZE} px ({reason}); use another size"
        ) from None


def find_resume(directory: Path, auto_resume: bool, resume: str) -> Optional[Path]:
    """The checkpoint to go on from: the run's own last one, else the one that is named, else none."""
    last = directory / LAST
    if auto_resume and last.exists():
        return last
    return Path(resume) if resume else None


def progress_of(checkpoint: dict[str, Any], path: Path) -> Progress:
    progress = Progress()
    try:
        progress.load_state_dict(checkpoint["progress"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path}: holds weights but no training state; use it with --pretrained instead"
        ) from None
    return progress


def check_resumable(progress: Progress, old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """Compares a checkpoint with the run that would go on from it.

    Raises:
        ConfigError: the classes are other ones; or the checkpoint is from within an epoch and the images already seen
            would not be known, as the data set, the images per update or the seed changed.
    """
    if old["classes"] != new["classes"]:
        differ = [f"{a!r} is now {b!r}" for a, b in zip(old["classes"], new["classes"]) if a != b][:3]
        raise ConfigError(f"{path}: was trained on other classes ({', '.join(differ)}); start with another --tag")
    for key, value in new["plan"].items():
        if progress.step and old["plan"].get(key) != value:
            raise ConfigError(
                f"{path}: is from within epoch {progress.epoch}, with {key} {old['plan'].get(key)}; now it is {value}. "
                "Finish the epoch with the old value, or start with another --tag"
            )


def better_weights(checkpoint: dict[str, Any], weights: dict[str, Any]) -> str:
    """'ema' if the checkpoint is its run's best one and its average was what was best, else 'raw'."""
    try:
        progress = progress_of(checkpoint, Path())
    except CheckpointError:  # of another tool
        return "raw"
    is_best = progress.best.get("epoch") == progress.epoch - 1
    return "ema" if is_best and progress.best.get("weights") == "ema" and "ema" in weights else "raw"


def start_from(model: torch.nn.Module, pretrained: str) -> str:
    """Loads MODEL.PRETRAINED into the model; returns what to say of it."""
    if not pretrained:
        return ""
    path = Path(pretrained)
    checkpoint = read_checkpoint(path)
    weights = weights_of(checkpoint, path)
    name = better_weights(checkpoint, weights)
    skipped = load_pretrained(model, weights[name], path)
    note = f"started from {path} ({name} weights)"
    return note + (f"; of another size and initialised anew: {', '.join(skipped)}" if skipped else "")


def config_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between a checkpoint's config and this one, a line per key."""
    changes = []
    for key in leaf_keys():
        before, after = old, new
        for name in key.split("."):
            before = before.get(name) if isinstance(before, dict) else None
            after = after[name]
        if before != after:
            changes.append(f"{key} changed from {before!r} to {after!r}")
    return changes
