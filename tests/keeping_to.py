"""Which classes keep to which protocol, for mypy (`test_mypy_finds_nothing`): nothing here runs.

Whoever adds a class of a kind adds it here, and mypy says what it lacks.
"""

from data.corruptions import CorruptedSource
from data.sources.archive import ArchiveSource
from data.sources.cifar import CIFARSource
from data.sources.folder import FolderSource
from data.sources.hfds import HfdsSource
from data.sources.image_paths import FileSource
from data.sources.lists import ListSource
from data.sources.relabelled import RelabelledShards, RelabelledSource
from data.sources.source import Source, StreamSource
from data.sources.synthetic import SyntheticSource
from data.sources.tar import TarSource
from data.sources.val_share import Divisible, SubsetSource
from data.sources.wds import StoredImage, WdsSource
from data.sources.zip import ZipSource
from engine.evaluation.evaluators import ClassEvaluator, ClosingClassEvaluator
from engine.evaluation.knn import Bank, Neighbours
from engine.evaluation.label_evaluators import ClosingLabelEvaluator, LabelEvaluator
from engine.setup.precision import NativePrecision, Precision
from engine.tasks.base import ChoosingEvaluator, ClassTask, ClosingEvaluator, Evaluator, Task, TaskKind
from engine.tasks.classification import Classification
from engine.tasks.detection import Detection
from engine.tasks.multilabel import Multilabel
from engine.tasks.segmentation import Segmentation

TASK_KINDS: list[TaskKind] = [Classification, Multilabel, Segmentation, Detection]


def sources(
    folder: FolderSource,
    archive: ArchiveSource,
    zipped: ZipSource,
    tar: TarSource,
    hfds: HfdsSource,
    cifar: CIFARSource,
) -> list[Source]:
    return [folder, archive, zipped, tar, hfds, cifar]


def further_sources(
    synthetic: SyntheticSource, relabelled: RelabelledSource, corrupted: CorruptedSource, files: FileSource
) -> list[Source]:
    return [synthetic, relabelled, corrupted, files]


def divisible_sources(
    folder: FolderSource, archive: ArchiveSource, hfds: HfdsSource, listed: ListSource, subset: SubsetSource
) -> list[Divisible]:
    return [folder, archive, hfds, listed, subset]


def shards(wds: WdsSource) -> StreamSource[StoredImage]:
    return wds


def relabelled_shards(shards: RelabelledShards) -> StreamSource:
    return shards


def evaluators(classes: ClassEvaluator, bank: Bank, neighbours: Neighbours) -> list[Evaluator]:
    return [classes, bank, neighbours]


def closing_evaluators(classes: ClosingClassEvaluator, labels: ClosingLabelEvaluator) -> list[ClosingEvaluator]:
    return [classes, labels]


def choosing_evaluators(labels: LabelEvaluator) -> list[ChoosingEvaluator]:
    return [labels]


def tasks(
    classification: Classification, several: Multilabel, segmentation: Segmentation, detection: Detection
) -> list[Task]:
    return [classification, several, segmentation, detection]


def class_tasks(classification: Classification) -> list[ClassTask]:
    return [classification]


def precisions(native: NativePrecision) -> list[Precision]:
    return [native]
