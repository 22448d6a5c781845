"""predict.py: what a trained model takes files for, and what it says of files that are no images."""

import csv
import errno
import functools
import io
import json
import multiprocessing
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from timm.data import ImageNetInfo

import data.sources.image_paths
import predict
from command_line import run_script
from conftest import ROOT, SMALL, run, speak_into
from data.decode import frames_of, open_image
from data.image_files import IMAGE_SUFFIXES
from data.sources.image_paths import find_images
from engine.inference.predictor import Predictor
from engine.inference.trained import load_trained
from engine.tasks import create_task
from parts.predict import outputs
from utils.config import config_from
from utils.errors import CheckpointError, ConfigError, OutputError, UserError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, digits) -> Path:
    """Of a FAT-Tiny that has learnt something of three digits."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        **SMALL,
        "OUTPUT": str(folder),
        "DATA": {**SMALL["DATA"], "DATA_PATH": str(digits)},
        "EMA": {"ENABLED": False},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    run("--cfg", folder / "small.yaml")
    return folder / "fat_tiny/default/best.pth"


@pytest.fixture
def changed(checkpoint, tmp_path):
    """Makes another checkpoint of it: other values of its config, or another model's weights, fresh ones."""

    def make(classes=None, fresh=False, **sections) -> Path:
        content = torch.load(checkpoint, weights_only=True)
        for section, values in sections.items():
            content["config"][section].update(values)
        content["classes"] = classes or content["classes"]
        if fresh:
            torch.manual_seed(0)
            content["model"] = (
                create_task(config_from(content["config"], "config")).build_model(len(content["classes"])).state_dict()
            )
        torch.save(content, tmp_path / "changed.pth")
        return tmp_path / "changed.pth"

    return make


def start(*argv) -> int:
    return predict.main([*map(str, argv), "--workers", "0"] if "--workers" not in argv else [*map(str, argv)])


def error_of(*argv) -> UserError:
    with pytest.raises(UserError) as caught:
        start(*argv)
    assert str(caught.value) and "\n" not in str(caught.value)
    return caught.value


def read(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def probabilities(path) -> dict:
    return {(row["path"], row["class"]): float(row["probability"]) for row in read(path)}


def images_in(folder) -> list[Path]:
    return sorted(folder.rglob("*.png"))


# What is predicted


@pytest.mark.parametrize("test", [{}, {"CROPS": 5, "FLIP": True}])
def test_predictions_are_the_evaluation_s(changed, digits, tmp_path, capsys, test):
    """Of the same images: classes, order and probabilities of <run>/eval/val_predictions.csv."""
    path = changed(TEST=test)
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(torch.load(path, weights_only=True)["config"]))
    run(
        "--cfg",
        tmp_path / "eval.yaml",
        "--eval",
        "--resume",
        path,
        "--output",
        tmp_path,
        "--opts",
        "TEST.SETS",
        "[val]",
    )
    expected = {row["image"]: row for row in read(tmp_path / "fat_tiny/default/eval/val_predictions.csv")}
    assert start("--checkpoint", path, digits / "val", "--csv", tmp_path / "found.csv", "--batch-size", 7) == 0
    rows = read(tmp_path / "found.csv")
    assert len(expected) == 29 and len(rows) == 29 * 3
    for row in rows:
        evaluated = expected[str(Path(row["path"]).relative_to(digits / "val"))]
        assert (row["class"], row["name"], row["label"]) == (evaluated[f"top{row['rank']}"],) * 2 + (row["class"],)
        assert abs(float(row["probability"]) - float(evaluated[f"probability{row['rank']}"])) < 6e-5
    assert len({row["probability"] for row in rows}) > 60  # the images differ


