"""Exported models: loaded anew, with the logits of the checkpoint they are of."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image, ImageOps

import export
from conftest import ONE_STAGE, SMALL, SMALLEST, run_program
from engine.inference.trained import load_trained
from known_weights import realistic
from models.fuse import is_native_on_cpu
from utils.config import config_from, to_dict
from utils.errors import DataError, OutputError, UserError

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from parts.export import export_job, hub, int8  # noqa: E402

NAMES = ["0", "1", "2"]


def saved(path: Path, model, data_path, model_config=None, **more) -> Path:
    """A checkpoint as main.py writes it, as far as exporting reads it."""
    values = {section: dict(keys) if isinstance(keys, dict) else keys for section, keys in SMALL.items()}
    values["DATA"]["DATA_PATH"] = str(data_path)
    values["TEST"] = {"CROP_PCT": 0.9}
    values["MODEL"].update(model_config or {})
    config = to_dict(config_from({}, "test"))
    for section, keys in values.items():
        config[section].update(keys) if isinstance(keys, dict) else config.__setitem__(section, keys)
    torch.save({"model": model.state_dict(), "config": config, "classes": NAMES, **more}, path)
    return path


def smallest():
    return realistic(num_classes=3, **SMALLEST)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, digits) -> Path:
    """Of the smallest model."""
    return saved(tmp_path_factory.mktemp("checkpoint") / "best.pth", smallest(), digits)


@pytest.fixture(scope="module")
def wide(tmp_path_factory, digits) -> Path:
    """Of a model whose weights take more room than its graph, so that 8 bits make a smaller file."""
    settings = {**ONE_STAGE["FAT"], "embed_dims": [64]}
    path = tmp_path_factory.mktemp("wide") / "best.pth"
    return saved(path, realistic("fat_b0", num_classes=3, **settings), digits, {"NAME": "wide", "FAT": settings})


@pytest.fixture(scope="module")
def one_stage(tmp_path_factory, digits) -> Path:
    """Of a model that is quicker to trace and to compile."""
    path = tmp_path_factory.mktemp("one_stage") / "best.pth"
    return saved(path, realistic("fat_b0", num_classes=3, **ONE_STAGE["FAT"]), digits, ONE_STAGE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory, digits) -> Path:
    """Digits as a camera leaves them: larger than wide, and one that lies on its side."""
    folder = tmp_path_factory.mktemp("photos")
    for i, path in enumerate(sorted(digits.glob("val/*/*"))[::6]):
        picture = Image.open(path).convert("RGB").resize((50, 61 + i))
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 1 else 1
        picture.save(folder / f"{i}.png", exif=exif)
    return folder


def exported(*argv) -> int:
    return export.main([str(arg) for arg in argv])


def logits_of(checkpoint: Path, paths) -> torch.Tensor:
    trained = load_trained(checkpoint)
    with torch.no_grad():
        return trained.model(trained.normalise([trained.read(path) for path in paths]))


def prepared(said: dict, path: Path) -> np.ndarray:
    """An image as the file's own description says, by Pillow and numpy alone: (3, H, W)."""
    image = Image.open(path)
    image = (ImageOps.exif_transpose(image) if said["exif_upright"] else image).convert("RGB")
    side = said["resize_shorter_side"]
    width, height = image.size
    size = (side, int(side * height / width)) if width < height else (int(side * width / height), side)
    image = image.resize(size, {"bicubic": Image.Resampling.BICUBIC}[said["interpolation"]])
    crop = said["crop_size"]
    left, top = round((image.width - crop) / 2), round((image.height - crop) / 2)
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop)), dtype=np.float32) / 255
    return ((pixels - np.float32(said["mean"])) / np.float32(said["std"])).transpose(2, 0, 1)


def close(a, b, bound=1e-4) -> bool:
    return bool((torch.as_tensor(np.asarray(a)) - b).abs().max() < bound * b.std())


# ONNX


