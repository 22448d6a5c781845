"""What `main.py` does: train, check, evaluate, measure throughput."""

import functools
import itertools
import time
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from yacs.config import CfgNode

from data.loader import Loader, eval_loader
from utils import provenance
from utils.config import to_dict
from utils.distributed import Launch
from utils.errors import ConfigError, OutputError, Stopped
from utils.files import remove_unfinished, write_json, write_text
from utils.lock import RunLock
from utils.loggers import require_loggers
from utils.macs import Complexity
from utils.peers import Peers
from utils.run_log import RunLog
from utils.signals import stop_signals

from .build import (
    build_optimizer,
    build_precision,
    build_trainer,
    caches,
    complexity_of,
    loading,
    run_directory,
)
from .checkpoints.file import open_checkpoint, progress_of, read_checkpoint
from .checkpoints.load import load_weights, require_fit
from .checkpoints.store import checkpoints_of
from .data_notes import order_note, source_notes
from .download import local_file
from .evaluate import describe, evaluate, summarize
from .evaluate_sets import evaluate_sets
from .evaluation_sets import open_sets
from .freeze import describe as describe_frozen
from .knn import Bank, Embedding, Neighbours, require_neighbours
from .model import deploy_model, has_drop_path, prepare_model
from .predictions import Predictions
from .preflight import look_ahead, rehearse
from .preprocessing import describe as describe_inputs, input_warnings
from .report import MISTAKES, REPORT, RESULT, write_report
from .set_reports import is_imagenet, table
from .resume import Found, config_changes, find_checkpoint, fit_progress, stamp_of
from .set_specs import VAL, read_sets
from .tasks import create_task
from .throughput import measure_throughput
from .trainer import Trainer, describe_best, require_same_place

# Besides checkpoints: what a run that starts over puts away.
OF_ONE_RUN = (
    "metrics.jsonl", "config.yaml", "tensorboard", "train.csv", "epochs.csv", "wandb_id.txt", RESULT, MISTAKES, REPORT,
)  # fmt: skip


def train(cfg: CfgNode, launch: Launch, device: torch.device, peers: Peers) -> None:
    """Trains to the last epoch, from the run's newest checkpoint if it has one; a finished run is left alone."""
    directory = run_directory(cfg)
    log = RunLog(directory, launch.rank == 0, cfg.LOGGERS, to_dict(cfg))
    found = find_for_all(cfg, directory, peers)
    if is_finished(cfg, found, log):
        return
    trainer, introduction, fill_caches = prepare(cfg, launch, device, peers, log, found)
    lock = RunLock(directory)
    try:
        if launch.rank == 0:
            lock.acquire()
            claim(directory, found, cfg.TRAIN.AUTO_RESUME)
            log.open()
            log.open_records(trainer.progress.updates if found.path else -1, trainer.progress.epoch)
            write_text(directory / "config.yaml", cfg.dump())
        peers.from_first(None)  # nobody goes on before the folder is rank 0's
        introduction()
        fill_caches()
        found.checkpoint = None  # its memory is free for the training
        with stop_signals(peers.stop):
            trainer.fit()
        log.info(f"finished: best {describe_best(trainer.progress.best)}; everything is in {directory}")
        if cfg.REPRODUCES and trainer.facts["imagenet"]:
            target = cfg.REPRODUCES.rpartition("/")[0] or "classification"
            log.info(f"`python scripts/reproduce.py {target} --runs {directory}` puts it into the tables, if it is the recipe of configs/{cfg.REPRODUCES}.yaml")
        if launch.rank == 0:
            report_if_possible(directory, log)
        log.close()
    finally:
        log.abandon()
        lock.release()


def check(cfg: CfgNode, launch: Launch, device: torch.device, peers: Peers) -> None:
    """Does everything that precedes a run's first step, and writes nothing but weights that a URL names."""
    directory = run_directory(cfg)
    log = RunLog(directory, enabled=launch.rank == 0)
    found = find_for_all(cfg, directory, peers)
    if is_finished(cfg, found, log):
        return
    _, introduction, _ = prepare(cfg, launch, device, peers, log, found)
    introduction()
    log.info("all checks passed; nothing was written")


