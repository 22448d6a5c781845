"""Exact evaluation: every image once, whatever the number of processes and the batch size."""

from typing import TYPE_CHECKING, Any, Callable, Collection, Mapping, Optional, Union

import torch
import torch.nn.functional as F
from torch import nn

from data.loader import Loader
from utils.errors import ConfigError, DataError
from utils.metrics import DETAILS, NUM_IMAGES, Metric
from utils.processes.peers import Peers
from utils.run_log import RunLog

if TYPE_CHECKING:
    from ..setup.precision import Precision
    from ..tasks.base import Evaluator


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    evaluator: "Evaluator",
    loader: Loader,
    precision: "Precision",
    log: RunLog,
    peers: Peers,
    whole_batches: int = 0,
) -> Optional[dict[str, Any]]:
    """The figures of an evaluator (`engine.tasks.base`) of a model over all images of all processes' loaders; None if the run was asked to stop.

    Processes meet only at the end, to add up their sums, so a process with fewer images, or none, holds nobody up.
    Images that could not be read (DATA.ON_ERROR skip) are in no sum; their number is `unreadable`. A compiled model is
    called with `whole_batches` images at a time, a smaller last batch being filled up with zeros, so that it is not
    compiled again for another number; 0: with as many as there are.

    Raises:
        DataError: no image could be read.
    """
    was_training = model.training
    model.eval()
    forward = fill_up(model, whole_batches) if whole_batches else model
    peers.at("evaluation: waits for images", may_last=True)
    for number, batch in enumerate(log.progress(loader, len(loader), "evaluate"), start=1):
        if peers.stop:
            break
        peers.at(f"evaluation: batch {number}", may_last=number == 1)  # which may be compiled first
        with precision.autocast():
            evaluator.step(forward, batch)
        peers.at("evaluation: waits for images", may_last=True)
    model.train(was_training)
    failures: list[str] = sum(peers.gather(loader.take_failures()), [])
    if peers.agree([bool(peers.stop)], now=True)[0]:
        return None
    log.list_unreadable(failures)
    if len(failures) == loader.num_images:
        raise DataError(f"{failures[0]}; none of the {len(failures)} images could be read")
    results = evaluator.compute()
    read = results.get("num_images", loader.num_images) + len(failures)
    if read != loader.num_images:
        log.warning(
            f"{read} images were read, {loader.num_images} were said to be there: check what says so of the shards"
        )
    if failures:
        results["unreadable"] = len(failures)
        log.warning(
            f"{len(failures)} of {loader.num_images} images could not be read: these metrics are of the other "
            f"{loader.num_images - len(failures)}, not of the full set"
        )
    return results


Images = Union[torch.Tensor, list[torch.Tensor]]  # (B, 3, H, W), or B of sizes of their own


def fill_up(model: Callable[[Images], Any], batch_size: int) -> Callable[[Images], Any]:
    """The model, called with `batch_size` images (or more) and asked for what it says of those it was given."""

    def forward(images: Images) -> Any:
        missing = batch_size - len(images)
        if missing <= 0:
            return model(images)
        if isinstance(images, torch.Tensor):
            filled: Images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing))
        else:
            filled = [*images, *(torch.zeros_like(images[-1]) for _ in range(missing))]
        return first_of(model(filled), len(images), batch_size)

    return forward


def first_of(outputs: Any, count: int, total: int) -> Any:
    """Of what a model says of `total` images, what is about the first `count`.

    Tensors have the images along their first dimension; a list of `total` entries has one for each image, as torchvision's
    detectors give it. Both may lie in dictionaries, tuples and other lists, at any depth.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs[:count]
    if isinstance(outputs, Mapping):
        return {key: first_of(value, count, total) for key, value in outputs.items()}
    if isinstance(outputs, list) and len(outputs) == total:
        return outputs[:count]
    values = [first_of(value, count, total) for value in outputs]
    return type(outputs)(*values) if hasattr(outputs, "_fields") else type(outputs)(values)


def summarize(results: dict[str, dict[str, Any]], metric: Metric) -> dict[str, Any]:
    """The better of {'raw': metrics, 'ema': metrics} at the top level, with its name, and both below.

    Raises:
        ConfigError: the evaluation has not this metric, of small objects where there are none, say.
    """
    if any(metric.key not in figures for figures in results.values()):
        given = ", ".join(key for key in next(iter(results.values())) if key != NUM_IMAGES.key)
        reason = f"the validation images give no {metric.key}"
        raise ConfigError("TRAIN.BEST_METRIC", reason, f"use one of {given}")
    weights = max(results, key=lambda name: (metric.rank(results[name][metric.key]), name == "raw"))
    return {**results[weights], "weights": weights, **results}


def describe(results: dict[str, dict[str, Any]], shown: Collection[str] = DETAILS) -> str:
    """One line of a log for {'raw': metrics, 'ema': metrics}; of the `DETAILS` it has those that are to be `shown`."""
    return ", ".join(
        f"{name} "
        + " ".join(
            f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
            for key, value in metrics.items()
            if key not in DETAILS or key in shown
        )
        for name, metrics in results.items()
    )
