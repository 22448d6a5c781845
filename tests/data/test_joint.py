"""Masks and boxes move with their images: toy sets of a red rectangle on grey, by index and in streams."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from data.batches import collate_lists, collate_pictures
from data.dataset import SeededIndex
from data.decode import decode_image
from data.joint import JointTransform
from data.loader import TrainLoader, TrainStreamLoader, dataset_of, eval_loader, train_loader
from data.schedule import Schedule
from data.sources.reading import read_image
from engine.training.preflight import batch_of, read_images
from loading import LOADING, MEAN, STD
from utils.errors import DataError

COUNT = 24
SIZES = ((0, 24), (1, 40))  # of images, from an epoch on


class Stored(NamedTuple):
    key: str
    target: dict


class Rectangles:
    """A list of images, with the path of each one's mask and its boxes as targets."""

    classes = ["grey", "red"]
    fingerprint = "rectangles"

    def __init__(self, folder: Path, decode=decode_image):
        self.folder, self.decode = folder, decode
        self.boxes = json.loads((folder / "boxes.json").read_text())

    def __len__(self):
        return COUNT

    def key(self, index):
        return f"{index}.png"

    def name(self, index):
        return str(self.folder / self.key(index))

    def target(self, index):
        return {"mask": str(self.folder / f"{index}_mask.png"), "boxes": self.boxes[index]}

    def load(self, index):
        name = self.name(index)
        return read_image(name, lambda: open(name, "rb"), self.decode, "make it anew"), self.target(index)


class RectangleShards(Rectangles):
    """The same as four shards."""

    shards = ["a", "b", "c", "d"]

    def read(self, shard):
        for index in range(shard, COUNT, 4):
            yield Stored(self.key(index), self.target(index))

    def load(self, stored):
        image, _ = super().load(int(stored.key.removesuffix(".png")))
        return image, stored.target


KINDS = {"by index": Rectangles, "in streams": RectangleShards}


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rectangles")
    rng = np.random.default_rng(0)
    boxes = []
    for index in range(COUNT):
        width, height = (int(side) for side in rng.integers(50, 90, 2))
        left, top = (int(side) for side in rng.integers(5, 20, 2))
        right, bottom = left + int(rng.integers(12, 20)), top + int(rng.integers(12, 20))
        pixels = np.full((height, width, 3), 90, np.uint8)
        pixels[top:bottom, left:right] = (250, 10, 10)
        mask = np.zeros((height, width), np.uint8)
        mask[top:bottom, left:right] = 1
        Image.fromarray(pixels).save(folder / f"{index}.png")
        Image.fromarray(mask).save(folder / f"{index}_mask.png")
        boxes.append([[left, top, right, bottom]])
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return folder


def read_target(target: dict, size: tuple[int, int]) -> dict:
    path = target["mask"]
    mask = read_image(path, lambda: open(path, "rb"), lambda file: F.pil_to_tensor(Image.open(file)), "make it anew")
    return {
        "mask": tv_tensors.Mask(mask),
        "boxes": tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size, dtype=torch.float32),
    }


def moved(size: int) -> JointTransform:
    crop = v2.RandomResizedCrop((size, size), scale=(0.3, 1.0), interpolation=InterpolationMode.NEAREST)
    return JointTransform(v2.Compose([crop, v2.RandomHorizontalFlip(0.5)]), read_target)


def dataset(folder: Path, kind: str, on_error: str = "raise"):
    sized = {size: moved(size) for _, size in SIZES}
    collate = partial(collate_pictures, collate_targets=in_lists)
    return dataset_of(KINDS[kind](folder), moved(24), on_error, sized, collate)


def in_lists(targets):
    return {
        "masks": torch.cat([target["mask"] for target in targets]),
        "boxes": [target["boxes"] for target in targets],
    }


def loader(folder: Path, kind: str, num_workers: int, **more):
    schedule = Schedule(num_batches=5, batch_size=4, rank=0, world_size=1, seed=3, sizes=SIZES)
    loading = replace(LOADING, num_workers=num_workers)
    return train_loader(dataset(folder, kind, **more), schedule, loading, buffer=8, cache_mode="no")