def test_onnx_says_how_to_use_it(checkpoint, photos, tmp_path, capsys):
    """By what the file itself says, without this project; sizes and numbers of images are free."""
    onnx = pytest.importorskip("onnx")
    assert exported("onnx", "--checkpoint", checkpoint, "--output", tmp_path, "--images", photos, "--dynamic-size") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fat_tiny.onnx", "fat_tiny.onnx.json"]
    said = {entry.key: entry.value for entry in onnx.load(tmp_path / "fat_tiny.onnx").metadata_props}
    beside = json.loads((tmp_path / "fat_tiny.onnx.json").read_text())
    preprocessing = json.loads(said["preprocessing"])
    assert preprocessing == beside["preprocessing"] and json.loads(said["classes"]) == beside["classes"] == NAMES
    assert preprocessing["resize_shorter_side"] == 35 and preprocessing["crop_size"] == 32
    paths = sorted(photos.iterdir())
    session = onnxruntime.InferenceSession(tmp_path / "fat_tiny.onnx")
    for count in (1, len(paths)):
        images = np.stack([prepared(preprocessing, path) for path in paths[:count]])
        assert close(session.run(None, {"images": images})[0], logits_of(checkpoint, paths[:count]))
    model = load_trained(checkpoint).model
    for height, width in ((32, 32), (40, 200), (224, 160)):
        images = torch.randn(2, 3, height, width)
        with torch.no_grad():
            assert close(session.run(None, {"images": images.numpy()})[0], model(images)), (height, width)
    compared = beside["compared"]
    assert compared["max_difference"] > 0 and compared["same_class"][0] == compared["same_class"][1]
    assert "5x3x32x32" in compared["shapes"] and "3x3x75x49" in compared["shapes"]
    assert f"largest difference {compared['max_difference']:.3g}" in capsys.readouterr().out


def test_another_logit_leaves_no_file(one_stage, tmp_path, monkeypatch):
    """A deployed form that differs by less than anyone would see in a class."""
    fuse = export_job.models.fuse

    def off(model):
        fused = fuse(model)
        with torch.no_grad():
            fused.head.bias[1] += 0.01
        return fused

    folder = tmp_path / "exported"
    monkeypatch.setattr(export_job.models, "fuse", off)
    with pytest.raises(
        export_job.ExportError, match="^--bound: the exported model's logits differ by up to .* nothing is written$"
    ):
        exported("onnx", "--checkpoint", one_stage, "--output", folder, "--bound", "1e-4")
    assert not folder.exists()


@pytest.mark.parametrize(
    "logits",
    [
        lambda y: y * math.nan,
        lambda y: y + math.inf,
        lambda y: y + 1e-2 * y.std(),
        lambda y: y[:, :2],
        lambda y: y.flip(0),
    ],
)
def test_what_is_not_the_same(one_stage, tmp_path, logits):
    done = export_job.Job(load_trained(one_stage), tmp_path)
    assert done.compare(done.model)["relative"] < 1e-4
    with pytest.raises(export_job.ExportError):
        done.compare(lambda images: logits(done.model(images)))


# Programs and packages

ALONE = """
import sys, torch
program = torch.export.load(sys.argv[1], extra_files={"description.json": ""}) if "aoti" not in sys.argv[1] else None
run = program.module() if program else torch._inductor.aoti_load_package(sys.argv[1])
images, logits = torch.load(sys.argv[2])
assert all(torch.allclose(run(images[:n]), logits[:n], atol=1e-4, rtol=0) for n in (1, 2, 5))
assert "models" not in sys.modules and "timm" not in sys.modules
print("same")
"""


def loads_alone(path: Path, checkpoint: Path, folder: Path) -> None:
    """In a process that cannot find this project."""
    trained = load_trained(checkpoint)
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.save((images, trained.model(images)), folder / "logits.pth")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, path, folder / "logits.pth"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "same\n", done.stderr


