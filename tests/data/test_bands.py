"""DATA.IN_CHANS: grey images, images of several bands, 16 bits and floats; what is read, resized, augmented and measured."""

import io
import re

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from timm.data import create_transform

import prepare_data
from data.bands import BandReader, scaled
from data.batches import Batch, Finish, Picture, collate_pictures
from data.sample import Sample
from data.sources import open_source
from data.sources.synthetic import SyntheticSource
from data.transforms import eval_transform
from loading import augmentation
from utils.errors import DataError

RNG = np.random.default_rng(0)
BYTES, WORDS = (RNG.integers(0, most, (40, 60, 5)).astype(kind) for most, kind in ((256, np.uint8), (65536, np.uint16)))
SMOOTH = 60 + BYTES // 2  # between whose pixels a bicubic filter stays between 0 and 255, where Pillow cuts off
PLAIN = {"auto_augment": "none", "color_jitter": 0.0}  # no colours


def file_of(pixels, kind: str) -> io.BytesIO:
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, pixels)
    elif kind == "pages":
        tifffile.imwrite(file, np.moveaxis(pixels, -1, 0), photometric="minisblack")
    elif kind in ("chunky", "planar"):
        planes = np.moveaxis(pixels, -1, 0) if kind == "planar" else pixels
        layout = {"chunky": "contig", "planar": "separate"}[kind] if pixels.ndim == 3 else None
        tifffile.imwrite(file, planes, photometric="minisblack", planarconfig=layout)
    else:
        (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, kind)
    file.seek(0)
    return file


# Files


@pytest.mark.parametrize("pixels, kind", [
    (BYTES[..., 0], "PNG"), (WORDS[..., 0], "PNG"), (BYTES[..., 0], "TIFF"), (WORDS[..., 0], "TIFF"), (BYTES[..., 0] > 99, "PNG"),
    (WORDS[..., 0].astype(np.float32), "TIFF"), (BYTES[..., :2], "PNG"), (BYTES[..., :4], "PNG"),
    (BYTES, "chunky"), (WORDS, "planar"), (WORDS.astype(np.float32) - 9, "chunky"), (WORDS, "pages"), (BYTES[..., 0], "chunky"),
    (BYTES, "npy"), (WORDS[..., 0], "npy"), (WORDS.astype(">u2"), "npy"), (BYTES / 7, "npy"), (np.asfortranarray(WORDS), "npy"),
])  # fmt: skip
def test_files_keep_their_range(pixels, kind):
    expected = pixels if pixels.ndim == 3 else pixels[..., None]
    if pixels.dtype == bool:
        expected = expected * np.uint8(255)
    read = BandReader(expected.shape[2])(file_of(pixels, kind))
    assert read.dtype == (np.float32 if expected.dtype.kind == "f" else expected.dtype.newbyteorder("="))
    assert np.array_equal(read, expected.astype(read.dtype))


def test_the_range_of_a_type_is_one():
    for pixels in (
        np.array([[[0], [255]]], np.uint8),
        np.array([[[0], [65535]]], np.uint16),
        np.array([[[0], [1]]], np.float32),
    ):
        assert scaled(pixels).tolist() == [[[0, 1]]]
    assert scaled(np.full((1, 1, 1), -300, np.float32)).item() == -300


def test_a_palette_has_its_colours_bands_and_exif_turns():
    coloured = Image.fromarray(BYTES[..., :3]).quantize(8)
    assert np.array_equal(BandReader(3)(file_of(coloured, "PNG")), np.asarray(coloured.convert("RGB")))
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = 6
    Image.fromarray(BYTES[..., 0]).save(file, "PNG", exif=exif)
    for upright, shape in ((True, (60, 40, 1)), (False, (40, 60, 1))):
        file.seek(0)
        assert BandReader(1, upright)(file).shape == shape


