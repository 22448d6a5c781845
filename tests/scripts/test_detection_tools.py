"""The small set of pasted things, and what a detector is compared with on it."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import compare_detection
import export
import make_detection_data
import predict
from coco_files import write_coco
from conftest import ROOT, SMALLEST_DENSE, run
from data.sources.coco import CocoSource
from engine.tasks import create_task
from utils.config import load_config, to_dict
from utils.errors import ConfigError

pytestmark = pytest.mark.usefixtures("narrow_heads")


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
        "BASE": str(ROOT / "configs/detection/base.yaml"), "DEVICE": "cpu",
        "OUTPUT": str(tmp_path), "DATA": {"DATA_PATH": str(coco), "TRAIN_SPLIT": "train", "VAL_SPLIT": "val", "IMG_SIZE": 64, "BATCH_SIZE": 2,
        "NUM_WORKERS": 0}, "MODEL": {"NAME": "fat_tiny", "FAT": dict(SMALLEST_DENSE)},
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


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A trained Mask R-CNN that detects much, and a folder of images, one of which is none."""
    folder = tmp_path_factory.mktemp("detector")
    cfg = load_config(ROOT / "configs/detection/base.yaml", [
        "MODEL.HEAD", "mask_rcnn", "MODEL.NAME", "fat_tiny", "DATA.IMG_SIZE", "64", "DEVICE", "cpu", "MODEL.FAT.embed_dims", "[8,8,16,16]",
        "MODEL.FAT.depths", "[1,1,1,1]", "MODEL.FAT.num_heads", "[1,1,2,2]",
    ])  # fmt: skip
    torch.manual_seed(0)
    model = create_task(cfg).build_model(2)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    checkpoint = {"model": model.state_dict(), "config": to_dict(cfg), "classes": ["box", "disc"]}
    torch.save(checkpoint, folder / "best.pth")
    (folder / "images").mkdir()
    Image.new("RGB", (80, 64), "red").save(folder / "images/a.png")
    (folder / "images/b.png").write_text("no image")
    return folder


def test_boxes_are_drawn_and_written_as_coco_s(detector, tmp_path, capsys):
    argv = ["--checkpoint", str(detector / "best.pth"), str(detector / "images"), "--device", "cpu"]
    assert predict.main([*argv, "--output", str(tmp_path / "drawn"), "--json", str(tmp_path / "found.json")]) == 1
    out, err = capsys.readouterr()
    assert "a.png  " in out and "b.png: cannot be read as an image" in err
    with Image.open(tmp_path / "drawn/a_boxes.jpg") as picture:
        assert picture.size == (80, 64)
    found = COCO(str(tmp_path / "found.json"))
    assert [one["name"] for one in found.loadCats(found.getCatIds())] == ["box", "disc"] and len(found.imgs) == 1
    assert found.anns and all(found.annToMask(entry).shape == (64, 80) for entry in found.anns.values())
    assert {entry["category_id"] for entry in found.anns.values()} <= {1, 2}


@pytest.mark.parametrize("more, said", [
    ([], "--output: is not given; give a folder for pictures with boxes, or --json a file"),
    (["--output", "drawn", "--fused"], "--fused: is for classification, and the checkpoint is of TASK detection; leave it out"),
])  # fmt: skip
def test_flags_of_detections(detector, more, said):
    with pytest.raises(ConfigError, match=said):
        predict.main(["--checkpoint", str(detector / "best.pth"), str(detector / "images"), *more])


def test_a_detector_is_not_exported(detector, tmp_path):
    with pytest.raises(ConfigError, match="onnx: a detector is not exported"):
        export.main(["onnx", "--checkpoint", str(detector / "best.pth"), "--output", str(tmp_path)])
