"""Sets of images to evaluate on: their images and labels, checked before any work."""

import json
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, Callable, Optional, Sequence

from data.class_maps import IMAGENET, SUBSETS, read_class_map
from data.corruptions import PACKAGE, CorruptedSource, failure_of, load_corruptions
from data.loader import AnyDataset
from data.sources import Opening, keys_of, open_source
from data.sources.relabelled import relabelled
from data.sources.source import AnySource, StreamSource
from utils.errors import ConfigError, DataError, did_you_mean, one_line

from .spec import VAL, SetSpec

REAL_LABELS = "imagenet_real_labels"


@dataclass
class EvaluationSet:
    """A set that is ready: its images in parts, or `labels` for those of another one.

    Args:
        parts: data sets by name: one, '', or one for each '<corruption>/<severity>'.
        subset: labels of the classes that the model chooses among; None: all.
        labels: by the image's key; an empty list: it is not counted.
        place: where the images or labels come from.
        left_out: corruptions that are not measured, and why.
    """

    spec: SetSpec
    parts: dict[str, AnyDataset] = field(default_factory=dict)
    subset: Optional[list[int]] = None
    labels: dict[str, list[int]] = field(default_factory=dict)
    place: str = ""
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SetsOpening:
    """What all sets are opened with."""

    task: Any  # see `engine.tasks`
    val: Callable[[], AnyDataset]  # opens the validation images
    classes: Sequence[str]  # the model's, in label order
    root: str  # folder of the sets
    how: Opening = Opening()  # how each set's images are opened; its classes are counted here
    in_chans: int = 3  # bands of an image

    def images(self, spec: SetSpec, path: str, subset: Optional[Sequence[int]]) -> AnyDataset:
        """The data set of a folder or file below the root."""

        def source(decode: Callable[[BinaryIO], Any]) -> AnySource:
            place, split = os.path.split(os.path.join(self.root, path).rstrip("/"))
            inner = open_source(spec.format, split, place, decode, replace(self.how, num_classes=len(self.classes)))
            return relabelled(inner, label_folders(spec, inner.classes, self.classes, subset), self.classes)

        return self.task.set_dataset(source, spec.crop_pct)


def open_sets(specs: dict[str, SetSpec], opening: SetsOpening) -> dict[str, EvaluationSet]:
    """The sets (see `read_sets`), ready to be evaluated on: all are checked before the first is.

    Raises:
        ConfigError, DataError: a set is missing or does not fit the model.
    """
    opened: dict[str, EvaluationSet] = {}
    for name, spec in specs.items():
        if spec.of:
            source = opened[spec.of].parts[""].source
            opened[name] = EvaluationSet(spec, labels=match_labels(spec, source, opening.classes), place=spec.labels)
        elif name == VAL:
            opened[name] = EvaluationSet(spec, {"": opening.val()})
        else:
            opened[name] = _open_images(spec, opening)
    return opened


def _open_images(spec: SetSpec, opening: SetsOpening) -> EvaluationSet:
    folder = Path(opening.root, spec.path)
    opened = EvaluationSet(spec, subset=_subset(spec, opening.classes), place=str(folder))
    if spec.corrupted.corruptions and spec.corrupted.generate and not folder.exists():
        _make_corrupted(opened, opening)
        return opened
    if spec.format in ("folder", "imagenet") and not folder.is_dir():
        layout = "<corruption>/<severity>/<class>/*" if spec.corrupted.corruptions else "<class>/*"
        source = f" ({spec.expected.source})" if spec.expected.source else ""
        raise DataError(
            f"{folder}: no such folder, which set {spec.name!r} of TEST.SETS needs; lay it out as {spec.path}/{layout} in "
            f"TEST.SETS_PATH or DATA.DATA_PATH{source}, or leave the set out"
        )
    if spec.corrupted.corruptions:
        _open_corrupted(opened, opening)
    else:
        opened.parts[""] = opening.images(spec, spec.path, opened.subset)
    return opened


