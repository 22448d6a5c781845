"""Which classes keep to which protocol, for mypy (`test_mypy_finds_nothing`): nothing here runs.

Whoever adds a class of a kind adds it here, and mypy says what it lacks.
"""

from data.corruptions import CorruptedSource
from data.sources.archive import ArchiveSource
from data.sources.cifar import CIFARSource
from data.sources.coco import CocoSource
from data.sources.folder import FolderSource
from data.sources.hfds import HfdsSource
from data.sources.image_paths import FileSource
from data.sources.relabelled import RelabelledShards, RelabelledSource
from data.sources.source import Source, StreamSource
from data.sources.synthetic import SyntheticSource
from data.sources.tar import TarSource
from data.sources.wds import StoredImage, WdsSource
from data.sources.zip import ZipSource
from engine.evaluation.detections import ClosingDetectionEvaluator, DetectionEvaluator
from engine.evaluation.evaluators import ClassEvaluator, ClosingClassEvaluator
from engine.evaluation.knn import Bank, Neighbours
from engine.setup.precision import NativePrecision, Precision
from engine.tasks.base import ClassTask, ClosingEvaluator, Evaluator, Task, TaskKind
from engine.tasks.classification import Classification
from engine.tasks.detection import Detection

TASK_KINDS: list[TaskKind] = [Classification, Detection]


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
    synthetic: SyntheticSource,
    relabelled: RelabelledSource,
    corrupted: CorruptedSource,
    files: FileSource,
    coco: CocoSource,
) -> list[Source]:
    return [synthetic, relabelled, corrupted, files, coco]


def shards(wds: WdsSource) -> StreamSource[StoredImage]:
    return wds


def relabelled_shards(shards: RelabelledShards) -> StreamSource:
    return shards


def evaluators(
    classes: ClassEvaluator, bank: Bank, neighbours: Neighbours, detections: DetectionEvaluator
) -> list[Evaluator]:
    return [classes, bank, neighbours, detections]


def closing_evaluators(classes: ClosingClassEvaluator, detections: ClosingDetectionEvaluator) -> list[ClosingEvaluator]:
    return [classes, detections]


def tasks(classification: Classification, detection: Detection) -> tuple[list[Task], list[ClassTask]]:
    return [classification, detection], [classification]


def precisions(native: NativePrecision) -> list[Precision]:
    return [native]
