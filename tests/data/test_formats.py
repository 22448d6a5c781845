"""One set of images in every format: the same images, labels and accuracy; and what is said of damaged ones."""

import dataclasses
import gzip
import io
import itertools
import json
import os
import shutil
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from timm.data import ImageNetInfo

from conftest import Job, Stop, assert_same, error_of, history, launch, load, run, smallest_model, stop_at_update
from data import cache
from data.class_maps import IMAGENET, read_class_map, wordnet_ids
from data.decode import decode_image
from data.loader import TrainLoader, TrainStreamLoader, dataset_of, eval_loader
from data.schedule import Schedule
from data.sources import Opening, keys_of, open_source
from data.stream import TrainStream
from data.transforms import eval_transform
from engine.evaluation.sets.open import SetsOpening, open_sets
from engine.evaluation.sets.spec import SetSpec
from engine.training.trainer import Trainer
from loading import LOADING, augmentation
from near import same_figures
from utils import memory
from utils.errors import ConfigError, DataError
from utils.memory import available_memory

INDEXED = ("zip", "tar", "hfds")
EVERY = ("folder", *INDEXED, "wds")


def files_of(root: Path, split: str) -> list[tuple[str, str, bytes]]:
    """(class, name, bytes), in order."""
    return [(path.parent.name, path.name, path.read_bytes()) for path in sorted((root / split).rglob("*.png"))]


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write_shard(path: Path, files, classes) -> None:
    with tarfile.open(path, "w") as archive:
        for number, (label, name, data) in enumerate(files):
            add(archive, f"{number:04d}.png", data)
            add(archive, f"{number:04d}.cls", str(classes.index(label)).encode())
            add(archive, f"{number:04d}.json", json.dumps({"key": f"{label}/{name}"}).encode())


def write_formats(digits: Path, root: Path) -> None:
    """root/zip, root/tar, root/wds, root/hfds; made here, not by scripts/prepare_data.py, which has tests of its own."""
    import datasets

    for name in ("zip", "tar", "wds", "hfds/data"):
        (root / name).mkdir(parents=True)
    info = {"splits": {}, "classes": ["0", "1", "2"]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=info["classes"])})
    for split, shards in (("train", 6), ("val", 4)):
        files = files_of(digits, split)
        with zipfile.ZipFile(root / "zip" / f"{split}.zip", "w") as archive:
            for label, name, data in files:
                archive.writestr(f"{label}/{name}", data)
        lines = [f"{label}/{name}\t{label}\n" for label, name, _ in files]
        (root / "zip" / f"{split}_map.txt").write_text("".join(lines))
        with tarfile.open(root / "tar" / f"{split}.tar", "w") as archive:
            for label, name, data in reversed(files):  # in any order
                add(archive, f"./{label}/{name}", data)
        names = [f"{split}-{number:06d}.tar" for number in range(shards)]
        for number, name in enumerate(names):
            write_shard(root / "wds" / name, files[number::shards], info["classes"])
        lengths = [len(files[number::shards]) for number in range(shards)]
        info["splits"][split] = {"name": split, "filenames": names, "shard_lengths": lengths, "num_samples": len(files)}
        rows = {
            "image": [{"bytes": data, "path": f"{label}/{name}"} for label, name, data in files],
            "label": [int(label) for label, *_ in files],
        }
        hub_s = "validation" if split == "val" else split
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            root / "hfds/data" / f"{hub_s}-00000-of-00001.parquet"
        )
    (root / "wds/_info.json").write_text(json.dumps(info))