@pytest.mark.parametrize("pixels, kind, bands, part", [
    (BYTES, "npy", 3, "has 5 bands (40 x 60 x 5), but DATA.IN_CHANS is 3"), (BYTES[..., :3], "JPEG", 1, "has 3 bands"),
    (BYTES, "chunky", 1, "has 5 bands"), (WORDS[..., 0], "TIFF", 4, "has 1 band"), (np.moveaxis(BYTES, 2, 0), "npy", 5, "has 60 bands"),
    (WORDS.astype(np.int16), "npy", 5, "int16 pixels have no known range"), (BYTES[None], "npy", 5, "4 dimensions (1 x 40 x 60 x 5)"),
    (np.full((9, 9, 1), np.nan), "npy", 1, "infinite or no numbers"), (WORDS[..., 0].astype(np.int32) - 9, "TIFF", 1, "32-bit pixels"),
    (np.zeros((2, 900, 1), np.uint8), "npy", 1, "100 to 1"), (np.array([[{}]]), "npy", 1, "allow_pickle"),
])  # fmt: skip
def test_what_is_no_such_image(pixels, kind, bands, part):
    with pytest.raises(Exception, match=re.escape(part)):
        BandReader(bands)(file_of(pixels, kind))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """A folder of .npy files of two bands, one in floats, and a PNG of grey."""
    root = tmp_path_factory.mktemp("arrays")
    for split in ("train", "val"):
        for label in "ab":
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(3):
                np.save(folder / f"{number}.npy", (BYTES if number else WORDS)[number:, number:, :2])
    (root / "train/a/notes.txt").write_text("")
    np.save(root / "train/b/9.npy", (WORDS[..., 2:4] / 65535).astype(np.float32))
    Image.fromarray(BYTES[..., 0]).save(root / "val/b/grey.png")
    return root


def test_a_folder_of_arrays(arrays):
    source = open_source("folder", "train", str(arrays), BandReader(2))
    assert len(source) == 7 and source.notes == [f"{arrays / 'train'}: left out what is no image by its name, hidden, or in "
                                                 "no class' folder: 1 (such as a/notes.txt)"]  # fmt: skip
    with pytest.raises(DataError, match="left out|no image"):
        open_source("folder", "train", str(arrays))  # to RGB images an array is no file of theirs
    val = open_source("folder", "val", str(arrays), BandReader(2))
    with pytest.raises(DataError) as caught:
        val.load(6)
    assert str(caught.value) == (
        f"{arrays}/val/b/grey.png: has 1 band (40 x 60), but DATA.IN_CHANS is 2; set that to 1, or replace or remove the file, "
        "or set DATA.ON_ERROR skip"
    )


def test_noise_has_the_bands():
    source = SyntheticSource.open(split="train", num_classes=2, num_images=2, decode=BandReader(4))
    assert source.load(0)[0].shape == (256, 256, 4) and source.load(0)[0].dtype == np.uint8


# Transforms


@pytest.mark.parametrize("mode", ["center", "border", "squash"])
@pytest.mark.parametrize("size", [32, [32, 48]])
def test_evaluation_s_pixels_are_those_of_a_grey_image_of_pillow_s(mode, size):
    image = Image.fromarray(SMOOTH[..., 0])
    theirs = create_transform(
        size if isinstance(size, int) else (1, *size), interpolation="bicubic", crop_pct=0.9, crop_mode=mode, mean=(0.4,),
        use_prefetcher=True,
    )  # fmt: skip
    transform = eval_transform(size, "bicubic", 0.9, crop_mode=mode, mean=(0.4,), bands=1)
    pixels = transform.picture(SMOOTH[..., :1]).pixels
    assert pixels.dtype == np.float32 and 0 <= pixels.min() and pixels.max() <= 1
    expected = theirs(image)[0].numpy().astype(float)
    assert pixels.shape[:2] == expected.shape and abs(255 * pixels[..., 0] - expected).max() <= 1.5  # it rounds twice


def test_five_crops_and_a_border_of_each_band():
    views = eval_transform(32, "bilinear", 0.875, crops=5, bands=5).picture(BYTES)
    alone = eval_transform(32, "bilinear", 0.875, bands=5).picture(BYTES)
    assert len(views) == 5 and np.array_equal(views[4].pixels, alone.pixels) and alone.pixels.shape == (32, 32, 5)
    for pixels, stays in ((BYTES, True), (BYTES / np.float32(255), False)):  # a bicubic filter goes beyond 0 and 1
        resized = eval_transform(48, "bicubic", 1.0, bands=5).picture(pixels).pixels
        assert (0 <= resized.min() and resized.max() <= 1) == stays
    levels = np.array([-5, 0, 1, 2, 3], np.float32)
    bordered = (
        eval_transform(40, "bilinear", 1.0, crop_mode="border", mean=levels.tolist(), bands=5).picture(BYTES).pixels
    )
    assert (bordered[:6] == levels).all() and (bordered[-6:] == levels).all() and not (bordered[20] == levels).any()


