"""Validation images taken off the training images: which ones, that none is on both sides, and what a run leaves of it."""

import csv
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from test_class_order import archives_of

from conftest import (
    Stop,
    assert_same,
    assert_same_run,
    error_of,
    launch,
    load,
    run,
    stop_at_update,
)
from data.cache import plan_caches
from data.sources import Opening, open_source
from data.sources.lists import Listing
from data.sources.val_share import ValShare, choose
from utils.errors import DataError

SHARE = 0.25


@pytest.fixture
def images(tmp_path):
    """Three classes of 12, 8 and 4 images of noise in a folder train/."""
    random = np.random.default_rng(0)
    for name, count in (("cat", 12), ("dog", 8), ("emu", 4)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{number}.png")
    return tmp_path


def side(place, validation, dataset="folder", share=SHARE, seed=0, **more):
    opening = Opening(share=ValShare(share, seed, validation), listing=Listing(undivided=True), **more)
    return open_source(dataset, "train", str(place), opening=opening)


def keys(source):
    return [source.key(index) for index in range(len(source))]


def per_class(source):
    return {name: sum(key.startswith(name + "/") for key in keys(source)) for name in source.classes}


def test_each_class_has_its_share_and_no_image_is_on_both_sides(images):
    training, validation = side(images, False), side(images, True)
    assert per_class(validation) == {"cat": 3, "dog": 2, "emu": 1} and per_class(training) == {
        "cat": 9,
        "dog": 6,
        "emu": 3,
    }
    assert sorted(keys(training) + keys(validation)) == sorted(keys(open_source("folder", "train", str(images))))
    assert training.classes == validation.classes and training.fingerprint != validation.fingerprint
    for index, key in enumerate(keys(validation)):
        image, label = validation.load(index)
        assert validation.classes[label] == key.split("/")[0]
        assert image == Image.open(images / "train" / key).convert("RGB")
    assert training.notes == validation.notes and "6 of 24 images are for validation" in training.notes[-1]


def test_the_seed_chooses_and_more_images_move_few(images):
    first, other = (keys(side(images, True, seed=seed)) for seed in (0, 1))
    assert first != other and len(first) == len(other)
    assert keys(side(images, True, share=0.5)) != first and set(first) < set(keys(side(images, True, share=0.5)))
    Image.new("RGB", (8, 8), 7).save(images / "train/emu/new.png")
    assert len(set(first) - set(keys(side(images, True)))) <= 1


def test_the_order_of_images_does_not_matter():
    names, labels = [f"{n % 3}/{n}" for n in range(60)], np.arange(60) % 3
    groups = [[n] for n in range(60)]
    wanted = ValShare(0.1, 3, True)
    mixed = np.random.default_rng(0).permutation(60)
    chosen = choose(names, labels, groups, wanted)
    assert chosen.sum() == 6
    assert (choose([names[n] for n in mixed], labels[mixed], groups, wanted) == chosen[mixed]).all()


@pytest.mark.parametrize("dataset", ["zip", "tar", "list"])
def test_the_same_split_in_other_formats(images, dataset):
    archives_of(images / "train")
    place = images
    if dataset == "list":
        rows = [
            f"train/{key},{key.split('/')[0]}\n" for key in reversed(keys(open_source("folder", "train", str(images))))
        ]
        place = images / "list.csv"
        place.write_text("path,label\n" + "".join(rows))
    for validation in (False, True):
        assert sorted(keys(side(place, validation, dataset))) == sorted(keys(side(images, validation)))


def test_a_cache_holds_the_images_of_its_side(images):
    archives_of(images / "train")
    source = side(images, True, "zip")
    plain = [source.load(index)[0] for index in range(len(source))]
    plan_caches([source], "part", 1, 2, lambda own: [own], 1, lambda line: None)()
    assert source.cache is not None
    source.source.extract = lambda place: pytest.fail("read from the archive")
    assert all(source.load(index)[0] == plain[index] for index in range(1, len(source), 2))
    with pytest.raises(pytest.fail.Exception):
        source.load(0)  # of the other process' share


def test_the_same_bytes_are_on_one_side(images):
    for number in range(1, 12):
        shutil.copy(images / "train/cat/0.png", images / f"train/cat/copy_{number}.png")
    shutil.copy(images / "train/dog/0.png", images / "train/emu/dog.png")
    for seed in range(4):
        training, validation = (side(images, which, seed=seed) for which in (False, True))
        contents = [{source.read(index) for index in range(len(source))} for source in (training, validation)]
        assert not contents[0] & contents[1]
    said = "\n".join(training.notes)
    assert "14 images have the bytes of others" in said and "cat/0.png" in said
    assert "the same bytes have several labels: dog/0.png and emu/dog.png" in said


def test_a_small_share_leaves_an_image_of_each_class(images):
    source = side(images, True, share=0.01)
    assert per_class(source) == {"cat": 1, "dog": 1, "emu": 1}
    assert any("3 classes have too few images for that share" in note for note in source.notes)
    assert per_class(side(images, False, share=0.99)) == {"cat": 1, "dog": 1, "emu": 1}


def test_a_class_that_cannot_be_on_both_sides(images):
    for path in (images / "train/emu").iterdir():
        shutil.copy(images / "train/cat/0.png", path)
    (images / "train/emu/0.png").unlink()
    shutil.rmtree(images / "train/dog")
    (images / "train/dog").mkdir()
    Image.new("RGB", (8, 8)).save(images / "train/dog/only.png")
    with pytest.raises(DataError) as caught:
        side(images, True)
    text = str(caught.value)
    assert text.startswith("DATA.VAL_SHARE is 0.25: it leaves the class 'dog', of 1 image, without validation images")
    assert "\n" not in text and "DATA.CLASS_MAP" in text


def test_an_unreadable_image_is_found_by_who_loads_it(images):
    shutil.copy(images / "train/cat/0.png", images / "train/cat/copy.png")  # so that both are read for the split
    archives_of(images / "train")
    path = images / "train.zip"
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("cat/0.png").header_offset
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(b"none")
    training, validation = side(images, False, "zip"), side(images, True, "zip")
    assert not any("bytes of others" in note for note in training.notes)
    (damaged,) = (source for source in (training, validation) if "cat/0.png" in keys(source))
    with pytest.raises(DataError, match=r"cat/0\.png: cannot be read as an image"):
        damaged.load(keys(damaged).index("cat/0.png"))


# Runs


@pytest.fixture
def shared(digits, tmp_path, write_config):
    """A config of the digits' 60 training images alone, of which some are for validation."""
    shutil.copytree(digits / "train", tmp_path / "data" / "train")
    data = {"DATA_PATH": str(tmp_path / "data"), "VAL_SHARE": 0.2}
    return write_config("shared.yaml", DATA=data, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "SAVE_EVERY_STEPS": 2})