@pytest.fixture(scope="session", autouse=True)
def hub_cache(tmp_path_factory):
    """`datasets` keeps its copies there."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = Path(tmp_path_factory.mktemp("hub"))
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def formats(tmp_path_factory, digits) -> Path:
    root = tmp_path_factory.mktemp("formats")
    write_formats(digits, root)
    (root / "folder").symlink_to(digits)
    return root


@pytest.fixture
def copied(tmp_path, formats) -> Path:
    """A copy to be damaged."""
    shutil.copytree(formats, tmp_path / "formats", ignore=shutil.ignore_patterns("folder"))
    return tmp_path / "formats"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):

    torch.manual_seed(0)
    raw, ema = (smallest_model(num_classes=3) for _ in range(2))
    path = tmp_path_factory.mktemp("weights") / "x.pth"
    torch.save({"model": raw.state_dict(), "ema": ema.state_dict(), "classes": ["0", "1", "2"]}, path)
    return path


def source(name, root, split="val", decode=decode_image, **opening):
    return open_source(name, split, str(root / name.partition("/")[0]), decode, Opening(**opening))


# The same images


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", INDEXED)
def test_indexed_formats_are_the_folders(formats, name, split):
    ours, folder = source(name, formats, split), source("folder", formats, split)
    assert len(ours) == len(folder) == {"train": 60, "val": 29}[split]
    assert ours.classes == folder.classes and ours.fingerprint == folder.fingerprint
    for i in range(len(folder)):
        (image, label), (other, other_label) = ours.load(i), folder.load(i)
        assert image.tobytes() == other.tobytes() and label == other_label
        assert ours.key(i) == folder.key(i) and ours.key(i) in ours.name(i)


def test_shards_hold_the_folders_images(formats):
    ours, folder = source("wds", formats), source("folder", formats)
    assert len(ours) == 29 and ours.classes == folder.classes and len(ours.shards) == 4
    found = {
        sample.key: (ours.load(sample)[0].tobytes(), sample.label) for shard in range(4) for sample in ours.read(shard)
    }
    assert found == {folder.key(i): (folder.load(i)[0].tobytes(), folder.load(i)[1]) for i in range(29)}


def evaluated(name, formats, world_size, num_workers, batch_size=4):
    """key -> label and pixels, as the loaders of all processes give them."""
    dataset = dataset_of(source(name, formats), eval_transform(32, "bicubic", 0.875), "raise")
    found = []
    for rank in range(world_size):
        loader = eval_loader(
            dataset, batch_size, rank, world_size, dataclasses.replace(LOADING, num_workers=num_workers)
        )
        for images, targets, keys in loader:
            found += [
                (key, int(target), image.numpy().tobytes())
                for key, target, image in zip(keys, targets, images, strict=True)
            ]
    return sorted(found)


@pytest.mark.parametrize("name", EVERY)
def test_evaluation_has_every_image_once(formats, name):
    """For more processes than shards too, and shards that no number of processes divides."""
    expected = evaluated("folder", formats, 1, 0)
    assert len(expected) == len({key for key, *_ in expected}) == 29
    for world_size, num_workers in (
        [(1, 0), (1, 2), (2, 0), (3, 0), (2, 3), (7, 0)] if name == "wds" else [(1, 2), (3, 0)]
    ):
        assert evaluated(name, formats, world_size, num_workers) == expected, (world_size, num_workers)


def test_the_same_accuracy_to_the_last_digit(write_config, tmp_path, formats, checkpoint):
    found = {}
    for name in EVERY:
        for world_size, num_workers in [(1, 0), (2, 2), (3, 0)] if name in ("folder", "wds") else [(2, 0)]:
            path = write_config(DATA={"DATASET": name, "DATA_PATH": str(formats / name), "NUM_WORKERS": num_workers})
            launch(world_size, "--cfg", path, "--eval", "--resume", checkpoint)
            result = json.loads((tmp_path / "output/fat_tiny/default/eval.json").read_text())
            assert result.pop("dataset") == name and result.pop("data_path") == str(formats / name)
            found[name, world_size, num_workers] = result
    first = found["folder", 1, 0]
    assert (
        first["num_images"] == 29
        and first["complete"]
        and all(same_figures(result, first) for result in found.values())
    ), found


def trained(folder: Path):
    """What a run has learned: everything but its config."""
    saved = load(folder / "last.pth")
    del saved["config"]
    return saved, history(folder)


def test_the_same_training_to_the_bit(write_config, tmp_path, formats, monkeypatch):
    """Also where a run goes on in mid-epoch from another format of the same images; `hfds/...` names a path as well."""
    runs = {}
    for name in ("folder", *INDEXED):
        path = write_config(
            DATA={"DATASET": name, "DATA_PATH": str(formats / name)}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}
        )
        run("--cfg", path, "--tag", name)
        runs[name] = trained(tmp_path / "output/fat_tiny" / name)
    path = write_config(DATA={"DATASET": "folder"}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "SAVE_EVERY_STEPS": 2})
    restore = stop_at_update(monkeypatch, 4)
    with pytest.raises(Stop):
        run("--cfg", path, "--tag", "both")
    restore()
    run("--cfg", path, "--tag", "both", "--opts", "DATA.DATASET", "hfds/hfds", "DATA.DATA_PATH", formats)
    runs["both"] = trained(tmp_path / "output/fat_tiny/both")
    changes = runs["both"][0]["progress"]["changes"]
    assert [change.partition(" ")[0] for change in changes] == ["DATA.DATASET", "DATA.DATA_PATH"]
    changes.clear()
    for name, (saved, logged) in runs.items():
        assert_same(saved, runs["folder"][0], name)
        assert logged == runs["folder"][1], name


def test_swin_s_flags(write_config, tmp_path, formats, checkpoint, capfd):
    path = write_config(DATA={"DATA_PATH": str(formats / "zip")})
    run("--cfg", path, "--zip", "--cache-mode", "full", "--eval", "--resume", checkpoint)
    assert json.loads((tmp_path / "output/fat_tiny/default/eval.json").read_text())["num_images"] == 29
    assert "DATA.CACHE_MODE part: 0.00" in capfd.readouterr().out


# Streams


def stream_loader(
    formats,
    rank=0,
    world_size=1,
    num_workers=0,
    num_batches=6,
    batch_size=4,
    buffer=10,
    root=None,
    on_error="raise",
    repeats=1,
):
    transform = augmentation(scale=(0.5, 1.0), reprob=0.25)
    dataset = dataset_of(source("wds", root or formats, "train", decode=transform.decode), transform, on_error)
    schedule = Schedule(num_batches, batch_size, rank, world_size, seed=3, repeats=repeats)
    return TrainStreamLoader(dataset, schedule, dataclasses.replace(LOADING, num_workers=num_workers), buffer)


def bits(batches):
    return [(images.numpy().tobytes(), targets.tolist()) for images, targets, _ in batches]


@pytest.mark.parametrize("num_workers", [0, 2, 3])
def test_a_stream_goes_on_at_any_batch(formats, num_workers):
    loader = stream_loader(formats, num_workers=num_workers)
    whole = bits(loader.epoch(1, 0))
    assert len(whole) == 6 and all(len(targets) == 4 for _, targets in whole) and len(loader) == 6
    for first in (1, 2, 5, 6):
        assert bits(loader.epoch(1, first)) == whole[first:]  # the loader has been used before, as in training
    assert bits(stream_loader(formats, num_workers=num_workers).epoch(1, 3)) == whole[3:]
    assert bits(loader.epoch(2, 0)) != whole


def drawn(formats, monkeypatch, epoch, **settings):
    """The keys that all processes draw in an epoch."""
    keys = []
    world_size = settings["world_size"]
    for rank in range(world_size):
        loader = stream_loader(formats, rank=rank, **settings)
        original = type(loader.dataset).item

        def noting(self, sample, seed=None, size=0):
            keys.append(sample.key)
            return original(self, sample, seed, size)

        monkeypatch.setattr(type(loader.dataset), "item", noting)
        list(loader.epoch(epoch, 0))
        monkeypatch.setattr(type(loader.dataset), "item", original)
    return keys


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_an_epoch_of_a_stream(formats, monkeypatch, world_size):
    """Where all readers have as many images as the epoch wants of them, it has each image once, in other orders."""
    settings = dict(world_size=world_size, batch_size=60 // (world_size * 5), num_batches=5)
    epochs = [drawn(formats, monkeypatch, epoch, **settings) for epoch in range(3)]
    for keys in epochs:
        assert len(keys) == 60
        assert len(set(keys)) == 60 if world_size < 4 else len(set(keys)) > 48  # six shards for four readers
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])


def test_more_readers_than_shards_divide_them(formats, monkeypatch):
    keys = drawn(formats, monkeypatch, 0, world_size=12, batch_size=5, num_batches=1)
    assert len(keys) == len(set(keys)) == 60


class Uneven:
    """Shards of 1, 0 and 20 images."""

    shards = ["a", "b", "c"]

    def read(self, shard):
        yield from [(shard, i) for i in range((1, 0, 20)[shard])]


def test_a_reader_whose_shard_has_too_few_images_gets_another(monkeypatch):
    stream = TrainStream(SimpleNamespace(source=Uneven()), Schedule(1, 1, 0, 1, seed=0), buffer=4)
    for epoch, reader in itertools.product(range(5), range(8)):
        given = list(itertools.islice(stream.samples(epoch, reader, 8), 30))
        assert len(given) == 30 and given == list(itertools.islice(stream.samples(epoch, reader, 8), 30))
    monkeypatch.setattr(Uneven, "read", lambda self, shard: iter(()))
    with pytest.raises(DataError, match="holds no images for reader 5; use fewer DATA.NUM_WORKERS"):
        next(stream.samples(0, 5, 8))


def test_the_buffer_mixes(formats, monkeypatch):
    """Without it a reader gives a shard after the other, each in its order."""
    wide = drawn(formats, monkeypatch, 0, world_size=1, batch_size=60, num_batches=1, buffer=60)
    narrow = drawn(formats, monkeypatch, 0, world_size=1, batch_size=60, num_batches=1, buffer=1)
    shard_of = {sample.key: shard for shard in range(6) for sample in source("wds", formats, "train").read(shard)}
    switches = [sum(shard_of[a] != shard_of[b] for a, b in zip(keys, keys[1:])) for keys in (wide, narrow)]
    assert switches[1] == 5 and switches[0] > 30


def test_repeated_augmentation_of_a_stream(formats):
    """Each image three times in a row, with other pixels; goes on at any batch."""
    loader = stream_loader(formats, repeats=3, batch_size=6, num_batches=4)
    whole = list(loader.epoch(0, 0))
    for images, targets, _ in whole:
        assert targets.tolist() == [label for label in targets.tolist()[::3] for _ in range(3)]
        assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])
    assert bits(loader.epoch(0, 1)) == bits(whole[1:])


def test_shards_come_in_another_order_in_each_epoch(formats, monkeypatch):
    shard_of = {sample.key: shard for shard in range(6) for sample in source("wds", formats, "train").read(shard)}
    orders = []
    for epoch in range(4):
        keys = drawn(formats, monkeypatch, epoch, world_size=1, batch_size=60, num_batches=1, buffer=1)
        orders.append(tuple(dict.fromkeys(shard_of[key] for key in keys)))
    assert all(sorted(order) == list(range(6)) for order in orders) and len(set(orders)) == 4


def test_training_on_shards(write_config, tmp_path, formats, monkeypatch):
    """Two processes with two workers each; cut off in mid-epoch, and gone on with by one each, the run ends as one that was not."""
    path = write_config(
        DATA={"DATASET": "wds", "DATA_PATH": str(formats / "wds"), "NUM_WORKERS": 2}, TRAIN={"SAVE_EVERY_STEPS": 2}
    )
    launch(2, "--cfg", path, "--tag", "whole")

    def limited():
        patch = pytest.MonkeyPatch()
        stop_at_update(patch, 5)

    job = Job("--cfg", path, "--tag", "cut", world_size=2, prepare=limited)
    assert set(job.wait()) == {1}
    launch(2, "--cfg", path, "--tag", "cut", "--opts", "DATA.NUM_WORKERS", 1)
    runs = [trained(tmp_path / "output/fat_tiny" / tag) for tag in ("whole", "cut")]
    changes = [saved["progress"].pop("changes") for saved, _ in runs]
    assert changes == [[], ["DATA.NUM_WORKERS changed from 2 to 1"]]
    assert_same(*(saved for saved, _ in runs))
    assert runs[0][1] == runs[1][1]


def test_an_image_of_a_shard_that_cannot_be_read(copied, formats):
    """With 'skip' the next image of the stream takes its place, also after a start in mid-epoch; then it is in the list."""
    files = [
        (label, name, b"no image" if i in (0, 1, 7, 23) else data)
        for i, (label, name, data) in enumerate(files_of(formats / "folder", "train"))
    ]
    for number in range(6):
        write_shard(copied / "wds" / f"train-{number:06d}.tar", files[number::6], ["0", "1", "2"])
    for num_workers in (0, 2):
        loader = stream_loader(formats, root=copied, on_error="skip", num_workers=num_workers, num_batches=9)
        whole = bits(loader.epoch(0, 0))
        failures = loader.take_failures()
        assert len(whole) == 9 and all(len(targets) == 4 for _, targets in whole)
        assert 1 <= len(set(failures)) <= 4 and all(
            "no image of a known format" in text and ".tar:00" in text for text in failures
        )
        for first in range(10):
            assert bits(loader.epoch(0, first)) == whole[first:]
    with pytest.raises(DataError, match="no image of a known format"):
        list(stream_loader(formats, root=copied, num_batches=15).epoch(0, 0))
    for number in range(6):
        write_shard(copied / "wds" / f"train-{number:06d}.tar", [("0", "x.png", b"no image")] * 10, ["0", "1", "2"])
    with pytest.raises(DataError, match="nor can the 100 before it"):
        list(stream_loader(formats, root=copied, on_error="skip").epoch(0, 0))


def test_the_loading_of_shards_is_timed(write_config, formats, monkeypatch, capfd):
    monkeypatch.setattr("engine.commands.benchmark_data.ROUNDS", 1)
    monkeypatch.setattr("engine.commands.benchmark_data.LOADER_SECONDS", 0.1)
    run(
        "--cfg",
        write_config(DATA={"DATASET": "wds", "DATA_PATH": str(formats / "wds"), "NUM_WORKERS": 1}),
        "--benchmark-data",
    )
    out = capfd.readouterr().out
    assert "60 training images" in out and "cv2: " in out and "loader: " in out and "read " in out


def test_how_shards_can_be_named(copied):
    root = copied / "wds"
    assert len(source("wds", copied, "val-{000000..000001}.tar")) == 15  # counted by the info
    piped = open_source(
        "wds", f"pipe:cat {root}/val-{{000000..000003}}.tar|29", str(root), opening=Opening(num_classes=3)
    )
    assert len(piped) == 29 and sum(1 for shard in range(4) for _ in piped.read(shard)) == 29
    (root / "_info.json").unlink()
    counted = open_source("wds", "val", str(root), opening=Opening(num_classes=3))
    assert len(counted) == 29 and counted.lengths == [8, 7, 7, 7] and counted.classes == ["0", "1", "2"]
    assert (
        open_source("wds", "val", str(root), opening=Opening(num_classes=1000)).classes == ImageNetInfo().label_names()
    )


def test_a_wrong_number_of_images_is_said(write_config, copied, checkpoint, capfd):
    (copied / "wds/_info.json").unlink()
    opts = [
        "DATA.DATASET",
        "wds",
        "DATA.VAL_SPLIT",
        f"pipe:cat {copied}/wds/val-{{000000..000003}}.tar|30",
        "MODEL.NUM_CLASSES",
        3,
    ]
    run(
        "--cfg",
        write_config(DATA={"DATA_PATH": str(copied / "wds")}),
        "--eval",
        "--resume",
        checkpoint,
        "--opts",
        *opts,
    )
    assert "29 images were read, 30 were said to be there" in capfd.readouterr().out


# Archives


@pytest.mark.parametrize("compressed", [False, True])
def test_shards_without_an_info_must_have_an_end(copied, compressed):
    """tarfile takes a damaged header for the end, with which a count by headers would agree."""
    (copied / "wds/_info.json").unlink()
    path = copied / "wds/val-000001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        header = archive.getmembers()[4].offset
    for damaged in (whole[:header] + bytes([whole[header] ^ 255]) + whole[header + 1 :], whole[:header]):
        path.write_bytes(gzip.compress(damaged) if compressed else damaged)
        with pytest.raises(DataError, match="val-000001.tar: is no whole shard .it has no end."):
            source("wds", copied, class_to_idx={"0": 0, "1": 1, "2": 2})
    path.write_bytes(gzip.compress(whole) if compressed else whole)
    assert len(source("wds", copied, class_to_idx={"0": 0, "1": 1, "2": 2})) == 29


def test_an_archive_with_a_tar_for_each_class(tmp_path, formats):
    """As ILSVRC2012_img_train.tar is; and one whose files lie in a folder of the split's name."""
    files = files_of(formats / "folder", "train")
    with tarfile.open(tmp_path / "train.tar", "w") as outer, tarfile.open(tmp_path / "val.tar", "w") as deeper:
        for wanted in ("2", "0", "1"):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for label, name, data in files:
                    if label == wanted:
                        add(archive, name, data)
            add(outer, f"{wanted}.tar", inner.getvalue())
        for label, name, data in files:
            add(deeper, f"val/{label}/{name}", data)
        add(deeper, "val/README.txt", b"left out, as in folders")
    folder = source("folder", formats, "train")
    for split in ("train", "val"):
        ours = open_source("tar", split, str(tmp_path))
        assert ours.fingerprint == folder.fingerprint and ours.classes == folder.classes
        assert all(ours.load(i)[0].tobytes() == folder.load(i)[0].tobytes() for i in range(60))