def test_the_weights_that_are_asked_for(checkpoint, digits, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    content["ema"] = {key: value * 2 if key.startswith("head.") else value for key, value in content["model"].items()}
    del content["progress"]
    torch.save(content, tmp_path / "both.pth")
    path = images_in(digits / "val")[0]
    for weights, sharper in (("raw", 1), ("ema", 2)):
        assert (
            start("--checkpoint", tmp_path / "both.pth", path, "--weights", weights, "--csv", tmp_path / "x.csv") == 0
        )
        assert f"weights {weights}," in capsys.readouterr().err
        trained = load_trained(checkpoint)
        with torch.no_grad():
            expected = (
                (sharper * trained.model(trained.normalise([trained.read(path)])))
                .softmax(1)[0]
                .sort(descending=True)
                .values
            )
        found = torch.tensor([float(row["probability"]) for row in read(tmp_path / "x.csv")])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    message = str(error_of("--checkpoint", checkpoint, path, "--weights", "ema"))
    assert message == f"{checkpoint}: has no ema weights; use --weights raw, or leave it out"


def test_batches_and_workers_change_nothing(checkpoint, digits, tmp_path, capsys):
    found, before = [], set(multiprocessing.active_children())  # of other tests' loaders
    for number, arguments in enumerate(
        (["--batch-size", 1], ["--batch-size", 8, "--workers", 2], ["--batch-size", 64])
    ):
        path = tmp_path / f"{number}.csv"
        assert start("--checkpoint", checkpoint, digits / "val", "--csv", path, *arguments) == 0
        found.append(probabilities(path))
    assert set(multiprocessing.active_children()) <= before
    for other in found[1:]:
        assert list(other) == list(found[0])  # the order, too
        assert max(abs(other[key] - value) for key, value in found[0].items()) < 2e-6


def test_table_json_and_csv_say_the_same(checkpoint, digits, tmp_path, capsys):
    images = [str(path) for path in images_in(digits / "val")[::10]]
    assert (
        start(
            "--checkpoint",
            checkpoint,
            *images,
            "--topk",
            2,
            "--json",
            tmp_path / "new/found.json",
            "--csv",
            tmp_path / "found.csv",
        )
        == 0
    )
    said = capsys.readouterr()
    content = json.loads((tmp_path / "new/found.json").read_text())
    assert [image["path"] for image in content["images"]] == images and content["unreadable"] == []
    assert (content["checkpoint"], content["model"], content["weights"], content["img_size"]) == (
        str(checkpoint),
        "fat_tiny",
        "raw",
        32,
    )
    rows = [{"path": image["path"], **top} for image in content["images"] for top in image["top"]]
    texts = [
        {key: f"{value:.6f}" if key == "probability" else str(value) for key, value in row.items()} for row in rows
    ]
    assert texts == read(tmp_path / "found.csv") and [row["rank"] for row in rows] == [1, 2] * 3
    head, *lines = said.out.splitlines()
    assert head.split() == ["image", "rank", "class", "probability"] and len(lines) == 6
    for row, line in zip(rows, lines):
        shown = [row["path"]] if row["rank"] == 1 else []
        assert line.split() == [*shown, str(row["rank"]), row["class"], f"{100 * row['probability']:.2f}", "%"]
    assert (
        "Traceback" not in said.err and "fat_tiny" in said.err and f"wrote {tmp_path}/found.csv: 3 images" in said.err
    )


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_standard_output_can_be_csv_or_json(checkpoint, digits, capsysbinary, kind):
    image = images_in(digits / "val")[0]
    assert start("--checkpoint", checkpoint, image, f"--{kind}", "-") == 0
    text = capsysbinary.readouterr().out.decode()
    if kind == "csv":
        assert [row["path"] for row in csv.DictReader(io.StringIO(text))] == [str(image)] * 3
    else:
        assert json.loads(text)["images"][0]["path"] == str(image)


def test_topk_is_at_most_all_classes(checkpoint, digits, tmp_path, capsys):
    image = images_in(digits / "val")[0]
    assert start("--checkpoint", checkpoint, image, "--topk", 1000, "--csv", tmp_path / "x.csv") == 0
    rows = read(tmp_path / "x.csv")
    assert len(rows) == 3 and abs(sum(float(row["probability"]) for row in rows) - 1) < 1e-5


def test_another_size_and_the_deployed_form(checkpoint, digits, tmp_path, capsys):
    image = images_in(digits / "val")[0]
    found = {}
    for name, arguments in {"own": [], "fused": ["--fused"], "large": ["--img-size", 64], "amp": ["--amp"]}.items():
        assert start("--checkpoint", checkpoint, image, "--csv", tmp_path / name, *arguments) == 0
        found[name] = list(probabilities(tmp_path / name).values())
    assert found["own"] == pytest.approx(found["fused"], abs=1e-4) and found["own"] == found["amp"]  # on the CPU
    assert found["own"] != pytest.approx(found["large"], abs=1e-3)
    kinds = [
        {type(module).__name__ for module in Predictor(load_trained(checkpoint), fused=fused).engine.modules()}
        for fused in (False, True)
    ]
    assert "BatchNorm2d" in kinds[0] and "BatchNorm2d" not in kinds[1]
    assert "img_size 64" in capsys.readouterr().err


def test_a_timm_model_and_a_distilled_head(changed, digits, tmp_path, capsys):
    image = images_in(digits / "val")[0]
    for model in ({"TYPE": "timm", "NAME": "test_vit", "DROP_PATH_RATE": 0.0}, {"FAT": {"distilled": True}}):
        path = changed(fresh=True, MODEL=model)
        assert start("--checkpoint", path, image, "--json", tmp_path / "x.json") == 0
        trained = load_trained(path)
        with torch.no_grad():
            expected = trained.model(trained.normalise([trained.read(image)]))[0].softmax(0)
        for top in json.loads((tmp_path / "x.json").read_text())["images"][0]["top"]:
            assert abs(top["probability"] - float(expected[top["label"]])) < 1e-6


def test_a_model_of_one_size(changed, digits, tmp_path, capsys):
    path = changed(fresh=True, MODEL={"TYPE": "timm", "NAME": "vit_tiny_patch16_224", "DROP_PATH_RATE": 0.0})
    message = str(error_of("--checkpoint", path, images_in(digits / "val")[0], "--img-size", 64))
    assert message.startswith("--img-size is 64: vit_tiny_patch16_224 cannot take such images (")


def test_imagenet_s_names(changed, digits, tmp_path, capsys):
    path = changed(classes=ImageNetInfo("imagenet-1k").label_names(), fresh=True)
    image = images_in(digits / "val")[0]
    assert start("--checkpoint", path, image, "--topk", 1000, "--csv", tmp_path / "x.csv") == 0
    tench = next(row for row in read(tmp_path / "x.csv") if row["label"] == "0")
    assert (tench["class"], tench["name"]) == ("n01440764", "tench")
    assert "  tench (n01440764)  " in capsys.readouterr().out


def test_a_checkpoint_without_config_or_classes(checkpoint, digits, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content["model"], tmp_path / "bare.pth")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content["config"]))
    (tmp_path / "names.txt").write_text("nought\none\ntwo\n")
    arguments = ["--checkpoint", tmp_path / "bare.pth", images_in(digits / "val")[0]]
    assert "--cfg" in str(error_of(*arguments))
    arguments += ["--cfg", tmp_path / "small.yaml"]
    assert "--classes" in str(error_of(*arguments))
    assert start(*arguments, "--classes", tmp_path / "names.txt") == 0
    assert {"nought", "one", "two"} <= set(capsys.readouterr().out.split())


