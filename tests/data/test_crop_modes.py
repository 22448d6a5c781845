"""TEST.CROP_MODE: evaluation's pixels are those of timm's own transforms, and the key arrives wherever images are prepared."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from data.sample import Sample
from data.transforms import eval_transform
from engine.inference.trained import Trained
from engine.setup.preprocessing import data_config, describe, take_from_model
from engine.tasks import create_task
from parts.export.export_job import preprocessing
from utils.config import load_config

MODES = ("center", "border", "squash")
SHAPES = [(301, 47), (33, 500), (90, 90)]  # height and width
MEAN = (0.1, 0.5, 0.8)


def image_of(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size, crop_pct", [(64, 0.875), ([48, 100], 1.0), ([100, 40], 0.9)])
def test_pixels_are_timm_s(mode, size, crop_pct):
    transform = eval_transform(size, "bicubic", crop_pct, crop_mode=mode, mean=MEAN)
    theirs = create_transform(
        size if isinstance(size, int) else (3, *size), interpolation="bicubic", crop_pct=crop_pct, crop_mode=mode,
        mean=MEAN, use_prefetcher=True,
    )  # fmt: skip
    for shape in SHAPES:
        image = image_of(*shape)
        expected = theirs(image)
        pixels = torch.from_numpy(transform.picture(image).pixels).permute(2, 0, 1)
        assert torch.equal(pixels, expected), shape


def test_border_and_squash_keep_all_of_an_image():
    image = Image.new("RGB", (300, 60), "black")
    for corner in ((0, 0), (290, 0), (0, 50), (290, 50)):
        image.paste("white", (*corner, corner[0] + 10, corner[1] + 10))
    seen = {
        mode: eval_transform(60, "bilinear", 1.0, crop_mode=mode, mean=(0, 0, 0)).picture(image).pixels
        for mode in MODES
    }
    assert seen["center"].max() == 0 and seen["border"].max() > 100 and seen["squash"].max() > 100
    assert (seen["border"][:20] == 0).all() and (seen["border"][28] > 0).any() == (seen["squash"][28] > 0).any() == 0


def test_the_key_arrives(write_config):
    cfg = load_config(write_config(TEST={"CROP_MODE": "squash"}))
    task, image = create_task(cfg), image_of(301, 47)
    expected = eval_transform(32, "bicubic", 0.875, crop_mode="squash").picture(image).pixels
    assert np.array_equal(task.val_dataset().transform(Sample(image, 0)).image.pixels, expected)
    trained = Trained(Path("x.pth"), torch.nn.Identity(), cfg, ["a"], "raw")
    assert np.array_equal(trained.transform().picture(image).pixels, expected)
    assert data_config(cfg)["crop_mode"] == "squash" and "crop 0.875, squash" in describe(cfg)
    described = preprocessing(trained)
    assert described["resize_to"] == [36, 36] and "resize_shorter_side" not in described


def test_a_border_is_described_with_its_colour(write_config):
    cfg = load_config(write_config(TEST={"CROP_MODE": "border"}, DATA={"MEAN": list(MEAN)}))
    described = preprocessing(Trained(Path("x.pth"), torch.nn.Identity(), cfg, ["a"], "raw"))
    assert described["resize_into"] == [36, 36] and described["border"] == [26, 128, 204]


def test_timm_s_own_mode_is_taken(write_config):
    name = "convnext_tiny.in12k_ft_in1k_384"
    cfg = load_config(write_config(MODEL={"TYPE": "timm", "NAME": name}, DATA={"FROM_MODEL": True}))
    assert take_from_model(cfg).TEST.CROP_MODE == "squash"