def test_a_zip_in_its_other_forms(tmp_path, formats):
    """Deflated, with long extra fields that its directory does not have, in the order of the map, with other files in it."""
    files = files_of(formats / "folder", "val")
    with zipfile.ZipFile(tmp_path / "val.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", "not in the map")
        for label, name, data in files:
            info = zipfile.ZipInfo(f"{label}/{name}")
            info.compress_type, info.extra = (
                zipfile.ZIP_DEFLATED,
                b"\xfe\xca" + (300).to_bytes(2, "little") + bytes(300),
            )
            archive.writestr(info, data)
    (tmp_path / "val_map.txt").write_text("".join(f"{label}/{name}\t{label}\n" for label, name, _ in reversed(files)))
    ours, folder = open_source("zip", "val", str(tmp_path)), source("folder", formats)
    assert [ours.key(i) for i in range(29)] == [folder.key(28 - i) for i in range(29)]
    assert all(ours.load(i)[0].tobytes() == folder.load(28 - i)[0].tobytes() for i in range(29))


def test_labels_without_folders(tmp_path, formats):
    with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
        for label, name, data in files_of(formats / "folder", "val"):
            archive.writestr(f"{label}_{name}", data)
    (tmp_path / "val_map.txt").write_text(
        "".join(f"{label}_{name}\t{label}\n" for label, name, _ in files_of(formats / "folder", "val"))
    )
    assert open_source("zip", "val", str(tmp_path)).classes == ["0", "1", "2"]
    assert open_source("zip", "val", str(tmp_path), opening=Opening(class_to_idx={"c": 0, "a": 1, "b": 2})).classes == [
        "c",
        "a",
        "b",
    ]
    with pytest.raises(DataError, match="labels up to 2, but the class map names 2 classes"):
        open_source("zip", "val", str(tmp_path), opening=Opening(class_to_idx={"a": 0, "b": 1}))