def _make_corrupted(opened: EvaluationSet, opening: SetsOpening) -> None:
    """Takes the validation images, which are corrupted while they are read."""
    spec, wanted = opened.spec, opened.spec.corrupted
    if opening.in_chans != 3:
        raise ConfigError(
            f"{spec}.generate",
            f"corruptions are made of RGB images, but DATA.IN_CHANS is {opening.in_chans}",
            f"lay out {opened.place}, or leave the set out",
        )
    load_corruptions()
    clean = opening.val().source
    if isinstance(clean, StreamSource):
        raise ConfigError(
            f"{spec}.generate: images are made from indexed formats, not from shards; set DATA.DATASET to another, or lay "
            f"out {opened.place}"
        )
    opened.place = f"made from the validation images by {PACKAGE}"
    for corruption in [*wanted.corruptions, *wanted.extra]:
        reasons = filter(None, (failure_of(corruption, severity) for severity in wanted.severities))
        reason = next(reasons, None)
        if reason:
            opened.left_out[corruption] = reason
            continue
        for severity in wanted.severities:
            corrupted = CorruptedSource(clean, corruption, severity)
            images = opening.task.set_dataset(lambda _, made=corrupted: made, spec.crop_pct)
            opened.parts[f"{corruption}/{severity}"] = images
    if not measured_corruptions(opened):
        raise ConfigError(
            f"{spec}: none of its corruptions can be made ({next(iter(opened.left_out.values()))}); check their names"
        )


def _open_corrupted(opened: EvaluationSet, opening: SetsOpening) -> None:
    """Opens the folders of corruptions and severities, which may lie in others, as those of ImageNet-C's archives."""
    spec, folder = opened.spec, Path(opened.place)
    for corruption in [*spec.corrupted.corruptions, *spec.corrupted.extra]:
        for severity in spec.corrupted.severities:
            part = f"{corruption}/{severity}"
            place = next((p for p in [folder / part, *sorted(folder.glob(f"*/{part}"))] if p.is_dir()), None)
            if place is None:
                opened.left_out.setdefault(corruption, f"there is no folder {part} in {folder}")
                continue
            inner = str(Path(spec.path) / place.relative_to(folder))
            opened.parts[part] = opening.images(spec, inner, opened.subset)
    if not measured_corruptions(opened):
        raise DataError(
            f"{folder}: holds none of the corruptions of set {spec.name!r}; lay it out as "
            f"{spec.path}/<corruption>/<severity>/<class>/*"
        )


def measured_corruptions(opened: EvaluationSet) -> list[str]:
    """Those with images, of the ones that a mean is taken over."""
    there = {part.split("/")[0] for part in opened.parts}
    return [corruption for corruption in opened.spec.corrupted.corruptions if corruption in there]


def _names(spec: SetSpec, key: str, value: Any) -> list[str]:
    """Classes by name: a list, a list of timm's, or a text file beside the YAML file."""
    if isinstance(value, list):
        names = [str(item) for item in value]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"{spec}.{key}: must name classes, each once")
        return names
    return list(
        read_class_map(value if value in IMAGENET + SUBSETS else str(spec.file.parent / value), f"{spec}.{key}")
    )


def _subset(spec: SetSpec, classes: Sequence[str]) -> Optional[list[int]]:
    if not spec.only:
        return None
    labels = {name: label for label, name in enumerate(classes)}
    names = _names(spec, "only", spec.only)
    unknown = next((name for name in names if name not in labels), None)
    if unknown is not None:
        raise DataError(
            f"{spec}.only: has class {unknown!r}, which the model does not have among its {len(classes)}; correct it, or leave the "
            "set out"
        )
    return sorted(labels[name] for name in names)


def _numbers(spec: SetSpec, classes: Sequence[str]) -> list[Optional[int]]:
    """The model's label for each number that the set's folders and labels may be; None where the model has no such class."""
    numbering = IMAGENET[0] if spec.labels == REAL_LABELS else spec.numbering
    if not numbering:
        return list(range(len(classes)))
    labels = {name: label for label, name in enumerate(classes)}
    return [labels.get(name) for name in _names(spec, "numbering", numbering)]


def label_folders(
    spec: SetSpec, folders: Sequence[str], classes: Sequence[str], subset: Optional[Sequence[int]]
) -> list[int]:
    """The labels of a set's class folders.

    Raises:
        DataError: a folder is no class, or none of those that the model may choose among, or the same one as another.
    """
    labels = _labels_by_folder(spec, classes)
    folder_of: dict[int, str] = {}
    for folder in folders:
        name = _folder_name(spec, folder)
        label = labels.get(name)
        problem = ""
        if name in labels and label is None:
            problem = "is a class that the model does not have"
        elif label is None and spec.folders == "numbers":
            problem = f"is no label from 0 to {len(labels) - 1}"
        elif label is None:
            problem = f"is no class; {did_you_mean(folder, labels)}"
        elif subset is not None and label not in subset:
            problem = "is no class that `only` names"
        elif label in folder_of:
            problem = f"is the same class as {folder_of[label]!r}"
        if problem:
            raise DataError(
                f"{spec.path}: its folder {folder!r} {problem}; correct it, or `folders` and `only` of {spec}"
            )
        assert label is not None  # or there is a problem
        folder_of[label] = folder
    return list(folder_of)


