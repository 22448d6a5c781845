"""Weights into a model."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

import timm
import torch
from torch import nn

from models.dense import DenseBackbone
from utils.errors import CheckpointError

from .file import CheckpointFile, left_out, took_off
from .first_convolution import adapted, first_convolutions
from .layouts import State, Taken, Weights

COUNT = "num_batches_tracked"  # BatchNorm's, which torch does not ask for either


@dataclass(frozen=True)
class Fitted:
    """Weights under a model's names."""

    state: State
    note: str  # what was done for it, in one line; '' if nothing
    difference: Optional[str]  # the first tensor that does not fit; None: all do


def fit(model: nn.Module, checkpoint: CheckpointFile, name: str, ignore: tuple[str, ...] = ()) -> Fitted:
    """Finds out how a file's weights are a model's.

    The wrappers' prefixes are taken off as far as the names then are the model's; else what all of the model's names have in front
    in the file, if there is one such; else timm's own conversion is tried, for a model of timm's. What then does not fit is named.

    Args:
        name: 'raw' or 'ema'.
        ignore: prefixes of tensors whose shape may differ.

    Raises:
        CheckpointError: the file has several weights that fit, and leaves open which are meant.
    """
    weights = checkpoint.weights[name]
    for taken in reversed(weights.steps):
        if first_difference(model, taken.state, ignore) is None:
            return _fitted(model, checkpoint, name, taken)
    inner = [taken for taken in _under_a_prefix(model, weights) if first_difference(model, taken.state, ignore) is None]
    if len(inner) > 1:
        inner = [taken for taken in inner if taken.prefix == "model."] or inner
    if len(inner) > 1:
        prefixes = " and ".join(repr(taken.prefix) for taken in inner)
        raise CheckpointError(
            f"{checkpoint.path}: has weights under {prefixes}; save those that you mean in a file alone"
        )
    if inner:
        return _fitted(model, checkpoint, name, inner[0])
    for taken in reversed(weights.steps):
        converted = convert_as_timm(model, taken.state)
        if converted and first_difference(model, converted, ignore) is None:
            by = f"converted by timm's code for {_timm_says(model)['architecture']}"
            return _fitted(model, checkpoint, name, Taken(converted, taken.prefix, taken.left_out), by)
    plain = weights.plain
    return Fitted(plain.state, "", first_difference(model, plain.state, ignore))


def _fitted(model: nn.Module, checkpoint: CheckpointFile, name: str, taken: Taken, how: str = "") -> Fitted:
    missing = missing_counts(model, taken.state)
    state = {key: value.long() if key.rpartition(".")[2] == COUNT else value for key, value in taken.state.items()}
    state.update({key: torch.zeros((), dtype=torch.long) for key in missing})
    counts = f"{len(missing)} {COUNT} of BatchNorm are not in it and set to 0" if missing else ""
    parts = [checkpoint.source_of(name), took_off(taken.prefix), left_out(taken.left_out), how, counts]
    return Fitted(state, ", ".join(part for part in parts if part), None)


def _under_a_prefix(model: nn.Module, weights: Weights) -> Iterator[Taken]:
    first = next(iter(model.state_dict()), None)
    return weights.under(first) if first else iter(())


def missing_counts(model: nn.Module, weights: State) -> list[str]:
    """BatchNorm's counts of batches that the weights lack, as those of before 2018 and of other frameworks do."""
    return [key for key in model.state_dict() if key.rpartition(".")[2] == COUNT and key not in weights]


def convert_as_timm(model: nn.Module, state: State) -> Optional[State]:
    """The weights as timm's code for this model converts other codes' and other sizes'; None where it does not.

    timm converts while it loads: so another model of the same kind loads them, with a head of the file's size.
    """
    told = _timm_says(model)
    if not type(model).__module__.startswith("timm.") or not told.get("architecture"):
        return None
    settings: dict[str, Any] = {}
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if told.get("fixed_input_size") and size:
        settings["img_size"] = size
    heads = {
        getattr(model, "num_classes", 0),
        *(len(value) for key, value in state.items() if key.endswith("weight") and value.dim() == 2 and "head" in key),
    }
    for num_classes in sorted(heads, reverse=True):
        overlay = {"state_dict": dict(state), "num_classes": num_classes, "custom_load": False}
        try:
            with _quiet_timm(), torch.random.fork_rng(devices=[]):
                other = timm.create_model(
                    told["architecture"],
                    pretrained=True,
                    pretrained_cfg_overlay=overlay,
                    num_classes=num_classes,
                    **settings,
                )
        except MemoryError:
            raise
        except Exception:  # what timm's conversions raise at another model's weights is of many kinds
            continue
        return other.state_dict()
    return None


def _timm_says(model: nn.Module) -> Mapping[str, Any]:
    """What timm keeps of its models; empty for others."""
    return getattr(model, "pretrained_cfg", None) or {}


class _quiet_timm:
    """Without timm's log of a conversion that may fail."""

    def __enter__(self) -> None:
        logging.getLogger("timm").addFilter(self._none)

    def __exit__(self, *_: Any) -> None:
        logging.getLogger("timm").removeFilter(self._none)

    @staticmethod
    def _none(record: logging.LogRecord) -> bool:
        return False


