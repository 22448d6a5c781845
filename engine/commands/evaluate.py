"""`--eval`: the accuracy of a checkpoint, on the validation images or on evaluation sets."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import torch
from yacs.config import CfgNode

from data.loader import AnyDataset, Loader
from data.sources import Opening
from utils.errors import ConfigError
from utils.files import write_json, write_text
from utils.run_files import EVAL, EVAL_CLASSES
from utils.signals import stop_signals
from utils.urls import shown

from ..checkpoints.download import local_file
from ..checkpoints.file import CheckpointFile, open_checkpoint
from ..checkpoints.load import Fitted, load_weights, require_fit
from ..evaluation.knn import Bank, Neighbours, require_neighbours
from ..evaluation.loop import describe, summarize
from ..evaluation.sets.open import EvaluationSet, SetsOpening, open_sets
from ..evaluation.sets.predictions import Predictions, Records
from ..evaluation.sets.run import SetsEvaluation
from ..evaluation.sets.spec import VAL, SetSpec, read_sets
from ..evaluation.sets.tables import SetFiles, is_imagenet, meanings, table, write_csv
from ..inference.engines import EXPORTING, InferenceEngine, is_deployed, open_engine, require_engine
from ..inference.engines import describe as describe_engine
from ..inference.examination import Examination
from ..session import Session
from ..setup.data_notes import order_note, share_note, source_notes
from ..setup.fetching import fetching_of
from ..setup.loading import caches
from ..setup.precision import create_precision
from ..setup.preprocessing import describe as describe_inputs
from ..setup.preprocessing import input_warnings
from ..tasks import create_task
from ..tasks.base import ChoosingEvaluator, ClassTask, PerClassEvaluator, Task


def evaluate_checkpoint(session: Session) -> Optional[dict[str, Any]]:
    """Evaluates MODEL.RESUME (or MODEL.PRETRAINED) and writes into the run's folder: eval.json, of the validation images, and
    their classes' figures; with TEST.SETS instead of the latter the files of each set and a table into eval/.

    Returns:
        What eval.json says, and with TEST.SETS a summary of each as `sets`, on the process that writes them.
    """
    evaluation = open_evaluation(session)
    session.log.open()
    evaluation.introduce()
    try:
        with stop_signals(session.peers.stop):  # an exception at any line could be lost in what ends the workers
            results, summaries = evaluation.measure()
    finally:
        evaluation.loader.cache_clear()  # ends the workers, which the collector of cycles could not: it ends their queues first
    if results:
        session.log.info(describe(results))
    written = evaluation.write(results, summaries) if session.is_first else None
    session.log.close()
    return written


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
    require_engine(cfg.TEST.ENGINE, session.device, precision)
    task = create_task(cfg)
    class_task = require_classes(task, cfg) if cfg.TEST.SETS or cfg.TEST.KNN else None
    val_set = functools.cache(lambda: task.val_dataset(checkpoint.classes))
    classes = checkpoint.classes or list(val_set().classes)  # other tools' files may have none
    root = cfg.TEST.SETS_PATH or cfg.DATA.DATA_PATH
    opening = Opening(
        outside_links=cfg.DATA.OUTSIDE_LINKS,
        columns=cfg.DATA.COLUMNS,
        fetching=fetching_of(cfg),
        timeout=cfg.DATA.TIMEOUT,
    )
    sets = open_sets(specs, SetsOpening(task, val_set, classes, root, opening, cfg.DATA.IN_CHANS))
    model = task.build_model(len(classes))
    examination = Examination(cfg, model, session.device, session.log, session.peers, precision)
    fitted = {name: require_fit(examination.model, checkpoint, name) for name in checkpoint.weights}
    compared: tuple[AnyDataset, ...] = ()
    if class_task and cfg.TEST.KNN:
        compared = class_task.feature_datasets(classes)
        require_neighbours(cfg.TEST.KNN, len(compared[0]))
        class_task.features(examination.model)  # or it refuses now
    return Evaluation(session, checkpoint, task, examination, fitted, classes, val_set, specs, sets, compared)


def require_classes(task: Task, cfg: CfgNode) -> ClassTask:
    """The task, of which evaluation sets or neighbours are asked. Raises ConfigError: it is not about images' classes."""
    if not isinstance(task, ClassTask):
        key = "TEST.SETS" if cfg.TEST.SETS else "TEST.KNN"
        raise ConfigError(f"{key}: is about images' classes, which TASK {cfg.TASK} does not give; leave it out")
    return task