@pytest.mark.parametrize("name", EVERY)
def test_an_evaluation_set_in_any_format(formats, name):
    class Task:
        def set_dataset(self, open_, _):
            return dataset_of(open_(lambda file: file.read()), eval_transform(32, "bicubic", 1.0), "raise")

    spec = SetSpec(path=f"{name}/val", format=name, name="mine")
    opening = SetsOpening(Task(), None, ["2", "1", "0"], str(formats), Opening(outside_links=True))
    found = open_sets({"mine": spec}, opening)["mine"].parts[""].source
    folder = source("folder", formats)
    assert sorted(keys_of(found)) == sorted(map(folder.key, range(29)))
    read = (
        [sample.label for shard in range(4) for sample in found.read(shard)]
        if name == "wds"
        else [found.load(i)[1] for i in range(29)]
    )
    assert [2 - label for label in read] == [int(key[0]) for key in keys_of(found)]


def test_swin_s_validation_images_lie_in_no_folders(tmp_path):
    """As its README has them: val_map.txt with `ILSVRC2012_val_00000001.JPEG`, tab, 65, beside folders in train_map.txt."""
    names = ImageNetInfo("imagenet-1k").label_names()
    for split, files in (
        ("train", [f"{name}/{name}_1.JPEG" for name in names]),
        ("val", [f"ILSVRC2012_val_{n:08d}.JPEG" for n in range(1000)]),
    ):
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "w") as archive:
            for name in files:
                archive.writestr(name, b"")
        (tmp_path / f"{split}_map.txt").write_text("".join(f"{name}\t{label}\n" for label, name in enumerate(files)))
    train, val = (open_source("zip", split, str(tmp_path)) for split in ("train", "val"))
    assert train.classes == val.classes == names and val.labels.tolist() == list(range(1000))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_tar_whose_images_are_links_is_refused(tmp_path, kind):
    """GNU tar stores the second name of a file so; an image must not be left out unsaid."""
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        add(archive, "0/a.png", b"x")
        link = tarfile.TarInfo("1/b.png")
        link.type, link.linkname = kind, "0/a.png"
        archive.addfile(link)
    with pytest.raises(DataError, match="'1/b.png' as a link to '0/a.png'; .* --hard-dereference"):
        open_source("tar", "val", str(tmp_path))


@pytest.mark.parametrize("cached", [False, True])
def test_a_zip_s_checksums_are_looked_at(tmp_path, formats, cached):
    """A flipped pixel of a BMP is nothing that Pillow could find; the other images stay as they are."""
    from PIL import Image

    with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
        for label in range(2):
            file = io.BytesIO()
            Image.new("RGB", (8, 8), "white").save(file, "BMP")
            archive.writestr(f"{label}/a.bmp", file.getvalue())
        start = archive.infolist()[1].header_offset
    data = bytearray((tmp_path / "val.zip").read_bytes())
    data[start + 150] ^= 255
    (tmp_path / "val.zip").write_bytes(data)
    (tmp_path / "val_map.txt").write_text("0/a.bmp\t0\n1/a.bmp\t1\n")
    ours = open_source("zip", "val", str(tmp_path))
    if cached:
        cache.plan_caches([ours], "full", 0, 1, lambda own: [own], 1, lambda line: None)()
    assert ours.load(0)[1] == 0
    with pytest.raises(DataError, match="1/a.bmp: cannot be read as an image .*bad checksum"):
        ours.load(1)


