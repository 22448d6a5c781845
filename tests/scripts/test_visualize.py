"""scripts/visualize.py: its pictures show the model's own maps, its evaluation is main.py's, TensorBoard shows both in a browser."""

import contextlib
import csv
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import visualize
from conftest import SMALL, free_port, run, run_program
from engine.inference.trained import load_trained
from engine.tasks import create_task
from models.inspection import grad_cam as cam_of
from models.inspection import inspect_fasa
from parts.visualize import confusion, inputs, panels
from parts.visualize import show_attention as attention
from parts.visualize import show_fasa as fasa
from parts.visualize import show_features as features
from parts.visualize import show_grad_cam as grad_cam
from utils.config import config_from, to_dict
from utils.errors import CheckpointError, ConfigError, DataError, OutputError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, digits):
    """A run's folder: FAT-Tiny, two epochs of three digits."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        **SMALL, "OUTPUT": str(folder), "DATA": {**SMALL["DATA"], "DATA_PATH": str(digits)}, "MODEL": {**SMALL["MODEL"], "FAT": {}},
    }  # fmt: skip
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    run("--cfg", folder / "small.yaml")
    return folder / "fat_tiny/default"


@pytest.fixture(scope="module")
def best(small_run):
    return small_run / "best.pth"


@pytest.fixture(scope="module")
def images(digits):
    """Two images, of two digits."""
    return [sorted((digits / "val" / label).iterdir())[number] for number, label in enumerate("02")]


def saved(path, model_type="fat", name="fat_tiny", classes=("0", "1", "2"), **fat):
    """A checkpoint of a model that was not trained."""
    torch.manual_seed(0)
    cfg = config_from(
        {"MODEL": {"TYPE": model_type, "NAME": name, "FAT": fat}, "DATA": {"DATASET": "folder", "IMG_SIZE": 224}},
        "here",
    )
    model = create_task(cfg).build_model(len(classes))
    torch.save({"config": to_dict(cfg), "classes": list(classes), "model": model.state_dict()}, path)
    return path


def look(*argv) -> int:
    return visualize.main([str(arg) for arg in argv])


def recorded(monkeypatch, module, name) -> list[np.ndarray]:
    """The maps that a module gives to a function that colours them: `overlay` (the second argument) or `coloured`."""
    found, original = [], getattr(module, name)

    def record(*args):
        found.append(args[-1])
        return original(*args)

    monkeypatch.setattr(module, name, record)
    return found


def read(path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def shot_of(checkpoint, path, img_size):
    return inputs.take(path, "x", load_trained(checkpoint), img_size)


# Of images


def test_attention_of_points_by_head(best, images, tmp_path, monkeypatch):
    shown = recorded(monkeypatch, attention, "overlay")
    points = ["0,0", "0.99,0.5"]
    assert (
        look(
            "attention",
            *images,
            "--checkpoint",
            best,
            "--points",
            *points,
            "--stage",
            3,
            2,
            "--img-size",
            96,
            "--output",
            tmp_path,
        )
        == 0
    )
    model = load_trained(best).model
    expected = []
    for path in images:
        image = shot_of(best, path, 96).image
        # maps of 6 x 6, 12 x 12
        for stage, row_of in ((2, {"0,0": 0, "0.99,0.5": 3 * 6 + 5}), (1, {"0,0": 0, "0.99,0.5": 6 * 12 + 11})):
            fasa_module = model.layers[stage].blocks[-1].attn
            with torch.no_grad():
                x = inspect_fasa(model, image, stage).x
                q = fasa_module.q(x)[0].unflatten(0, (fasa_module.num_heads, -1)).flatten(2)  # (heads, d, HW)
                k = fasa_module.kv(fasa_module.pool(x))[0].chunk(2)[0]
                side = k.shape[-1]
                k = k.unflatten(0, (fasa_module.num_heads, -1)).flatten(2)  # (heads, d, hw)
                weights = (torch.einsum("hdq,hdk->hqk", q, k) / q.shape[1] ** 0.5).softmax(-1)
            for point in points:
                own = weights[:, row_of[point]].view(-1, side, side)
                expected += [own.mean(0), *own]
    assert len(shown) == len(expected) == 2 * 2 * (5 + 3) and side == 3
    for found, values in zip(shown, expected):
        torch.testing.assert_close(torch.from_numpy(found), values)
    names = {f"attention_{path.stem}_stage{stage}.png" for path in images for stage in (2, 3)}
    assert {path.name for path in tmp_path.glob("*.png")} == names
    # In a row: the image with its point, the mean, 2 heads.
    picture = read(tmp_path / f"attention_{images[0].stem}_stage2.png")
    top = len(picture) - 2 * (224 + 20)
    assert picture.shape[1] == 4 * 228 and top > 40
    row, plain = picture[top + 244 + 18 : top + 488 - 2], panels.fit(shot_of(best, images[0], 96).pixels)
    mark = (slice(112 - 4, 112 + 5), slice(221 - 4, 224))
    # the second point is in the middle's height
    assert (row[:, 2:226][:90] == plain[:90]).all() and not (row[:, 2:226] == plain).all()
    tiles = [row[:, left : left + 224][mark] for left in (2, 230, 458, 686)]
    # white, as no colour of a map is, in black
    assert all(tile.min(axis=2).max() > 150 and tile.max(axis=2).min() < 60 for tile in tiles)


@pytest.mark.parametrize("kind", ["features", "mistakes"])
def test_what_was_taken_of_the_file_is_said(tmp_path, best, images, digits, capsys, kind):
    """And --weights chooses."""
    content = torch.load(best, weights_only=True)
    path = tmp_path / "x.pth"
    weights = {key: {f"module.{name}": value for name, value in content[key].items()} for key in ("model", "ema")}
    torch.save({**content, **weights}, path)
    given = images[:1] if kind == "features" else ["--data-path", digits, "--workers", 0]
    for name in ("raw", "ema"):
        assert look(kind, *given, "--checkpoint", path, "--weights", name, "--output", tmp_path / name) == 0
        assert f"note: {path}: took off 'module.'\n" in capsys.readouterr().out
    pictures = [next((tmp_path / name).glob(f"{kind}*.png")).read_bytes() for name in ("raw", "ema")]
    assert pictures[0] != pictures[1]


def test_attention_of_chosen_heads_and_blocks(tmp_path, images, monkeypatch):
    checkpoint = saved(tmp_path / "b.pth", depths=[1, 2, 1, 1])
    shown = recorded(monkeypatch, attention, "overlay")
    assert (
        look(
            "attention",
            images[0],
            "--checkpoint",
            checkpoint,
            "--points",
            "0.5,0.5",
            "--stage",
            2,
            "--block",
            1,
            "--head",
            2,
            "--img-size",
            64,
        )
        == 0
    )
    model = load_trained(checkpoint).model
    own = inspect_fasa(model, shot_of(checkpoint, images[0], 64).image, 1, 0).attention[0, :, 4 * 8 + 4].view(2, 2, 2)
    assert [heat.tolist() for heat in shown] == [own.mean(0).tolist(), own[1].tolist()]
    assert (tmp_path / f"look/attention_{images[0].stem}_stage2.png").exists()  # beside the checkpoint


def test_a_single_key_is_said(best, images, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(inputs, "titled", lambda picture, text: titles.append(text) or picture)
    assert look("attention", images[0], "--checkpoint", best, "--output", tmp_path) == 0  # 32 px: a key per stage
    assert len(titles) == 4 and all("weights over one key" in text and "greater --img-size" in text for text in titles)
    assert all(text.startswith(f"{images[0]}: ") and "fat_tiny, " in text and "32 px" in text for text in titles)


@pytest.mark.parametrize("interaction", ["bidirectional", "local", "global", "concat"])
def test_fasa_s_maps_are_the_module_s(tmp_path, images, monkeypatch, interaction):
    checkpoint = saved(tmp_path / "a.pth", interaction=interaction)
    shown, over = recorded(monkeypatch, fasa, "coloured"), recorded(monkeypatch, fasa, "overlay")
    assert (
        look(
            "fasa",
            images[0],
            "--checkpoint",
            checkpoint,
            "--stage",
            2,
            "--channels",
            3,
            30,
            "--img-size",
            64,
            "--output",
            tmp_path,
        )
        == 0
    )
    maps = inspect_fasa(load_trained(checkpoint).model, shot_of(checkpoint, images[0], 64).image, 1)
    sides = {"local": ["local_aggregation"], "global": ["global_aggregation"]}
    sides = sides.get(interaction, ["local_aggregation", "global_aggregation", "interaction"])
    expected = []
    for name in ["q", *sides, "output"]:
        values = getattr(maps, name)[0]
        expected += [values.square().sum(0).sqrt(), values.mean(0), values[3], values[30]]
    assert len(shown) == len(expected) and len(over) == len(sides)
    for found, values in zip(shown, expected):
        torch.testing.assert_close(torch.from_numpy(found), values)
    for found, values in zip(over, expected[4:-4:4]):
        torch.testing.assert_close(torch.from_numpy(found), values)


def test_grad_cam_of_a_chosen_class(best, images, tmp_path, monkeypatch):
    shown = recorded(monkeypatch, grad_cam, "overlay")
    assert look("grad-cam", *images, "--checkpoint", best, "--class", "1", "--img-size", 64, "--output", tmp_path) == 0
    model = load_trained(best).model
    expected = [
        cam_of(model, shot_of(best, path, 64).image, layer, torch.tensor([1]))[0][0]
        for path in images for layer in (*model.layers, model.norm)
    ]  # fmt: skip
    assert len(shown) == 10 and all(np.array_equal(found, values) for found, values in zip(shown, expected))
    assert read(tmp_path / f"grad-cam_{images[0].stem}.png").shape[1] == 6 * 228
    del shown[:]
    assert look("grad-cam", images[0], "--checkpoint", best, "--layer", "layers.2", "--output", tmp_path) == 0
    predicted, _ = cam_of(model, shot_of(best, images[0], 32).image, model.layers[2])
    assert len(shown) == 1 and np.array_equal(shown[0], predicted[0])


def test_a_class_is_found_by_what_it_is_called(tmp_path):
    from timm.data import ImageNetInfo

    trained = load_trained(saved(tmp_path / "i.pth", classes=ImageNetInfo("imagenet-1k").label_names()))
    for text, label in (
        ("n02099601", 207),
        ("golden retriever", 207),
        ("Golden Retriever", 207),
        ("207", 207),
        ("0", 0),
    ):
        assert grad_cam.label_of(trained, text) == label
    for text, reason in (
        ("crane", "'crane' are n02012849, n03126707"),
        ("1000", "no '1000'"),
        ("goldn retriever", "did you mean 'golden retriever'"),
    ):
        with pytest.raises(ConfigError, match=reason):
            grad_cam.label_of(trained, text)
    by_name = load_trained(saved(tmp_path / "d.pth", classes=["2", "1", "0"]))
    assert grad_cam.label_of(by_name, "2") == 0  # the class of that name, not the label


def test_feature_maps(best, images, tmp_path, monkeypatch):
    shown = recorded(monkeypatch, features, "coloured")
    assert (
        look(
            "features",
            images[0],
            "--checkpoint",
            best,
            "--stage",
            1,
            4,
            "--number",
            5,
            "--img-size",
            64,
            "--output",
            tmp_path,
        )
        == 0
    )
    with torch.no_grad():
        maps = load_trained(best).model.forward_intermediates(
            shot_of(best, images[0], 64).image, intermediates_only=True
        )
    for own, found in ((maps[0][0], shown[:5]), (maps[3][0], shown[5:])):
        ranked = own.square().mean((1, 2)).argsort(descending=True)[:5]
        assert len(found) == 5 and all(np.array_equal(a, own[c]) for a, c in zip(found, ranked))
    del shown[:]
    assert (
        look(
            "features", images[0], "--checkpoint", best, "--stage", 2, "--first", "--img-size", 64, "--output", tmp_path
        )
        == 0
    )
    assert len(shown) == 17 and all(np.array_equal(a, maps[1][0][c]) for c, a in enumerate(shown))


def test_colours_say_the_sign():
    ramp = panels.coloured(np.array([[-2.0, 0.0, 1.0]]))
    assert ramp.dtype == np.uint8 and ramp[0, 0].argmax() == 2 and ramp[0, 1].min() > 240  # blue, white
    # red, but paler than at 2
    assert ramp[0, 2].argmax() == 0 and ramp[0, 2, 1] > panels.coloured(np.array([[-1.0, 1.0]]))[0, 1, 1]
    bright = panels.coloured(np.array([[0.0, 4.0]])).sum(axis=2)[0]
    assert bright[1] > 2 * bright[0]
    assert panels.coloured(np.zeros((2, 2))).std(axis=(0, 1)).max() == 0


def test_other_models(tmp_path, images, monkeypatch):
    """Grad-CAM and feature maps of any model that has them; what it has not is said in a line."""
    resnet = saved(tmp_path / "r.pth", "timm", "resnet10t")
    shown = recorded(monkeypatch, grad_cam, "overlay")
    assert look("grad-cam", images[0], "--checkpoint", resnet, "--img-size", 64, "--output", tmp_path) == 0
    model = load_trained(resnet).model
    assert (
        np.array_equal(shown[0], cam_of(model, shot_of(resnet, images[0], 64).image, model.layer4)[0][0])
        and len(shown) == 1
    )
    assert (
        look("features", images[0], "--checkpoint", resnet, "--stage", 5, "--img-size", 64, "--output", tmp_path) == 0
    )
    vit = saved(tmp_path / "v.pth", "timm", "vit_tiny_patch16_224")
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1, 1, 1))
    with pytest.raises(ConfigError, match="layers.3: SwinTransformer gives maps with channels last"):
        grad_cam.grad_cam_panels(swin, torch.zeros(1, 3, 224, 224), {"layers.3": swin.layers[3]})
    for argv, kind, message in (
        (["attention", images[0], "--checkpoint", resnet], CheckpointError, "r.pth: is of resnet10t, no FAT"),
        (["fasa", images[0], "--checkpoint", resnet], CheckpointError, "r.pth: is of resnet10t, no FAT"),
        (["features", images[0], "--checkpoint", resnet, "--stage", 6, "--img-size", 64], ConfigError, "--stage: there is no 6; resnet10t has 5"),
        (["grad-cam", images[0], "--checkpoint", vit], ConfigError, "--layer: blocks.11: Block gives no maps"),
        (["grad-cam", images[0], "--checkpoint", vit, "--img-size", 64], ConfigError, "--img-size: vit_tiny_patch16_224 takes images of 224 px only"),
    ):  # fmt: skip
        with pytest.raises(kind, match=message) as caught:
            look(*argv)
        assert "\n" not in str(caught.value)


def test_names_of_images_do_not_meet():
    paths = [
        Path(name) for name in ("a/1.png", "b/1.png", "c/1-2.png", "$ ü\n/.png", "d/" + "x" * 250 + ".png", "e/ü 1.jpg")
    ]
    names = inputs.names_of(paths)
    assert names[:3] == ["1", "1-2", "1-2-2"] and len(set(names)) == 6 and max(map(len, names)) <= 64
    assert all(name and not set("/\n $") & set(name) for name in names)


def test_pictures_are_in_tensorboard(best, images, tmp_path, capsys):
    for kind in ("grad-cam", "features"):
        assert look(kind, *images, "--checkpoint", best, "--output", tmp_path) == 0
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0}).Reload()
    tags = {"/".join(path.stem.split("_")).replace("stage", "stage ") for path in tmp_path.glob("*.png")}
    assert set(events.Tags()["images"]) == tags and len(tags) == 2 * (1 + 4)
    [image] = events.Images(f"grad-cam/{images[1].stem}")
    decoded = cv2.cvtColor(cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), 1), cv2.COLOR_BGR2RGB)
    assert np.array_equal(decoded, read(tmp_path / f"grad-cam_{images[1].stem}.png"))
    assert f"wrote {tmp_path / 'grad-cam_'}" in capsys.readouterr().out


def test_images_that_cannot_be_read_are_listed(best, images, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    argv = ["grad-cam", tmp_path / "absent.png", images[0], tmp_path, tmp_path / "text.png", "--checkpoint", best]
    assert look(*argv, "--output", tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(
        line.startswith(f"error: {path}: ")
        for line, path in zip(lines, (tmp_path / "absent.png", tmp_path, tmp_path / "text.png"))
    )
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == [f"grad-cam_{images[0].stem}.png"]
    assert look("features", tmp_path / "text.png", "--checkpoint", best, "--output", tmp_path / "none") == 2
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_shown_is_said_in_a_line(best, images, tmp_path):
    local = saved(tmp_path / "local.pth", interaction="local")
    (tmp_path / "file").write_text("")
    plain = {"--checkpoint": best, "--output": tmp_path / "out"}
    for kind, more, error, message in (
        ("attention", {"--pionts": ["0,0"]}, ConfigError, "did you mean '--points'"),
        ("attention", {"--points": ["0.5,1.5"]}, ConfigError, "--points: '0.5,1.5' is no point"),
        ("attention", {"--points": ["112"]}, ConfigError, "--points: '112' is no point"),
        ("attention", {"--points": [f"0.{i},0" for i in range(9)]}, ConfigError, "--points: 9 points; give at most 8"),
        ("attention", {"--stage": [5]}, ConfigError, "--stage: there is no 5; fat_tiny has 4"),
        ("attention", {"--stage": [0]}, ConfigError, "--stage: '0' is no whole number from 1"),
        ("attention", {"--block": [2]}, ConfigError, "--block: there is no 2; stage 1 has 1"),
        ("attention", {"--head": [2]}, ConfigError, "--head: there is no 2; stage 1 has 1"),
        ("attention", {"--checkpoint": local}, CheckpointError, "interaction 'local' has no attention"),
        ("attention", {"--checkpoint": tmp_path / "file"}, CheckpointError, "file: "),
        ("attention", {"--img-size": [8]}, ConfigError, "--img-size is 8; it must be between 32"),
        ("fasa", {"--channels": [16], "--stage": [1]}, ConfigError, "--channels: there is no 16; the stage has 16"),
        ("fasa", {"--channels": [1, 1]}, ConfigError, "--channels: give each once"),
        ("grad-cam", {"--class": ["7"]}, ConfigError, "--class: there is no '7' among the 3 classes; known: 0, 1, 2$"),
        ("grad-cam", {"--layer": ["layer.2"]}, ConfigError, "--layer: fat_tiny has no module 'layer.2'; did you mean 'layers.2'"),
        ("grad-cam", {"--layer": ["head"]}, ConfigError, "--layer: head: Linear gives no maps"),
        ("grad-cam", {"--output": tmp_path / "file/out"}, OutputError, "cannot be written"),
        ("features", {"--stage": [5]}, ConfigError, "--stage: there is no 5"),
        ("features", {"--number": [0]}, ConfigError, "--number: '0' is no whole number"),
    ):  # fmt: skip
        flags = [
            word
            for flag, values in {**plain, **more}.items()
            for word in (flag, *(values if isinstance(values, list) else [values]))
        ]
        with pytest.raises(error, match=message) as caught:
            look(kind, images[0], *flags)
        assert "\n" not in str(caught.value), (kind, more)
    for argv, message in (
        ([], "say what to show: attention"),
        (["attention", "--checkpoint", best], "IMAGE: which ones"),
        (["attention", "--checkpoint", best, "--points", "0,0", images[0]], "is no point of the image"),
        (["atention", images[0]], "invalid choice: 'atention'"),
        (["fasa", images[0]], "required: --checkpoint"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            look(*argv)
    assert not (tmp_path / "out").exists()


# Of an evaluation


def rows_of(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_mistakes_are_those_of_main_s_evaluation(best, small_run, digits, tmp_path, capsys):
    run("--cfg", small_run.parent.parent / "small.yaml", "--eval", "--resume", best, "--output", tmp_path / "eval")
    expected = json.loads((tmp_path / "eval/fat_tiny/default/eval.json").read_text())
    trained = load_trained(best)
    own = expected[trained.weights]
    capsys.readouterr()
    assert look("mistakes", "--checkpoint", best, "--output", tmp_path, "--number", 4, "--batch-size", 7) == 0
    said = capsys.readouterr().out
    assert (
        f"{trained.weights} weights" in said
        and f"acc1 {own['acc1']:.3f} acc5 100.000 loss {own['loss']:.3f} num_images 29" in said
    )

    wrong, pairs = [], {}
    for path in sorted((digits / "val").rglob("*.png")):
        target = trained.classes.index(path.parent.name)
        with torch.no_grad():
            logits = trained.model(trained.normalise([trained.read(path)]))
        predicted = int(logits.argmax())
        pairs[target, predicted] = pairs.get((target, predicted), 0) + 1
        if predicted != target:
            loss = float(F.cross_entropy(logits, torch.tensor([target])))
            wrong.append((loss, f"{path.parent.name}/{path.name}", target, predicted, float(logits.softmax(1).max())))
    assert len(wrong) > 4 and own["acc1"] == pytest.approx(100 * (1 - len(wrong) / 29))
    found = rows_of(tmp_path / "mistakes.csv")
    assert [(row["key"], row["target"], row["predicted"]) for row in found] == [
        (key, str(t), str(p)) for _, key, t, p, _ in sorted(wrong, reverse=True)[:4]
    ]
    for row, (loss, *_, probability) in zip(found, sorted(wrong, reverse=True)):
        assert float(row["loss"]) == pytest.approx(loss, abs=1e-4) and float(row["probability"]) == pytest.approx(
            probability, abs=1e-4
        )
    counted = {
        (int(row["class"]), int(row["predicted"])): int(row["images"]) for row in rows_of(tmp_path / "confusion.csv")
    }
    assert counted == pairs and sum(pairs.values()) == 29
    sheet = read(tmp_path / "mistakes.png")
    first = panels.fit(trained.read(digits / "val" / found[0]["key"]).pixels, 160)
    tile = sheet[len(sheet) - 162 : len(sheet) - 2, 2:162]
    assert np.array_equal(tile, first) and sheet.shape[1] == 6 * 164
    assert read(tmp_path / "confusion.png").std() > 20
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"mistakes", "confusion"}


def test_mistakes_of_a_timm_model_on_other_images(tmp_path, digits, capsys):
    resnet = saved(tmp_path / "r.pth", "timm", "resnet10t")
    argv = ["mistakes", "--checkpoint", resnet, "--device", "cpu", "--workers", 0]
    with pytest.raises(DataError) as caught:  # its config names no folder
        look(*argv)
    assert "--data-path" in str(caught.value) or "DATA.DATA_PATH" in str(caught.value)
    shutil.copytree(digits / "val", tmp_path / "set/val")
    (tmp_path / "set/val/1/broken.png").write_text("no image")
    assert look(*argv, "--data-path", tmp_path / "set", "--output", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert "num_images 29" in out and err.count("\n") == 1 and err.startswith("error: ") and "1/broken.png" in err
    assert sum(int(row["images"]) for row in rows_of(tmp_path / "out/confusion.csv")) == 29
    shutil.rmtree(tmp_path / "set/val/2")
    with pytest.raises(DataError, match="classes are not the training classes"):
        look(*argv, "--data-path", tmp_path / "set", "--output", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_no_mistakes(tmp_path, digits):
    """Each image lies in the folder of the class that it is taken for."""
    checkpoint = saved(tmp_path / "a.pth", classes=["a", "b"])
    trained = load_trained(checkpoint)
    paths = sorted((digits / "val").rglob("*.png"))
    with torch.no_grad():
        logits = trained.model(trained.normalise([trained.read(path) for path in paths]))
    middle = (logits[:, 1] - logits[:, 0]).median() - 1e-4
    weights = torch.load(checkpoint)
    weights["model"]["head.bias"][0] += middle  # so that both classes are said
    torch.save(weights, checkpoint)
    for path, (first, second) in zip(paths, logits.tolist()):
        folder = tmp_path / "val" / ("b" if second - first > middle else "a")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{path.parent.name}_{path.name}")
    flags = ["--data-path", tmp_path, "--output", tmp_path / "out", "--workers", 0, "--device", "cpu"]
    assert look("mistakes", "--checkpoint", checkpoint, *flags) == 0
    assert rows_of(tmp_path / "out/mistakes.csv") == [] and (read(tmp_path / "out/mistakes.png")[-160:] == 255).all()
    rows = rows_of(tmp_path / "out/confusion.csv")
    assert [(row["class"], row["predicted"]) for row in rows] == [("a", "a"), ("b", "b")] and sum(
        int(row["images"]) for row in rows
    ) == 29


@pytest.mark.parametrize("classes", [3, 10, 20, 21, 1000])
def test_confusion_can_be_read(classes, monkeypatch):
    """Its cells, its names, and that no text lies over another."""
    rng = np.random.default_rng(0)
    matrix = np.diag(rng.integers(20, 50, classes))
    pairs = rng.choice(classes, (2 * classes, 2))
    for target, predicted in pairs[pairs[:, 0] != pairs[:, 1]]:
        matrix[target, predicted] += 1
    matrix[2, 1] += 30  # the most frequent mistake
    figures = []
    monkeypatch.setattr(confusion, "FigureCanvasAgg", lambda figure: figures.append(figure) or FigureCanvasAgg(figure))
    names = [f"class {label} of $many$ names that are rather long" for label in range(classes)]
    picture = confusion.confusion_picture(matrix, names, "a title\nof two lines")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and max(picture.shape) < 1600
    [figure] = figures
    axes = figure.axes[0]
    shown = confusion.most_confused(matrix)
    assert {1, 2} <= set(shown) and len(shown) == min(classes, 20) and shown == sorted(shown)
    drawn = np.zeros((len(shown), len(axes.get_xticks())), int)
    for text in axes.texts:
        column, row = text.get_position()
        drawn[row, column] = int(text.get_text())
    assert np.array_equal(drawn[:, : len(shown)], matrix[np.ix_(shown, shown)])
    assert np.array_equal(drawn.sum(axis=1), matrix[shown].sum(axis=1))  # with the others
    assert ([label.get_text() for label in axes.get_xticklabels()][-1] == "other") == (classes > 20)
    figure.draw_without_rendering()
    for labels in (axes.get_xticklabels(), axes.get_yticklabels(), axes.texts):
        boxes = [label.get_window_extent() for label in labels]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
        assert all(
            0 <= box.x0 and box.x1 <= picture.shape[1] and 0 <= box.y0 and box.y1 <= picture.shape[0] for box in boxes
        )


# In a browser


@contextlib.contextmanager
def tensorboard(folder):
    """Its address, once it has read what lies in the folder."""
    port = free_port()
    argv = [
        "--logdir",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--load_fast=false",
        "--reload_interval",
        "1",
    ]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def answer(url, holds):
    """The server's JSON, once something holds of it."""
    found = []

    def asked():
        with contextlib.suppress(OSError):
            found[:] = [json.loads(urllib.request.urlopen(url).read())]
            return holds(found[0])

    until(asked)
    return found[0]