@dataclass
class Evaluation:
    """A checkpoint's weights beside the images that they are evaluated on."""

    session: Session
    checkpoint: CheckpointFile
    task: Task  # with TEST.SETS or TEST.KNN a `ClassTask`
    examination: Examination
    fitted: dict[str, Fitted]  # name of the weights ('raw', 'ema') -> their state, and what was done to make it fit
    classes: list[str]
    val_set: Callable[[], AnyDataset]  # opened when it is first asked for
    specs: dict[str, SetSpec]
    sets: dict[str, EvaluationSet]
    compared: tuple[AnyDataset, ...]  # training and validation images, of TEST.KNN
    # by name of the weights, of `EXPORTING` engines, which have a copy of their own of them
    exported: dict[str, InferenceEngine] = field(default_factory=dict)

    def __post_init__(self):
        # The workers of the data set before end with its loader; of one data set, several weights use the same.
        self.loader = functools.lru_cache(maxsize=1)(self.open_loader)

    @property
    def class_task(self) -> ClassTask:
        assert isinstance(self.task, ClassTask)  # see `require_classes`
        return self.task

    def introduce(self) -> None:
        """Says what is evaluated on what, and what the figures rest on that nobody has set."""
        cfg, log, path = self.session.cfg, self.session.log, self.checkpoint.path
        images = f"{len(self.val_set())} images" if not cfg.TEST.SETS else f"the sets {', '.join(cfg.TEST.SETS)}"
        form = describe_engine(cfg.TEST.ENGINE, self.examination.model, cfg.TEST.FUSED)
        log.info(f"evaluating {path} on {images} | {self.session.placement} | {self.examination.precision}{form}")
        self.session.describe_machines()
        notes = [f"{name}: {fitted.note}" for name, fitted in self.fitted.items() if fitted.note]
        if notes:
            log.info(f"{path}: {'; '.join(notes)}")
        for line in source_notes(part for opened in self.sets.values() for part in opened.parts.values()):
            log.info(line)
        if self.checkpoint.classes is None and (line := order_note(cfg, self.classes)):
            log.warning(f"{path}: has no class names; {line}")
        if cfg.MODEL.TYPE == "timm":
            log.info(describe_inputs(cfg))
        for line in filter(
            None, [*input_warnings(self.checkpoint.config, cfg), share_note(cfg, self.checkpoint.config)]
        ):
            log.warning(line)

    def measure(self) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """The metrics by name of the weights, of the validation images; and on rank 0 a summary of each set of TEST.SETS.

        Raises:
            Stopped: the run was asked to stop.
        """
        cfg, directory = self.session.cfg, self.session.directory
        summaries: dict[str, dict[str, Any]] = {}
        if cfg.TEST.SETS:
            files = SetFiles(directory / "eval", self.classes, self.facts(), cfg.TEST.PREDICTIONS)
            results, summaries = SetsEvaluation(
                self.sets, cfg.TEST.SETS, list(self.fitted), self.checkpoint.better, self.predictions_of, self.task.primary,
                files, self.session.log,
            ).run()  # fmt: skip
        else:
            results = {name: self.figures_of(name) for name in self.fitted}
        if cfg.TEST.KNN:
            results = {name: {**figures, **self.neighbours_of(name)} for name, figures in results.items()}
        return results, summaries

    def open_loader(self, dataset: AnyDataset) -> Loader:
        """This process' share of a data set's images."""
        cfg, session = self.session.cfg, self.session
        mode = "no" if cfg.DATA.CACHE_MODE == "no" else "part"  # nobody reads another's share
        caches(mode, [dataset], session.peers, session.log)()
        return self.examination.loader(dataset)

    def load(self, name: str) -> torch.nn.Module:
        """The model with these of the checkpoint's weights."""
        load_weights(self.examination.model, self.fitted[name].state, self.checkpoint.path)
        return self.examination.model

    def engine_of(self, name: str) -> torch.nn.Module:
        """What computes one of the checkpoint's weights; an exported model is kept for the next set."""
        if name in self.exported:
            return self.exported[name]
        cfg, precision = self.session.cfg, self.examination.precision
        engine = open_engine(
            cfg.TEST.ENGINE, self.load(name), precision, self.task.eval_size, cfg.TEST.FUSED, cfg.DATA.IN_CHANS
        )
        if cfg.TEST.ENGINE in EXPORTING:
            self.exported[name] = engine
        return engine

    def figures_of(self, name: str) -> dict[str, Any]:
        """The figures of the validation images with one of the checkpoint's weights; writes those of each class."""
        evaluator = self.task.evaluator("figures", self.session.device)
        if isinstance(evaluator, ChoosingEvaluator):
            self.session.log.info(f"{name}: {evaluator.use(self.checkpoint.chosen(name))}")
        figures = self.examination.run(self.loader(self.val_set()), evaluator, self.engine_of(name))
        if isinstance(evaluator, PerClassEvaluator) and self.session.is_first:
            write_classes(self.session.directory / EVAL_CLASSES.format(name), *evaluator.class_table(self.classes))
        return figures

    def predictions_of(
        self, name: str, dataset: AnyDataset, subset: Optional[list[int]]
    ) -> tuple[dict[str, Any], Records]:
        """The figures of a set's images with one of the checkpoint's weights, and what was said of each image.

        Args:
            subset: labels of the classes that the model chooses among; None: all.
        """
        predictions = Predictions(self.session.device, subset, len(self.classes))
        evaluator = self.class_task.set_evaluator(predictions)
        figures = self.examination.run(self.loader(dataset), evaluator, self.engine_of(name))
        parts = self.session.peers.gather(predictions.records())
        return figures, Records.join(parts).in_order() if self.session.is_first else predictions.records()

    def neighbours_of(self, name: str) -> dict[str, Any]:
        """The accuracy of one of the checkpoint's weights by the nearest training images."""
        cfg, session = self.session.cfg, self.session
        training, validation = self.compared
        features, bank = self.class_task.features(self.load(name)), Bank(session.device, session.peers)
        self.examination.run(self.loader(training), bank, features)
        votes = Neighbours(bank, cfg.TEST.KNN, cfg.TEST.KNN_TEMPERATURE, len(self.classes))
        return self.examination.run(self.loader(validation), votes, features)

    def facts(self) -> dict[str, Any]:
        """What the figures are of, for eval.json and the sets' files."""
        cfg = self.session.cfg
        facts = {
            "checkpoint": str(self.checkpoint.path),
            "precision": str(self.examination.precision),
            "engine": cfg.TEST.ENGINE,
            "fused": is_deployed(cfg.TEST.ENGINE, self.examination.model, cfg.TEST.FUSED),
            "img_size": self.task.eval_size,
            "crops": cfg.TEST.CROPS,
            "flip": cfg.TEST.FLIP,
        }
        if self.compared:
            facts |= {"knn_temperature": cfg.TEST.KNN_TEMPERATURE, "knn_train_images": len(self.compared[0])}
        return facts

    def write(self, results: dict[str, dict[str, Any]], summaries: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Writes eval.json and, with TEST.SETS, the table of the sets; their own files are there already.

        Returns:
            What eval.json says, and with TEST.SETS the summaries as `sets`.
        """
        cfg, log, directory = self.session.cfg, self.session.log, self.session.directory
        value: dict[str, Any] = {}
        if results:
            summary = summarize(results, self.task.primary)
            value = {
                **summary,
                "dataset": cfg.DATA.DATASET,
                "data_path": shown(cfg.DATA.DATA_PATH),
                "crop_pct": cfg.TEST.CROP_PCT,
                "crop_mode": cfg.TEST.CROP_MODE,
                "complete": summary["num_images"] == len(self.val_set()),
                **self.facts(),
                "cell": cfg.REPRODUCES,
                "classes": len(self.classes),
                "imagenet": is_imagenet(self.classes),
            }
            write_json(directory / EVAL, value)
            log.info(f"wrote {directory / EVAL}")
        if cfg.TEST.SETS:
            columns = {name: spec.expected.published for name, spec in self.specs.items()}
            size = sum(parameter.numel() for parameter in self.examination.model.parameters())
            text = table(
                cfg.MODEL.NAME, size, self.task.eval_size, summaries, cfg.TEST.SETS, columns, is_imagenet(self.classes)
            )
            write_text(directory / "eval" / "table.md", text)
            log.info(f"wrote {directory / 'eval' / 'table.md'}\n{text.rstrip()}")
            value = {**value, "sets": summaries}
        return value


def write_classes(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Writes figures of each class, see `PerClassEvaluator`, with what its name means."""
    told = meanings([row[0] for row in rows])
    shown = ([round(value, 4) if isinstance(value, float) else value for value in row[1:]] for row in rows)
    lines = ([row[0], meaning, *values] for row, meaning, values in zip(rows, told, shown))
    write_csv(path, ["class", "name", *columns[1:]], lines)