def test_another_number_of_processes_has_other_shares(formats):
    """So that a run does not go on with them within an epoch; without shares it does."""
    dataset = dataset_of(source("zip", formats), eval_transform(32, "bicubic", 0.875), "raise")

    def orders(**shares):
        return {
            TrainLoader(dataset, Schedule(1, 4, 0, world_size, seed=1), LOADING, **shares).order
            for world_size in (1, 2)
        }

    assert len(orders(shares=True)) == 2 and orders() == {dataset.source.fingerprint}


@pytest.mark.parametrize("name", ["zip", "tar"])
@pytest.mark.parametrize("mode", ["full", "part"])
def test_files_in_memory(formats, name, mode, monkeypatch):
    """They are read once, before workers are forked, and not again."""
    for rank in range(3):
        ours, folder, lines = source(name, formats), source("folder", formats), []
        cache.plan_caches([ours, folder], mode, rank, 3, lambda own: [own] * 3, 3, lines.append)()
        held = [i for i in range(29) if mode == "full" or i % 3 == rank]
        assert [i for i in range(29) if i in ours.cache] == held and len(lines) == 1 and not hasattr(folder, "cache")
        os.close(ours.file)
        for i in held:
            assert ours.load(i)[0].tobytes() == folder.load(i)[0].tobytes()
        ours.file = -1
        if mode == "part":
            with pytest.raises(DataError):
                ours.load((rank + 1) % 3)


def test_memory_is_refused_with_the_numbers(formats, monkeypatch):
    ours, lines = source("zip", formats), []
    own = int(ours.sizes.sum())
    monkeypatch.setattr(cache, "available_memory", lambda: 2 * own)
    cache.plan_caches([ours], "full", 0, 1, lambda own: [own], 1, lines.append)
    assert ours.cache is None and len(lines) == 1
    with pytest.raises(ConfigError) as refused:
        cache.plan_caches([ours], "full", 0, 4, lambda own: [own] * 4, 2, lines.append)
    assert ours.cache is None and len(lines) == 1
    message = str(refused.value)
    assert (
        f"{own / 2**20:.3g} MiB of images in each of 2 processes here, {2 * own / 2**20:.3g} MiB in all, of" in message
    )
    assert f"part, which takes {own / 2 / 2**20:.3g} MiB" in message


def test_available_memory_is_that_of_the_machine_or_less():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**20 < available_memory() < total


@pytest.mark.parametrize("prefix", ["", "total_"])
def test_a_container_s_memory_that_holds_files_is_available(tmp_path, monkeypatch, prefix):
    limit, use, parts = (tmp_path / name for name in ("limit", "use", "stat"))
    (
        limit.write_text("1000\n"),
        use.write_text("900\n"),
        parts.write_text(f"{prefix}active_file 200\n{prefix}inactive_file 300\nfile 600\n"),
    )
    monkeypatch.setattr(memory, "GROUPS", ((limit, use, parts, prefix),))
    assert available_memory() == 600
    limit.write_text("max\n")
    assert available_memory() > 2**20


def test_a_share_of_the_images_for_each_process(write_config, tmp_path, formats):
    """With 'part', training draws from the own share alone, and reads no other file."""
    from data.samplers import TrainBatchSampler

    for world_size in (1, 2, 3):
        seen = []
        for rank in range(world_size):
            sampler = TrainBatchSampler(61, Schedule(5, 4, rank, world_size, seed=1), shares=True)
            sampler.set_position(2)
            own = [key.index for batch in sampler for key in batch]
            assert {index % world_size for index in own} == {rank} and len(own) == 20
            seen += own
        assert len(set(seen)) == 20 * world_size
    path = write_config(DATA={"DATA_PATH": str(formats / "zip")}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})

    def no_reading():
        original = Trainer.fit

        def without_files(self):
            for loader in (self.data.train_loader, self.data.val_loader):
                os.close(loader.dataset.source.file)
            original(self)

        Trainer.fit = without_files

    assert Job("--cfg", path, "--zip", "--cache-mode", "part", world_size=2, prepare=no_reading).wait() == [0, 0]


# Class maps


def test_imagenet_s_lists(tmp_path, formats):
    """Against known places: tench is the first of the 1000, and of the 22k list another one."""
    assert {name: len(read_class_map(name)) for name in IMAGENET} == {
        "imagenet-1k": 1000, "imagenet-12k": 11821, "imagenet-21k": 21843, "imagenet-21k-goog": 21843,
        "imagenet-21k-miil": 11221, "imagenet-22k": 21841, "imagenet-22k-ms": 21842,
    }  # fmt: skip
    names = read_class_map("imagenet-1k")
    assert (
        names["n01440764"] == 0 and names["n01498041"] == 6 and names["n02123394"] == 283 and names["n15075141"] == 999
    )
    assert read_class_map("imagenet-22k")["n01440764"] != 0


def test_the_hub_s_names_of_imagenet_s_classes():
    """Its imagenet-1k has words where folders have WordNet ids."""
    info = ImageNetInfo()
    assert wordnet_ids(info.label_descriptions()) == info.label_names()
    assert wordnet_ids([name.title() for name in info.label_descriptions()]) == info.label_names()
    shuffled = info.label_descriptions()[::-1]
    assert wordnet_ids(shuffled) == shuffled and wordnet_ids(["cat", "dog"]) == ["cat", "dog"]


@pytest.mark.parametrize("name", EVERY)
def test_a_class_map_orders_the_labels(write_config, tmp_path, formats, name):
    (tmp_path / "map.txt").write_text("2\n0\nnowhere\n1\n")
    ours = source(name, formats, class_to_idx=read_class_map(str(tmp_path / "map.txt")))
    assert ours.classes == ["2", "0", "nowhere", "1"]
    if name == "wds":
        found = {sample.key: sample.label for shard in range(4) for sample in ours.read(shard)}
    else:
        found = {ours.key(i): ours.load(i)[1] for i in range(len(ours))}
    assert len(found) == 29 and all(label == {"2": 0, "0": 1, "1": 3}[key[0]] for key, label in found.items())


