"""Images: read right, augmented reproducibly, each seen as often as it should be."""

import hashlib
import pickle
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision import transforms

from conftest import error_of
from data.batches import Finish, collate_items
from data.dataset import ImageDataset, SeededIndex
from data.loader import EvalLoader, TrainLoader
from data.samplers import EvalSampler, TrainBatchSampler
from data.schedule import Schedule
from data.sources import Opening, open_source
from data.sources.cifar import CIFAR
from data.transforms import eval_transform
from loading import FINISH, LOADING, MEAN, STD, augmentation
from utils.errors import ConfigError, DataError
from utils.rng import seed_all


def photo(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


# Augmentation


@pytest.mark.parametrize("magnitude", range(11))
@pytest.mark.parametrize(
    "op", sorted(set(auto_augment._RAND_TRANSFORMS) | set(auto_augment._RAND_INCREASING_TRANSFORMS))
)
def test_every_randaugment_op_at_every_magnitude(op, magnitude):
    """Pillow >= 13 refuses posterize to 0 bits, which timm asks for at the highest magnitudes."""
    random.seed(0)
    augment = auto_augment.AugmentOp(op, prob=1.0, magnitude=magnitude, hparams={"img_mean": (128, 128, 128)})
    assert augment(photo()).size == (50, 40)


def test_posterize_to_no_bits_is_black_and_to_some_is_pillow_s():
    black = auto_augment.NAME_TO_OP["PosterizeIncreasing"](photo(), 0)
    assert black.mode == "RGB" and not np.asarray(black).any()
    four = np.asarray(auto_augment.NAME_TO_OP["Posterize"](photo(), 4))
    assert np.array_equal(four, np.asarray(photo()) & 0b11110000)


def test_augmented_image_is_a_function_of_index_and_seed(digits):
    dataset = ImageDataset(open_source("folder", "train", str(digits)), augmentation())

    def images(seed):
        batch, _ = collate_items([dataset[SeededIndex(7, seed)]])
        assert batch.targets.tolist() == [dataset.source.labels[7]]
        return FINISH(batch)[0]

    first = images(123)
    dataset[SeededIndex(3, 5)], torch.rand(3), random.random()
    assert torch.equal(first, images(123)) and not torch.equal(first, images(124))


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "augmix-m3", "original-mstd0.5", "3a", "none"])
@pytest.mark.parametrize("remode, recount, channels_last", [("pixel", 1, False), ("rand", 3, True), ("const", 1, True)])
def test_batches_have_the_bits_of_timm_s_pipeline(digits, policy, remode, recount, channels_last):
    """uint8 in the worker and float32 on the device give what timm's whole transform gives, image by image."""
    dataset = ImageDataset(
        open_source("folder", "train", str(digits)),
        augmentation(auto_augment=policy, remode=remode, recount=recount),
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    timm_s = create_transform(
        32, is_training=True, scale=(0.08, 1.0), ratio=(0.75, 1.33), hflip=0.5, color_jitter=0.4, interpolation="bicubic",
        auto_augment=None if policy == "none" else policy, mean=MEAN, std=STD, re_prob=0.5, re_mode=remode, re_count=recount,
    )  # fmt: skip
    timm_s.transforms[-2] = transforms.Normalize(torch.tensor(mean), torch.tensor(std))  # its colour of fill is MEAN's
    keys = [SeededIndex(index, 1000 + index) for index in range(24)]
    batch, _ = collate_items([dataset[key] for key in keys])
    assert batch.images.dtype == torch.uint8 and batch.images.is_contiguous(memory_format=torch.channels_last)
    images, targets, _ = Finish(mean, std, torch.device("cpu"), channels_last)(batch)
    assert images.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    erased = {box[0] for box in batch.boxes}
    assert 0 < len(erased) < 24
    for key, image, target in zip(keys, images, targets):
        pixels, label = dataset.source.load(key.index)
        seed_all(key.seed)
        assert torch.equal(image, timm_s(pixels)) and target == label


def test_trivial_augment_is_torchvision_s_and_the_seed_s(digits):
    """Every op at work, the same pixels as torchvision's own transform after the same seed, and no colour jitter beside it."""
    dataset = ImageDataset(
        open_source("folder", "train", str(digits)),
        augmentation(auto_augment="trivial", scale=(1, 1), ratio=(1, 1), hflip=0, reprob=0),
    )
    plain = create_transform(
        32,
        is_training=True,
        scale=(1, 1),
        ratio=(1, 1),
        hflip=0,
        color_jitter=None,
        interpolation="bicubic",
        separate=True,
    )[0]
    trivial = transforms.TrivialAugmentWide(interpolation=transforms.InterpolationMode.BICUBIC, fill=[128] * 3)
    found, changed = [], 0
    for seed in range(40):
        pixels = dataset[SeededIndex(3, seed)].sample[0].pixels
        seed_all(seed)
        image = plain(dataset.source.load(3)[0])
        changed += not np.array_equal(pixels, np.array(image))
        assert np.array_equal(pixels, np.array(trivial(image)))
        found.append(pixels.tobytes())
    assert changed > 25 and len(set(found)) > 20
    assert [dataset[SeededIndex(3, seed)].sample[0].pixels.tobytes() for seed in range(40)] == found


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "lanczos"])
def test_trivial_augment_with_every_interpolation(interpolation):
    augment = augmentation(auto_augment="trivial", interpolation=interpolation)
    for seed in range(60):
        seed_all(seed)
        assert augment.picture(photo()).pixels.shape == (32, 32, 3)


