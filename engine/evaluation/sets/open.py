"""Sets of images to evaluate on: their images and labels, checked before any work."""

import json
import os
import pkgutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

from data.class_maps import IMAGENET, SUBSETS, read_class_map
from data.corruptions import PACKAGE, CorruptedSource, failure_of, load_corruptions
from data.sources import Opening, is_stream, keys_of, open_source
from data.sources.relabelled import relabelled
from utils.errors import ConfigError, DataError, did_you_mean

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
    parts: dict[str, Any] = field(default_factory=dict)
    subset: Optional[list[int]] = None
    labels: dict[str, list[int]] = field(default_factory=dict)
    place: str = ""
    left_out: dict[str, str] = field(default_factory=dict)


def open_sets(
    specs: dict[str, SetSpec],
    task,
    val: Callable[[], Any],
    classes: Sequence[str],
    root: str,
    opening: Opening = Opening(),
) -> dict[str, EvaluationSet]:
    """The sets, ready to be evaluated on: all are checked before the first is.

    Args:
        specs: see `read_sets`.
        task: see `engine.tasks`.
        val: opens the validation images.
        classes: the model's, in label order.
        root: folder of the sets.
        opening: how each set's images are opened, its classes are counted here.

    Raises:
        ConfigError, DataError: a set is missing or does not fit the model.
    """
    opened: dict[str, EvaluationSet] = {}
    for name, spec in specs.items():
        if spec.of:
            source = opened[spec.of].parts[""].source
            opened[name] = EvaluationSet(spec, labels=match_labels(spec, source, classes), place=spec.labels)
        elif name == VAL:
            opened[name] = EvaluationSet(spec, {"": val()})
        else:
            opened[name] = _open_images(spec, task, val, classes, root, opening)
    return opened


def _open_images(spec: SetSpec, task, val, classes, root, opening: Opening) -> EvaluationSet:
    subset = _subset(spec, classes)
    folder = Path(root, spec.path)
    found = EvaluationSet(spec, subset=subset, place=str(folder))

    def opened(path: str):
        def source(decode: Callable):
            place, split = os.path.split(os.path.join(root, path).rstrip("/"))
            inner = open_source(spec.format, split, place, decode, replace(opening, num_classes=len(classes)))
            return relabelled(inner, label_folders(spec, inner.classes, classes, subset), classes)

        return task.set_dataset(source, spec.crop_pct)

    if spec.corruptions and spec.generate and not folder.exists():
        load_corruptions()
        found.place = f"made from the validation images by {PACKAGE}"
        clean = val().source
        if is_stream(clean):
            raise ConfigError(
                f"{spec}.generate: images are made from indexed formats, not from shards; set DATA.DATASET to another, or lay out {folder}"
            )
        for corruption in [*spec.corruptions, *spec.extra]:
            reasons = filter(None, (failure_of(corruption, severity) for severity in spec.severities))
            found.left_out.update({corruption: reason for reason in [next(reasons, None)] if reason})
            for severity in spec.severities if corruption not in found.left_out else ():
                corrupted = CorruptedSource(clean, corruption, severity)
                found.parts[f"{corruption}/{severity}"] = task.set_dataset(
                    lambda _, made=corrupted: made, spec.crop_pct
                )
        if not measured_corruptions(found):
            raise ConfigError(
                f"{spec}: none of its corruptions can be made ({next(iter(found.left_out.values()))}); check their names"
            )
    elif spec.format in ("folder", "imagenet") and not folder.is_dir():
        layout = "<corruption>/<severity>/<class>/*" if spec.corruptions else "<class>/*"
        raise DataError(
            f"{folder}: no such folder, which set {spec.name!r} of TEST.SETS needs; lay it out as {spec.path}/{layout} in "
            f"TEST.SETS_PATH or DATA.DATA_PATH{f' ({spec.source})' if spec.source else ''}, or leave the set out"
        )
    elif spec.corruptions:
        for corruption in [*spec.corruptions, *spec.extra]:
            for severity in spec.severities:
                part = f"{corruption}/{severity}"
                place = next((p for p in [folder / part, *sorted(folder.glob(f"*/{part}"))] if p.is_dir()), None)
                if place is None:
                    found.left_out.setdefault(corruption, f"there is no folder {part} in {folder}")
                    continue
                found.parts[part] = opened(str(Path(spec.path) / place.relative_to(folder)))
        if not measured_corruptions(found):
            raise DataError(
                f"{folder}: holds none of the corruptions of set {spec.name!r}; lay it out as "
                f"{spec.path}/<corruption>/<severity>/<class>/*"
            )
    else:
        found.parts[""] = opened(spec.path)
    return found


def measured_corruptions(found: EvaluationSet) -> list[str]:
    """Those with images, of the ones that a mean is taken over."""
    there = {part.split("/")[0] for part in found.parts}
    return [corruption for corruption in found.spec.corruptions if corruption in there]


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
    own = {name: label for label, name in enumerate(classes)}
    return [own.get(name) for name in _names(spec, "numbering", numbering)]


def label_folders(
    spec: SetSpec, folders: Sequence[str], classes: Sequence[str], subset: Optional[Sequence[int]]
) -> list[int]:
    """The labels of a set's class folders.

    Raises:
        DataError: a folder is no class, or none of those that the model may choose among, or the same one as another.
    """
    numbers = spec.folders == "numbers"
    named = (
        _numbers(spec, classes)
        if numbers
        else classes
        if spec.folders == "names"
        else _names(spec, "folders", spec.folders)
    )
    if not numbers and len(named) > len(classes):
        raise ConfigError(f"{spec}.folders: names {len(named)} classes, but the model has {len(classes)}; correct it")
    known = (
        {str(number): label for number, label in enumerate(named)}
        if numbers
        else {name: label for label, name in enumerate(named)}
    )
    seen: dict[int, str] = {}
    for folder in folders:
        name = str(int(folder)) if numbers and folder.isdecimal() else folder
        label = known.get(name)
        problem = ""
        if name in known and label is None:
            problem = "is a class that the model does not have"
        elif label is None:
            problem = (
                f"is no label from 0 to {len(named) - 1}" if numbers else f"is no class; {did_you_mean(folder, known)}"
            )
        elif subset is not None and label not in subset:
            problem = "is no class that `only` names"
        elif label in seen:
            problem = f"is the same class as {seen[label]!r}"
        if problem:
            raise DataError(
                f"{spec.path}: its folder {folder!r} {problem}; correct it, or `folders` and `only` of {spec}"
            )
        seen[label] = folder
    return [known[str(int(folder)) if numbers else folder] for folder in folders]


def match_labels(spec: SetSpec, source, classes: Sequence[str]) -> dict[str, list[int]]:
    """The labels of a set that is about another one's images, by those images' keys.

    Raises:
        ConfigError: the file is missing or holds something else.
        DataError: an image has no entry, or two have the same file name.
    """
    given = _read_labels(spec, _numbers(spec, classes))
    keys = keys_of(source)
    matched = {key: given.get(key, given.get(key.rsplit("/", 1)[-1])) for key in keys}
    missing = [key for key, labels in matched.items() if labels is None]
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
        listed = json.loads(pkgutil.get_data("timm.data", f"_info/{REAL_LABELS}.json"))
        given: Any = {f"ILSVRC2012_val_{number:08d}.JPEG": labels for number, labels in enumerate(listed, 1)}
    else:
        path = spec.file.parent / spec.labels
        try:
            given = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
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
