"""The cv2 and nvimgcodec backends do what the pil backend does: the same draws, the same files read, pixels within stated bounds."""

import importlib.util
import io
import random
import re
import sys
import time
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter

from conftest import error_of, run
from data.augment_cv2 import OPS, ArrayColorJitter
from data.backend_cv2 import Resize
from data.batches import Examples, Finish, Item, Picture, collate_items, collate_pictures
from data.crops import CropReader, decode_cv2
from data.dataset import ImageDataset, SeededIndex
from data.decode import decode_image
from data.loader import TrainLoader
from data.prefetch import Prefetcher, copying_stream
from data.sample import Sample
from data.schedule import Schedule
from data.sources import Opening, open_source
from engine.training.waits import LEAST, Waits
from loading import LOADING, augmentation
from utils.device import to_device
from utils.errors import ConfigError, DataError
from utils.rng import seed_cpu

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


def waves(height: int = 120, width: int = 160) -> np.ndarray:
    """A smooth picture with all levels, different in each channel."""
    y, x = np.mgrid[:height, :width]
    planes = [
        127 + 90 * np.sin(x / 23 + c) * np.cos(y / 31 - c) + 60 * np.sin((x + y) / 17 * (c + 1) / 2) for c in range(3)
    ]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def as_file(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def photos(tmp_path):
    """12 JPEGs of several sizes, in two classes."""
    for i in range(12):
        path = tmp_path / f"photos/train/{'ab'[i % 2]}/{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_file(Image.fromarray(np.roll(waves(90 + 7 * i, 150 - 5 * i), 31 * i, axis=0)), quality=95))
    return tmp_path / "photos"


def dataset(root, backend, **changes) -> ImageDataset:
    transform = augmentation(backend=backend, img_size=64, **changes)
    return ImageDataset(open_source("folder", "train", str(root), transform.decode), transform, "raise")


# Draws


def test_the_same_draws(photos, monkeypatch):
    """Crop, flip, ops with their arguments, and erased boxes with their content, for many images and seeds."""
    log = []
    box_of = RandomResizedCropAndInterpolation.get_params

    def params(*args):
        log.append(("box", box_of(*args)))
        return log[-1][1]

    monkeypatch.setattr(RandomResizedCropAndInterpolation, "get_params", staticmethod(params))

    def noting(name):
        def op(image, *args, **_):
            log.append((name, args))
            return image

        return op

    def drawn(backend):
        found = dataset(photos, backend)
        for op in found.transform.steps["augment"].ops:
            op.aug_fn = noting(op.name)
        records = []
        for i in range(300):
            log.clear()
            picture, label, _ = found[SeededIndex(i % 12, i)].sample
            records.append(
                (list(log), label, picture.erasures, random.random(), np.random.rand(), torch.rand(1).item())
            )
        return records, found

    (pil, _), (fast, found) = drawn("pil"), drawn("cv2")
    for a, b in zip(pil, fast):
        assert a[:2] == b[:2] and a[3:] == b[3:]  # also the generators' states after it
        assert [e[:4] for e in a[2]] == [e[:4] for e in b[2]] and all(
            torch.equal(x.fill, y.fill) for x, y in zip(a[2], b[2])
        )
    assert {name for record in pil for name, _ in record[0]} == {"box"} | {
        op.name for op in found.transform.steps["augment"].ops
    }
    assert 50 < sum(bool(record[2]) for record in pil) < 250 and found.transform.decode.by_pillow == 0


def test_the_same_flips(photos):
    """Without colours: what is left is the crop and the flip, which a smooth picture shows."""
    sets = [dataset(photos, backend, auto_augment="none", color_jitter=0, reprob=0) for backend in ("pil", "cv2")]
    flips = 0
    for i in range(40):
        pil, fast = (found[SeededIndex(i % 12, i)].sample[0].pixels.astype(int) for found in sets)
        assert abs(pil - fast).max() <= 6
        flips += abs(pil[:, ::-1] - fast).max() > 6
    assert flips == 40


def test_pictures_are_the_same_but_for_the_bounds(photos):
    """The whole pipeline on smooth pictures: where an op makes small differences large (equalize, solarize), few pixels do."""
    sets = [dataset(photos, backend) for backend in ("pil", "cv2")]
    means = [
        abs(np.subtract(*(found[SeededIndex(i % 12, i)].sample[0].pixels.astype(int) for found in sets))).mean()
        for i in range(60)
    ]
    assert np.median(means) < 1 and max(means) < 8, means


def test_another_process_gets_the_same(photos):
    found = dataset(photos, "cv2")
    finish = Finish((0.5,) * 3, (0.25,) * 3, torch.device("cpu"))
    epochs = []
    for num_workers in (0, 2):
        loading = replace(LOADING, finish=finish, num_workers=num_workers)
        loader = TrainLoader(found, Schedule(3, 4, rank=0, world_size=1, seed=1), loading)
        epochs.append(list(loader.epoch(0, 0)))
    assert len(epochs[0]) == 3
    for (images, targets, _), (images_2, targets_2, _) in zip(*epochs):
        assert torch.equal(images, images_2) and torch.equal(targets, targets_2)


def test_nvimgcodec_gives_cv2_s_pictures_in_workers_too(photos):
    """Also where this process has decoded before its workers are forked."""
    region_decoder()
    sets = [dataset(photos, backend) for backend in ("cv2", "nvimgcodec")]
    finish = Finish((0.5,) * 3, (0.25,) * 3, torch.device("cpu"))
    assert np.array_equal(*(found[SeededIndex(0, 0)].sample[0].pixels for found in sets))
    loaders = [
        TrainLoader(found, Schedule(3, 4, rank=0, world_size=1, seed=1), replace(LOADING, finish=finish, num_workers=2))
        for found in sets
    ]
    for (images, *_), (images_2, *_) in zip(*(loader.epoch(0, 0) for loader in loaders), strict=True):
        assert torch.equal(images, images_2)
    assert sets[1].transform.decode.by_pillow == 0


# Pixels

EXACT = {"AutoContrast", "Equalize", "Invert", "Posterize", "PosterizeIncreasing", "PosterizeOriginal", "Solarize",
         "SolarizeIncreasing", "SolarizeAdd", "Brightness", "BrightnessIncreasing"}  # fmt: skip
PICTURES = {
    "waves": waves(),
    "noise": np.random.default_rng(0).integers(0, 256, (50, 41, 3), dtype=np.uint8),
    "one level": np.full((9, 12, 3), 77, np.uint8),
    "two levels": np.repeat(np.uint8([[[0, 9, 255]], [[200, 9, 3]]]), 40, axis=1),
}


@pytest.mark.parametrize("interpolation", [BICUBIC, BILINEAR])
@pytest.mark.parametrize("name", sorted(OPS))
def test_every_op(name, interpolation):
    """To the bit, or one level apart; shears and rotations two, but where bicubic ones meet edges: OpenCV's cubic is another."""
    hparams = {"img_mean": (124, 116, 104), "interpolation": interpolation}
    changed = False
    for content, pixels in PICTURES.items():
        for magnitude in range(11):
            op = auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)
            random.seed(magnitude)
            expected = np.asarray(op(Image.fromarray(pixels)))
            op.aug_fn = OPS[name]
            random.seed(magnitude)
            before = pixels.copy()
            found = op(pixels)
            assert found.dtype == np.uint8 and np.array_equal(pixels, before)
            difference = abs(found.astype(int) - expected)
            if name in EXACT:
                assert not difference.any(), (content, magnitude)
            elif name in ("Rotate", "ShearX", "ShearY"):
                smooth = interpolation == BILINEAR or content in ("waves", "one level")
                apart = (difference > (2 if smooth else 30)).any(axis=2)
                assert apart.sum() <= 0.005 * apart.size, (content, magnitude)  # of the border of what is moved in
            else:
                assert difference.max() <= 1, (content, magnitude)
            changed |= not np.array_equal(found, pixels)
    assert changed


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(30, 200), (64, 64), (120, 37), (100, 90), (3, 5)])
def test_resizing(size, interpolation):
    pixels = waves()[: size[0], : size[1]] if size[1] <= 160 else np.tile(waves(), (1, 2, 1))[: size[0], : size[1]]
    expected = Image.fromarray(pixels).resize((64, 64), BICUBIC if interpolation == "bicubic" else BILINEAR)
    found = Resize(64, interpolation)(pixels)
    assert found.flags.c_contiguous and abs(found.astype(int) - np.asarray(expected)).max() <= 2


