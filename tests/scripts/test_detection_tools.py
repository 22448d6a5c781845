"""The small set of pasted things, and what a detector is compared with on it."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

import compare_detection
import make_detection_data
from coco_files import write_coco
from conftest import SMALLEST, run
from data.sources.coco import CocoSource
from utils.errors import ConfigError


@pytest.fixture(scope="module")
def pasted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pasted") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["", str(folder), "--stand-in", "--train", "20", "--val", "6"])
        assert make_detection_data.main() == 0
    return folder


def test_shapes_make_a_whole_set_in_coco_s_layout(pasted):
    train, val = (CocoSource(pasted, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (20, 6) and train.classes == val.classes == ["disc", "square", "triangle"]
    for index in range(20):
        image, target = train.load(index)
        assert image.size == (96, 64) and 1 <= len(target["objects"]) <= 2
        for entry in target["objects"]:
            mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(entry["segmentation"], 64, 96)))
            x, y, width, height = entry["bbox"]
            rows, columns = np.nonzero(mask)
            assert (
                abs(rows.min() - y) <= 1 and abs(columns.max() + 1 - x - width) <= 1 and entry["area"] <= width * height
            )


def test_a_set_is_made_once_and_nothing_is_overwritten(pasted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["", str(pasted), "--stand-in"])
    assert make_detection_data.main() == 0 and "is there already; nothing to do" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["", str(tmp_path), "--stand-in"])
    with pytest.raises(ConfigError, match="is there and is no such set; give the name of a new folder"):
        make_detection_data.main()


def test_things_of_the_validation_images_are_others():
    shapes = make_detection_data.shapes_of([np.asarray(Image.new("RGB", (200, 100), "green"))] * 2)
    sides = {make_detection_data.is_of_validation(shape.name) for shape in shapes}
    assert sides == {True, False} and {shape.label for shape in shapes} == {0, 1, 2}


def test_a_detector_is_compared_with_what_has_not_learned(tmp_path, capsys):
    coco = write_coco(tmp_path / "coco", train=4, val=3)
    config = {
        "BASE": str(make_detection_data.Path(__file__).parents[2] / "configs/detection/base.yaml"), "DEVICE": "cpu",
        "OUTPUT": str(tmp_path), "DATA": {"DATA_PATH": str(coco), "TRAIN_SPLIT": "train", "VAL_SPLIT": "val", "IMG_SIZE": 64, "BATCH_SIZE": 2,
        "NUM_WORKERS": 0}, "MODEL": {"NAME": "fat_tiny", "FAT": dict(SMALLEST)},
        "TRAIN": {"EPOCHS": 1, "WARMUP_UPDATES": 0, "TOTAL_BATCH_SIZE": 2},
    }  # fmt: skip
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    run("--cfg", path)
    capsys.readouterr()
    assert compare_detection.main([str(tmp_path / "fat_tiny/default/best.pth")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[-3:]] == [
        "trained",
        "untrained",
        "the same boxes in every image",
    ]


def test_boxes_that_are_the_same_everywhere(pasted):
    model = compare_detection.SameBoxes(CocoSource(pasted, "train"), with_masks=True)
    small, large = model([torch.zeros(3, 64, 96), torch.zeros(3, 128, 192)])
    assert torch.allclose(2 * small["boxes"], large["boxes"]) and small["masks"].shape[1:] == (1, 64, 96)
    assert (small["scores"].diff() <= 0).all() and small["scores"][0] <= 1