def evaluate_checkpoint(cfg: CfgNode, launch: Launch, device: torch.device, peers: Peers) -> None:
    """Evaluates MODEL.RESUME (or MODEL.PRETRAINED) and writes into the run's folder: eval.json, of the validation images,
    and with TEST.SETS the files of each set and a table into eval/.
    """
    directory = run_directory(cfg)
    log = RunLog(directory, enabled=launch.rank == 0)
    if cfg.TEST.KNN and cfg.TEST.FUSED:
        raise ConfigError("TEST.KNN compares features, which the deployed form (--fused) does not give; leave one of them out")
    if cfg.TEST.KNN and cfg.TEST.SETS and VAL not in cfg.TEST.SETS:
        raise ConfigError(f"TEST.KNN is about the validation images; add {VAL} to TEST.SETS, or leave it out")
    specs = read_sets(cfg.TEST.SETS_FILE, cfg.TEST.SETS or [VAL])
    path = Path(local_file(cfg.MODEL.RESUME or cfg.MODEL.PRETRAINED, launch, peers))
    checkpoint = open_checkpoint(path)

    precision = build_precision(cfg, device)
    task = create_task(cfg)
    known = checkpoint.classes  # other tools' files may have none
    val_set = functools.cache(lambda: task.val_dataset(known))
    classes = known or list(val_set().classes)
    root = cfg.TEST.SETS_PATH or cfg.DATA.DATA_PATH
    sets = open_sets(specs, task, val_set, classes, root, cfg.DATA.OUTSIDE_LINKS, cfg.DATA.TIMEOUT)
    model = prepare_model(task.build_model(len(classes)), device, cfg.TRAIN.CHANNELS_LAST, use_checkpoint=False)
    fitted = {name: require_fit(model, checkpoint, name) for name in checkpoint.weights}
    weights = {name: of_file.state for name, of_file in fitted.items()}

    compared = task.feature_datasets(classes) if cfg.TEST.KNN else ()
    if compared:
        require_neighbours(cfg.TEST.KNN, len(compared[0]))
        task.features(model)  # or it refuses now

    log.open()
    size = f"{len(val_set())} images" if not cfg.TEST.SETS else f"the sets {', '.join(cfg.TEST.SETS)}"
    log.info(f"evaluating {path} on {size} | {placement(launch, device)} | {precision}{' | fused' * cfg.TEST.FUSED}")
    notes = [f"{name}: {of_file.note}" for name, of_file in fitted.items() if of_file.note]
    if notes:
        log.info(f"{path}: {'; '.join(notes)}")
    for line in source_notes(part for opened in sets.values() for part in opened.parts.values()):
        log.info(line)
    if checkpoint.classes is None and (line := order_note(cfg, classes)):
        log.warning(f"{path}: has no class names; {line}")
    if cfg.MODEL.TYPE == "timm":
        log.info(describe_inputs(cfg))
    for line in input_warnings(checkpoint.config, cfg):
        log.warning(line)

    @functools.lru_cache(maxsize=1)  # the workers of the one before end
    def loader(dataset) -> Loader:
        caches("no" if cfg.DATA.CACHE_MODE == "no" else "part", [dataset], peers, log)()  # nobody reads another's share
        placing = dict(batch_size=cfg.DATA.BATCH_SIZE, rank=launch.rank, world_size=launch.world_size)
        return eval_loader(dataset, **placing, **loading(cfg, device))

    def evaluated(network: torch.nn.Module, of: Any, images: Loader, metrics: Any) -> dict[str, Any]:
        found = evaluate(network, of, images, precision, device, log, peers, metrics=metrics)
        if found is None:
            log.info(f"stopped by {peers.stop.reason or 'a signal'}; nothing is written of what was not done")
            raise Stopped
        return found

    def measured(name: str, images: Loader, metrics: Optional[Predictions] = None) -> dict[str, Any]:
        load_weights(model, weights[name], path)
        return evaluated(deploy_model(model, precision.dtype) if cfg.TEST.FUSED else model, task, images, metrics)

    def neighbours(name: str) -> dict[str, Any]:
        load_weights(model, weights[name], path)
        features, bank = task.features(model), Bank(device, peers)
        evaluated(features, Embedding(), loader(compared[0]), bank)
        votes = Neighbours(bank, cfg.TEST.KNN, cfg.TEST.KNN_TEMPERATURE, len(classes))
        return evaluated(features, Embedding(), loader(compared[1]), votes)

    views = {"img_size": cfg.TEST.IMG_SIZE or cfg.DATA.IMG_SIZE, "crops": cfg.TEST.CROPS, "flip": cfg.TEST.FLIP}
    facts = {"checkpoint": str(path), "precision": str(precision), "fused": cfg.TEST.FUSED, **views}
    if compared:
        facts |= {"knn_temperature": cfg.TEST.KNN_TEMPERATURE, "knn_train_images": len(compared[0])}
    with stop_signals(peers.stop):  # an exception at any line could be lost in what ends the workers
        if cfg.TEST.SETS:
            results, summaries = evaluate_sets(
                sets, cfg.TEST.SETS, list(weights), checkpoint.better, measured, loader, classes, task.best_metric,
                device, log, peers, directory / "eval", facts, cfg.TEST.PREDICTIONS,
            )  # fmt: skip
        else:
            results = {name: measured(name, loader(val_set())) for name in weights}
        if cfg.TEST.KNN:
            results = {name: {**metrics, **neighbours(name)} for name, metrics in results.items()}
    if results:
        log.info(describe(results))
    if results and launch.rank == 0:
        summary = summarize(results, task.best_metric)
        images = {"dataset": cfg.DATA.DATASET, "data_path": cfg.DATA.DATA_PATH, "crop_pct": cfg.TEST.CROP_PCT}
        complete = {"complete": summary["num_images"] == len(val_set())}
        measured_as = {"cell": cfg.REPRODUCES, "classes": len(classes), "imagenet": is_imagenet(classes)}
        write_json(directory / "eval.json", {**summary, **images, **complete, **facts, **measured_as})
        log.info(f"wrote {directory / 'eval.json'}")
    if cfg.TEST.SETS and launch.rank == 0:
        columns = {name: spec.published for name, spec in specs.items()}
        size = sum(parameter.numel() for parameter in model.parameters())
        text = table(cfg.MODEL.NAME, size, task.eval_size, summaries, cfg.TEST.SETS, columns, is_imagenet(classes))
        write_text(directory / "eval" / "table.md", text)
        log.info(f"wrote {directory / 'eval' / 'table.md'}\n{text.rstrip()}")
    log.close()