def test_a_program_needs_torch_alone(one_stage, tmp_path):
    assert exported("program", "--checkpoint", one_stage, "--output", tmp_path) == 0
    loads_alone(tmp_path / "one_stage.pt2", one_stage, tmp_path)
    description = {"description.json": ""}
    torch.export.load(tmp_path / "one_stage.pt2", extra_files=description)
    assert json.loads(description["description.json"])["classes"] == NAMES
    assert json.loads((tmp_path / "one_stage.pt2.json").read_text())["batch"] == [1, export_job.MAX_BATCH]


@pytest.mark.only_all
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_package(one_stage, tmp_path):
    assert exported("aoti", "--checkpoint", one_stage, "--output", tmp_path) == 0
    loads_alone(tmp_path / "one_stage.aoti.pt2", one_stage, tmp_path)


def test_programs_of_any_size(one_stage, tmp_path):
    path = tmp_path / "best.pth"
    shutil.copy(one_stage, path)
    with pytest.raises(
        export_job.ExportError,
        match="^--dynamic-size: a program takes images from 33 px on, and the model's own have 32",
    ):
        exported("program", "--checkpoint", path, "--output", tmp_path / "out", "--dynamic-size")
    content = torch.load(path)
    content["config"]["DATA"]["IMG_SIZE"] = 48
    torch.save(content, path)
    assert exported("program", "--checkpoint", path, "--output", tmp_path / "out", "--dynamic-size") == 0
    run = torch.export.load(tmp_path / "out/one_stage.pt2").module()
    with torch.no_grad():
        for size in ((33, 33), (48, 48), (130, 65)):
            images = torch.randn(3, 3, *size)
            assert close(run(images), load_trained(path).model(images)), size


# The hub


def folder_of(tmp_path, checkpoint) -> Path:
    assert exported("hub", "--checkpoint", checkpoint, "--output", tmp_path) == 0
    (folder,) = tmp_path.glob("*_hub")
    return folder


@pytest.mark.parametrize("model, config", [
    (lambda: realistic(num_classes=3), {"FAT": {}}),
    (lambda: realistic(num_classes=3, kernel_sizes=(3, 3, 5, 5), interaction="concat", distilled=True), {"FAT": {"kernel_sizes": [3, 3, 5, 5], "interaction": "concat", "distilled": True}}),
    (lambda: realistic(num_classes=3, embed_dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)), {"NAME": "mine", "FAT": {"embed_dims": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}}),
    (lambda: timm.create_model("resnet10t", num_classes=3), {"TYPE": "timm", "NAME": "resnet10t"}),
], ids=["fat", "overrides", "own", "timm"])  # fmt: skip
def test_timm_loads_the_folder(tmp_path, digits, photos, model, config):
    """The same weights, logits to the last bit, and, once an image is upright, the pixels of this project's evaluation."""
    checkpoint = saved(tmp_path / "best.pth", model(), digits, config)
    folder = folder_of(tmp_path / "out", checkpoint)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))
    trained, paths = load_trained(checkpoint), sorted(photos.iterdir())
    images = torch.stack([transform(ImageOps.exif_transpose(Image.open(path)).convert("RGB")) for path in paths])
    assert torch.equal(images, trained.normalise([trained.read(path) for path in paths]))
    with torch.no_grad():
        assert torch.equal(loaded(images), trained.model(images))
    assert loaded.pretrained_cfg["label_names"] == NAMES
    again = load_trained(folder)  # as this project reads it: no --cfg, no --classes
    assert torch.equal(again.normalise([again.read(path) for path in paths]), images) and again.classes == NAMES
    with torch.no_grad():
        assert torch.equal(again.model(images), trained.model(images))
    assert again.cfg.DATA.DATA_PATH == "" and str(tmp_path) not in (folder / "config.json").read_text()
    # to fine-tune
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)(images).shape == (len(paths), 7)


def test_a_full_disk_is_one_line_for_safetensors_too(checkpoint, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*args, **settings):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("parts.export.hub.save_for_hf", full)
    with pytest.raises(OutputError, match="cannot be written .*No space left.*free space") as caught:
        export.main(["hub", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "out")])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_the_hub_without_a_network(checkpoint, tmp_path, monkeypatch):
    """Through the hub's cache, as it is after a download."""
    folder = folder_of(tmp_path, checkpoint)
    cached = tmp_path / "cache/models--someone--digits"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("abc")
    shutil.copytree(folder, cached / "snapshots/abc")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loaded = timm.create_model("hf-hub:someone/digits", pretrained=True, cache_dir=tmp_path / "cache").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), load_trained(checkpoint).model(images))