@pytest.mark.parametrize("factors", [(0.4, 0.4, 0.4), (0.0, 0.9, 0.3)])
def test_colour_jitter(factors):
    jitter = ColorJitter(*factors)
    for seed in range(20):
        torch.manual_seed(seed)
        expected = np.asarray(jitter(Image.fromarray(waves())))
        torch.manual_seed(seed)
        found = ArrayColorJitter(jitter)(waves())
        assert abs(found.astype(int) - expected).max() <= 3


# Files


@pytest.fixture(params=["cv2", "nvimgcodec"])
def decode(request):
    """(whole file, box) -> the box's pixels."""
    return decode_cv2 if request.param == "cv2" else region_decoder()


def region_decoder():
    if not importlib.util.find_spec("nvidia") or not importlib.util.find_spec("nvidia.nvimgcodec"):
        pytest.skip("nvImageCodec is not installed")
    from data.crops_nvimgcodec import RegionDecoder

    return RegionDecoder()


def read(file: bytes, seed: int = 0, exif: bool = True, decode=decode_cv2) -> tuple[np.ndarray, CropReader]:
    reader = CropReader((0.08, 1.0), (0.75, 4 / 3), exif, decode)
    seed_cpu(seed)
    return reader(io.BytesIO(file)), reader


def expected_crop(file: bytes, seed: int = 0, exif: bool = True) -> np.ndarray:
    image = decode_image(io.BytesIO(file), exif)
    seed_cpu(seed)
    top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (0.75, 4 / 3))
    return np.asarray(image)[top : top + height, left : left + width]