def test_evaluation_batches_have_the_bits_of_timm_s_pipeline(digits):
    dataset = ImageDataset(open_source("folder", "val", str(digits)), eval_transform(32, "bicubic", 0.875))
    timm_s = create_transform(32, is_training=False, interpolation="bicubic", mean=MEAN, std=STD, crop_pct=0.875)
    loader = EvalLoader(dataset, 8, rank=0, world_size=1, loading=LOADING)
    images = torch.cat([images for images, *_ in loader])
    assert torch.equal(images, torch.stack([timm_s(dataset.source.load(i)[0]) for i in range(29)]))


def test_a_batch_without_erasures(digits):
    dataset = ImageDataset(open_source("folder", "train", str(digits)), augmentation(reprob=0.0))
    batch, _ = collate_items([dataset[SeededIndex(0, 0)], dataset[SeededIndex(1, 1)]])
    images, *_ = FINISH(batch)
    assert not batch.boxes and torch.equal(images, (batch.images / 255 - 0.5) / 0.25)


def test_eval_transform_resizes_and_crops_the_centre():
    image = Image.new("RGB", (64, 64), (0, 0, 0))
    image.paste((255, 255, 255), (16, 16, 48, 48))
    pixels = eval_transform(32, "bilinear", crop_pct=0.5).picture(image).pixels
    assert np.array_equal(pixels, np.full((32, 32, 3), 255))


def test_unknown_policy():
    with pytest.raises(ConfigError, match="AUG.AUTO_AUGMENT is 'randy'"):
        augmentation(auto_augment="randy")


# Sources


def test_folder(digits):
    source = open_source("imagenet", "val", str(digits))
    assert source.classes == ["0", "1", "2"] and len(source) == 29
    image, label = source.load(10)
    assert image.mode == "RGB" and label == 1


@pytest.mark.parametrize("mode, suffix", [("L", "png"), ("RGBA", "png"), ("P", "png"), ("CMYK", "jpg"), ("1", "png")])
def test_modes_become_rgb(tmp_path, mode, suffix):
    (tmp_path / "val/a").mkdir(parents=True)
    photo(mode).save(tmp_path / f"val/a/x.{suffix}")
    assert open_source("folder", "val", str(tmp_path)).load(0)[0].mode == "RGB"


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_cifar(tmp_path, monkeypatch, dataset):
    """The real reader on files in CIFAR's format, with their own checksums in place of the published ones."""
    kind = CIFAR[dataset]
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    labels = {"labels": [3, 1], "fine_labels": [3, 1]}
    meta = {kind.meta["key"]: [f"class {i}" for i in range(10 if dataset == "cifar10" else 100)]}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    for split in ("train_list", "test_list"):
        sums = [[name, write(name, {"data": pixels, **labels})] for name, _ in getattr(kind, split)]
        monkeypatch.setattr(kind, split, sums)
    name = kind.meta["filename"]
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": write(name, meta)})

    train, val = (open_source(dataset, split, str(tmp_path)) for split in ("train", "val"))
    assert len(train) == 2 * len(kind.train_list) and len(val) == 2 and len(val.classes) in (10, 100)
    image, label = val.load(0)
    assert label == 3 and np.array_equal(np.asarray(image).transpose(2, 0, 1).ravel(), pixels[0])

    (folder / name).write_bytes(b"damaged")
    with pytest.raises(DataError, match=f"holds no complete {kind.base_folder}"):
        open_source(dataset, "val", str(tmp_path))


def test_synthetic_is_a_function_of_index_and_split():
    train, val = (open_source("synthetic", split, "", opening=Opening(10, 40)) for split in ("train", "val"))
    assert len(train) == 40 and len(train.classes) == 10 and train.load(13)[1] == 3
    assert train.load(5)[0].tobytes() == train.load(5)[0].tobytes() != val.load(5)[0].tobytes()


# Bad data, through the command line


