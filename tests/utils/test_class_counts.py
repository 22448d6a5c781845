"""Precision, recall and F1 of classes, beside scikit-learn's."""

import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics

from utils.class_counts import ClassCounts

CPU = torch.device("cpu")


def scores_of(targets, predicted, num_classes, batch_size):
    counts = ClassCounts(CPU)
    for part in np.array_split(np.arange(len(targets)), -(-len(targets) // batch_size)):
        counts.add(torch.tensor(predicted[part]), torch.tensor(targets[part]), num_classes)
    return counts.gather()


@pytest.mark.parametrize("empty", [(), (2,), (2, 4)], ids=["all classes", "one without images", "one never predicted"])
def test_scores_are_scikit_learn_s(empty):
    """Of few images of some classes; with a class that has none but is predicted, and one of which there is nothing."""
    draw = np.random.default_rng(0)
    targets = draw.choice([0, 1, 2, 3, 4], 60, p=[0.6, 0.2, 0.1, 0.05, 0.05])
    predicted = np.where(draw.random(60) < 0.6, targets, draw.integers(0, 5, 60))
    targets = np.where(np.isin(targets, empty), 0, targets)
    if len(empty) == 2:
        predicted = np.where(predicted == 4, 1, predicted)
    scores = scores_of(targets, predicted, 5, batch_size=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without images
        each = metrics.precision_recall_fscore_support(targets, predicted, labels=range(5), zero_division=np.nan)
        balanced = metrics.balanced_accuracy_score(targets, predicted)
    *of_macro, _ = metrics.precision_recall_fscore_support(targets, predicted, average="macro", zero_division=0)
    expected = [100 * value for value in (balanced, *of_macro)]
    assert list(scores.macro()) == ["balanced_accuracy", "precision_macro", "recall_macro", "f1_macro"]
    assert list(scores.macro().values()) == pytest.approx(expected)
    for mine, theirs in zip((scores.precision, scores.recall, scores.f1, scores.images), each):
        assert np.allclose(mine, theirs, equal_nan=True)
    columns, rows = scores.table(list("abcde"))
    assert columns == ["class", "images", "predicted", "precision", "recall", "f1"]
    assert [row[1] for row in rows] == each[3].tolist() and (rows[2][4] is None) == (2 in empty)


def test_a_process_without_images_has_no_part_in_the_scores():
    """What it gives to the sum is nothing, of a number of classes that it does not know."""
    assert ClassCounts(CPU).gather().images.shape == (0,)
    targets = np.array([0, 0, 1, 1, 2])
    whole, parts = (scores_of(targets, targets[::-1].copy(), 3, size) for size in (5, 1))
    assert whole.macro() == parts.macro() and whole.recall.tolist() == parts.recall.tolist()