def _labels_by_folder(spec: SetSpec, classes: Sequence[str]) -> dict[str, Optional[int]]:
    """The model's labels by what a set's folders may be called; None where the model has no such class."""
    if spec.folders == "numbers":
        return {str(number): label for number, label in enumerate(_numbers(spec, classes))}
    names = classes if spec.folders == "names" else _names(spec, "folders", spec.folders)
    if len(names) > len(classes):
        raise ConfigError(f"{spec}.folders: names {len(names)} classes, but the model has {len(classes)}; correct it")
    return {name: label for label, name in enumerate(names)}


def _folder_name(spec: SetSpec, folder: str) -> str:
    """A folder's name as it is looked up: of numbers, 007 is 7."""
    return str(int(folder)) if spec.folders == "numbers" and folder.isdecimal() else folder


def match_labels(spec: SetSpec, source: AnySource, classes: Sequence[str]) -> dict[str, list[int]]:
    """The labels of a set that is about another one's images, by those images' keys.

    Raises:
        ConfigError: the file is missing or holds something else.
        DataError: an image has no entry, or two have the same file name.
    """
    given = _read_labels(spec, _numbers(spec, classes))
    keys = keys_of(source)
    looked_up = {key: given.get(key, given.get(key.rsplit("/", 1)[-1])) for key in keys}
    matched = {key: labels for key, labels in looked_up.items() if labels is not None}
    missing = [key for key in looked_up if key not in matched]
    if missing:
        raise DataError(
            f"{spec.labels}: has no labels for {len(missing)} of the {len(keys)} images of {spec.of!r}, such as {missing[0]!r}; it must name "
            "each by <class>/<file name> or by its file name"
        )
    if not any(matched.values()):
        raise DataError(f"{spec.labels}: no image of {spec.of!r} has a label; correct it, or leave {spec.name!r} out")
    by_file = [key.rsplit("/", 1)[-1] for key in keys if key not in given]
    twice = next((name for name, again in zip(sorted(by_file), sorted(by_file)[1:]) if name == again), None)
    if twice:
        raise DataError(
            f"{spec.labels}: names {twice!r}, but there are several images of that name in {spec.of!r}; name them as "
            "<class>/<file name>"
        )
    return matched


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = next((name for name, times in Counter(name for name, _ in pairs).items() if times > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} stands twice")
    return dict(pairs)


def _read_labels(spec: SetSpec, numbers: Sequence[Optional[int]]) -> dict[str, list[int]]:
    if spec.labels == REAL_LABELS:
        listed = json.loads(resources.files("timm.data").joinpath(f"_info/{REAL_LABELS}.json").read_bytes())
        given: Any = {f"ILSVRC2012_val_{number:08d}.JPEG": labels for number, labels in enumerate(listed, 1)}
    else:
        path = spec.file.parent / spec.labels
        try:
            given = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else one_line(error)
            raise ConfigError(
                f"{path}: cannot be read as JSON ({reason}); it must hold {{file name: [labels]}}"
            ) from error
    if not isinstance(given, dict) or not all(
        isinstance(v, list) and all(type(n) is int for n in v) for v in given.values()
    ):
        raise ConfigError(
            f"{spec}.labels: {spec.labels} must hold {{file name: [labels]}}, the labels as whole numbers; correct it"
        )
    for name, labels in given.items():
        if labels and not 0 <= min(labels) <= max(labels) < len(numbers):
            raise ConfigError(
                f"{spec}.labels: {name!r} has labels {labels}, but they may be 0 to {len(numbers) - 1}; correct it"
            )
        if None in (numbers[label] for label in labels):
            raise ConfigError(
                f"{spec}.labels: {name!r} has labels {labels}, not all of which the model has among its classes; leave the set out"
            )
    return {name: [numbers[label] for label in labels] for name, labels in given.items()}