def throughput(cfg: CfgNode, launch: Launch, device: torch.device, peers: Peers) -> None:
    """Prints the model's inference speed on synthetic images; reads and writes no files."""
    log = RunLog(run_directory(cfg), enabled=launch.rank == 0)
    precision = build_precision(cfg, device)
    model = create_task(cfg).build_model(cfg.MODEL.NUM_CLASSES or 1000)
    log.info(f"{cfg.MODEL.NAME} at {cfg.DATA.IMG_SIZE} px: {complexity_of(model, cfg)}")
    model = prepare_model(model, device, cfg.TRAIN.CHANNELS_LAST, use_checkpoint=False)
    if cfg.TEST.FUSED:
        model = deploy_model(model, precision.dtype)
    if cfg.TRAIN.COMPILE:
        model.compile(mode=cfg.TRAIN.COMPILE_MODE)
    log.info(f"{device} | {precision}{' | fused' * cfg.TEST.FUSED} | batch {cfg.DATA.BATCH_SIZE}")
    speed = measure_throughput(
        model, precision, device, cfg.DATA.BATCH_SIZE, cfg.DATA.IMG_SIZE, cfg.TRAIN.CHANNELS_LAST
    )
    log.info(str(speed))


# The parts of a start


def find_for_all(cfg: CfgNode, directory: Path, peers: Peers) -> Found:
    """The checkpoint that rank 0 found to go on from, read by every process."""
    found = find_checkpoint(directory, cfg.TRAIN.AUTO_RESUME, cfg.MODEL.RESUME) if peers.launch.rank == 0 else Found()
    path, own = peers.from_first((str(found.path) if found.path else "", found.own))
    if peers.launch.rank and path:
        found = Found(Path(path), read_checkpoint(Path(path)), stamp=own or None)
    return found


