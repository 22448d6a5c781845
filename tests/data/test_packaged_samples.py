"""Real annotated photographs out of packages: read, moved and measured; each object detected as it is gives AP 100.

deepforest's are from PyPI; PyPI's packages of labelme hold no samples, Debian's labelme-examples does, see `sample_packages`.
"""

import numpy as np
import pytest
import torch
import yaml

from conftest import ROOT
from data.batches import Finish
from data.dataset import SeededIndex
from data.masks import IGNORED
from engine.evaluation.segmentation_evaluators import SegmentationEvaluator
from engine.tasks import create_task
from sample_packages import fetch_deepforest, fetch_labelme, write_deepforest, write_labelme, write_masks
from utils.config import load_config

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def deepforest(tmp_path_factory):
    samples = fetch_deepforest(tmp_path_factory.mktemp("deepforest"))
    return write_deepforest(samples, tmp_path_factory.mktemp("trees"))


@pytest.fixture(scope="session")
def examples(tmp_path_factory):
    return fetch_labelme(tmp_path_factory.mktemp("labelme"))


@pytest.fixture
def task_of(tmp_path):
    """The task of a config with these sections over its base."""

    def created(**sections):
        path = tmp_path / "samples.yaml"
        base = str(ROOT / f"configs/{sections['TASK']}/base.yaml")
        path.write_text(yaml.safe_dump({"BASE": [base], "DEVICE": "cpu", **sections}))
        return create_task(load_config(path, [], {}, "train"))

    return created


@pytest.fixture
def detection_of(task_of):
    """Detection that learns of a split's images, each mirrored, and measures by the same."""

    def created(root, split, head):
        data = {"DATASET": "coco", "DATA_PATH": str(root), "TRAIN_SPLIT": split, "VAL_SPLIT": split}
        return task_of(TASK="detection", DATA=data, AUG={"HFLIP": 1.0}, MODEL={"NAME": "fat_tiny", "HEAD": head})

    return created


def samples_of(dataset):
    return [dataset[SeededIndex(index, index)].sample for index in range(len(dataset))]


def mirrored_back(target, width):
    """What is learned of a mirrored image, as detections in the image itself, each sure."""
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    found = {"boxes": torch.stack([width - x2, y1, width - x1, y2], 1), "labels": target["labels"]}
    found["scores"] = torch.ones(len(x1))
    if "masks" in target:
        found["masks"] = target["masks"].flip(2)[:, None].float()
    return found


def measured(task):
    """The evaluator and its figures, where every object that is learned of is detected."""
    train, val = task.train_dataset(), task.val_dataset()
    task.prepare_training(len(train.classes))
    evaluator, finish = task.evaluator("eval", CPU), Finish([0.5] * 3, [0.5] * 3, CPU)
    learned = samples_of(train)
    measured_by = {sample.key: sample for sample in samples_of(val)}
    for sample in learned:
        image = measured_by[sample.key]
        assert np.array_equal(sample.image.pixels, image.image.pixels[:, ::-1])
        found = mirrored_back(sample.target, sample.image.pixels.shape[1])
        evaluator.step(lambda images, found=found: [found], finish(val.collate([image])))
    return evaluator, evaluator.compute(), learned


def test_pictures_with_more_objects_than_coco_counts(deepforest, detection_of):
    """AP takes the 100 surest detections of a picture: of 914 trees in three pictures 100, 100 and all 61 of the smallest."""
    task = detection_of(deepforest, "train", "retinanet")
    evaluator, figures, learned = measured(task)
    assert [len(sample.target["boxes"]) for sample in learned] == [574, 279, 61, 37]
    assert figures["num_images"] == 4 and task.train_dataset().classes == ["Alive", "Dead", "Tree"]
    recalled = 1 + int(100 * 261 / 914)  # of COCO's 101 points of recall
    assert evaluator.precision.by_class["box"] == pytest.approx([100, 100, 100 * recalled / 101])


def test_tiles_of_the_pictures(deepforest, detection_of):
    _, figures, learned = measured(detection_of(deepforest, "val", "retinanet"))
    assert sum(len(sample.target["boxes"]) for sample in learned) == 951
    assert figures["box_ap"] == pytest.approx(100) and figures["box_ap_small"] == pytest.approx(100)


@pytest.mark.parametrize("split, classes", [("train", 6), ("val", 21)])
def test_polygons_of_labelme(examples, detection_of, tmp_path, split, classes):
    """As written by its editor, and in the COCO file that labelme makes of it, whose ids begin at 0."""
    task = detection_of(write_labelme(examples, tmp_path), split, "mask_rcnn")
    _, figures, learned = measured(task)
    assert len(task.train_dataset().classes) == classes
    assert sum(len(sample.target["masks"]) for sample in learned) == 12
    assert figures["box_ap"] == pytest.approx(100) and figures["mask_ap"] == pytest.approx(100)


@pytest.mark.parametrize("layout", ["voc", "masks"])
def test_label_images_of_labelme(examples, task_of, tmp_path, layout):
    """PNGs with a palette: read as the numbers that lie beside them as arrays, mirrored with their images, measured."""
    root = write_masks(examples, tmp_path)
    data = {"DATASET": layout, "DATA_PATH": str(root), "TRAIN_SPLIT": "train", "VAL_SPLIT": "train", "IMG_SIZE": 512}
    seg = {
        "CLASSES": str(root / "classes.txt"), "REDUCE_ZERO_LABEL": False, "SCALE": [500, 375], "RATIO_RANGE": [1.0, 1.0],
        "PHOTOMETRIC": False, "CAT_MAX_RATIO": 1.0,
    }  # fmt: skip
    task = task_of(TASK="segmentation", DATA=data, SEG=seg, AUG={"HFLIP": 1.0}, MODEL={"NAME": "fat_tiny"})
    train, val = task.train_dataset(), task.val_dataset()
    evaluator = SegmentationEvaluator(len(train.classes), CPU, task.inference())
    finish, arrays = Finish([0.5] * 3, [0.5] * 3, CPU), examples / "semantic_segmentation/data_dataset_voc"
    for learned, image in zip(samples_of(train), samples_of(val), strict=True):
        height, width = image.target.shape
        expected = np.load(arrays / f"SegmentationClass/{image.key.removesuffix('.jpg')}.npy")
        assert np.array_equal(image.target, np.where(expected < 0, IGNORED, expected))
        assert np.array_equal(learned.image.pixels[:height, :width], image.image.pixels[:, ::-1])
        labels = learned.target[:height, :width].flip(1).long()
        logits = torch.nn.functional.one_hot(labels.clamp(0), len(train.classes)).permute(2, 0, 1)[None]
        evaluator.step(lambda view, logits=logits: logits, finish(val.collate([image])))
        assert (learned.target[height:] == IGNORED).all() and (learned.target[:, width:] == IGNORED).all()
    assert evaluator.compute() == pytest.approx({"miou": 100, "macc": 100, "aacc": 100, "num_images": 3})