def first_difference(model: nn.Module, weights: State, ignore: tuple[str, ...] = ()) -> Optional[str]:
    """Says which tensor of the weights is the first not to fit the model; None if all do, BatchNorm's counts aside.

    `ignore` has the prefixes of tensors whose shape may differ.
    """
    expected = model.state_dict()
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        return "it holds no tensors"
    for key, value in expected.items():
        if key not in weights:
            if key.rpartition(".")[2] == COUNT:
                continue
            return f"the model's {key} {tuple(value.shape)} is missing"
        other = weights[key]
        plain = other.layout is torch.strided and not other.is_meta and not other.is_quantized
        counts = key.rpartition(".")[2] == COUNT  # which codes that average or halve all tensors leave as floats
        if not plain or (other.is_floating_point() != value.is_floating_point() and not counts):
            return f"{key} is {other.dtype} ({other.layout}), the model's {value.dtype}"
        if value.shape != weights[key].shape and not (ignore and key.startswith(ignore)):
            return f"{key} is {tuple(weights[key].shape)}, the model's {tuple(value.shape)}"
    unknown = next((key for key in weights if key not in expected), None)
    return unknown and f"{unknown} {tuple(weights[unknown].shape)} is not in the model"


def require_fit(model: nn.Module, checkpoint: CheckpointFile, name: str) -> Fitted:
    """All of a file's weights for the model, which is unchanged; see `fit`.

    Raises:
        CheckpointError: they are of another model; the first tensor that differs is named.
    """
    fitted = fit(model, checkpoint, name)
    if fitted.difference:
        raise _of_another_model(checkpoint.path, fitted.difference)
    return fitted


def load_weights(model: nn.Module, weights: State, path: Path) -> None:
    """Loads all weights, which have the model's names, into the model.

    Raises:
        CheckpointError: they are of another model; the first tensor that differs is named, the model unchanged.
    """
    difference = first_difference(model, weights)
    if difference:
        raise _of_another_model(path, difference)
    model.load_state_dict(
        {**weights, **{key: torch.zeros((), dtype=torch.long) for key in missing_counts(model, weights)}}
    )


def _of_another_model(path: Path, difference: str) -> CheckpointError:
    key = (
        "MODEL.FAT.distilled"
        if "head_dist." in difference
        else "MODEL.NAME, MODEL.FAT, MODEL.NUM_CLASSES and DATA.IN_CHANS"
    )
    return CheckpointError(f"{path}: is of another model: {difference}; check {key}")


def classifier_of(model: nn.Module) -> tuple[str, ...]:
    """What the names of the classifier's parameters begin with, as timm's models say it; empty if one does not."""
    classifier = _timm_says(model).get("classifier") or ()
    return tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))


def load_pretrained(model: nn.Module, checkpoint: CheckpointFile, name: str) -> tuple[list[str], str]:
    """Loads weights to start from; a classifier of another size keeps its initialisation, and the first convolution is
    adapted to the number of an image's channels.

    A segmenter or detector takes weights of a classification model, too, into its backbone.

    Returns:
        The names of the tensors that were not loaded, and what was done to get the weights (see `Fitted.note`); of a
        backbone the modules in place of the tensors.

    Raises:
        CheckpointError: anything but the classifier differs, or a tensor holds what is no number.
    """
    head = classifier_of(model)
    fitted = fit(model, checkpoint, name, ignore=(*head, *first_convolutions(model)))
    if fitted.difference:
        skipped = load_backbone(model, checkpoint, name)
        if skipped:
            return skipped, "a classification model's, for the backbone"
        raise CheckpointError(f"{checkpoint.path}: is of another model: {fitted.difference}; check MODEL.NAME")
    try:
        weights, adaptation = adapted(model, fitted.state, checkpoint.in_chans)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: is of another model: {error}; check MODEL.NAME") from error
    expected = model.state_dict()
    skipped = [key for key, value in expected.items() if weights[key].shape != value.shape]
    if skipped:
        skipped = [key for key in expected if head and key.startswith(head)]  # weight and bias belong together
    taken = {key: weights[key] for key in expected if key not in skipped}
    _require_finite(taken, checkpoint.path)
    model.load_state_dict(taken, strict=False)
    return skipped, ", ".join(part for part in (fitted.note, adaptation) if part)


def load_backbone(model: nn.Module, checkpoint: CheckpointFile, name: str) -> list[str]:
    """Loads a classification model's weights into the backbone of a model of dense prediction.

    Returns:
        The modules that are new, by their names in the model; [] if it has no such backbone, or the weights are not its: then
        the model is unchanged.

    Raises:
        CheckpointError: a tensor holds what is no number.
    """
    backbones = {path: module for path, module in model.named_modules() if isinstance(module, DenseBackbone)}
    if not backbones:
        return []
    path, backbone = next(iter(backbones.items()))
    for taken in reversed(checkpoint.weights[name].steps):
        try:
            new = backbone.load_classification_weights(taken.state)
        except ValueError:
            continue
        _require_finite(backbone.state_dict(), checkpoint.path)
        norms = dict.fromkeys(f"{path}.{key}".rpartition(".")[0] for key in new)
        return [*norms, *(head.removesuffix(".") for head in classifier_of(model))]
    return []


def _require_finite(state: State, path: Path) -> None:
    broken = next(
        (key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()), None
    )
    if broken:
        raise CheckpointError(
            f"{path}: its {broken} holds values that are infinite or no numbers, as of a training that failed; use another checkpoint"
        )
