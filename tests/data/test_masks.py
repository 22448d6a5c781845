"""Images with masks: where data sets have them, what a mask's file says, how both are augmented."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from conftest import ROOT
from data.class_list import KNOWN, read_class_list
from data.dataset import SeededIndex
from data.joint import JointTransform
from data.loader import dataset_of
from data.masks import IGNORED, MaskReader, label_image
from data.segmentation_transforms import AugmentMasked, SegmentationAugmentation, fitted_size, is_mixed, unchanged
from data.sources.mask_folders import LAYOUTS, open_masks
from masked_images import masked_image, write_masked_images
from utils.errors import DataError


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def settings(**changes):
    values = dict(
        crop=64,
        scale=(96, 64),
        ratio_range=(0.5, 2.0),
        cat_max_ratio=0.75,
        hflip=0.5,
        photometric=True,
        mean=(0.5, 0.5, 0.5),
    )
    return SegmentationAugmentation(**{**values, **changes})


# Layouts


def cityscapes(root):
    for split, city in (("train", "ulm"), ("val", "bonn")):
        name = f"{city}_000001_000019"
        save(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", np.zeros((8, 16, 3), np.uint8))
        for kind, value in (("labelTrainIds", 3), ("labelIds", 33)):
            save(root / f"gtFine/{split}/{city}/{name}_gtFine_{kind}.png", np.full((8, 16), value, np.uint8))


def voc(root):
    for name in ("2007_000032", "2007_000033", "2007_000039"):
        save(root / f"JPEGImages/{name}.jpg", np.zeros((8, 16, 3), np.uint8))
    for name in ("2007_000032", "2007_000039"):
        mask = Image.fromarray(np.full((8, 16), 3, np.uint8), mode="P")
        mask.putpalette([255 - i // 3 for i in range(768)])
        (root / "SegmentationClass").mkdir(exist_ok=True)
        mask.save(root / f"SegmentationClass/{name}.png")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000039\n2007_000032\n")
    (lists / "val.txt").write_text("2007_000032\n")


@pytest.mark.parametrize(
    "dataset, write, keys",
    [
        ("cityscapes", cityscapes, ["ulm/ulm_000001_000019_leftImg8bit.png"]),
        ("voc", voc, ["2007_000039.jpg", "2007_000032.jpg"]),
    ],
)
def test_a_layout_is_read(tmp_path, dataset, write, keys):
    write(tmp_path)
    classes = read_class_list(dataset, "SEG.CLASSES")
    source = open_masks(dataset, "train", str(tmp_path), classes)
    assert [source.key(i) for i in range(len(source))] == keys and source.classes == classes and not source.notes
    image, mask = source.load(0)
    labels = MaskReader(len(classes), 255, False)(mask, (image.height, image.width))
    assert labels.shape == (8, 16) and labels.unique().tolist() == [3]  # of a palette the index, not the colour
    assert len(open_masks(dataset, "val", str(tmp_path), classes)) == 1


def test_the_layout_of_ade20k(tmp_path):
    assert LAYOUTS["ade20k"] == LAYOUTS["masks"]
    save(tmp_path / "images/training/a.jpg", np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / "annotations/training/a.png", np.array([[0, 1, 150, 255]] * 4, np.uint8))
    source = open_masks("ade20k", "training", str(tmp_path), read_class_list("ade20k", "SEG.CLASSES"))
    labels = MaskReader(150, 255, True)(source.load(0)[1], (4, 4))
    assert labels[0].tolist() == [IGNORED, 0, 149, IGNORED]


def test_what_is_left_out_is_said(tmp_path):
    root = write_masked_images(tmp_path)
    (root / "images/train/notes.txt").write_text("x")
    save(root / "annotations/train/extra.png", np.zeros((4, 4), np.uint8))
    notes = open_masks("masks", "train", str(root), ["a", "b"]).notes
    assert len(notes) == 2 and "notes.txt" in notes[0] and "1 files that are no image's mask" in notes[1]


def test_a_list_that_names_no_image(tmp_path):
    voc(tmp_path)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("2007_000039\n2007_1\n")
    with pytest.raises(DataError, match="train.txt: names '2007_1', which is not in "):
        open_masks("voc", "train", str(tmp_path), ["a", "b"])
    with pytest.raises(DataError, match="trainval.txt: cannot be read"):
        open_masks("voc", "trainval", str(tmp_path), ["a", "b"])


def test_the_lists_of_classes():
    assert {path.stem: len(read_class_list(path.stem, "x")) for path in KNOWN.iterdir()} == {
        "ade20k": 150, "cityscapes": 19, "voc": 21,
    }  # fmt: skip
    assert KNOWN == ROOT / "configs/segmentation/classes"


# Masks


def test_a_mask_of_16_bits(tmp_path):
    """More classes than 8 bits hold, as written by `label_image`."""
    labels = np.array([[0, 299], [7, 300]])
    label_image(labels).save(tmp_path / "m.png")
    read = MaskReader(300, 300, False)(str(tmp_path / "m.png"), (2, 2))
    assert read.tolist() == [[0, 299], [7, IGNORED]]
    with pytest.raises(DataError, match=r"ids beyond the 9 classes \(0 .. 8, left out: 255\): 299, 300, 2 px"):
        MaskReader(9, 255, False)(str(tmp_path / "m.png"), (2, 2))


def test_ids_with_gaps_and_a_reduced_zero(tmp_path):
    Image.fromarray(np.array([[0, 1, 2, 4, 255]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"ids beyond the 3 classes \(1 .. 3, left out: 0 and 255\): 4, 1 px"):
        MaskReader(3, 255, True)(str(tmp_path / "m.png"), (1, 5))
    assert MaskReader(4, 255, True)(str(tmp_path / "m.png"), (1, 5)).tolist() == [[IGNORED, 0, 1, 3, IGNORED]]


def test_an_image_that_exif_turns(tmp_path):
    """Its mask lies as the file's pixels do; the line says which key leaves the image so, too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder in ("images/train", "annotations/train"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (8, 4)).save(tmp_path / "images/train/a.jpg", exif=exif)
    Image.new("L", (8, 4)).save(tmp_path / "annotations/train/a.png")
    for turned in (True, False):
        reader = MaskReader(2, 255, False, turned)
        transform = JointTransform(unchanged, reader, turned)
        source = open_masks("masks", "train", str(tmp_path), ["a", "b"], transform.decode)
        dataset = dataset_of(source, transform)
        if turned:
            with pytest.raises(DataError, match="is 8 x 4 px, its image 4 x 8, .*try DATA.EXIF False"):
                dataset[0]
        else:
            assert dataset[0].sample.target.shape == (4, 8)