def test_the_model_card(checkpoint, digits, tmp_path):
    """Figures are of this file's weights, or there are none."""
    assert "Not measured." in (folder_of(tmp_path / "none", checkpoint) / "README.md").read_text()
    progress = {
        "epoch": 4,
        "step": 0,
        "best": {"acc1": 97.5, "weights": "raw", "epoch": 3},
        "best_metrics": {"acc1": 97.5, "acc5": 100.0, "loss": 0.1, "num_images": 29},
    }
    path = saved(tmp_path / "best.pth", smallest(), digits, progress=progress)
    text = (folder_of(tmp_path / "own", path) / "README.md").read_text()
    assert "| 97.50 | 100.00 | 0.10 | 29 |" in text and "evaluation after epoch 4" in text
    card = ModelCard(text).data
    assert (card.library_name, card.pipeline_tag, card.license) == ("timm", "image-classification", None)
    assert [(r.metric_name, r.metric_value, r.dataset_split) for r in card.eval_results] == [
        ("top-1", 97.5, "val"),
        ("top-5", 100.0, "val"),
    ]
    progress["epoch"] = 9  # the best epoch is another one than this
    last = saved(tmp_path / "last.pth", smallest(), digits, progress=progress)
    assert metrics(last, "raw") == ({}, "")


def metrics(path, weights):
    return hub.metrics_of(path, weights, load_trained(path).cfg)


def test_the_card_s_figures_are_of_this_file_or_none(digits, tmp_path):
    """eval.json is of whatever was evaluated last: it counts if that was this file, since its last change, as its config says."""
    path = saved(tmp_path / "average.pth", smallest(), digits)
    views = {"img_size": 32, "crop_pct": 0.9, "crops": 1, "flip": False, "dataset": "folder", "data_path": str(digits)}
    good = {"checkpoint": str(path), "raw": {"acc1": 50.0}, **views}
    others = [
        {"checkpoint": "elsewhere/average.pth"},
        {"img_size": 64},
        {"crops": 5},
        {"flip": True},
        {"crop_pct": 1.0},
        {"data_path": "x"},
        {"raw": None},
    ]
    for change in others:
        (tmp_path / "eval.json").write_text(json.dumps({**good, **change}))
        assert metrics(path, "raw") == ({}, ""), change
    (tmp_path / "eval.json").write_text(json.dumps(good))
    assert metrics(path, "raw") == ({"acc1": 50.0}, "eval.json") and metrics(path, "ema") == ({}, "")
    os.utime(tmp_path / "eval.json", (1, 1))
    assert metrics(path, "raw") == ({}, "")  # older than the file
    cfg = load_trained(path).cfg
    cfg.defrost()
    cfg.TEST.CROPS, cfg.TEST.FLIP = 5, True
    assert "5 crops and mirror images" in hub.metric_lines({"acc1": 50.0}, "eval.json", "digits", cfg)[-1]


def test_what_is_published_has_no_path_and_no_key_of_this_machine(checkpoint):
    url = "https://host/shards-{000..003}.tar?key=secret"
    values = {
        "DATA": {
            "DATA_PATH": url,
            "TRAIN_SPLIT": url,
            "VAL_SPLIT": f"pipe:curl -s '{url}'",
            "SHARD_CACHE": "/nvme/mine",
        },
        "TRAIN": {"CLASS_WEIGHTS": "/home/me/weights.csv"},
    }
    cfg = config_from(values, "test")
    text = json.dumps(hub.shared(cfg))
    assert not any(part in text for part in ("secret", "host", "/nvme", "/home"))
    kept = config_from({"DATA": {"TRAIN_SPLIT": "training"}, "TRAIN": {"CLASS_WEIGHTS": "balanced"}}, "test")
    shared = hub.shared(kept)
    assert (shared["DATA"]["TRAIN_SPLIT"], shared["TRAIN"]["CLASS_WEIGHTS"]) == ("training", "balanced")
    assert hub.split_name(cfg) == "val" and hub.split_name(kept) == "val"
    job = export_job.Job(replace(load_trained(checkpoint), cfg=cfg), Path())
    assert hub.dataset_name(job) == "shards-{000..003}.tar"