def test_training_makes_the_draws_that_it_makes_of_rgb():
    from utils.rng import seed_all

    rgb, grey = augmentation(**PLAIN), augmentation(**PLAIN, bands=1)
    for seed in range(6):
        seed_all(seed)
        expected = rgb.picture(Image.fromarray(SMOOTH[..., 0]).convert("RGB"))
        seed_all(seed)
        picture = grey.picture(SMOOTH[..., :1])
        assert abs(255 * picture.pixels[..., 0] - expected.pixels[..., 0]).max() <= 1.5
        assert [erasure.fill.shape[0] for erasure in picture.erasures] == [1] * len(picture.erasures)
        if seed < 3:  # an erasure's fill has another number of draws, after which the second box lies elsewhere
            assert [e[:4] for e in picture.erasures[:1]] == [e[:4] for e in expected.erasures[:1]]


def test_batches_are_normalised_and_erased_band_by_band():
    seed_pictures = augmentation(**PLAIN, bands=5)
    samples = [Sample(seed_pictures.picture(WORDS), 0, str(i)) for i in range(12)]
    mean, std = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]
    batch = collate_pictures(samples)
    before = batch.tensor.clone()
    images = Finish(mean, std, torch.device("cpu"), channels_last=True)(batch).tensor
    assert torch.equal(batch.tensor, before) and batch.tensor.shape == (12, 5, 32, 32) and batch.boxes
    expected = (before - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    for i, sample in enumerate(samples):
        for top, left, height, width, fill in sample.image.erasures:
            expected[i, :, top : top + height, left : left + width] = fill
    assert torch.equal(images, expected)


def test_both_ways_to_erase_agree():
    from data.batches import erase_in_turn, erase_together

    fill = torch.rand(5, 4, 6)
    batch = Batch(
        torch.rand(2, 5, 16, 16),
        [],
        [],
        [(0, 1, 2, 4, 6, 4, 6), (1, 3, 3, 2, 2, 1, 1)],
        torch.cat([fill.flatten(), torch.rand(5)]),
    )
    one, other = batch.tensor.clone(), batch.tensor.clone()
    erase_in_turn(one, batch.boxes, batch.fills)
    erase_together(other, batch.boxes, batch.fills)
    assert torch.equal(one, other) and torch.equal(one[0, :, 1:5, 2:8], fill)


def test_bytes_are_still_divided_on_the_device():
    picture = Picture(np.full((2, 2, 3), 255, np.uint8))
    images = Finish((0, 0, 0), (1, 1, 1), torch.device("cpu"))(collate_pictures([Sample(picture, 0)])).tensor
    assert images.dtype == torch.float32 and (images == 1).all()


# Statistics


@pytest.mark.parametrize("workers", [0, 2])
def test_statistics_are_those_of_all_pixels(arrays, write_config, workers, capsys):
    path = write_config(DATA={"DATA_PATH": str(arrays), "IN_CHANS": 2})
    assert prepare_data.main(["stats", "--cfg", str(path), "--workers", str(workers)]) == 0
    printed = capsys.readouterr().out
    source = open_source("folder", "train", str(arrays), BandReader(2))
    values = np.concatenate([scaled(source.load(i)[0]).flatten(1).double().numpy() for i in range(7)], axis=1)
    for key, expected in (("MEAN", values.mean(1)), ("STD", values.std(1))):
        shown = [float(text) for text in re.search(rf"  {key}: \[(.*)\]", printed)[1].split(", ")]
        assert shown == pytest.approx(expected, rel=2e-5)
    assert f"of {values.shape[1]} pixels of 7 training images" in printed and "  IN_CHANS: 2\n" in printed


def test_a_band_without_a_spread_is_named(tmp_path, write_config):
    for label in "ab":
        (tmp_path / "train" / label).mkdir(parents=True)
        np.save(tmp_path / "train" / label / "x.npy", np.full((32, 32), 7, np.uint8))
    path = write_config(DATA={"DATA_PATH": str(tmp_path), "IN_CHANS": 1})
    with pytest.raises(DataError, match="band 1 is the same in all pixels"):
        prepare_data.main(["stats", "--cfg", str(path), "--workers", "0"])