@pytest.fixture
def damaged(tmp_path, digits):
    root = tmp_path / "data"
    shutil.copytree(digits, root)
    return root


def test_missing_path(write_config, tmp_path):
    assert "--data-path" in str(error_of("--cfg", write_config(DATA={"DATA_PATH": ""})))
    assert f"{tmp_path}/nowhere/train" in str(
        error_of("--cfg", write_config(DATA={"DATA_PATH": f"{tmp_path}/nowhere"}))
    )
    assert not (tmp_path / "output").exists()


def test_empty_class_folder(write_config, damaged):
    (damaged / "val/9").mkdir()
    message = str(error_of("--cfg", write_config(DATA={"DATA_PATH": str(damaged)})))
    assert "no image in the class' folder '9'" in message and "DATA.CLASS_MAP" in message


def test_other_classes_in_val(write_config, damaged):
    (damaged / "val/2").rename(damaged / "val/two")
    message = str(error_of("--cfg", write_config(DATA={"DATA_PATH": str(damaged)})))
    assert "only in train: 2" in message and "only in val: two" in message


def test_number_of_classes(write_config):
    message = str(error_of("--cfg", write_config(MODEL={"NUM_CLASSES": 10})))
    assert "MODEL.NUM_CLASSES is 10" in message and "3 classes" in message


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n cut short"])
def test_file_that_is_no_image_is_named(write_config, damaged, num_workers, content):
    bad = sorted((damaged / "train/1").iterdir())[0]
    bad.write_bytes(content)
    config = write_config(DATA={"DATA_PATH": str(damaged), "NUM_WORKERS": num_workers})
    assert str(error_of("--cfg", config)).startswith(f"{bad}: cannot be read as an image")


def test_set_smaller_than_a_batch(write_config):
    message = str(error_of("--cfg", write_config(), "--batch-size", 64))
    assert "64" in message and "60" in message


# Who sees what


@pytest.mark.parametrize("num_images", [1, 7, 64, 101])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_sees_every_image_once(num_images, world_size):
    seen = [i for rank in range(world_size) for i in EvalSampler(num_images, rank, world_size)]
    assert sorted(seen) == list(range(num_images))


@pytest.mark.parametrize("world_size, batch_size", [(1, 5), (2, 5), (3, 4), (8, 2)])
def test_training_sees_no_image_twice_in_an_epoch(world_size, batch_size):
    samplers = [
        TrainBatchSampler(101, Schedule(101 // (batch_size * world_size), batch_size, rank, world_size, seed=0))
        for rank in range(world_size)
    ]
    batches = [list(sampler) for sampler in samplers]
    assert {len(b) for b in batches} == {101 // (batch_size * world_size)} == {len(s) for s in samplers}
    seen = [key.index for rank in batches for batch in rank for key in batch]
    assert len(set(seen)) == len(seen) == len(samplers[0]) * batch_size * world_size


def test_order_does_not_depend_on_the_number_of_processes():
    def global_batches(world_size, batch_size):
        samplers = [
            TrainBatchSampler(96, Schedule(12, batch_size, rank, world_size, seed=3)) for rank in range(world_size)
        ]
        return [sum(parts, []) for parts in zip(*samplers)]

    assert global_batches(1, 8) == global_batches(2, 4) == global_batches(8, 1)


def test_epochs_differ_and_any_offset_gives_the_rest():
    sampler = TrainBatchSampler(50, Schedule(6, 4, rank=1, world_size=2, seed=0))
    first = list(sampler)
    sampler.set_position(1)
    second = list(sampler)
    assert first != second
    for offset in range(len(sampler) + 1):
        sampler.set_position(1, offset)
        assert list(sampler) == second[offset:]
    assert {key.seed for batch in first for key in batch}.isdisjoint(key.seed for batch in second for key in batch)


def test_batches_do_not_depend_on_workers(digits):
    dataset = ImageDataset(open_source("folder", "train", str(digits)), augmentation())
    epochs = []
    for num_workers in (0, 2):
        loading = replace(LOADING, num_workers=num_workers)
        loader = TrainLoader(dataset, Schedule(7, 8, rank=0, world_size=1, seed=1), loading)
        epochs.append([*loader.epoch(0, 0), *loader.epoch(1, 3)])
    assert len(epochs[0]) == len(epochs[1]) == 7 + 4
    for (images, targets, _), (images_2, targets_2, _) in zip(*epochs):
        assert torch.equal(images, images_2) and torch.equal(targets, targets_2)


def test_a_process_may_have_no_image(digits):
    dataset = ImageDataset(open_source("folder", "val", str(digits)), eval_transform(32, "bicubic", 1.0))
    assert list(EvalLoader(dataset, 8, rank=30, world_size=31, loading=LOADING)) == []