@pytest.mark.parametrize("size", [(160, 120), (33, 47), (8, 8), (1, 9)])
@pytest.mark.parametrize(
    "options",
    [{"subsampling": s} for s in (0, 1, 2)]
    + [{"progressive": True}, {"quality": 30}, {"restart_marker_blocks": 2}, {"mode": "L"}],
    ids=str,
)
def test_plain_jpegs_have_pillow_s_bits(size, options, decode):
    options = {"quality": 92, **options}
    image = Image.fromarray(waves()).resize(size).convert(options.pop("mode", "RGB"))
    file = as_file(image, **options)
    for seed in range(5):
        found, reader = read(file, seed, decode=decode)
        assert np.array_equal(found, expected_crop(file, seed)) and reader.by_pillow == 0


def test_trailing_zeros_are_no_reason_for_the_slow_way():
    found, reader = read(as_file(Image.fromarray(waves())) + b"\0" * 20)
    assert reader.by_pillow == 0 and found.size


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


ODD = {
    "cmyk": lambda image: as_file(image.convert("CMYK")),
    "png": lambda image: as_file(image, "PNG"),
    "palette": lambda image: as_file(image.convert("P"), "PNG"),
    "transparent": lambda image: as_file(Image.merge("RGBA", (*image.split(), image.getchannel("R"))), "PNG"),
    "16 bits": lambda image: as_file(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG"),
    "webp": lambda image: as_file(image, "WEBP", lossless=True),
    "turned": lambda image: as_file(image, exif=turned(6)),
    "damaged exif": lambda image: as_file(image, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"),
    "bytes after the end": lambda image: as_file(image) + b"more",
}


@pytest.mark.parametrize("kind", ODD)
def test_other_files_are_read_by_pillow(kind):
    file = ODD[kind](Image.fromarray(waves()))
    for seed in range(3):
        found, reader = read(file, seed)
        assert np.array_equal(found, expected_crop(file, seed)), kind
        assert reader.by_pillow == 1 or kind == "damaged exif"
    if kind == "turned":
        found, reader = read(file, exif=False)
        assert np.array_equal(found, expected_crop(file, exif=False)) and reader.by_pillow == 0


@pytest.mark.parametrize("cut", [0, 1, 3, 100, 2000, -2, -200])
def test_damaged_files_have_pillow_s_errors(photos, cut):
    path = sorted((photos / "train/a").iterdir())[0]
    path.write_bytes(path.read_bytes()[:cut])
    messages = []
    for backend in ("pil", "cv2"):
        with pytest.raises(DataError) as caught:
            dataset(photos, backend)[SeededIndex(0, 0)]
        messages.append(str(caught.value))
    assert messages[0].startswith(f"{path}: cannot be read")
    assert len({re.sub("0x[0-9a-f]+", "", message) for message in messages}) == 1


def test_what_cannot_be_read_is_left_out(photos, decode):
    path = sorted((photos / "train/a").iterdir())[0]
    path.write_bytes(path.read_bytes()[:-500])
    found = dataset(photos, "cv2")
    found.on_error, found.transform.decode.decode = "skip", decode
    (picture, *_), failures = found[SeededIndex(0, 7)]
    other = next(
        i for i in range(12) if np.array_equal(found[SeededIndex(i, 7)].sample[0].pixels, picture.pixels) and i
    )
    assert other and len(failures) == 1 and failures[0].startswith(f"{path}: cannot be read")


@pytest.mark.parametrize("progressive", [False, True])
def test_files_damaged_anywhere_are_refused_or_read_as_by_pillow(progressive, decode):
    """But for few, whose crop can be decoded and which Pillow refuses for what comes after it."""
    file = as_file(Image.fromarray(PICTURES["noise"]).resize((200, 160)), quality=95, progressive=progressive)
    refused = lenient = 0
    for seed in range(300):
        rng = random.Random(seed)
        damaged = bytearray(file)
        for _ in range(rng.choice([1, 3, 20])):
            damaged[rng.randrange(2, len(file) - 2)] = rng.randrange(256)
        try:
            expected = expected_crop(bytes(damaged))
        except Exception as error:
            refused += 1
            try:
                lenient += bool((read(bytes(damaged), decode=decode)[0] != 128).any())
            except type(error):
                continue
        else:
            assert np.array_equal(read(bytes(damaged), decode=decode)[0], expected), seed
    assert 10 < refused < 290 and lenient <= 6


def test_what_opencv_cannot_decode_is_pillow_s_to_refuse_or_read():
    file = as_file(Image.fromarray(waves()))
    reader = CropReader((0.08, 1.0), (0.75, 4 / 3), True, lambda data, box: None)
    seed_cpu(3)
    assert np.array_equal(reader(io.BytesIO(file)), expected_crop(file, 3))


def test_a_bomb_is_refused_unread():
    file = as_file(Image.new("RGB", (8, 808)))
    with pytest.raises(Image.DecompressionBombError, match="8 x 808 pixels"):
        read(file)


def test_sources_without_files():
    source = open_source("synthetic", "train", "", opening=Opening(10, 4))
    pil, fast = (
        ImageDataset(source, augmentation(backend=backend, img_size=64, auto_augment="none", color_jitter=0))
        for backend in ("pil", "cv2")
    )
    a, b = (found[SeededIndex(1, 5)].sample[0].pixels.astype(int) for found in (pil, fast))
    assert a.shape == (64, 64, 3) and abs(a - b).mean() < 1


# Refusals


@pytest.mark.parametrize("policy", ["augmix-m3", "3a", "trivial"])
def test_policies_that_are_not_there(policy):
    with pytest.raises(ConfigError, match=f"AUG.AUTO_AUGMENT is '{policy}', which DATA.BACKEND cv2 does not have"):
        augmentation(backend="cv2", auto_augment=policy)


@pytest.mark.parametrize("policy", ["rand-m7-n3", "original-mstd0.5", "v0", "v0r", "originalr", "none"])
def test_policies_that_are(photos, policy):
    found = dataset(photos, "cv2", auto_augment=policy)
    assert "augment" in found.transform.steps
    assert all(found[SeededIndex(i % 12, i)].sample[0].pixels.shape == (64, 64, 3) for i in range(30))


def test_a_missing_package_is_one_line(write_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia", None)
    monkeypatch.setattr("data.crops_nvimgcodec._decoders", {})
    message = str(error_of("--cfg", write_config(), "--opts", "DATA.BACKEND", "nvimgcodec"))
    assert message.startswith("DATA.BACKEND is 'nvimgcodec'") and "pip install nvidia-nvimgcodec-cu13" in message


def test_a_missing_requirement_is_one_line(write_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "engine.commands.train", None)  # as if what it imports were not there
    message = str(error_of("--cfg", write_config()))
    assert (
        message.startswith("engine.commands.train: cannot be imported") and "pip install -r requirements.txt" in message
    )


def test_refused_by_the_command(write_config):
    message = str(error_of("--cfg", write_config(), "--opts", "DATA.BACKEND", "cv"))
    assert "DATA.BACKEND" in message and "one of pil, cv2, nvimgcodec" in message


# Runs


def test_a_run_trains_with_it_and_evaluates_by_pillow(write_config, tmp_path):
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}, DATA={"BACKEND": "cv2"})
    run("--cfg", path)
    checkpoint = tmp_path / "output/fat_tiny/default/last.pth"
    results = []
    for backend in ("cv2", "pil"):
        run("--cfg", path, "--eval", "--resume", checkpoint, "--opts", "DATA.BACKEND", backend)
        results.append((tmp_path / "output/fat_tiny/default/eval.json").read_text())
    assert results[0] == results[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_benchmark(write_config, tmp_path, capsys, monkeypatch, workers):
    monkeypatch.setattr("engine.commands.benchmark_data.ROUNDS", 1)
    monkeypatch.setattr("engine.commands.benchmark_data.LOADER_SECONDS", 0.1)
    run("--cfg", write_config(DATA={"NUM_WORKERS": workers}, AUG={"HFLIP": 0.5}), "--benchmark-data", "100000")
    said = capsys.readouterr().out
    for backend in ("timm", "pil", "cv2"):
        speed, each = re.search(rf" {backend}: (\d+) images/s/core.*?; (\d+\.\d\d) ms per image", said).groups()
        assert int(speed) == pytest.approx(1000 / float(each), rel=0.1)
        needed = int(re.search(rf"workers for 100000 images/s.* (\d+) with {backend}", said)[1])
        assert needed == pytest.approx(100 * float(each), rel=0.1)
    for step in (
        "read",
        "decode",
        "crop and resize",
        "resize",
        "flip",
        "augment",
        "to tensor",
        "normalise",
        "erase",
        "collate",
    ):
        assert re.search(rf"[ :]{step} \d+\.\d\d", said), step
    assert "cv2: 120 of 120 were decoded by Pillow" in said  # the digits are PNGs
    assert "nvimgcodec: 120 of 120" in said or "nvimgcodec: left out" in said
    assert ("DATA.NUM_WORKERS is 0" if not workers else "loader: ") in said
    assert not (tmp_path / "output").exists()


def test_benchmark_leaves_out_what_is_not_there(write_config, capsys, monkeypatch):
    monkeypatch.setattr("engine.commands.benchmark_data.ROUNDS", 1)
    path = write_config(AUG={"AUTO_AUGMENT": "augmix-m3"})
    run("--cfg", path, "--benchmark-data")
    said = capsys.readouterr().out
    assert "cv2: left out (AUG.AUTO_AUGMENT" in said and "with pil (" in said and "with cv2" not in said
    assert "DATA.BACKEND cv2 does not have" in str(
        error_of("--cfg", path, "--benchmark-data", "--opts", "DATA.BACKEND", "cv2")
    )


@pytest.mark.parametrize(
    "other", [("--check",), ("--throughput",), ("--resume", "x"), ("--pretrained", "x"), ("--eval", "--resume", "x")]
)
def test_benchmark_contradicts(write_config, other):
    assert f"{other[0]} contradicts --benchmark-data" in str(
        error_of("--cfg", write_config(), "--benchmark-data", *other)
    )


@pytest.mark.parametrize("speed", ["-5", "nan", "inf", "fast"])
def test_benchmark_with_a_speed_that_is_none(write_config, speed):
    assert "--benchmark-data" in str(error_of("--cfg", write_config(), f"--benchmark-data={speed}"))


# Waiting


def test_waiting_is_said_once_in_an_epoch():
    waits = Waits(workers=4, backend="pil", cores=16)
    assert waits.add(0.19 * 100, 100) is None
    said = waits.add(LEAST, 20)
    assert said.startswith("24% of this epoch's time") and "DATA.NUM_WORKERS, which is 4, as 16 cores" in said
    assert "DATA.BACKEND cv2" in said
    assert waits.add(50, 50) is None
    waits.start_epoch()
    assert waits.add(LEAST - 1, LEAST) is None and "DATA.BACKEND" in waits.add(2, 2)


def test_what_to_change_depends_on_what_there_is():
    assert "NUM_WORKERS, which" not in Waits(16, "pil", 16).add(50, 100)
    assert "BACKEND" not in Waits(4, "cv2", 16).add(50, 100)
    assert "has all 16 cores" in Waits(16, "cv2", 16).add(50, 100)


def test_a_waiting_run_warns(write_config, capsys, monkeypatch):
    monkeypatch.setattr("engine.training.waits.LEAST", 0.05)
    path = write_config(TRAIN={"EPOCHS": 2, "WARMUP_EPOCHS": 1})
    monkeypatch.setattr("data.dataset.seed_cpu", lambda seed: (time.sleep(0.02), seed_cpu(seed)))
    run("--cfg", path, "--tag", "slow")
    assert capsys.readouterr().out.count("spent waiting for images") == 2  # once in each epoch


def test_batches_on_their_way_to_a_gpu(monkeypatch):
    """The order of what is asked of CUDA, which is stood in for: the next batch is under way before a batch is used.

    All tensors of a batch are kept, however deep they lie.
    """
    log = []

    class Stream:
        def wait_stream(self, other):
            log.append(("the computing stream waits for" if other is side else "waits", "copying"))

    class OnDevice(torch.Tensor):
        def record_stream(self, stream):
            log.append(("kept", self.item(), stream is computing))

    def finish(number):
        log.append(("copied", number, inside[-1] is side))
        first, second, third = (torch.tensor(number + part).as_subclass(OnDevice) for part in (0.0, 0.25, 0.5))
        return Examples(first, {"masks": (second,), "boxes": [Boxed(third, "name")]}, ["key"])

    class using:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            inside.append(self.stream)

        def __exit__(self, *_):
            inside.pop()

    side, computing = Stream(), Stream()
    inside = [computing]
    copying_stream.cache_clear()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", using)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    batches = Prefetcher(iter([1, 2]), finish, torch.device("cuda"))
    wait = ("the computing stream waits for", "copying")

    def kept(number):
        return [("kept", number + part, True) for part in (0.0, 0.25, 0.5)]

    assert next(batches).images == 1
    assert log == [("copied", 1, True), wait, *kept(1), ("copied", 2, True)]
    log.clear()
    assert [batch.images.item() for batch in batches] == [2] and log == [wait, *kept(2)]
    assert list(Prefetcher(iter([]), finish, torch.device("cuda"))) == []


class Boxed(NamedTuple):
    box: torch.Tensor
    name: str


def test_nested_targets_go_to_the_device():
    """The meta device stands in for a GPU; what is no tensor stays as it is, and so do the kinds of containers."""
    items = [Item(Sample(Picture(np.zeros((4, 4, 3), np.uint8)), torch.full((i, 4), i))) for i in (1, 2)]

    def in_dictionary(boxes):
        return {"boxes": [Boxed(box, "a") for box in boxes], "sizes": (1, 2)}

    batch, _ = collate_items(items, partial(collate_pictures, collate_targets=in_dictionary))
    targets = to_device(batch.targets, torch.device("meta"))
    assert [type(target) for target in targets["boxes"]] == [Boxed, Boxed] and targets["sizes"] == (1, 2)
    assert [(target.box.device.type, *target.box.shape) for target in targets["boxes"]] == [
        ("meta", 1, 4),
        ("meta", 2, 4),
    ]
    finished = Finish((0.5,) * 3, (0.5,) * 3, torch.device("cpu"))(batch)
    assert [target.box.tolist() for target in finished.targets["boxes"]] == [[[1] * 4], [[2] * 4] * 2]
    images = to_device([batch.images.float()], torch.device("cpu"), channels_last=True)[0]
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_batches_pass_through_on_the_cpu():
    given = iter([1, 2, 3])
    batches = Prefetcher(given, lambda n: [n, n], torch.device("cpu"))
    # nothing is loaded ahead of its time
    assert next(batches) == [1, 1] and next(given) == 2 and list(batches) == [[3, 3]]