@pytest.mark.parametrize("name", ["folder", *INDEXED])
def test_a_class_map_leaves_out_other_classes(tmp_path, formats, name):
    (tmp_path / "map.txt").write_text("2\n1\n")
    ours = source(name, formats, class_to_idx=read_class_map(str(tmp_path / "map.txt")))
    folder = source("folder", formats)
    expected = {folder.key(i): 2 - folder.load(i)[1] for i in range(29) if folder.load(i)[1]}
    assert {ours.key(i): ours.load(i)[1] for i in range(len(ours))} == expected
    pixels = {folder.key(i): folder.load(i)[0].tobytes() for i in range(29)}
    assert all(ours.load(i)[0].tobytes() == pixels[ours.key(i)] for i in range(len(ours)))


def test_training_with_a_class_map(write_config, tmp_path, formats):
    (tmp_path / "map.txt").write_text("2\n1\n0\n")
    path = write_config(DATA={"CLASS_MAP": str(tmp_path / "map.txt")}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    run("--cfg", path)
    assert load(tmp_path / "output/fat_tiny/default/last.pth")["classes"] == ["2", "1", "0"]


def test_names_in_the_hub_s_imagenet(formats, tmp_path):
    """ILSVRC2012_val_00000001_<class>.JPEG: the class at the end is not part of the file's name."""
    import datasets

    (tmp_path / "data").mkdir()
    data = files_of(formats / "folder", "val")[0][2]
    paths = ["a_n01440764.JPEG", "n01440764_10026_n01440764.JPEG", "b.JPEG", None]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["n01440764"])})
    rows = {"image": [{"bytes": data, "path": path} for path in paths], "label": [0] * 4}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data/validation-00000-of-00001.parquet")
    ours = open_source("hfds", "val", str(tmp_path))
    assert [ours.key(i) for i in range(4)] == [
        f"n01440764/{name}" for name in ("a.JPEG", "n01440764_10026.JPEG", "b.JPEG", "3")
    ]


# What is said of bad ones


def rewrite_tar(path: Path, change) -> None:
    """change(name, data) -> (name, data), or None to leave a member out."""
    with tarfile.open(path) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(path, "w") as archive:
        for pair in filter(None, (change(*member) for member in members)):
            add(archive, *pair)


def truncate(path: Path, share: float = 0.6) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new, 1))


DAMAGES = {
    "zip missing": ("zip", lambda r: (r / "zip/val.zip").unlink(), ["val.zip", "no such file", "prepare_data.py zip"]),
    "zip cut": ("zip", lambda r: truncate(r / "zip/val.zip"), ["val.zip", "no whole zip"]),
    "no zip": ("zip", lambda r: (r / "zip/val.zip").write_bytes(b""), ["val.zip", "no whole zip"]),
    "map names a missing file": ("zip", lambda r: replace(r / "zip/val_map.txt", "0/", "0/x"), ["val_map.txt", "'0/x", "does not hold"]),
    "map without tabs": ("zip", lambda r: replace(r / "zip/val_map.txt", "\t", " "), ["val_map.txt", "line 1"]),
    "map with names as labels": ("zip", lambda r: replace(r / "zip/val_map.txt", "\t0", "\tzero"), ["line 1", "zero"]),
    "map with a gap": ("zip", lambda r: (r / "zip/val_map.txt").write_text((r / "zip/val_map.txt").read_text().replace("\t1", "\t3")), ["label 1"]),
    "map with two folders": ("zip", lambda r: replace(r / "zip/val_map.txt", "\t1", "\t0"), ["label 0", "'0', '1'"]),
    "map outside": ("zip", lambda r: replace(r / "zip/val_map.txt", "0/", "../0/"), ["'../0/", "leads out"]),
    "empty map": ("zip", lambda r: (r / "zip/val_map.txt").write_text(""), ["val_map.txt", "empty"]),
    "binary map": ("zip", lambda r: (r / "zip/val_map.txt").write_bytes(b"\xff\xfe\x00"), ["val_map.txt", "no text"]),
    "tar missing": ("tar", lambda r: (r / "tar/val.tar").unlink(), ["val.tar", "no such file", "prepare_data.py tar"]),
    "tar cut": ("tar", lambda r: truncate(r / "tar/val.tar"), ["val.tar", "no whole tar"]),
    "tar cut between files": ("tar", lambda r: cut_between_members(r / "tar/val.tar"), ["val.tar", "no whole tar", "no end"]),
    "tar packed": ("tar", lambda r: pack(r / "tar/val.tar"), ["val.tar", "compressed"]),
    "no tar": ("tar", lambda r: (r / "tar/val.tar").write_bytes(b"x" * 2000), ["val.tar", "no whole tar"]),
    "tar outside": ("tar", lambda r: rewrite_tar(r / "tar/val.tar", lambda n, d: ("../" + n, d)), ["val.tar", "leads out"]),
    "tar without folders": ("tar", lambda r: rewrite_tar(r / "tar/val.tar", lambda n, d: (n.replace("/", "_"), d)), ["class' folder"]),
    "tar without images": ("tar", lambda r: rewrite_tar(r / "tar/val.tar", lambda n, d: (n + ".txt", d)), ["holds no images"]),
    "shard missing": ("wds", lambda r: (r / "wds/val-000002.tar").unlink(), ["val-000002.tar", "no such shard"]),
    "shard cut": ("wds", lambda r: truncate(r / "wds/val-000002.tar"), ["val-000002.tar", "images"]),
    "shard cut between files": ("wds", lambda r: cut_between_members(r / "wds/val-000002.tar"), ["val-000002.tar", "after 4 images (it has no end)"]),
    "shard empty": ("wds", lambda r: (r / "wds/val-000002.tar").write_bytes(b""), ["val-000002.tar", "after 0 images"]),
    "shard outside": ("wds", lambda r: rewrite_tar(r / "wds/val-000002.tar", lambda n, d: ("../" + n, d)), ["val-000002.tar", "leads out"]),
    "shard without images": ("wds", lambda r: rewrite_tar(r / "wds/val-000000.tar", lambda n, d: None if "png" in n else (n, d)), ["no image", "cls"]),
    "shard without labels": ("wds", lambda r: rewrite_tar(r / "wds/val-000000.tar", lambda n, d: None if "cls" in n else (n, d)), ["has no label"]),
    "shard with words": ("wds", lambda r: rewrite_tar(r / "wds/val-000000.tar", lambda n, d: (n, b"cat" if "cls" in n else d)), ["has label 'cat'", "DATA.CLASS_MAP"]),
    "shard with other labels": ("wds", lambda r: rewrite_tar(r / "wds/val-000000.tar", lambda n, d: (n, b"7" if "cls" in n else d)), ["label 7, of 3"]),
    "another size": ("wds", lambda r: say_sizes(r / "wds/_info.json"), ["val-000000.tar", "bytes", "_info.json says 5"]),
    "no info": ("wds", lambda r: (r / "wds/_info.json").write_text("[1"), ["_info.json", "no JSON"]),
    "info without lengths": ("wds", lambda r: replace(r / "wds/_info.json", "shard_lengths", "lengths"), ["_info.json", "shard_lengths"]),
    "classes unknown": ("wds", lambda r: (r / "wds/_info.json").unlink(), ["MODEL.NUM_CLASSES"]),
    "parquet cut": ("hfds", lambda r: truncate(parquet(r)), ["hfds", "cannot be read"]),
    "split missing": ("hfds", lambda r: parquet(r).unlink(), ["no split 'val'", "train", "DATA.VAL_SPLIT"]),
    "no image column": ("hfds", lambda r: rename_column(parquet(r), "image", "img"), ["no column 'image'", "img, label", "DATA.COLUMNS"]),
    "no label column": ("hfds", lambda r: rename_column(parquet(r), "label", "fine"), ["no column 'label'", "image, fine"]),
}  # fmt: skip