def test_a_run_writes_its_split_and_goes_on_and_is_evaluated_on_the_same(shared, tmp_path, monkeypatch, capsys):
    output = tmp_path / "output" / "fat_tiny"
    run("--cfg", shared, "--tag", "whole")
    said = capsys.readouterr().out
    assert "48 training and 12 validation images" in said and "DATA.VAL_SHARE 0.2, DATA.VAL_SEED 0: 12 of 60" in said
    stop = stop_at_update(monkeypatch, 3)
    with pytest.raises(Stop):
        run("--cfg", shared, "--tag", "resumed")
    stop()
    run("--cfg", shared, "--tag", "resumed")
    assert_same_run(output / "whole", output / "resumed")
    assert (output / "whole" / "split.csv").read_text() == (output / "resumed" / "split.csv").read_text()

    with open(output / "whole" / "split.csv") as file:
        assert next(file) == "# classes: 0,1,2\n"
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["train"] * 48 + ["val"] * 12
    assert all(row["label"] == row["path"].split("/")[-2] for row in rows)
    listed = ["--opts", "DATA.DATASET", "list", "DATA.VAL_SHARE", 0, "DATA.DATA_PATH", output / "whole" / "split.csv"]
    run("--cfg", shared, "--tag", "from_list", *listed)
    a, b = (load(output / tag / "last.pth")["model"] for tag in ("whole", "from_list"))
    assert_same(a, b)

    best = output / "whole" / "last.pth"
    launch(2, "--cfg", shared, "--tag", "two", "--eval", "--resume", best)
    run("--cfg", shared, "--tag", "list", "--eval", "--resume", best, *listed)
    figures = [json.loads((output / tag / "eval.json").read_text())["raw"] for tag in ("two", "list")]
    assert figures[0]["acc1"] == figures[1]["acc1"] and figures[0]["num_images"] == figures[1]["num_images"] == 12
    capsys.readouterr()
    run("--cfg", shared, "--tag", "other", "--eval", "--resume", best, "--opts", "DATA.VAL_SEED", 1)
    assert (
        "DATA.VAL_SEED 1 (trained with 0): images that the checkpoint was trained on can be" in capsys.readouterr().out
    )


def test_two_processes_have_the_same_split(shared, tmp_path):
    launch(2, "--cfg", shared, "--tag", "two")
    run("--cfg", shared, "--tag", "one")
    texts = [(tmp_path / "output/fat_tiny" / tag / "split.csv").read_text() for tag in ("one", "two")]
    assert texts[0] == texts[1]


def test_a_class_without_images_ends_the_run_with_one_line(shared, tmp_path):
    for path in sorted((tmp_path / "data/train/2").iterdir())[1:]:
        path.unlink()
    error = error_of("--cfg", shared)
    assert error.status == 2 and "DATA.VAL_SHARE is 0.2: it leaves the class '2', of 1 image" in str(error)
    assert not (tmp_path / "output").exists()


def test_neighbours_are_the_training_side(shared, tmp_path):
    """TEST.KNN opens both sides, one as features to compare with."""
    torch.manual_seed(0)
    output = tmp_path / "output" / "fat_tiny"
    run("--cfg", shared)
    run("--cfg", shared, "--eval", "--resume", output / "default" / "last.pth", "--opts", "TEST.KNN", "[3]")
    written = json.loads((output / "default" / "eval.json").read_text())
    assert written["knn_train_images"] == 48
