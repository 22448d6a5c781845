"""`--eval`: the accuracy of a checkpoint, on the validation images or on evaluation sets."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import torch

from data.loader import Loader, eval_loader
from data.sources import Opening
from utils.errors import Stopped
from utils.files import write_json, write_text
from utils.run_files import EVAL
from utils.signals import stop_signals

from ..checkpoints.download import local_file
from ..checkpoints.file import CheckpointFile, open_checkpoint
from ..checkpoints.load import load_weights, require_fit
from ..evaluation.knn import Bank, Neighbours, require_neighbours
from ..evaluation.loop import describe, evaluate, summarize
from ..evaluation.sets.open import EvaluationSet, open_sets
from ..evaluation.sets.predictions import Predictions
from ..evaluation.sets.run import evaluate_sets
from ..evaluation.sets.spec import VAL, SetSpec, read_sets
from ..evaluation.sets.tables import is_imagenet, table
from ..session import Session
from ..setup.data_notes import order_note, source_notes
from ..setup.loading import caches, loading
from ..setup.model import deploy_model, prepare_model
from ..setup.precision import create_precision
from ..setup.preprocessing import describe as describe_inputs
from ..setup.preprocessing import input_warnings
from ..tasks import create_task
from ..tasks.base import Evaluator, Task


def evaluate_checkpoint(session: Session) -> None:
    """Evaluates MODEL.RESUME (or MODEL.PRETRAINED) and writes into the run's folder: eval.json, of the validation images,
    and with TEST.SETS the files of each set and a table into eval/.
    """
    evaluation = open_evaluation(session)
    session.log.open()
    evaluation.introduce()
    with stop_signals(session.peers.stop):  # an exception at any line could be lost in what ends the workers
        results, summaries = evaluation.measure()
    if results:
        session.log.info(describe(results))
    if session.is_first:
        evaluation.write(results, summaries)
    session.log.close()


def open_evaluation(session: Session) -> "Evaluation":
    """Everything that the evaluation needs. Writes nothing but weights that a URL names.

    Raises:
        UserError: settings, data or weights that cannot be used.
    """
    cfg = session.cfg
    specs = read_sets(cfg.TEST.SETS_FILE, cfg.TEST.SETS or [VAL])
    checkpoint = open_checkpoint(
        Path(local_file(cfg.MODEL.RESUME or cfg.MODEL.PRETRAINED, session.launch, session.peers))
    )
    precision = create_precision(cfg.AMP.ENABLED, cfg.AMP.DTYPE, session.device)
    task = create_task(cfg)
    val_set = functools.cache(lambda: task.val_dataset(checkpoint.classes))
    classes = checkpoint.classes or list(val_set().classes)  # other tools' files may have none
    root = cfg.TEST.SETS_PATH or cfg.DATA.DATA_PATH
    opening = Opening(outside_links=cfg.DATA.OUTSIDE_LINKS, columns=cfg.DATA.COLUMNS, timeout=cfg.DATA.TIMEOUT)
    sets = open_sets(specs, task, val_set, classes, root, opening)
    model = prepare_model(task.build_model(len(classes)), session.device, cfg.TRAIN.CHANNELS_LAST, use_checkpoint=False)
    fitted = {name: require_fit(model, checkpoint, name) for name in checkpoint.weights}
    compared = task.feature_datasets(classes) if cfg.TEST.KNN else ()
    if compared:
        require_neighbours(cfg.TEST.KNN, len(compared[0]))
        task.features(model)  # or it refuses now
    return Evaluation(session, checkpoint, task, precision, model, fitted, classes, val_set, specs, sets, compared)


@dataclass
class Evaluation:
    """A checkpoint's weights beside the images that they are evaluated on."""

    session: Session
    checkpoint: CheckpointFile
    task: Task
    precision: Any
    model: torch.nn.Module
    fitted: dict[str, Any]  # name of the weights ('raw', 'ema') -> their state, and what was done to make it fit
    classes: list[str]
    val_set: Callable[[], Any]  # opened when it is first asked for
    specs: dict[str, SetSpec]
    sets: dict[str, EvaluationSet]
    compared: tuple  # training and validation images, of TEST.KNN

    def introduce(self) -> None:
        """Says what is evaluated on what, and what the figures rest on that nobody has set."""
        cfg, log, path = self.session.cfg, self.session.log, self.checkpoint.path
        images = f"{len(self.val_set())} images" if not cfg.TEST.SETS else f"the sets {', '.join(cfg.TEST.SETS)}"
        log.info(
            f"evaluating {path} on {images} | {self.session.placement} | {self.precision}{' | fused' * cfg.TEST.FUSED}"
        )
        notes = [f"{name}: {fitted.note}" for name, fitted in self.fitted.items() if fitted.note]
        if notes:
            log.info(f"{path}: {'; '.join(notes)}")
        for line in source_notes(part for opened in self.sets.values() for part in opened.parts.values()):
            log.info(line)
        if self.checkpoint.classes is None and (line := order_note(cfg, self.classes)):
            log.warning(f"{path}: has no class names; {line}")
        if cfg.MODEL.TYPE == "timm":
            log.info(describe_inputs(cfg))
        for line in input_warnings(self.checkpoint.config, cfg):
            log.warning(line)

    def measure(self) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """The metrics by name of the weights, of the validation images; and on rank 0 a summary of each set of TEST.SETS.

        Raises:
            Stopped: the run was asked to stop.
        """
        cfg, session, weights = self.session.cfg, self.session, list(self.fitted)
        load = functools.lru_cache(maxsize=1)(self.loader)  # the workers of the one before end
        results: dict[str, dict[str, Any]] = {}
        summaries: dict[str, dict[str, Any]] = {}
        if cfg.TEST.SETS:
            results, summaries = evaluate_sets(
                self.sets, cfg.TEST.SETS, weights, self.checkpoint.better, self.metrics_of, load, self.classes,
                self.task.primary, session.device, session.log, session.peers, session.directory / "eval", self.facts(),
                cfg.TEST.PREDICTIONS,
            )  # fmt: skip
        else:
            results = {name: self.metrics_of(name, load(self.val_set())) for name in weights}
        if cfg.TEST.KNN:
            results = {name: {**metrics, **self.neighbours_of(name, load)} for name, metrics in results.items()}
        return results, summaries

    def loader(self, dataset) -> Loader:
        """This process' share of a data set's images."""
        cfg, session = self.session.cfg, self.session
        mode = "no" if cfg.DATA.CACHE_MODE == "no" else "part"  # nobody reads another's share
        caches(mode, [dataset], session.peers, session.log)()
        placing = dict(batch_size=cfg.DATA.BATCH_SIZE, rank=session.launch.rank, world_size=session.launch.world_size)
        return eval_loader(dataset, **placing, loading=loading(cfg, session.device))

    def metrics_of(self, name: str, images: Loader, predictions: Optional[Predictions] = None) -> dict[str, Any]:
        """The metrics of one of the checkpoint's weights over a loader's images, whose `predictions` are kept."""
        load_weights(self.model, self.fitted[name].state, self.checkpoint.path)
        fused = self.session.cfg.TEST.FUSED
        model = deploy_model(self.model, self.precision.dtype) if fused else self.model
        keeping = self.task.set_evaluator(predictions) if predictions else None
        return self.run(model, images, keeping or self.task.evaluator("figures", self.session.device))

    def neighbours_of(self, name: str, load: Callable[[Any], Loader]) -> dict[str, Any]:
        """The accuracy of one of the checkpoint's weights by the nearest training images."""
        cfg, session = self.session.cfg, self.session
        training, validation = self.compared
        load_weights(self.model, self.fitted[name].state, self.checkpoint.path)
        features, bank = self.task.features(self.model), Bank(session.device, session.peers)
        self.run(features, load(training), bank)
        votes = Neighbours(bank, cfg.TEST.KNN, cfg.TEST.KNN_TEMPERATURE, len(self.classes))
        return self.run(features, load(validation), votes)

    def run(self, model: torch.nn.Module, images: Loader, evaluator: Evaluator) -> dict[str, Any]:
        log, peers = self.session.log, self.session.peers
        results = evaluate(model, evaluator, images, self.precision, log, peers)
        if results is None:
            log.info(f"stopped by {peers.stop.reason or 'a signal'}; nothing is written of what was not done")
            raise Stopped
        return results

    def facts(self) -> dict[str, Any]:
        """What the figures are of, for eval.json and the sets' files."""
        cfg = self.session.cfg
        facts = {
            "checkpoint": str(self.checkpoint.path),
            "precision": str(self.precision),
            "fused": cfg.TEST.FUSED,
            "img_size": self.task.eval_size,
            "crops": cfg.TEST.CROPS,
            "flip": cfg.TEST.FLIP,
        }
        if self.compared:
            facts |= {"knn_temperature": cfg.TEST.KNN_TEMPERATURE, "knn_train_images": len(self.compared[0])}
        return facts

    def write(self, results: dict[str, dict[str, Any]], summaries: dict[str, dict[str, Any]]) -> None:
        """Writes eval.json and, with TEST.SETS, the table of the sets; their own files are there already."""
        cfg, log, directory = self.session.cfg, self.session.log, self.session.directory
        if results:
            summary = summarize(results, self.task.primary)
            value = {
                **summary,
                "dataset": cfg.DATA.DATASET,
                "data_path": cfg.DATA.DATA_PATH,
                "crop_pct": cfg.TEST.CROP_PCT,
                "complete": summary["num_images"] == len(self.val_set()),
                **self.facts(),
                "cell": cfg.REPRODUCES,
                "classes": len(self.classes),
                "imagenet": is_imagenet(self.classes),
            }
            write_json(directory / EVAL, value)
            log.info(f"wrote {directory / EVAL}")
        if cfg.TEST.SETS:
            columns = {name: spec.published for name, spec in self.specs.items()}
            size = sum(parameter.numel() for parameter in self.model.parameters())
            text = table(
                cfg.MODEL.NAME, size, self.task.eval_size, summaries, cfg.TEST.SETS, columns, is_imagenet(self.classes)
            )
            write_text(directory / "eval" / "table.md", text)
            log.info(f"wrote {directory / 'eval' / 'table.md'}\n{text.rstrip()}")