def until(condition, timeout=180) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout} s"
        time.sleep(0.2)


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_tensorboard_shows_curves_and_pictures_in_a_browser(small_run, best, images, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    shutil.copytree(small_run / "tensorboard", tmp_path / "run/tensorboard")
    shutil.copy(best, tmp_path / "run/best.pth")
    assert look("grad-cam", images[0], "--checkpoint", tmp_path / "run/best.pth") == 0
    assert look("mistakes", "--checkpoint", tmp_path / "run/best.pth") == 0
    records = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    losses = {record["update"]: record["loss"] for record in records if record["kind"] == "train"}
    accuracies = {record["update"]: record["raw"]["acc1"] for record in records if record["kind"] == "epoch"}
    assert len(losses) > 10 and len(accuracies) == 2

    with tensorboard(tmp_path) as address, playwright.sync_playwright() as driver:
        # files are read while questions are answered
        curve_names = {"train/loss", "train/lr", "val/acc1", "val/acc1_ema", "val/loss"}
        answer(f"{address}/data/plugin/scalars/tags", lambda tags: curve_names <= set(tags.get("run/tensorboard", {})))
        seen = answer(f"{address}/data/plugin/images/tags", lambda tags: len(tags.get("run/look/tensorboard", {})) == 3)
        assert "train_batch" in seen["run/tensorboard"]
        for tag, values in (("train/loss", losses), ("val/acc1", accuracies)):
            points = answer(
                f"{address}/data/plugin/scalars/scalars?run=run%2Ftensorboard&tag={tag}",
                lambda points: len(points) == len(values),
            )
            assert {update: value for _, update, value in points} == pytest.approx(values)

        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{address}/#scalars")
        for tag, values in (("train/loss", losses), ("val/acc1", accuracies)):
            card = page.locator("tf-scalar-card").filter(has=page.get_by_text(f"tag: {tag}", exact=True))
            card.scroll_into_view_if_needed()
            until(lambda: len(values) in [len(re.findall(r"[\d.]+,[\d.]+", path)) for path in curves(card)])

        page.goto(f"{address}/#images")
        page.reload()
        for tag, path in {
            "train_batch": small_run / "train_batch.png",
            f"grad-cam/{images[0].stem}": tmp_path / f"run/look/grad-cam_{images[0].stem}.png",
            "mistakes": tmp_path / "run/look/mistakes.png",
            "confusion": tmp_path / "run/look/confusion.png",
        }.items():
            page.locator("tf-tag-filterer input").fill(tag)  # unfolds what it finds
            picture = page.locator("tf-image-loader").filter(has_text=tag).locator("img").first
            picture.scroll_into_view_if_needed()
            until(
                lambda: (
                    picture.evaluate("image => [image.naturalHeight, image.naturalWidth]") == list(read(path).shape[:2])
                )
            )
        browser.close()


def curves(card) -> list[str]:
    """The lines of a chart, as SVG says them: M x,y L x,y ..."""
    return card.locator("vz-line-chart2 path").evaluate_all("paths => paths.map(path => path.getAttribute('d') || '')")


def test_as_a_command(tmp_path):
    """Its error is one line, its status that of the error."""
    done = run_program("scripts/visualize.py", "fasa", "x.png", "--checkpoint", tmp_path / "no.pth")
    assert done.returncode == 3 and not done.stdout and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'no.pth'}: ")  # packages may warn before it