def is_finished(cfg: CfgNode, found: Found, log: RunLog) -> bool:
    """Whether the run's own checkpoint is that of its end; says so."""
    progress = progress_of(found.checkpoint, found.path) if found.own else None
    if not progress or progress.epoch < cfg.TRAIN.EPOCHS:
        return False
    log.info(f"{log.directory} is finished: {progress.epoch} epochs, best {describe_best(progress.best)}; nothing to do")
    changes = config_changes(found.checkpoint.get("config", {}), to_dict(cfg))
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        log.warning(f"this command has settings that the run was not trained with ({', '.join(changes[:3])}{more}); give them another --tag")
    return True


def prepare(
    cfg: CfgNode, launch: Launch, device: torch.device, peers: Peers, log: RunLog, found: Found
) -> tuple[Trainer, Callable[[], None], Callable[[], None]]:
    """A run that is ready for its next step; what says what runs where on what; and what reads archives into memory.
    Writes nothing.
    """
    require_loggers(cfg.LOGGERS)
    pretrained = "" if found.path else local_file(cfg.MODEL.PRETRAINED, launch, peers)
    trainer, complexity, notes = build_trainer(cfg, device, peers, log, pretrained)
    findings = rehearse(trainer, lambda model: build_optimizer(cfg, model, trainer.plan.scale_lr(cfg.TRAIN.BASE_LR)))
    changes = restore(trainer, found) if found.path else []
    forecast = look_ahead(trainer, findings)
    fill_caches = caches(cfg.DATA.CACHE_MODE, [trainer.train_loader.dataset, trainer.val_loader.dataset], peers, log)

    def introduction() -> None:
        introduce(log, cfg, launch, trainer, complexity, [*findings.lines(cfg.DATA.NUM_WORKERS), *forecast])
        if cfg.MODEL.TYPE == "timm":
            log.info(describe_inputs(cfg))
        if cfg.MODEL.DROP_PATH_RATE and not has_drop_path(trainer.model):
            log.warning(f"MODEL.DROP_PATH_RATE is {cfg.MODEL.DROP_PATH_RATE}, but {cfg.MODEL.NAME} has no drop path: it is left out")
        if cfg.TRAIN.FREEZE and not (pretrained or found.path):
            log.warning("TRAIN.FREEZE without MODEL.PRETRAINED (--pretrained): what is frozen has random weights, and keeps them")
        by_names = found.path and not cfg.DISTILL.TEACHER  # the checkpoint's classes were compared with the data set's
        order = "" if by_names else order_note(cfg, trainer.train_loader.dataset.classes)
        for line in [order, *notes, *describe_start(cfg, found, changes, trainer)]:
            if line:
                log.info(line)

    return trainer, introduction, fill_caches


def restore(trainer: Trainer, found: Found) -> list[str]:
    """Gives the trainer the checkpoint's state; returns what has changed since.

    Raises:
        CheckpointError: it does not fit the run.
        ConfigError: its place in the run does not, or it is that of a finished run.
    """
    progress, checkpointer = trainer.progress, trainer.checkpointer
    checkpointer.restore(found.checkpoint, found.path)
    require_same_place(progress, trainer.peers, found.path)
    changes = config_changes(found.checkpoint["config"], checkpointer.metadata["config"])
    changes += fit_progress(progress, found.checkpoint, checkpointer.metadata, found.path)
    progress.changes = progress.changes + changes
    if progress.epoch >= trainer.epochs:
        raise ConfigError(
            f"{found.path}: is finished, epoch {progress.epoch} of TRAIN.EPOCHS {trainer.epochs}; to train on from its "
            "weights use --pretrained, or set more epochs"
        )
    return changes


