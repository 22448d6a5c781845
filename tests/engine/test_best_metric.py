"""What best.pth is chosen by (TRAIN.BEST_METRIC)."""

import pytest
from test_engine import make_trainer
from torch import nn

from conftest import ROOT
from engine.checkpoints.progress import Progress
from engine.evaluation.loop import describe, summarize
from engine.tasks import create_task
from utils.config import load_config
from utils.errors import ConfigError
from utils.metrics import LOSS


def task_of(metric, recipe):
    return create_task(load_config(ROOT / "configs" / f"{recipe}.yaml", ["TRAIN.BEST_METRIC", metric]))


@pytest.mark.parametrize("metric, recipe, expected", [
    ("", "fat_b0", ("acc1", True)), ("f1_macro", "fat_b0", ("f1_macro", True)), ("loss", "fat_b0", ("loss", False)),
    ("aacc", "segmentation/semantic_fpn_fat_b0", ("aacc", True)),
    ("mask_ap50", "detection/mask_rcnn_fat_b0_1x", ("mask_ap50", True)),
])  # fmt: skip
def test_the_task_s_figures_can_be_chosen_by(metric, recipe, expected):
    primary = task_of(metric, recipe).primary
    assert (primary.key, primary.higher_is_better) == expected


@pytest.mark.parametrize("metric, recipe, choices", [
    ("f1", "fat_b0", "acc1, acc5, loss, balanced_accuracy, precision_macro, recall_macro, f1_macro"),
    ("num_images", "fat_b0", "acc1, acc5, loss, balanced_accuracy, precision_macro, recall_macro, f1_macro"),
    ("acc1", "segmentation/semantic_fpn_fat_b0", "miou, macc, aacc"),
    ("mask_ap", "detection/retinanet_fat_b0_1x", "box_ap, box_ap50"),
])  # fmt: skip
def test_another_name_is_refused_with_the_figures_there_are(metric, recipe, choices):
    with pytest.raises(ConfigError) as caught:
        task_of(metric, recipe)
    assert str(caught.value).startswith(
        f"TRAIN.BEST_METRIC: {metric!r} is no figure of this task; use one of {choices}"
    )


def trainer_by(metric, **changes):
    trainer = make_trainer(nn.Linear(1, 1), 4, 1, 24, **changes)
    trainer.task.primary, trainer.list_unreadable = metric, lambda: None
    return trainer


def figures(loss, **others):
    return {"raw": {"acc1": 50.0, "loss": loss, "num_images": 4, **others}}


def test_lines_of_a_log_have_a_mean_over_classes_where_it_is_chosen_by():
    results = figures(2.0, f1_macro=40.0, recall_macro=30.0)
    assert (
        describe(results, {"f1_macro": 40.0, "epoch": 3}) == "raw acc1 50.000 loss 2.000 num_images 4 f1_macro 40.000"
    )
    assert "macro" not in describe(results, {"acc1": 50.0}) and "recall_macro 30.000" in describe(results)


def test_of_a_loss_the_lower_is_the_better():
    trainer = trainer_by(LOSS)
    for loss in (2.0, 1.0, 3.0):
        trainer.finish_epoch(1.0, figures(loss), 1.0)
    assert trainer.progress.best == {"loss": 1.0, "weights": "raw", "epoch": 1}


def test_with_another_metric_the_best_so_far_is_compared_by_that():
    progress = Progress(best={"acc1": 50.0, "weights": "raw", "epoch": 3}, best_metrics=figures(2.0)["raw"])
    assert progress.judge_by("acc1") == "" and progress.best["acc1"] == 50.0
    assert progress.judge_by("loss") == (
        "TRAIN.BEST_METRIC: best.pth, of epoch 3, chosen by acc1, stays until an epoch has a better loss than its 2.000"
    )
    assert progress.best == {"loss": 2.0, "weights": "raw", "epoch": 3} and progress.judge_by("loss") == ""
    trainer = trainer_by(LOSS, progress=progress)
    trainer.finish_epoch(1.0, figures(2.5), 1.0)
    assert progress.best["epoch"] == 3
    assert "f1_macro of best.pth, of epoch 3, chosen by loss, is not known" in progress.judge_by("f1_macro")
    assert progress.best == {} and Progress().judge_by("acc1") == ""


def test_a_figure_that_an_evaluation_lacks_ends_the_run_once_it_is_saved():
    """As AP of small objects, where there are none."""
    trainer, saved = trainer_by(LOSS), []
    trainer.save = lambda *names: saved.extend(names)
    with pytest.raises(ConfigError) as caught:
        trainer.finish_epoch(1.0, {"raw": {"acc1": 50.0, "num_images": 4}}, 1.0)
    assert saved == ["last.pth"] and "give no loss; use one of acc1; the run is saved" in str(caught.value)


def test_an_evaluation_that_lacks_the_figure_ends_in_a_line():
    """--eval, too, of a checkpoint whose config names it."""
    with pytest.raises(ConfigError, match="TRAIN.BEST_METRIC: the validation images give no loss; use one of acc1"):
        summarize({"raw": {"acc1": 50.0, "num_images": 4}, "ema": {"acc1": 50.0, "num_images": 4}}, LOSS)