def require_aligned(image: torch.Tensor, mask: torch.Tensor, boxes: torch.Tensor) -> bool:
    """Whether the object is still there; mask and box lie where it is red."""
    red = image[0] > image[1]  # of normalised channels with the same mean
    assert torch.equal(red, mask.bool())
    if not red.any():
        return False
    rows, columns = red.any(1).nonzero(), red.any(0).nonzero()
    extent = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert (extent - boxes[0]).abs().max() < 2.5  # nearest neighbours: whole pixels of an enlarged image
    return True


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_boxes_lie_where_the_object_lies(rectangles, kind, num_workers):
    batches = loader(rectangles, kind, num_workers)
    assert isinstance(batches, TrainStreamLoader if kind == "in streams" else TrainLoader)
    seen, sides = 0, set()
    for epoch in (0, 1):
        for images, targets, keys in batches.epoch(epoch, 0):
            sides.add((epoch, *images.shape[2:], *targets["masks"].shape[1:]))
            assert {type(box) for box in targets["boxes"]} == {torch.Tensor} and len(keys) == 4
            seen += sum(map(require_aligned, images, targets["masks"], targets["boxes"]))
    assert sides == {(0, 24, 24, 24, 24), (1, 40, 40, 40, 40)} and seen > 20


def bits(batch) -> tuple:
    images, targets, keys = batch
    boxes = [box.tolist() for box in targets["boxes"]]
    return images.numpy().tobytes(), targets["masks"].numpy().tobytes(), boxes, keys


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_mid_epoch_goes_on_with_the_same_bits(rectangles, kind, num_workers):
    whole = list(map(bits, loader(rectangles, kind, num_workers).epoch(1, 0)))
    assert len(whole) == 5 and len({images for images, *_ in whole}) == 5
    assert list(map(bits, loader(rectangles, kind, num_workers).epoch(1, 3))) == whole[3:]
    if kind == "by index":
        assert list(map(bits, loader(rectangles, kind, 2 - num_workers).epoch(1, 0))) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_rehearsal_reads_such_samples(rectangles, kind):
    """As the preflight does: a micro-batch of the largest size, made of a few images."""
    data = SimpleNamespace(plan=SimpleNamespace(batch_size=7), train_loader=loader(rectangles, kind, 0))
    trainer = SimpleNamespace(data=data)
    items, seconds = read_images(trainer)
    batch = batch_of(trainer, items, 7)
    assert batch.images.shape == (7, 3, 40, 40) and batch.targets["masks"].shape == (7, 40, 40) and seconds > 0
    assert [box.shape for box in batch.targets["boxes"]] == [(1, 4)] * 7


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_their_own_sizes_in_lists(rectangles, kind, num_workers):
    flipped = JointTransform(v2.RandomHorizontalFlip(1.0), read_target)
    found = dataset_of(KINDS[kind](rectangles), flipped, collate=collate_lists)
    seen = {}
    for images, targets, keys in eval_loader(found, 5, 0, 1, replace(LOADING, num_workers=num_workers)):
        for image, target, key in zip(images, targets, keys, strict=True):
            assert require_aligned(image, target["mask"][0], target["boxes"])
            seen[key] = image
    assert len(seen) == COUNT and len({image.shape for image in seen.values()}) > 10
    for key, image in seen.items():
        pixels = F.pil_to_tensor(Image.open(rectangles / key)).flip(2)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        assert torch.equal(image, (pixels / 255 - mean) / std)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_target_that_cannot_be_read(rectangles, tmp_path, kind, num_workers):
    """Is an error of its image: another one takes its place, or the run ends with a line that names the target."""
    for path in rectangles.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "5_mask.png").unlink()
    with pytest.raises(DataError, match=r"5_mask\.png: cannot be read as an image .*; make it anew") as caught:
        for epoch in range(4):
            list(loader(tmp_path, kind, num_workers).epoch(epoch, 0))
    assert caught.value.where == str(tmp_path / "5_mask.png") and caught.value.remedy == "make it anew"
    batches = loader(tmp_path, kind, num_workers, on_error="skip")
    assert sum(len(images) for epoch in range(4) for images, *_ in batches.epoch(epoch, 0)) == 4 * 20
    failures = batches.take_failures()
    assert failures and all("5_mask.png" in line and "anew" not in line for line in failures)


def test_draws_are_functions_of_the_seed(rectangles):
    found = dataset(rectangles, "by index")
    one, same, other = (found[SeededIndex(4, seed)].sample for seed in (1, 1, 2))
    assert np.array_equal(one.image.pixels, same.image.pixels)
    assert torch.equal(one.target["boxes"], same.target["boxes"])
    assert not torch.equal(one.target["boxes"], other.target["boxes"])
