"""DATA.IMG_SIZE [height, width]: images that are not square, from the config to what is written of a run."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from torchvision import tv_tensors

import predict
from conftest import SMALLEST, config_writer, error_of, run
from data.segmentation_transforms import AugmentMasked, SegmentationAugmentation
from engine.checkpoints.file import open_checkpoint
from engine.checkpoints.load import load_pretrained
from engine.evaluation.dense_inference import DenseInference
from engine.inference.engines.tracing import trace
from engine.inference.trained import load_trained
from engine.setup.model import create_model
from loading import augmentation
from parts.export.export_job import Job
from utils.config import load_config
from utils.errors import ConfigError
from utils.pictures import grid

SIZE, OTHER = [32, 64], [48, 32]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """A run whose images have two sizes that are not square, and its config file."""
    folder = tmp_path_factory.mktemp("sizes")
    config = config_writer(folder, digits)(
        MODEL={"FAT": dict(SMALLEST)}, DATA={"IMG_SIZE": SIZE}, TRAIN={"IMG_SIZES": [[0, OTHER], [1, SIZE]]},
        TEST={"CROPS": 5, "FLIP": True},
    )  # fmt: skip
    run("--cfg", config)
    return SimpleNamespace(folder=folder / "output/fat_tiny/default", config=config)


def test_a_run_says_its_sizes(trained):
    log = (trained.folder / "log.txt").read_text()
    assert "fat_tiny at 32x64 px" in log
    assert "training images of 48x32 px" in log and "training images of 32x64 px" in log
    start = json.loads((trained.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert start["img_size"] == SIZE and "GMACs at 32x64 px" in (trained.folder / "report.html").read_text()


def test_eval_of_it_gives_the_same_figures(trained):
    last = json.loads((trained.folder / "metrics.jsonl").read_text().splitlines()[-1])
    run("--cfg", trained.config, "--eval", "--resume", trained.folder / "last.pth")
    evaluated = json.loads((trained.folder / "eval.json").read_text())
    assert evaluated["raw"] == last["raw"] and evaluated["img_size"] == SIZE


def test_predictions_and_exports_are_of_its_size(trained, digits, tmp_path):
    picture = next(digits.rglob("*.png"))
    arguments = ["--checkpoint", str(trained.folder / "best.pth"), str(picture), "--device", "cpu"]
    assert predict.main([*arguments, "--json", str(tmp_path / "x.json"), "--sheet", str(tmp_path / "x.png")]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["img_size"] == SIZE
    assert predict.parse_args([*arguments, "--img-size", "96x40"]).img_size == [96, 40]
    model = load_trained(trained.folder / "best.pth")
    assert model.read(picture, [96, 40]).pixels.shape == (96, 40, 3)
    job = Job(model, tmp_path, [picture])
    assert {tuple(batch.shape[2:]) for batch in job.batches()} == {tuple(SIZE)}
    described = job.description()
    assert described["input"]["shape"] == ["batch", 3, *SIZE]
    assert described["preprocessing"]["crop_size"] == SIZE and described["preprocessing"]["resize_to_cover"] == [36, 73]


@pytest.mark.parametrize("backend", ["pil", "cv2"])
def test_training_pictures(digits, backend):
    transform = augmentation(SIZE, backend=backend)
    with open(next(digits.rglob("*.png")), "rb") as file:
        picture = transform.picture(transform.decode(file))
    assert picture.pixels.shape == (*SIZE, 3)


def test_one_size_is_written_in_one_way(write_config):
    def size(value):
        return load_config(write_config(), ["DATA.IMG_SIZE", value]).DATA.IMG_SIZE

    assert size("[64, 64]") == 64 and size("(32, 64)") == [32, 64] and size("48") == 48


@pytest.mark.parametrize("key", ["DATA.IMG_SIZE", "TEST.IMG_SIZE"])
@pytest.mark.parametrize("value", ["[32]", "[8, 32]", "[32, 64.5]", "[32, 64, 3]", "x", "True", "[[32, 32], 64]"])
def test_what_is_no_size(write_config, key, value):
    with pytest.raises(ConfigError, match=re.escape(f"--opts: {key} is ")):
        load_config(write_config(), [key, value])


def test_flags_that_are_no_size():
    for text, part in (("31", "'31' is no whole number from 32"), ("32x", "'' is no"), ("32x64x3", "'64x3' is no")):
        with pytest.raises(ConfigError, match=f"--img-size: {part}"):
            predict.main(["x.png", "--checkpoint", "x.pth", "--img-size", text])


def test_a_model_of_one_size_has_that_and_takes_weights_of_another(tmp_path, write_config):
    small, wide = (
        create_model("timm", "test_vit", num_classes=3, drop_rate=0.0, drop_path_rate=0.0, img_size=size, fat={})
        for size in (32, SIZE)
    )
    assert wide.patch_embed.img_size == tuple(SIZE)
    torch.save(small.state_dict(), tmp_path / "x.pth")
    skipped, note = load_pretrained(wide, open_checkpoint(tmp_path / "x.pth"), "raw")
    assert not skipped and "converted by timm's code for test_vit" in note
    expected = timm.create_model(
        "test_vit", pretrained=True, num_classes=3, img_size=tuple(SIZE),
        pretrained_cfg_overlay={"state_dict": small.state_dict(), "num_classes": 3},
    )  # fmt: skip
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in wide.state_dict().items())
    path = write_config(MODEL={"TYPE": "timm", "NAME": "test_vit"}, DATA={"IMG_SIZE": SIZE}, TEST={"IMG_SIZE": OTHER})
    assert "takes images of one size, DATA.IMG_SIZE 32x64" in str(error_of("--cfg", path, "--throughput"))


def test_a_traced_program_has_the_size():
    program = trace(torch.nn.AvgPool2d(2).eval(), SIZE)
    assert program.module()(torch.zeros(3, 3, *SIZE)).shape == (3, 3, 16, 32)


# Dense models


def test_crops_and_windows_of_masked_images():
    settings = SegmentationAugmentation(
        crop=SIZE,
        scale=(80, 40),
        ratio_range=(1.0, 1.0),
        cat_max_ratio=1.0,
        hflip=0.0,
        photometric=False,
        mean=(0, 0, 0),
    )
    image, mask = tv_tensors.Image(torch.zeros(3, 90, 60, dtype=torch.uint8)), tv_tensors.Mask(torch.zeros(90, 60))
    image, mask = AugmentMasked(settings)(image, mask)
    assert image.shape == (3, *SIZE) and mask.shape == tuple(SIZE)
    seen = []

    def model(view):  # the pixels themselves are the logits
        seen.append(tuple(view.shape[2:]))
        return view

    image = torch.rand(3, 70, 100)
    classes = DenseInference((100, 70), window=SIZE, stride=(20, 40)).classes(model, image)
    assert {*seen} == {tuple(SIZE)} and len(seen) == 3 * 2 and torch.equal(classes, image.argmax(0))


def test_detection_takes_one_number(write_config):
    path = write_config(TASK="detection", MODEL={"HEAD": "retinanet"}, DATA={"DATASET": "coco", "IMG_SIZE": SIZE})
    assert "DATA.IMG_SIZE is [32, 64]; to TASK detection" in str(error_of("--cfg", path, "--throughput"))


# Pictures for people


def test_a_picture_keeps_its_sides_ratio_in_a_grid():
    shown = grid([np.zeros((20, 40, 3), np.uint8)], [""], side=40, columns=1)
    dark = (shown[18:] == 0).all(axis=2)  # below the caption
    assert dark.any(axis=1).sum() == 20 and dark.any(axis=0).sum() == 40
