"""The start of a training run, or of its check: everything that comes before the first step. Writes nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from utils import provenance
from utils.config import to_dict
from utils.errors import ConfigError
from utils.image_size import size_text
from utils.loggers import require_loggers
from utils.macs import Complexity
from utils.urls import shown

from ..checkpoints.download import local_file
from ..checkpoints.file import progress_of
from ..checkpoints.parts import read_with_parts
from ..checkpoints.resume import StartPoint, config_changes, find_checkpoint
from ..session import Session
from ..setup.compilation import decide_compilation
from ..setup.data_notes import order_note, source_notes
from ..setup.loading import caches
from ..setup.model import has_drop_path
from ..setup.preprocessing import describe as describe_inputs
from ..tasks import create_task
from .batch_size import batch_size_of_run
from .build import build_optimizer, build_trainer, length_of
from .freeze import describe as describe_frozen
from .optim import describe_trust_ratio
from .preflight import look_ahead, rehearse
from .recorder import describe_best
from .sharding import describe_share
from .trainer import Trainer


@dataclass
class PreparedRun:
    """A run that is ready for its next step."""

    trainer: Trainer
    introduce: Callable[[], None]  # says what runs where on what
    fill_caches: Callable[[], None]  # reads archives into memory


def find_for_all(session: Session) -> StartPoint:
    """The checkpoint that rank 0 has found to go on from, read by every process."""
    cfg = session.cfg
    start = (
        find_checkpoint(session.directory, cfg.TRAIN.AUTO_RESUME, cfg.MODEL.RESUME)
        if session.is_first
        else StartPoint()
    )
    path, is_own = session.peers.from_first((str(start.path) if start.path else "", start.is_own))
    if path and not session.is_first:
        start = StartPoint(Path(path), read_with_parts(Path(path)), stamp=is_own or None)
    return start


def is_finished(session: Session, start: StartPoint) -> bool:
    """Whether the run's own checkpoint is that of its end; says so."""
    if not start.is_own or start.checkpoint is None or start.path is None:
        return False
    progress = progress_of(start.checkpoint, start.path)
    progress.judge_by(create_task(session.cfg).primary.key)
    ended = length_of(session.cfg, progress).ended_by(progress.epoch)
    if not ended:
        return False
    best = describe_best(progress.best)
    session.log.info(f"{session.directory} is finished: {ended}, best {best}; nothing to do")
    changes = config_changes(start.checkpoint.get("config", {}), to_dict(session.cfg))
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        session.log.warning(
            f"this command has settings that the run was not trained with ({', '.join(changes[:3])}{more}); "
            "give them another --tag"
        )
    return True


def prepare(session: Session, start: StartPoint) -> PreparedRun:
    """Builds the run, rehearses a step on copies, goes to the checkpoint's place, and looks ahead at disk and time."""
    cfg, peers, log = session.cfg, session.peers, session.log
    require_loggers(cfg.LOGGERS)
    pretrained = "" if start.path else local_file(cfg.MODEL.PRETRAINED, session.launch, peers)
    batch_size, chosen = batch_size_of_run(session, start.checkpoint)
    trainer, complexity, notes = build_trainer(session, pretrained, batch_size)
    notes = [chosen, *notes]
    findings = rehearse(
        trainer, lambda model: build_optimizer(cfg, model, trainer.data.plan.scale_lr(cfg.TRAIN.BASE_LR))
    )
    changes, judged = restore(trainer, start.checkpoint, start.path) if start.checkpoint and start.path else ([], "")
    notes += [
        judged,
        trainer.data.describe_lanes(trainer.progress),
        trainer.length.describe(),
        *getattr(trainer.task, "notes", ()),
    ]
    forecast = look_ahead(trainer, findings)
    datasets = [trainer.data.train_loader.dataset, trainer.data.val_loader.dataset]
    fill_caches = caches(cfg.DATA.CACHE_MODE, datasets, peers, log)

    def introduce() -> None:
        introduce_run(session, trainer, complexity)
        for line in [*source_notes(datasets), *findings.lines(cfg.DATA.NUM_WORKERS), *forecast]:
            log.info(line)
        record_start(session, trainer, complexity)
        warn_of_settings(session, trainer, has_weights=bool(pretrained or start.path))
        by_names = start.path and not cfg.DISTILL.TEACHER  # the checkpoint's classes were compared with the data set's
        ratio = describe_trust_ratio(trainer.optim.optimizer)
        order = "" if by_names else order_note(cfg, trainer.data.train_loader.dataset.classes)
        for line in filter(None, [ratio, order, *notes, *describe_start(session, start, changes, trainer)]):
            log.info(line)

    return PreparedRun(trainer, introduce, fill_caches)