def parquet(root: Path) -> Path:
    return root / "hfds/data/validation-00000-of-00001.parquet"


def rename_column(path: Path, old: str, new: str) -> None:
    import datasets

    for name in (path, path.with_name(path.name.replace("validation", "train"))):
        rows = datasets.Dataset.from_parquet(str(name))
        rows.rename_column(old, new).to_parquet(name)


def cut_between_members(path: Path) -> None:
    """At the beginning of a sample, where tarfile itself sees nothing wrong."""
    with tarfile.open(path) as archive:
        starts = [member.offset for member in archive if member.name.endswith(".png")]
    os.truncate(path, starts[-2])


def pack(path: Path) -> None:
    import gzip

    path.write_bytes(gzip.compress(path.read_bytes()))


def say_sizes(path: Path) -> None:
    info = json.loads(path.read_text())
    for split in info["splits"].values():
        split["shard_bytes"] = [5] * len(split["filenames"])
    path.write_text(json.dumps(info))


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_said_of_damaged_ones(write_config, tmp_path, copied, checkpoint, damage):
    name, harm, parts = DAMAGES[damage]
    harm(copied)
    path = write_config(DATA={"DATASET": name, "DATA_PATH": str(copied / name)})
    error = error_of("--cfg", path, "--eval", "--resume", checkpoint)
    assert error.status == 2 and all(part in str(error) for part in parts), str(error)
    assert not (tmp_path / "output/fat_tiny/default/eval.json").exists()