def test_the_card_of_a_model_of_bands_reads_no_photograph(checkpoint):
    values = {"DATA": {"IN_CHANS": 4, "MEAN": [0.5] * 4, "STD": [0.2] * 4, "IMG_SIZE": [32, 48]}}
    trained = replace(load_trained(checkpoint), cfg=config_from(values, "test"))
    lines = hub.use_lines(export_job.Job(trained, Path()))
    assert "images = torch.zeros(1, 4, 32, 48)  # yours, prepared as below" in lines
    assert not any("RGB" in line for line in lines) and "uint16 by 65535" in lines[-1]


def test_what_else_is_in_the_folder_stays(checkpoint, tmp_path):
    """As in a clone of the hub's repository; no trace of the writing."""
    folder = tmp_path / "fat_tiny_hub"
    folder.mkdir()
    (folder / ".gitattributes").write_text("x")
    (folder / "config.json").write_text("old")
    folder_of(tmp_path, checkpoint)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert json.loads((folder / "config.json").read_text())["num_classes"] == 3
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


# 8 bits


def test_int8(wide, digits, tmp_path, monkeypatch, capsys):
    """Smaller, near to the model; calibrated on training images alone; the accuracy is that of the validation images."""
    onnx, seen, quantise = pytest.importorskip("onnx"), [], int8.quantise
    monkeypatch.setattr(
        int8, "quantise", lambda source, target, images: (seen.append(images), quantise(source, target, images))
    )
    assert (
        exported("int8", "--checkpoint", wide, "--output", tmp_path, "--max-drop", 100, "--calibration-images", 40) == 0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wide_int8.onnx", "wide_int8.onnx.json"]
    trained = load_trained(wide)
    training = {trained.normalise([trained.read(path)]).numpy().tobytes() for path in digits.glob("train/*/*")}
    assert len(seen[0]) == 40 and all(image[None].numpy().tobytes() in training for image in seen[0])
    model = onnx.load(tmp_path / "wide_int8.onnx")
    weights = {
        t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8
    }
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    assert len(matrices) == sum(node.op_type in ("Conv", "Gemm") for node in model.graph.node)
    assert 0 < max(2 * 255 * abs(weight.astype(int)).max() for weight in matrices) <= 32767
    assert {entry.key for entry in model.metadata_props} >= {"preprocessing", "classes", "quantised"}
    said = json.loads((tmp_path / "wide_int8.onnx.json").read_text())
    assert said["bytes"] < 0.5 * said["bytes_float32"] and said["bytes"] == (tmp_path / "wide_int8.onnx").stat().st_size
    paths = sorted(digits.glob("val/*/*"))
    images = trained.normalise([trained.read(path) for path in paths]).contiguous()
    with torch.no_grad():
        expected = trained.model(images)
    logits = torch.from_numpy(
        onnxruntime.InferenceSession(tmp_path / "wide_int8.onnx").run(None, {"images": images.numpy()})[0]
    )
    assert 1e-3 < (logits - expected).abs().max() / expected.std() < 0.5
    targets = torch.tensor([int(path.parent.name) for path in paths])
    for name, of in (("before", expected), ("after", logits)):
        assert said["compared"][name]["acc1"] == pytest.approx(
            100 * (of.argmax(1) == targets).float().mean().item(), abs=1e-4
        )
    assert f"top-1 {said['compared']['before']['acc1']:.2f} % before" in capsys.readouterr().out


def cut_off_convolution(levels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """1x1 convolution of uint8 (N, C) and int8 (out, C), as AVX2's vpmaddubsw adds it: two products within 16 bits at a time."""
    products = levels[:, None].astype(int) * weight.astype(int)
    return (products[..., ::2] + products[..., 1::2]).clip(-(2**15), 2**15 - 1).sum(-1)


@pytest.mark.parametrize("largest, right", [(64, True), (127, False)])
def test_which_weights_are_right_on_every_processor(largest, right):
    rng = np.random.default_rng(0)
    levels = rng.integers(200, 256, (50, 32))
    weight = rng.integers(-largest, largest + 1, (20, 32))
    weight[0] = largest
    assert np.array_equal(cut_off_convolution(levels, weight), levels @ weight.T) == right


def test_int8_with_weights_that_are_cut_off_elsewhere_is_refused(one_stage, tmp_path, monkeypatch):
    """Whatever processor this is; no file is left."""
    import onnxruntime.quantization as quantization

    original = quantization.quantize_static
    monkeypatch.setattr(
        quantization, "quantize_static", lambda *args, **named: original(*args, **{**named, "reduce_range": False})
    )
    with pytest.raises(
        export_job.ExportError, match="has int8 weights up to 127; .* processors without VNNI .*; nothing is written"
    ):
        exported("int8", "--checkpoint", one_stage, "--output", tmp_path / "out", "--calibration-images", 8)
    assert not (tmp_path / "out").exists()


def test_int8_that_loses_accuracy_leaves_no_file(checkpoint, tmp_path, monkeypatch):
    found = iter([90.0, 88.9])
    monkeypatch.setattr(int8, "figures", lambda job, model: {"acc1": next(found), "num_images": 29})
    monkeypatch.setattr(int8, "write", lambda job, path: path.write_bytes(b"x"))
    monkeypatch.setattr(int8, "quantise", lambda source, target, images: target.write_bytes(b"x"))
    monkeypatch.setattr(int8, "check_weights", lambda path: None)
    monkeypatch.setattr(int8, "session", lambda path: None)
    with pytest.raises(export_job.ExportError, match="^--max-drop: 8 bits lose 1.10 points"):
        exported("int8", "--checkpoint", checkpoint, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What cannot be done


@pytest.mark.parametrize("argv, message", [
    (["onnx", "--opset", "17"], "--opset is 17, and can be 18 to 23"),
    (["onxx"], "did you mean 'onnx'?"),
    (["onnx", "--bound", "nan"], "is no number of 0 or more"),
    (["onnx", "--images", "none"], "--images: none is not there"),
    (["onnx", "--images", "."], "--images: .: is a folder without images"),
    (["program", "--data-path", "none"], "--images: not given, and the checkpoint's validation images cannot be used"),
    (["int8", "--data-path", "none"], "--data-path: int8 needs training images"),
])  # fmt: skip
def test_refused(checkpoint, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        exported(*argv, "--checkpoint", checkpoint, "--output", "out")
    assert message in str(caught.value) and "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_missing_package_and_compiler(checkpoint, tmp_path, monkeypatch):
    argv = ["--checkpoint", checkpoint, "--output", tmp_path / "out"]
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(UserError, match="^aoti: needs a C.. compiler"):
        exported("aoti", *argv)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="^onnxscript: .* pip install onnx onnxscript$"):
        exported("onnx", *argv)
    assert not (tmp_path / "out").exists()


def test_one_format_that_fails_leaves_the_others(checkpoint, tmp_path, capsys):
    assert exported("onnx", "hub", "--opset", 30, "--checkpoint", checkpoint, "--output", tmp_path) == 2
    assert (
        capsys.readouterr().err
        == "error: onnx: --opset is 30, and can be 18 to 23; leave it out, or give one of them\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["fat_tiny_hub"]


def test_images_that_cannot_be_read_are_left_out(checkpoint, photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    (tmp_path / "broken.jpg").write_bytes(b"%PDF-1.4")
    (tmp_path / "notes.txt").write_text("no image")
    assert len(export_job.Job(load_trained(checkpoint), tmp_path, [tmp_path]).images) == len(list(photos.iterdir()))
    assert "broken.jpg" in capsys.readouterr().err
    with pytest.raises(DataError, match="none of them can be read"):
        export_job.Job(load_trained(checkpoint), tmp_path, [tmp_path / "broken.jpg"]).images


def test_as_a_command(tmp_path):
    done = run_program("scripts/export.py", "onnx", "--checkpoint", "none.pth", folder=tmp_path)
    assert (done.returncode, done.stdout) == (3, "") and not list(tmp_path.iterdir())
    assert done.stderr.splitlines()[-1].startswith("error: none.pth: ")


# OpenVINO


def compiled_alone(path: Path, **settings):
    """As a program without this project: the file, and what the JSON beside it says of settings."""
    openvino = pytest.importorskip("openvino")
    said = json.loads(Path(f"{path}.json").read_text())
    compiled = openvino.Core().compile_model(path, "CPU", {**said["settings"], **settings})
    return lambda images: compiled({"images": images.numpy()})["logits"]


@pytest.mark.own_process
def test_openvino_s_form(one_stage, tmp_path, capsys):
    """float32 on every processor; any number and size of images; the file says of itself how to use it."""
    openvino = pytest.importorskip("openvino")
    assert exported("openvino", "--checkpoint", one_stage, "--output", tmp_path, "--dynamic-size") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one_stage.bin", "one_stage.xml", "one_stage.xml.json"]
    beside = json.loads((tmp_path / "one_stage.xml.json").read_text())
    assert beside["precision"] == "float32" and beside["settings"] == {"INFERENCE_PRECISION_HINT": "f32"}
    compared = beside["compared"]
    assert 0 < compared["relative"] < 1e-4 and "3x3x75x49" in compared["shapes"]
    assert f"largest difference {compared['max_difference']:.3g}" in capsys.readouterr().out
    parameters = sum(parameter.numel() for parameter in load_trained(one_stage).model.parameters())
    assert (tmp_path / "one_stage.bin").stat().st_size > 0.9 * 4 * parameters  # none in 16 bits
    about = openvino.Core().read_model(tmp_path / "one_stage.xml").get_rt_info()["fat"]
    assert json.loads(about["classes"].value) == NAMES and json.loads(about["preprocessing"].value)["crop_size"] == 32
    run, model = compiled_alone(tmp_path / "one_stage.xml"), load_trained(one_stage).model
    for shape in ((1, 3, 32, 32), (5, 3, 40, 200)):
        images = torch.randn(shape)
        with torch.no_grad():
            assert close(run(images), model(images)), shape


@pytest.mark.own_process
def test_openvino_in_bfloat16_says_so(one_stage, tmp_path):
    pytest.importorskip("openvino")
    if not is_native_on_cpu(torch.bfloat16):
        with pytest.raises(UserError, match="^openvino: this processor has no bfloat16"):
            exported("openvino", "--precision", "bfloat16", "--checkpoint", one_stage, "--output", tmp_path)
        return
    assert exported("openvino", "--precision", "bfloat16", "--checkpoint", one_stage, "--output", tmp_path) == 0
    said = json.loads((tmp_path / "one_stage.xml.json").read_text())
    assert said["precision"] == "bfloat16" and said["settings"] == {"INFERENCE_PRECISION_HINT": "bf16"}
    assert said["compared"]["relative"] < 1e-4 < 1e-3 < said["compared"]["bfloat16"]["relative"] < 0.2
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = load_trained(one_stage).model(images)
    assert not close(compiled_alone(tmp_path / "one_stage.xml")(images), expected, 1e-3)
    assert close(compiled_alone(tmp_path / "one_stage.xml", INFERENCE_PRECISION_HINT="f32")(images), expected)


def test_openvino_that_is_missing_or_not_asked_for(one_stage, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="^--precision bfloat16: is for openvino; leave it out"):
        exported("onnx", "--precision", "bfloat16", "--checkpoint", one_stage, "--output", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match="^openvino: cannot be imported .* pip install openvino$"):
        exported("openvino", "--checkpoint", one_stage, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