def restore(trainer: Trainer, checkpoint: dict[str, Any], path: Path) -> tuple[list[str], str]:
    """Gives the trainer the checkpoint's state; returns what has changed since, and what to say of its best epoch.

    Raises:
        CheckpointError: it does not fit the run.
        ConfigError: its place in the run does not, or it is that of a finished run.
    """
    progress, config = trainer.progress, trainer.saver.checkpointer.metadata["config"]
    since = trainer.saver.restore(checkpoint, path)
    changes = config_changes(checkpoint["config"], config) + since
    progress.changes = progress.changes + changes
    judged = progress.judge_by(trainer.task.primary.key)
    if ended := trainer.length.ended_by(progress.epoch):
        raise ConfigError(
            f"{path}: is finished, {ended}; to train on from its weights use --pretrained, or set more epochs"
        )
    return changes, judged


def introduce_run(session: Session, trainer: Trainer, complexity: Complexity) -> None:
    """Says what runs where on what."""
    cfg, log, plan, device = session.cfg, session.log, trainer.data.plan, session.device
    train_set, val_set = trainer.data.train_loader.dataset, trainer.data.val_loader.dataset
    compilation = decide_compilation(cfg, device).reason
    log.info(
        f"{session.placement} | {trainer.optim.precision}{f' | {compilation}' * bool(compilation)} | {plan.describe()} | "
        f"lr {plan.scale_lr(cfg.TRAIN.BASE_LR):.3e}"
    )
    for note in plan.notes(trainer.data.batch_size, compiled=bool(trainer.networks.compile_mode)):
        log.info(note)
    session.describe_machines()
    if cfg.DEVICE == "auto" and device.type == "cpu":
        log.warning("no GPU found, training on the CPU")
    log.info(f"{cfg.MODEL.NAME} at {size_text(cfg.DATA.IMG_SIZE)} px: {complexity}")
    share = describe_share(trainer.optim.optimizer)
    if share:
        log.info(share)
    if cfg.TRAIN.FREEZE:
        log.info(describe_frozen(trainer.networks.model, cfg.TRAIN.FREEZE))
    log.info(
        f"{shown(cfg.DATA.DATA_PATH) or cfg.DATA.DATASET}: {len(train_set)} training and {len(val_set)} validation images, "
        f"{len(train_set.classes)} classes; {plan.updates_per_epoch} updates per epoch; run in {log.directory}"
    )


def record_start(session: Session, trainer: Trainer, complexity: Complexity) -> None:
    """Writes the same, as data, into the run's records."""
    cfg, plan = session.cfg, trainer.data.plan
    train_set, val_set = trainer.data.train_loader.dataset, trainer.data.val_loader.dataset
    values = {
        "model": cfg.MODEL.NAME,
        "img_size": cfg.DATA.IMG_SIZE,
        "params": complexity.params,
        "conv_macs": complexity.conv_macs,
        "macs": complexity.macs,
        "data_path": shown(cfg.DATA.DATA_PATH),
        "train_images": len(train_set),
        "val_images": len(val_set),
        "classes": len(train_set.classes),
        "device": f"{session.launch.world_size} x {session.device.type}",
        "processes": session.launch.world_size,
        "precision": str(trainer.optim.precision),
        "total_batch_size": plan.total_batch_size,
        "changes": trainer.progress.changes,
        **provenance.record(session.device),
    }
    session.log.record("start", trainer.progress.updates, values)


def warn_of_settings(session: Session, trainer: Trainer, has_weights: bool) -> None:
    """Says which settings of the model have no effect, or one that few want."""
    cfg, log = session.cfg, session.log
    if cfg.MODEL.TYPE == "timm":
        log.info(describe_inputs(cfg))
    if cfg.MODEL.DROP_PATH_RATE and not has_drop_path(trainer.networks.model):
        rate, name = cfg.MODEL.DROP_PATH_RATE, cfg.MODEL.NAME
        log.warning(f"MODEL.DROP_PATH_RATE is {rate}, but {name} has no drop path: it is left out")
    if cfg.TRAIN.FREEZE and not has_weights:
        log.warning(
            "TRAIN.FREEZE without MODEL.PRETRAINED (--pretrained): what is frozen has random weights, and keeps them"
        )


def describe_start(session: Session, start: StartPoint, changes: list[str], trainer: Trainer) -> list[str]:
    """Where the run goes on, and what is not as it was."""
    resume, progress = session.cfg.MODEL.RESUME, trainer.progress
    lines = [f"warning: {why}. Going on from {start.path} instead" for why in start.damaged.values()]
    if not start.path:
        return lines
    lines.append(f"resumed from {start.path}: epoch {progress.epoch}, update {progress.step}")
    lines += [f"warning: since that checkpoint {change}" for change in changes]
    if resume and Path(resume) != start.path:
        lines.append(f"warning: MODEL.RESUME {resume} is not used: the run has its own {start.path}")
    return lines
