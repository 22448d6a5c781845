"""Labels where nothing but the folders' names gives them: torchvision's order and timm's, each as its own reader has it."""

import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torchvision.datasets import ImageFolder

from conftest import error_of, run
from data.class_order import describe_order, timm_order
from data.sources import Opening, open_source
from data.transforms import eval_transform
from engine.tasks import create_task
from utils.config import load_config

NUMBERS = [str(number) for number in range(12)]
WORDS = ["apple", "Zebra", "img10", "img2", "IMG3", "10 b", "9 c"]


def write_images(folder, names, per_class=2):
    """Images of noise, which differ from each other, in a folder for each name."""
    random = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(folder / name / f"{name}_{number}.png")


def archives_of(folder, with_map=True):
    """The same images as tar and zip beside the folder; the map is numbered as scripts/prepare_data.py does it."""
    files = sorted(folder.glob("*/*"), key=lambda path: (path.parent.name, path.name))
    classes = sorted({path.parent.name for path in files})
    with (
        tarfile.open(folder.with_suffix(".tar"), "w") as archive,
        zipfile.ZipFile(folder.with_suffix(".zip"), "w") as packed,
    ):
        for path in files:
            key = f"{path.parent.name}/{path.name}"
            archive.add(path, key)
            packed.write(path, key)
    if with_map:
        lines = [f"{path.parent.name}/{path.name}\t{classes.index(path.parent.name)}\n" for path in files]
        folder.with_name(folder.name + "_map.txt").write_text("".join(lines))


def labels(source):
    return {source.key(index): source.load(index)[1] for index in range(len(source))}


@pytest.mark.parametrize("names", [NUMBERS, WORDS], ids=["numbers", "words"])
@pytest.mark.parametrize("dataset", ["folder", "tar", "zip", "zip without a map"])
def test_labels_are_those_of_timm_s_and_torchvision_s_readers(tmp_path, names, dataset):
    write_images(tmp_path / "val", names)
    archives_of(tmp_path / "val", with_map=dataset == "zip")
    kind = dataset.split()[0]

    def ours(order):
        return open_source(kind, "val", str(tmp_path), opening=Opening(class_order=order))

    reader = ReaderImageInTar(str(tmp_path / "val.tar")) if kind == "tar" else ReaderImageFolder(str(tmp_path / "val"))
    theirs = {reader.filename(index).removeprefix("./"): int(reader[index][1]) for index in range(len(reader))}
    assert labels(ours("timm")) == theirs and ours("timm").classes == timm_order(names)
    torchvision = ImageFolder(str(tmp_path / "val"))
    assert ours("torchvision").classes == torchvision.classes != ours("timm").classes
    assert sorted(labels(ours("torchvision")).values()) == sorted(torchvision.targets)
    assert ours("timm").fingerprint == ours("torchvision").fingerprint  # the images and their order are the same


def test_names_that_differ_in_capitals_alone():
    assert timm_order(["b", "a", "B", "A"]) == timm_order(["A", "B", "a", "b"]) == ["A", "a", "B", "b"]
    assert timm_order(["²", "1"]) == ["1", "²"]  # timm's own key raises at it


def test_the_line_names_both_orders_and_what_to_set():
    line = describe_order(sorted(NUMBERS), "torchvision")
    assert (
        "torchvision's" in line
        and "2 is '10'" in line
        and "'2'" in line
        and "DATA.CLASS_ORDER timm" in line
        and "DATA.CLASS_MAP" in line
    )
    line = describe_order(NUMBERS, "timm")
    assert "timm's" in line and "2 is '2'" in line and "DATA.CLASS_ORDER torchvision" in line
    assert not describe_order(["a", "b"], "torchvision") and not describe_order(NUMBERS[::-1], "torchvision")
    assert "changes nothing" in describe_order(NUMBERS[::-1], "timm")