def shard_of(path: Path, **members: bytes) -> None:
    """A shard of one image, 'a', with these members beside it."""
    with tarfile.open(path, "w") as archive:
        for extension, data in {"png": b"", **members}.items():
            member = tarfile.TarInfo(f"a.{extension}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("about", [b'{"label": Infinity}', b"[" * 100_000, b"[1]", b'{"label": null}'])
def test_a_label_that_is_none(tmp_path, about):
    shard_of(tmp_path / "val-0.tar", json=about)
    with pytest.raises(DataError, match="a: has no label"):
        list(open_source("wds", "val", str(tmp_path), opening=Opening(num_classes=3)).read(0))
    shard_of(tmp_path / "val-0.tar", json=b"[1]", cls=b"2")
    assert [
        sample.label for sample in open_source("wds", "val", str(tmp_path), opening=Opening(num_classes=3)).read(0)
    ] == [2]


@pytest.mark.parametrize("about", [
    {"filenames": ["pipe:touch {}", "val-000001.tar"]}, {"shard_lengths": [-1, 9]}, {"shard_lengths": [10**30, 1]},
    {"shard_lengths": [float("inf"), 1]},
])  # fmt: skip
def test_an_info_that_cannot_be_trusted(copied, tmp_path, about):
    path = copied / "wds/_info.json"
    info = json.loads(path.read_text())
    if "filenames" in about:
        about = {"filenames": [name.format(tmp_path / "touched") for name in about["filenames"]]}
    info["splits"]["val"].update(about)
    path.write_text(json.dumps(info))
    with pytest.raises(DataError, match="_info.json: its splits need"):
        list(open_source("wds", "val", str(copied / "wds")).read(0))
    assert not (tmp_path / "touched").exists()


def test_a_shard_cut_between_samples_without_an_info(tmp_path):
    shard_of(tmp_path / "val-0.tar", cls=b"0")
    os.truncate(tmp_path / "val-0.tar", 3 * 512)  # header, header, label
    with pytest.raises(DataError, match="no whole shard .it has no end"):
        open_source("wds", "val", str(tmp_path), opening=Opening(num_classes=3))


@pytest.mark.parametrize("column, values, part", [
    ("label", [0.5] * 2, "'label' holds no numbers"),
    ("image", [{"bytes": None, "path": "/etc/hostname"}] * 2, "no file in"),
    ("image", [{"bytes": None, "path": "../secret.png"}] * 2, "no file in"),
    ("image", [{"bytes": None, "path": "pipe"}] * 2, "no file in"),
])  # fmt: skip
def test_parquet_that_cannot_be_trusted(tmp_path, column, values, part):
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path / "root"
    (root / "data").mkdir(parents=True)
    os.mkfifo(root / "pipe")
    table = {"image": [{"bytes": b"x", "path": "a.png"}] * 2, "label": [0, 1], column: values}
    pq.write_table(pa.table(table), root / "data/val-0.parquet")
    with pytest.raises(DataError, match=part):
        open_source("hfds", "val", str(root), opening=Opening(num_classes=3)).load(0)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "map.txt").write_text("a\nb\n", encoding="utf-8-sig")
    assert list(read_class_map(str(tmp_path / "map.txt"))) == ["a", "b"]


def test_a_tar_with_sizes_that_are_none(copied):
    with tarfile.open(copied / "tar/val.tar", "w") as archive:
        member = tarfile.TarInfo("0/large.png")
        member.pax_headers = {"size": "9" * 30}
        archive.addfile(member)
    with pytest.raises(DataError, match="no whole tar file"):
        open_source("tar", "val", str(copied / "tar"))


def test_a_deflated_image_that_grows_without_end(tmp_path, formats):
    with zipfile.ZipFile(tmp_path / "val.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0/bomb.png", bytes(10**8))
    data = bytearray((tmp_path / "val.zip").read_bytes())
    place = data.rindex(b"PK\1\2") + 24
    data[place : place + 4] = (1000).to_bytes(4, "little")
    (tmp_path / "val.zip").write_bytes(data)
    (tmp_path / "val_map.txt").write_text("0/bomb.png\t0\n")
    source = open_source("zip", "val", str(tmp_path))
    tracemalloc.start()
    with pytest.raises(DataError, match="bad checksum"):
        source.load(0)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


@pytest.mark.parametrize("name", INDEXED)
def test_nothing_at_the_path(write_config, tmp_path, checkpoint, name):
    for data_path in ("", str(tmp_path / "nowhere")):
        path = write_config(DATA={"DATASET": name, "DATA_PATH": data_path})
        assert error_of("--cfg", path, "--eval", "--resume", checkpoint).status == 2


@pytest.mark.parametrize("options, parts", [
    (["DATA.DATASET", "webdataset"], ["webdataset", "known"]),
    (["DATA.DATASET", "wds"], ["no shards of 'val'", "val-{000..127}.tar"]),
    (["DATA.DATASET", "wds", "DATA.VAL_SPLIT", "v-{0..3}.tar"], ["v-0.tar", "no such shard"]),
    (["DATA.DATASET", "wds", "DATA.VAL_SPLIT", "v-{0.tar"], ["v-{0.tar", "is no pattern of shards", "train-{000..127}.tar"]),
    (["DATA.DATASET", "wds", "DATA.VAL_SPLIT", "v-{0..999999999}.tar"], ["1000000000 shards"]),
    (["DATA.DATASET", "wds", "DATA.VAL_SPLIT", "val|many"], ["val|many", "number of images"]),
    (["DATA.DATASET", "wds", "DATA.VAL_SPLIT", "v.tar|99999999999999999999"], ["number of images"]),
    (["DATA.DATASET", "wds", "DATA.VAL_SPLIT", "pipe:cat v-{0..3}.tar"], ["nothing says how many images", "|1281167"]),
    (["DATA.CLASS_MAP", "nothing"], ["DATA.CLASS_MAP", "imagenet-22k"]),
    (["DATA.CLASS_MAP", "imagenet-22k"], ["none of its folders", "'0'"]),
    (["DATA.VAL_SPLIT", ""], ["DATA.VAL_SPLIT"]),
    (["DATA.DATASET", "cifar10", "DATA.VAL_SPLIT", "dev"], ["'dev'", "train and test"]),
    (["DATA.COLUMNS", "[image]"], ["DATA.COLUMNS"]),
    (["DATA.SHUFFLE_BUFFER", "0"], ["DATA.SHUFFLE_BUFFER"]),
])  # fmt: skip
def test_what_is_said_of_bad_settings(write_config, checkpoint, options, parts):
    error = error_of("--cfg", write_config(), "--eval", "--resume", checkpoint, "--opts", *options)
    assert error.status == 2 and all(part in str(error) for part in parts), str(error)


@pytest.mark.parametrize(
    "text, part", [("a\nb\na\n", "line 3 is 'a' again"), ("a\n\nb\n", "line 2 is empty"), ("", "names no class")]
)
def test_bad_class_maps(tmp_path, text, part):
    (tmp_path / "map.txt").write_text(text)
    with pytest.raises(ConfigError, match=part):
        read_class_map(str(tmp_path / "map.txt"))


@pytest.mark.parametrize("name", ["zip", "tar", "hfds", "wds"])
def test_a_damaged_image_is_named_and_can_be_left_out(write_config, tmp_path, copied, checkpoint, name):
    """In an archive too it is the image that is damaged, not the archive."""
    import datasets

    if name == "hfds":
        rows = datasets.Dataset.from_parquet(str(parquet(copied))).cast_column("image", datasets.Image(decode=False))
        cells = [
            {"bytes": b"no image" if i == 3 else row["image"]["bytes"], "path": row["image"]["path"]}
            for i, row in enumerate(rows)
        ]
        datasets.Dataset.from_dict(
            {"image": cells, "label": rows["label"]},
            features=datasets.Features({**rows.features, "image": datasets.Image()}),
        ).to_parquet(parquet(copied))
    elif name == "zip":
        with zipfile.ZipFile(copied / "zip/val.zip") as archive:
            start = archive.infolist()[3].header_offset
        data = bytearray((copied / "zip/val.zip").read_bytes())
        data[start + 60] ^= 255
        (copied / "zip/val.zip").write_bytes(data)
    else:
        count = iter(range(1000))
        path = copied / name / ("val.tar" if name == "tar" else "val-000000.tar")
        rewrite_tar(path, lambda n, d: (n, b"no image" if n.endswith("png") and next(count) == 3 else d))
    path = write_config(DATA={"DATASET": name, "DATA_PATH": str(copied / name)})
    error = str(error_of("--cfg", path, "--eval", "--resume", checkpoint))
    assert "cannot be read as an image" in error and "ON_ERROR skip" in error and str(copied / name) in error
    run("--cfg", path, "--eval", "--resume", checkpoint, "--opts", "DATA.ON_ERROR", "skip")
    result = json.loads((tmp_path / "output/fat_tiny/default/eval.json").read_text())
    assert result["num_images"] == 28 and result["unreadable"] == 1 and not result["complete"]


def test_the_comparison_of_formats(tmp_path, write_config, digits, checkpoint, monkeypatch, capsys):
    """The script that made results/formats.md; a format with another accuracy is an error."""
    import compare_formats

    path = write_config(AUG={"HFLIP": 0.5})
    command = ["compare_formats.py", "--cfg", str(path), "--checkpoint", str(checkpoint), "--data-path", str(digits)]
    monkeypatch.setattr(
        "sys.argv",
        [
            *command,
            "--speed-data",
            str(digits),
            "--rounds",
            "1",
            "--images",
            "2",
            "--output",
            str(tmp_path / "formats"),
        ],
    )

    def in_this_process(script, *argv):
        if script == "main.py":
            run(*argv)
        else:
            import prepare_data

            assert prepare_data.main(list(argv)) == 0

    monkeypatch.setattr(compare_formats, "call", in_this_process)
    assert compare_formats.main() == 0
    rows = [
        line.split(" | ")
        for line in (tmp_path / "formats.md").read_text().splitlines()
        if line.startswith(("| folder", "| zip", "| tar", "| wds", "| hfds"))
    ]
    assert len(rows) == 5 and len({tuple(row[1:5]) for row in rows}) == 1 and rows[0][4] == "29"
    assert all(float(row[5]) > 0 for row in rows) and "images/s" in capsys.readouterr().out
    found = {"folder": {"acc1": 50.0, "acc5": 100.0, "loss": 1.0, "num_images": 29}}
    found["tar"] = {**found["folder"], "acc1": 50.0 + 1e-9}
    monkeypatch.setattr(compare_formats, "prepare", lambda *_: {})
    monkeypatch.setattr(compare_formats, "evaluate", lambda *_: found)
    monkeypatch.setattr("sys.argv", [*command, "--output", str(tmp_path / "formats")])
    assert compare_formats.main() == 1 and "error: tar: another accuracy" in capsys.readouterr().err
