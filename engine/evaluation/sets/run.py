"""Evaluation on several sets: each image once, each set's figures from what was said of its images."""

from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Optional, Sequence

import numpy as np

from utils.metrics import Metric, corruption_errors
from utils.run_log import RunLog

from ..loop import summarize
from .open import EvaluationSet, measured_corruptions
from .predictions import Records, by_target, score, with_labels
from .spec import VAL
from .tables import SetFiles


@dataclass
class Outcome:
    """What a model said of a set's images, by its parts, and the evaluation's metrics of each."""

    weights: str
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: dict[str, Records] = field(default_factory=dict)


@dataclass
class SetsEvaluation:
    """The evaluation of a checkpoint on several sets.

    Args:
        sets: see `open_sets`.
        asked: names of those whose figures are wanted; the others only give images.
        weights: names of the checkpoint's weights; all are evaluated on the validation images if these are asked for.
        better: the ones for the other sets, unless the validation has said which are.
        measure: (weights, data set, labels that the model chooses among or None for all) -> the figures, and on rank 0
            the records of all processes' images, in order.
        metric: what the weights are compared by.
        files: what is written of each set.
    """

    sets: Mapping[str, EvaluationSet]
    asked: Sequence[str]
    weights: Sequence[str]
    better: str
    measure: Callable[[str, Any, Optional[list[int]]], tuple[dict[str, Any], Records]]
    metric: Metric
    files: SetFiles
    log: RunLog

    def run(self) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Evaluates on the sets, the validation images first, and writes each one's files as soon as it is done.

        Returns:
            The figures of the validation images by weights, empty if they were not asked for; and on rank 0 the sets'.
        """
        validation: dict[str, dict[str, Any]] = {}
        outcomes: dict[str, Outcome] = {}
        summaries: dict[str, dict[str, Any]] = {}
        for name, opened in self.sets.items():
            if opened.parts:
                compared = name == VAL and name in self.asked
                tried = [self._outcome(opened, used) for used in (self.weights if compared else [self.better])]
                if compared:
                    validation = {outcome.weights: outcome.metrics[""] for outcome in tried}
                    self.better = summarize(validation, self.metric)["weights"]
                outcomes[name] = next(outcome for outcome in tried if outcome.weights == self.better)
            if name in self.asked and self.log.enabled:
                summary, records, right, everything = figures(opened, outcomes)
                summaries[name] = {"set": name, **summary, **self.files.facts}
                if name == VAL:
                    summaries[name].update(validation)
                self.files.write(name, summaries[name], records, right, everything)
                path = self.files.folder / f"{name}.json"
                self.log.info(f"wrote {path}{'' if summary['complete'] else ': it is not complete'}")
        return validation, summaries

    def _outcome(self, opened: EvaluationSet, weights: str) -> Outcome:
        outcome = Outcome(weights)
        for part, dataset in opened.parts.items():
            outcome.metrics[part], records = self.measure(weights, dataset, opened.subset)
            if self.log.enabled:  # ImageNet-C's take gigabytes
                outcome.records[part] = records.within(part)
            name, value = "/".join(filter(None, [opened.spec.name, part])), outcome.metrics[part][self.metric.key]
            self.log.info(f"{name} {weights}: {self.metric.key} {value:.3f}")
        return outcome


Everything = tuple[Records, list[list[int]]]  # images, and the labels that are right for each


def figures(
    opened: EvaluationSet, outcomes: Mapping[str, Outcome]
) -> tuple[dict[str, Any], Records, np.ndarray, Everything]:
    """A set's figures; the images they are of, and which of their classes are right; all its images and their labels."""
    if opened.spec.of:
        return _by_other_labels(opened, outcomes[opened.spec.of])
    return _by_own_labels(opened, outcomes[opened.spec.name])


def _by_other_labels(opened: EvaluationSet, outcome: Outcome) -> tuple[dict[str, Any], Records, np.ndarray, Everything]:
    spec = opened.spec
    records, right = with_labels(outcome.records[""], opened.labels)
    images = sum(map(bool, opened.labels.values()))
    summary = {
        **(score(records, right) if len(records) else {"num_images": 0}),
        "weights": outcome.weights,
        "of": spec.of,
        "not_counted": len(opened.labels) - images,
        "labels": opened.place,
        "complete": len(records) == images and spec.expected.images in (0, images),
    }
    return summary, records, right, (records, [opened.labels[key] for key in records.keys])


def _by_own_labels(opened: EvaluationSet, outcome: Outcome) -> tuple[dict[str, Any], Records, np.ndarray, Everything]:
    spec, wanted = opened.spec, opened.spec.corrupted
    counted = [part for part in opened.parts if not wanted.extra or part.split("/")[0] in wanted.corruptions]
    records = Records.join([outcome.records[part] for part in counted])
    right = by_target(records)
    losses = sum(outcome.metrics[part]["loss"] * len(outcome.records[part]) for part in counted) / len(records)
    whole = [
        len(outcome.records[part]) == len(dataset) and spec.expected.images in (0, len(dataset))
        for part, dataset in opened.parts.items()
    ]
    summary = {
        **score(records, right),
        "loss": round(losses, 6),
        "weights": outcome.weights,
        "path": opened.place,
        "complete": all(whole) and len(measured_corruptions(opened)) == len(wanted.corruptions),
        "classes": len(next(iter(opened.parts.values())).classes if opened.subset is None else opened.subset),
    }
    unreadable = sum(metrics.get("unreadable", 0) for metrics in outcome.metrics.values())
    summary |= {"unreadable": unreadable} if unreadable else {}
    # of one part, the sums of the evaluation itself
    summary |= _under_corruption(opened, outcome) if wanted.corruptions else outcome.metrics[""]
    everything = Records.join(list(outcome.records.values()))
    return summary, records, right, (everything, everything.targets[:, None].tolist())


def _under_corruption(opened: EvaluationSet, outcome: Outcome) -> dict[str, Any]:
    wanted = opened.spec.corrupted
    errors: dict[str, dict[int, float]] = {}
    for part, metrics in outcome.metrics.items():
        corruption, severity = part.split("/")
        errors.setdefault(corruption, {})[int(severity)] = 1 - metrics["acc1"] / 100
    each, mean = corruption_errors(errors, wanted.corruptions, wanted.severities)
    others, _ = corruption_errors(errors, wanted.extra, wanted.severities)
    return {
        "mce": mean,
        "corruption_errors": each,
        "extra_corruption_errors": others,
        "not_measured": opened.left_out,
        "parts": outcome.metrics,
    }
