"""mAP, F1 and thresholds of images with several labels, from their definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.batches import Examples
from engine.evaluation.label_evaluators import ClosingLabelEvaluator, LabelEvaluator, thresholds_from
from engine.evaluation.label_figures import EVEN, label_figures
from engine.evaluation.views import mean_of_sigmoids
from utils.errors import CheckpointError, DataError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def drawn():
    """Scores of one decimal, so that many are equal, and targets of 6 classes; no image has class 3, all have class 4."""
    random = np.random.default_rng(0)
    targets = (random.random((150, 6)) < [0.5, 0.2, 0.05, 0.0, 1.0, 0.3]).astype(np.uint8)
    return np.round(0.6 * random.random((150, 6)) + 0.3 * targets, 1), targets


def counts_at(threshold, scores, targets):
    """Right ones among the images taken, these, and those that have the class, one image after the other."""
    taken = [index for index in range(len(scores)) if scores[index] >= threshold]
    return sum(int(targets[index]) for index in taken), len(taken), int(targets.sum())


def average_precision(scores, targets):
    """Sum over n of (R_n - R_(n-1)) P_n, n over the scores that occur, the highest first: scikit-learn's definition."""
    total = recall_before = 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        right, taken, positives = counts_at(threshold, scores, targets)
        total += (right / positives - recall_before) * right / taken
        recall_before = right / positives
    return total


def f1(threshold, scores, targets):
    right, taken, positives = counts_at(threshold, scores, targets)
    return 2 * right / (taken + positives)


def test_average_precision_is_that_of_the_definition_with_equal_scores(drawn):
    figures = label_figures(*drawn)
    expected = [average_precision(*(values[:, label] for values in drawn)) for label in (0, 1, 2, 4, 5)]
    assert np.delete(figures.average_precision, 3) == pytest.approx(expected)
    assert np.isnan(figures.average_precision[3]) and figures.average_precision[4] == 1.0
    assert figures.summary()["map"] == pytest.approx(100 * np.mean(expected)) and figures.summary()["num_classes"] == 5


def test_by_hand():
    """Scores 3, 2, 2, 1, of which the first and one of the equal ones are right: 1/2 * 1 + 1/2 * 2/3."""
    figures = label_figures(np.array([[0.3], [0.2], [0.2], [0.1]]), np.array([[1], [0], [1], [0]]))
    assert figures.average_precision[0] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert figures.thresholds[0] == pytest.approx(0.15) and figures.scores.f1[0] == pytest.approx(0.8)


def test_thresholds_have_the_largest_f1(drawn):
    figures = label_figures(*drawn)
    for label, threshold in enumerate(figures.thresholds):
        scores, targets = (values[:, label] for values in drawn)
        if label == 3:
            assert threshold == EVEN
            continue
        assert f1(threshold, scores, targets) == pytest.approx(max(f1(score, scores, targets) for score in scores))
        assert threshold not in scores  # a score that rounds otherwise on another machine stays on its side
        assert figures.scores.f1[label] == f1(threshold, scores, targets)
    given = label_figures(*drawn, np.full(6, 0.5))
    each = [counts_at(0.5, *(values[:, label] for values in drawn)) for label in range(6)]
    right, taken, positives = (sum(count[i] for count in each) for i in range(3))
    assert given.summary()["f1_micro"] == pytest.approx(200 * right / (taken + positives))
    macro = np.mean([2 * right / (taken + positives) for right, taken, positives in each if taken + positives])
    assert given.summary()["f1_macro"] == pytest.approx(100 * macro)
    assert given.scores.precision[0] == each[0][0] / each[0][1] and given.scores.recall[0] == each[0][0] / each[0][2]


def test_the_order_of_images_changes_no_bit(drawn):
    order = np.random.default_rng(1).permutation(150)
    figures, mixed = label_figures(*drawn), label_figures(*(values[order] for values in drawn))
    assert figures.summary() == mixed.summary() and (figures.thresholds == mixed.thresholds).all()
    assert figures.average_precision.tobytes() == mixed.average_precision.tobytes()


def batches(logits, targets, size):
    for start in range(0, len(logits), size):
        part = slice(start, start + size)
        yield Examples(logits[part], torch.from_numpy(targets[part]), [""] * len(targets[part]))


def evaluated(evaluator, logits, targets, size):
    for batch in batches(logits, targets, size):
        evaluator.step(lambda images: images, batch)
    return evaluator.compute()


def test_an_evaluator_chooses_or_takes_thresholds(drawn):
    scores, targets = drawn
    logits = torch.logit(torch.from_numpy(scores).float(), eps=1e-4)
    evaluator = ClosingLabelEvaluator(6, CPU, flip=False)
    figures = evaluated(evaluator, logits, targets, 32)
    assert figures == evaluated(LabelEvaluator(6, CPU, flip=False), logits, targets, 150)
    expected = F.binary_cross_entropy_with_logits(logits.double(), torch.from_numpy(targets).double())
    assert figures["loss"] == pytest.approx(expected.item(), abs=1e-6) and figures["num_images"] == 150
    (section,) = evaluator.sections(list("abcdef"))
    assert section["rows"][-1][:4] == ["d", "0", str(evaluator.figures.scores.predicted[3]), "\u2013"]
    columns, rows = evaluator.class_table(list("abcdef"))
    assert len(columns) == len(rows[0]) == len(section["rows"][0]) and rows[3][3] is None and rows[4][3] == 100.0

    again = LabelEvaluator(6, CPU, flip=False)
    assert "largest F1" in again.use(evaluator.chosen())
    half = {name: evaluated(again, logits[:75], targets[:75], 32)[name] for name in ("map", "f1_micro")}
    assert half["f1_micro"] != figures["f1_micro"] and again.chosen() == evaluator.chosen()
    fixed = LabelEvaluator(6, CPU, flip=False, threshold=0.5)
    assert "MULTILABEL.THRESHOLD 0.5" in fixed.use(evaluator.chosen())
    assert evaluated(fixed, logits, targets, 32)["map"] == figures["map"] and fixed.chosen() == {}


def test_thresholds_of_a_checkpoint():
    thresholds, said = thresholds_from(0.0, {}, 2)
    assert thresholds.tolist() == [EVEN, EVEN] and "checkpoint has none" in said
    for wrong in ([0.5], [0.5, 2.0], "ab", [0.5, None]):
        with pytest.raises(CheckpointError, match="thresholds are not those of 2 classes; set MULTILABEL.THRESHOLD"):
            thresholds_from(0.0, {"thresholds": wrong}, 2)
    with pytest.raises(DataError, match="no validation image has a label"):
        evaluated(LabelEvaluator(2, CPU, flip=False), torch.zeros(2, 2), np.zeros((2, 2), np.uint8), 2)


def test_several_views_give_the_mean_of_their_probabilities():
    views = [torch.tensor([[-3.0, 40.0]]), torch.tensor([[1.0, -40.0]])]
    mean = mean_of_sigmoids(views).sigmoid()
    assert torch.allclose(mean, torch.stack(views).sigmoid().mean(0))