# Transforms


def augmented(root, seed, **changes):
    transform = JointTransform(AugmentMasked(settings(**changes)), MaskReader(3, 255, False))
    dataset = dataset_of(open_masks("masks", "train", str(root), ["a", "b", "c"], transform.decode), transform)
    return dataset[SeededIndex(0, seed)].sample


def test_an_augmented_image_is_a_function_of_its_seed(tmp_path):
    root = write_masked_images(tmp_path)
    first, again, other = (augmented(root, seed) for seed in (5, 5, 6))
    assert np.array_equal(first.image.pixels, again.image.pixels) and torch.equal(first.target, again.target)
    assert not np.array_equal(first.image.pixels, other.image.pixels)
    assert (
        first.image.pixels.shape == (64, 64, 3) and first.target.shape == (64, 64) and first.target.dtype == torch.int16
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_mask_moves_with_its_image(tmp_path, seed):
    """Where the mask says disc, the image is the disc's red; what is padded has the mean colour and is ignored."""
    sample = augmented(write_masked_images(tmp_path), seed, photometric=False)
    pixels, labels = sample.image.pixels.astype(int), sample.target.numpy()
    assert (pixels[labels == IGNORED] == 128).all()
    inside = labels == 1
    if inside.sum() > 40:
        red = pixels[inside][:, 0] - pixels[inside][:, 2]
        assert (red > 60).mean() > 0.85
    for label in (0, 2):
        if (labels == label).sum() > 40:
            assert ((pixels[labels == label][:, 0] - pixels[labels == label][:, 2]) < 60).mean() > 0.85


def test_sizes_that_images_are_fitted_to():
    assert fitted_size(512, 683, (2048, 512)) == (512, 683)
    assert fitted_size(300, 400, (2048, 512)) == (512, 683)
    assert fitted_size(400, 300, (2048, 512)) == (683, 512)
    assert fitted_size(100, 1000, (2048, 512)) == (205, 2048)  # the longer side binds
    assert fitted_size(2, 200, (100, 50)) == (1, 100)


def test_a_crop_is_of_several_classes_if_one_can_be_found():
    """The left tenth is of another class; a quarter of the pixels of a crop must be another class'."""
    assert not is_mixed(torch.zeros(4, 4, dtype=torch.int16), 0.75)
    assert not is_mixed(torch.full((4, 4), IGNORED, dtype=torch.int16), 0.75)
    labels = torch.ones(64, 640, dtype=torch.int16)
    labels[:, :64] = 0
    image, mask = tv_tensors.Image(torch.zeros(3, 64, 640, dtype=torch.uint8)), tv_tensors.Mask(labels)
    torch.manual_seed(0)
    mixed = {}
    for ratio in (0.75, 1.0):
        crops = [AugmentMasked(settings(cat_max_ratio=ratio)).crop(image, mask)[1] for _ in range(60)]
        mixed[ratio] = sum(is_mixed(crop, 0.75) for crop in crops)
    assert mixed[0.75] > mixed[1.0] * 2 > 0


def test_colours_change_half_of_the_time(tmp_path):
    pixels, _ = masked_image(0)
    plain = AugmentMasked(settings(photometric=False)).distort
    changed = AugmentMasked(settings()).distort
    image = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))
    assert torch.equal(plain(image), image)
    torch.manual_seed(0)
    same = sum(torch.equal(changed(image), image) for _ in range(64))
    assert 0 < same < 24  # a sixteenth is expected to stay as it is