def claim(directory: Path, found: Found, auto_resume: bool) -> None:
    """Makes the run's folder ready: what a killed run left unfinished goes, damaged checkpoints make room, and those of a
    run that is not gone on with (TRAIN.AUTO_RESUME False) are put away.

    Raises:
        OutputError: another run has trained on since the checkpoint was read.
    """
    if auto_resume and stamp_of(directory) != found.stamp:
        raise OutputError(f"{directory}: another run has just written to it; start the same command again")
    remove_unfinished(directory)
    for path in found.damaged:  # or the next save would take it for the last good one, and keep it instead
        names = (f"{path.name}.damaged{number or ''}" for number in itertools.count())
        path.replace(next(away for away in map(path.with_name, names) if not away.exists()))
    replaced = [] if auto_resume else checkpoints_of(directory)
    if replaced:
        away = directory / time.strftime("replaced_%Y%m%d_%H%M%S")
        away.mkdir(exist_ok=True)
        others = (directory / name for name in OF_ONE_RUN)
        for path in [*replaced, *(path for path in others if path.exists())]:
            path.replace(away / path.name)


def report_if_possible(directory: Path, log: RunLog) -> None:
    """Writes report.html; whatever fails is a warning, as the run itself is done."""
    try:
        log.info(f"wrote {write_report(directory)}")
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning(f"{directory / REPORT}: not written ({reason[:300]}); `python scripts/report.py {directory}` writes it")


def introduce(
    log: RunLog, cfg: CfgNode, launch: Launch, trainer: Trainer, complexity: Complexity, findings: list[str]
) -> None:
    """Says what runs where on what."""
    plan, device = trainer.plan, trainer.device
    train_set, val_set = trainer.train_loader.dataset, trainer.val_loader.dataset
    log.info(
        f"{placement(launch, device)} | {trainer.precision} | global batch "
        f"{launch.world_size} x {plan.batch_size} x {plan.accumulation_steps} accumulated = {plan.total_batch_size} | "
        f"lr {plan.scale_lr(cfg.TRAIN.BASE_LR):.3e}"
    )
    if cfg.DEVICE == "auto" and device.type == "cpu":
        log.warning("no GPU found, training on the CPU")
    log.info(f"{cfg.MODEL.NAME} at {cfg.DATA.IMG_SIZE} px: {complexity}")
    if cfg.TRAIN.FREEZE:
        log.info(describe_frozen(trainer.model, cfg.TRAIN.FREEZE))
    log.info(
        f"{cfg.DATA.DATA_PATH or cfg.DATA.DATASET}: {len(train_set)} training and {len(val_set)} validation images, "
        f"{len(train_set.classes)} classes; {plan.updates_per_epoch} updates per epoch; run in {log.directory}"
    )
    for line in [*source_notes([train_set, val_set]), *findings]:
        log.info(line)
    log.record(
        "start",
        trainer.progress.updates,
        {
            "model": cfg.MODEL.NAME,
            "img_size": cfg.DATA.IMG_SIZE,
            "params": complexity.params,
            "conv_macs": complexity.conv_macs,
            "macs": complexity.macs,
            "data_path": cfg.DATA.DATA_PATH,
            "train_images": len(train_set),
            "val_images": len(val_set),
            "classes": len(train_set.classes),
            "device": f"{launch.world_size} x {device.type}",
            "processes": launch.world_size,
            "precision": str(trainer.precision),
            "total_batch_size": plan.total_batch_size,
            "changes": trainer.progress.changes,
            **provenance.record(device),
        },
    )


def describe_start(cfg: CfgNode, found: Found, changes: list[str], trainer: Trainer) -> list[str]:
    """Where the run goes on, and what is not as it was."""
    lines = [f"warning: {why}. Going on from {found.path} instead" for why in found.damaged.values()]
    if not found.path:
        return lines
    progress = trainer.progress
    lines.append(f"resumed from {found.path}: epoch {progress.epoch}, update {progress.step}")
    lines += [f"warning: since that checkpoint {change}" for change in changes]
    if cfg.MODEL.RESUME and Path(cfg.MODEL.RESUME) != found.path:
        lines.append(f"warning: MODEL.RESUME {cfg.MODEL.RESUME} is not used: the run has its own {found.path}")
    return lines


def placement(launch: Launch, device: torch.device) -> str:
    return f"{device} | {launch.world_size} process{'es' if launch.world_size > 1 else ''}"
