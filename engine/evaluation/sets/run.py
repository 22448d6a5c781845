"""Evaluation on several sets: each image once, each set's figures from what was said of its images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np
import torch

from utils.metrics import Metric, corruption_errors
from utils.processes.peers import Peers
from utils.run_log import RunLog

from ..loop import summarize
from .open import EvaluationSet, measured_corruptions
from .predictions import Predictions, Records, by_target, score, with_labels
from .spec import VAL
from .tables import write_set


@dataclass
class Outcome:
    """What a model said of a set's images, by its parts, and the evaluation's metrics of each."""

    weights: str
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: dict[str, Records] = field(default_factory=dict)


def evaluate_sets(
    sets: Mapping[str, EvaluationSet],
    asked: Sequence[str],
    weights: Sequence[str],
    better: str,
    measured: Callable[..., dict[str, Any]],
    loader: Callable,
    classes: Sequence[str],
    metric: Metric,
    device: torch.device,
    log: RunLog,
    peers: Peers,
    folder: Path,
    facts: Mapping[str, Any],
    predictions: bool,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Evaluates on the sets, the validation images first, and writes each one's files as soon as it is done.

    Args:
        sets: see `open_sets`.
        asked: names of those whose figures are wanted; the others only give images.
        weights: names of the checkpoint's weights; all are evaluated on the validation images if these are asked for.
        better: the ones for the other sets, unless the validation has said which are.
        measured: (weights, loader, predictions) -> results of the one evaluation, see `engine.evaluation.loop`.
        loader: data set -> its loader.
        metric: what the weights are compared by.
        folder: where the files go.
        facts: goes into each set's JSON.
        predictions: whether each image's is written.

    Returns:
        The evaluation's results on the validation images by weights, empty if they were not asked for; and on rank 0 the sets'.
    """
    validation: dict[str, dict[str, Any]] = {}
    outcomes: dict[str, Outcome] = {}
    summaries: dict[str, dict[str, Any]] = {}
    for name, found in sets.items():
        if found.parts:
            tried = []
            for used in weights if name == VAL and name in asked else [better]:
                outcome = Outcome(used)
                for part, dataset in found.parts.items():
                    collected = Predictions(device, found.subset, len(classes))
                    outcome.metrics[part] = measured(used, loader(dataset), collected)
                    gathered = peers.gather(collected.records())
                    if log.enabled:  # ImageNet-C's take gigabytes
                        outcome.records[part] = Records.join(gathered).in_order().within(part)
                    value = outcome.metrics[part][metric.key]
                    log.info(f"{'/'.join(filter(None, [name, part]))} {used}: {metric.key} {value:.3f}")
                tried.append(outcome)
            if name == VAL and name in asked:
                validation = {outcome.weights: outcome.metrics[""] for outcome in tried}
                better = summarize(validation, metric)["weights"]
            outcomes[name] = next(outcome for outcome in tried if outcome.weights == better)
        if name in asked and log.enabled:
            summary, records, right, everything = figures(found, sets, outcomes)
            summaries[name] = {"set": name, **summary, **facts}
            if name == VAL:
                summaries[name].update(validation)
            write_set(folder, name, summaries[name], records, right, classes, everything if predictions else None)
            log.info(f"wrote {folder / name}.json{'' if summary['complete'] else ': it is not complete'}")
    return validation, summaries


def figures(
    found: EvaluationSet, sets: Mapping[str, EvaluationSet], outcomes: Mapping[str, Outcome]
) -> tuple[dict[str, Any], Records, np.ndarray, tuple[Records, list[list[int]]]]:
    """A set's figures; the images they are of, and which of their classes are right; all its images and their labels."""
    spec = found.spec
    if spec.of:
        outcome = outcomes[spec.of]
        records, right = with_labels(outcome.records[""], found.labels)
        images = sum(map(bool, found.labels.values()))
        summary = score(records, right) if len(records) else {"num_images": 0}
        summary |= {
            "weights": outcome.weights,
            "of": spec.of,
            "not_counted": len(found.labels) - images,
            "labels": found.place,
        }
        summary["complete"] = len(records) == images and spec.images in (0, images)
        return summary, records, right, (records, [found.labels[key] for key in records.keys])

    outcome = outcomes[spec.name]
    counted = [part for part in found.parts if not spec.extra or part.split("/")[0] in spec.corruptions]
    records = Records.join([outcome.records[part] for part in counted])
    right = by_target(records)
    losses = sum(outcome.metrics[part]["loss"] * len(outcome.records[part]) for part in counted) / len(records)
    summary = {**score(records, right), "loss": round(losses, 6), "weights": outcome.weights, "path": found.place}
    whole = [
        len(outcome.records[part]) == len(dataset) and spec.images in (0, len(dataset))
        for part, dataset in found.parts.items()
    ]
    summary["complete"] = all(whole) and len(measured_corruptions(found)) == len(spec.corruptions)
    summary["classes"] = (
        len(found.subset) if found.subset is not None else len(next(iter(found.parts.values())).classes)
    )
    unreadable = sum(metrics.get("unreadable", 0) for metrics in outcome.metrics.values())
    summary |= {"unreadable": unreadable} if unreadable else {}
    if spec.corruptions:
        summary |= _under_corruption(found, outcome)
    else:
        summary.update(outcome.metrics[""])  # the sums of the one evaluation
    everything = Records.join(list(outcome.records.values()))
    return summary, records, right, (everything, everything.targets[:, None].tolist())


def _under_corruption(found: EvaluationSet, outcome: Outcome) -> dict[str, Any]:
    spec = found.spec
    errors: dict[str, dict[int, float]] = {}
    for part, metrics in outcome.metrics.items():
        corruption, severity = part.split("/")
        errors.setdefault(corruption, {})[int(severity)] = 1 - metrics["acc1"] / 100
    each, mean = corruption_errors(errors, spec.corruptions, spec.severities)
    others, _ = corruption_errors(errors, spec.extra, spec.severities)
    return {
        "mce": mean,
        "corruption_errors": each,
        "extra_corruption_errors": others,
        "not_measured": found.left_out,
        "parts": outcome.metrics,
    }