@pytest.fixture
def foreign(tmp_path, write_config):
    """A config of folders 0 ... 11, and weights with labels in timm's order that are right about all of them, without names."""
    write_images(tmp_path / "data" / "train", NUMBERS)
    write_images(tmp_path / "data" / "val", NUMBERS)
    path = write_config(
        DATA={"DATA_PATH": str(tmp_path / "data"), "BATCH_SIZE": 8},
        MODEL={"FAT": {}},  # with fewer features a fitted head does not take all images apart
        TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0},
        AUG={"MIXUP": 0.0, "CUTMIX": 0.0},
    )
    torch.manual_seed(0)
    cfg = load_config(path)
    model = create_task(cfg).build_model(len(NUMBERS)).eval()
    transform = eval_transform(cfg.DATA.IMG_SIZE, cfg.DATA.INTERPOLATION, cfg.TEST.CROP_PCT)
    reader = ReaderImageFolder(str(tmp_path / "data" / "val"))
    pictures = [transform.picture(transform.decode(reader[index][0])).pixels for index in range(len(reader))]
    mean, std = (torch.tensor(values) for values in (cfg.DATA.MEAN, cfg.DATA.STD))
    images = ((torch.stack([torch.as_tensor(picture) for picture in pictures]).float() / 255 - mean) / std).permute(
        0, 3, 1, 2
    )
    targets = torch.tensor([reader[index][1] for index in range(len(reader))])
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        head = model.get_classifier()
        features = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
        fitted = torch.linalg.lstsq(
            features, torch.eye(len(NUMBERS))[targets].double(), driver="gelsd"
        ).solution.float()
        head.weight.copy_(fitted[:-1].T)
        head.bias.copy_(fitted[-1])
        assert (model(images).argmax(1) == targets).all()
    weights = tmp_path / "timm.pth"
    torch.save(model.state_dict(), weights)
    return path, weights, tmp_path / "output" / "fat_tiny" / "default" / "eval.json"


def test_weights_of_timm_get_timm_s_accuracy(foreign, capsys):
    config, weights, result = foreign
    run("--cfg", config, "--eval", "--resume", weights, "--opts", "DATA.CLASS_ORDER", "timm")
    assert json.loads(result.read_text())["raw"]["acc1"] == 100
    capsys.readouterr()
    run("--cfg", config, "--eval", "--resume", weights)
    assert json.loads(result.read_text())["raw"]["acc1"] < 50
    said = [line for line in capsys.readouterr().out.splitlines() if "DATA.CLASS_ORDER timm" in line]
    assert len(said) == 1 and str(weights) in said[0] and "DATA.CLASS_MAP" in said[0]


def test_training_says_its_order_once_and_a_checkpoint_keeps_it(foreign, capsys):
    config, _, result = foreign
    run("--cfg", config)
    assert capsys.readouterr().out.count("DATA.CLASS_ORDER timm") == 1
    best = result.with_name("best.pth")
    assert torch.load(best, weights_only=True)["classes"] == sorted(NUMBERS)
    run("--cfg", config, "--eval", "--resume", best)
    assert "DATA.CLASS_ORDER" not in capsys.readouterr().out  # the checkpoint names its classes
    assert "DATA.CLASS_ORDER" in str(
        error_of("--cfg", config, "--eval", "--resume", best, "--opts", "DATA.CLASS_ORDER", "timm")
    )


def test_a_class_map_says_it_all(foreign, tmp_path, capsys):
    config, weights, result = foreign
    (tmp_path / "names.txt").write_text("\n".join(NUMBERS))
    run("--cfg", config, "--eval", "--resume", weights, "--opts", "DATA.CLASS_MAP", tmp_path / "names.txt")
    assert json.loads(result.read_text())["raw"]["acc1"] == 100 and "CLASS_ORDER" not in capsys.readouterr().out


def test_an_unknown_order(write_config):
    error = error_of("--cfg", write_config(), "--check", "--opts", "DATA.CLASS_ORDER", "natural")
    assert "DATA.CLASS_ORDER" in str(error) and "timm" in str(error)