def test_from_python(checkpoint, digits):
    trained = load_trained(checkpoint)
    predictor = Predictor(trained, batch_size=4)
    images = images_in(digits / "val")[:6]
    paths = [str(images[0]), "none.png", *map(str, images[1:])]
    found = list(predictor(paths, topk=1))
    assert [prediction.path for prediction in found] == list(map(str, images)) and len(predictor.failures) == 1
    for prediction, path in zip(found, images):
        assert np.array_equal(prediction.pixels, trained.read(path).pixels)
        assert len(prediction.labels) == 1 and prediction.frames == 1
    assert list(predictor([])) == []


def test_weights_that_are_no_numbers(checkpoint, digits, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    for value, message in (
        ("nan", "nan.pth: the numbers in its head.bias are none"),
        ("inf", "nan.pth: the model's outputs are not finite"),
    ):
        content["model"]["head.bias"].fill_(float(value))
        torch.save(content, tmp_path / "nan.pth")
        with pytest.raises(CheckpointError, match=message):
            start("--checkpoint", tmp_path / "nan.pth", images_in(digits / "val")[0], "--csv", tmp_path / "x.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nan.pth"]


# The contact sheet


@pytest.mark.parametrize("most, shown", [(100, "29 images"), (5, "the first 5 of 29 images")])
def test_the_sheet_shows_what_the_model_saw(checkpoint, digits, tmp_path, monkeypatch, capsys, most, shown):
    monkeypatch.setattr(outputs, "SHEET_IMAGES", most)
    grids = []
    original = outputs.grid
    monkeypatch.setattr(outputs, "grid", lambda *given: grids.append(given) or original(*given))
    assert (
        start("--checkpoint", checkpoint, digits / "val", "--sheet", tmp_path / "x.png", "--csv", tmp_path / "x.csv")
        == 0
    )
    assert f"wrote {tmp_path}/x.png: {shown}\n" in capsys.readouterr().err
    ((pictures, captions, side, columns),) = grids
    count = min(most, 29)
    assert len(pictures) == count and columns == min(8, count)
    first = [row for row in read(tmp_path / "x.csv") if row["rank"] == "1"][:count]
    assert list(captions) == [
        f"{100 * float(row['probability']):.0f} %: {row['class']}\n{Path(row['path']).name}" for row in first
    ]
    trained = load_trained(checkpoint)
    assert all(np.array_equal(picture, trained.read(row["path"]).pixels) for picture, row in zip(pictures, first))
    sheet = cv2.imread(str(tmp_path / "x.png"))
    rows = -(-count // columns)
    assert sheet.shape[1] == columns * (side + 4) and (sheet.shape[0] - rows * (side + 36) - 6) % 16 == 0  # the title


def test_large_images_are_made_small_for_the_sheet(checkpoint, digits, tmp_path, capsys):
    assert (
        start(
            "--checkpoint", checkpoint, images_in(digits / "val")[0], "--sheet", tmp_path / "x.PNG", "--img-size", 256
        )
        == 0
    )
    assert cv2.imread(str(tmp_path / "x.PNG")).shape[1] == outputs.SIDE + 4


# Files


def save_frames(path, count, **settings):
    first, *others = (Image.new("L", (20, 20), 40 * n) for n in range(count))
    first.save(path, save_all=True, append_images=others, **settings)


@pytest.fixture
def hostile(tmp_path, digits, monkeypatch) -> Path:
    """A folder with two good images, an animation, and everything else."""
    monkeypatch.chdir(tmp_path)
    good = images_in(digits / "val")
    folder = tmp_path / "in"
    for sub in ("deep/deeper", "empty.jpg", "album.png"):
        (folder / sub).mkdir(parents=True)
    (folder / "deep/deeper/GOOD.PNG").write_bytes(good[0].read_bytes())
    (folder / "album.png/good.png").write_bytes(good[1].read_bytes())
    (folder / "damaged.png").write_bytes(good[0].read_bytes()[:80])
    for name in ("doc.pdf", "doc.jpg"):
        (folder / name).write_bytes(b"%PDF-1.4\n%\xe2\xe3\n")
    (folder / "text.webp").write_text("no image")
    (folder / "none.bmp").write_bytes(b"")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "broken.tif").symlink_to("nowhere")
    (folder / "circle").symlink_to(".")
    save_frames(folder / "moves.gif", 4)
    return folder


UNREADABLE = [
    "in/broken.tif: cannot be read as an image (FileNotFoundError: No such file or directory)",
    "in/damaged.png: cannot be read as an image (OSError: image file is truncated)",
    "in/doc.jpg: cannot be read as an image (no image of a known format)",
    "in/none.bmp: cannot be read as an image (empty)",
    "in/pipe.jpg: cannot be read as an image (OSError: is no regular file)",
    "in/text.webp: cannot be read as an image (no image of a known format)",
]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_no_image_is_listed_and_stops_nothing(hostile, checkpoint, capsys, workers):
    (hostile.parent / "nothing").mkdir()
    arguments = [
        "in",
        "missing.jpg",
        "in/doc.pdf",
        "nothing",
        "--batch-size",
        2,
        "--workers",
        workers,
        "--json",
        "x.json",
        "--sheet",
        "x.png",
    ]
    assert start("--checkpoint", checkpoint, *arguments) == 1
    problems = [
        "in/empty.jpg: is a folder, no image",
        f"nothing: is a folder without images (*{', *'.join(IMAGE_SUFFIXES)})",
        *UNREADABLE,
        "missing.jpg: cannot be read as an image (FileNotFoundError: No such file or directory)",
        "in/doc.pdf: cannot be read as an image (no image of a known format)",
    ]
    said = capsys.readouterr()
    first, *lines = said.err.splitlines()
    assert first == "note: in: left out what is no image by its name: 2 (circle (a link to a folder), doc.pdf)"
    assert lines[1] == "note: in/moves.gif: has 4 pictures, the first one is taken"
    assert lines[2:] == ["wrote x.json: 3 images", "wrote x.png: 3 images", *(f"error: {line}" for line in problems)]
    content = json.loads(Path("x.json").read_text())
    assert [image["path"] for image in content["images"]] == [
        "in/album.png/good.png",
        "in/deep/deeper/GOOD.PNG",
        "in/moves.gif",
    ]
    assert content["unreadable"] == problems and said.out.count("in/") == 3


def test_nothing_is_readable(hostile, checkpoint, capsys):
    assert (
        start(
            "--checkpoint",
            checkpoint,
            "in/doc.pdf",
            "in/pipe.jpg",
            "--csv",
            "x.csv",
            "--json",
            "x.json",
            "--sheet",
            "x.png",
        )
        == 1
    )
    said = capsys.readouterr()
    assert (
        said.out == ""
        and said.err.count("error: ") == 2
        and "x.png: is not written, as no image could be read" in said.err
    )
    assert json.loads(Path("x.json").read_text())["images"] == [] and read("x.csv") == [] and not Path("x.png").exists()


def test_a_folder_without_images(hostile, capsys):
    """No checkpoint is read for it."""
    assert start("--checkpoint", "none.pth", "in/empty.jpg", "--csv", "x.csv") == 1
    assert (
        capsys.readouterr().err.startswith("error: in/empty.jpg: is a folder without images (*.jpg, ")
        and not Path("x.csv").exists()
    )


def test_the_first_picture_of_an_animation_counts(checkpoint, digits, tmp_path, capsys):
    first = Image.open(images_in(digits / "val")[0]).convert("L")
    first.save(tmp_path / "still.png")
    first.save(
        tmp_path / "moves.webp",
        save_all=True,
        append_images=[Image.new("L", first.size, grey) for grey in (99, 255)],
        lossless=True,
        duration=50,
    )
    assert start("--checkpoint", checkpoint, tmp_path, "--csv", tmp_path / "x.csv") == 0
    assert f"note: {tmp_path}/moves.webp: has 3 pictures, the first one is taken" in capsys.readouterr().err
    found = probabilities(tmp_path / "x.csv")
    for digit in "012":
        assert found[str(tmp_path / "moves.webp"), digit] == pytest.approx(
            found[str(tmp_path / "still.png"), digit], abs=1e-5
        )


def test_how_many_pictures_a_file_has(tmp_path):
    save_frames(tmp_path / "moves.gif", 3)
    save_frames(tmp_path / "pages.tif", 2)
    save_frames(tmp_path / "camera.jpg", 2, format="MPO")
    save_frames(tmp_path / "moves.png", 5)
    Image.new("L", (9, 9)).save(tmp_path / "still.gif")
    torn = bytearray((tmp_path / "pages.tif").read_bytes())
    (directory,) = struct.unpack_from("<I", torn, 4)
    (entries,) = struct.unpack_from("<H", torn, directory)
    struct.pack_into("<I", torn, directory + 2 + 12 * entries, 3)  # where the second page should be
    (tmp_path / "torn.tif").write_bytes(torn)
    for name, count in {
        "moves.gif": 3,
        "pages.tif": 2,
        "camera.jpg": 1,
        "moves.png": 5,
        "still.gif": 1,
        "torn.tif": 1,
    }.items():
        with open(tmp_path / name, "rb") as file:
            assert frames_of(open_image(file)) == count, name


def test_the_order_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/10.jpg", "b/a/z.jpeg", "b/a.png", "c.png", "d.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    found = find_images(["d.txt", "c.png", "b", "./c.png", "b/2.png", str(tmp_path / "c.png"), "e"])
    assert found.paths == ["d.txt", "c.png", "b/10.jpg", "b/2.png", "b/a.png", "b/a/z.jpeg", "e"]
    assert found.problems == [] and found.notes == []


def test_a_folder_that_cannot_be_looked_into(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_images([str(tmp_path)])
    assert found.paths == [f"{tmp_path}/a.png"] and found.problems == [
        f"{tmp_path}/closed: cannot be looked into (Permission denied)"
    ]


def test_a_bad_place_of_the_disk_costs_one_file(checkpoint, digits, monkeypatch, capsys):
    first, second = images_in(digits / "val")[:2]

    def fail(path):
        if path == str(first):
            raise OSError(errno.EIO, "Input/output error")
        return open(path, "rb")

    monkeypatch.setattr(data.sources.image_paths, "open_regular", fail)
    assert start("--checkpoint", checkpoint, first, second) == 1
    said = capsys.readouterr()
    assert str(second) in said.out and said.err.endswith(
        f"error: {first}: cannot be read just now (Input/output error)\n"
    )


# Standard input


def given(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_paths_on_standard_input(checkpoint, digits, tmp_path, monkeypatch, capsysbinary):
    images = images_in(digits / "val")
    odd = os.fsencode(tmp_path) + b'/nai\xefve, "odd"\x1b.png'  # no UTF-8, and an escape character
    with open(odd, "wb") as file:
        file.write(images[0].read_bytes())
    folder = digits / "val/2"
    given(
        monkeypatch,
        b"\n".join([odd, b"", os.fsencode(images[3]) + b"\r", b"  ", os.fsencode(folder), b"gone.png", b"a\0b.png"])
        + b"\n",
    )
    assert start("--checkpoint", checkpoint, images[1], "-", images[0], "--csv", tmp_path / "x.csv", "--topk", 1) == 1
    expected = [str(images[1]), os.fsdecode(odd), str(images[3]), *map(str, images_in(folder)), str(images[0])]
    assert [row["path"] for row in read(tmp_path / "x.csv")] == expected
    said = capsysbinary.readouterr()
    assert b'nai\\udcefve, "odd"\\x1b.png' in said.out and b"\x1b" not in said.out + said.err
    *_, gone, nul = said.err.splitlines()
    assert gone.startswith(b"error: gone.png: cannot") and nul.startswith(
        b"error: 'a\\x00b.png': cannot be read as an image (ValueError"
    )


def test_empty_standard_input(checkpoint, digits, monkeypatch, capsys):
    for content in (b"", b"\n \n"):
        given(monkeypatch, content)
        assert start("--checkpoint", "none.pth", "-") == 1
        assert capsys.readouterr().err == "error: -: standard input has no paths; give one in each line\n"
    monkeypatch.setattr(sys, "stdin", None)  # closed
    image = images_in(digits / "val")[0]
    assert start("--checkpoint", checkpoint, "-", image) == 1
    said = capsys.readouterr()
    assert str(image) in said.out and said.err.endswith(
        "error: -: standard input has no paths; give one in each line\n"
    )


# What cannot be used


@pytest.mark.parametrize("arguments, message", [
    ([], "required: INPUT"), (["x.png", "--topk", "0"], "--topk: '0' is no whole number from 1"), (["x.png", "--top", "3"], "--top: unknown; did you mean '--topk'?"),
    (["x.png", "--img-size", "7"], "--img-size: '7' is no whole number from 32 to 4096"), (["x.png", "--batch-size", "0"], "--batch-size: '0' is no"),
    (["x.png", "--sheet", "x.jpg"], "--sheet x.jpg: is written as PNG"), (["x.png", "--csv", "."], "--csv .: is no regular file"),
    (["x.png", "--csv", ""], "--csv '': is no regular file"), (["x.png", "--json", "link"], "--json link: is no regular file"),
    (["x.png", "--csv", "a", "--json", "./a"], "is another output, too"), (["x.png", "--csv", "-", "--json", "-"], "is another output, too"),
    (["x.png", "--sheet", "./x.png"], "--sheet ./x.png: is one of the images, too"), (["x.png", "--workers", "-1"], "--workers"),
    (["x.png", "--checkpoint", "none.pth"], "none.pth: cannot be read (No such file or directory)"),
    (["x.png", "--device", "tpu"], "--device: invalid choice: 'tpu'"), (["x.png", "--device", "cuda"], "torch sees no GPU"),
    (["x.png", "--csv", "x.png/found.csv"], "--csv x.png/found.csv: cannot be written (Not a directory)"),
])  # fmt: skip
def test_refused(checkpoint, tmp_path, monkeypatch, digits, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("x.png").write_bytes(images_in(digits / "val")[0].read_bytes())
    Path("link").symlink_to("file")
    Path("file").write_text("as it was")
    assert message in str(error_of("--checkpoint", checkpoint, *arguments))
    assert (
        sorted(os.listdir()) == ["file", "link", "x.png"]
        and Path("link").is_symlink()
        and Path("file").read_text() == "as it was"
    )


@pytest.mark.parametrize("flag, name, what", [
    ("--csv", "best.pth", "files that are read"), ("--json", "names.txt", "files that are read"), ("--csv", "again.png", "images"),
])  # fmt: skip
def test_no_input_is_written_over(checkpoint, tmp_path, monkeypatch, digits, flag, name, what):
    """Under another name of it, too."""
    monkeypatch.chdir(tmp_path)
    image = images_in(digits / "val")[0].read_bytes()
    Path("best.pth").write_bytes(checkpoint.read_bytes())
    Path("names.txt").write_text("a\nb\nc\n")
    Path("x.png").write_bytes(image)
    os.link("x.png", "again.png")
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    message = str(error_of("--checkpoint", "best.pth", "--classes", "names.txt", "x.png", flag, name))
    assert message == f"{flag} {name}: is one of the {what}, too; give another name"
    assert before == {path.name: path.read_bytes() for path in Path().iterdir()}


def test_long_names(checkpoint, tmp_path, digits):
    """As long as the file system takes, also while the file is being written; a longer one is said before the work."""
    image = images_in(digits / "val")[0]
    assert start("--checkpoint", checkpoint, image, "--csv", tmp_path / ("n" * 251 + ".csv")) == 0
    error = error_of("--checkpoint", "none.pth", image, "--csv", tmp_path / ("n" * 252 + ".csv"))
    assert error.status == 5 and "cannot be written (File name too long)" in str(error)
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


def test_an_output_that_cannot_be_written_at_the_end(checkpoint, digits, tmp_path, monkeypatch, capsys):
    """What was there before stays."""

    def full(file, *_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs, "write_rows", full)
    (tmp_path / "x.csv").write_text("old")
    with pytest.raises(OutputError) as caught:
        start("--checkpoint", checkpoint, images_in(digits / "val")[0], "--csv", tmp_path / "x.csv")
    assert (
        str(caught.value)
        == f"{tmp_path}/x.csv: cannot be written (No space left on device); free space or change --csv"
    )
    assert (tmp_path / "x.csv").read_text() == "old" and os.listdir(tmp_path) == ["x.csv"]


def test_memory_and_workers_that_are_lost(checkpoint, digits, monkeypatch, capsys):
    trained = load_trained(checkpoint)
    images = [str(path) for path in images_in(digits / "val")[:4]]

    def used_up(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    predictor = Predictor(trained)
    predictor.engine = used_up
    with pytest.raises(ConfigError, match="--batch-size is 64: cpu is out of memory; use a smaller one"):
        next(predictor(images))
    parent = os.getpid()
    monkeypatch.setattr(
        data.sources.image_paths,
        "open_image",
        lambda file: os.getpid() == parent or os.kill(os.getpid(), signal.SIGKILL),
    )
    with pytest.raises(ConfigError, match="--workers is 1: a loading process was killed"):
        next(Predictor(trained, batch_size=1, workers=1)(images))


# Signals and pipes


def test_ctrl_c_leaves_no_file_and_no_process(checkpoint, digits, tmp_path, monkeypatch):
    def slow(path):
        (tmp_path / str(os.getpid())).touch()
        time.sleep(0.5)
        return open(path, "rb")

    monkeypatch.setattr(data.sources.image_paths, "open_regular", slow)
    arguments = [
        "--checkpoint",
        checkpoint,
        digits / "train",
        "--workers",
        2,
        "--batch-size",
        2,
        "--csv",
        tmp_path / "out/x.csv",
    ]
    others = set(multiprocessing.active_children())  # of other tests' loaders
    child = os.fork()
    if not child:
        speak_into(tmp_path / "said")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = 99
        try:
            run_script(functools.partial(start, *arguments))
        except SystemExit as leaving:
            status = leaving.code
        finally:
            sys.stderr.flush()
            for process in set(multiprocessing.active_children()) - others:  # as at the end of a process
                process.kill()
            os._exit(status)
    deadline = time.monotonic() + 120
    while sum(path.name.isdigit() for path in tmp_path.iterdir()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert "Traceback" not in (tmp_path / "said").read_text() and not (tmp_path / "out").exists()
    workers = [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()]
    assert len(workers) == 2
    for worker in workers:
        while runs(worker) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not runs(worker)


def runs(pid: int) -> bool:
    """Not if it has ended and nobody has asked for its status, as in a container whose first process does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_as_a_command_whose_reader_has_gone(checkpoint, digits, tmp_path):
    command = [
        sys.executable,
        ROOT / "scripts/predict.py",
        "--checkpoint",
        checkpoint,
        digits / "val",
        "--csv",
        "x.csv",
        "--workers",
        "2",
        "--batch-size",
        "8",
    ]
    job = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    job.stdout.close()
    error = job.stderr.read()
    assert job.wait() == 141 and not os.listdir(tmp_path)
    assert "Traceback" not in error and "Exception" not in error and not re.search("^error", error, re.MULTILINE)
