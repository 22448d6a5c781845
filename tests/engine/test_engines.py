"""Other engines than torch: the same counts, and one line for what they do not do."""

import importlib
import json
import sys

import pytest
import timm
import torch

from conftest import ONE_STAGE, SMALLEST, error_of, launch, rest, run
from engine.inference.engines import EXPORTING, InferenceEngine, open_engine, require_engine
from engine.inference.engines.openvino_engine import OpenVinoEngine
from engine.inference.engines.tracing import trace
from engine.setup.precision import NativePrecision
from known_weights import realistic
from models.fuse import is_native_on_cpu
from near import same_figures
from utils.errors import ConfigError

CPU = torch.device("cpu")
PACKAGES = {"torch": ["torch"], "onnxruntime": ["onnx", "onnxscript", "onnxruntime"], "openvino": ["openvino"]}
OTHERS = list(EXPORTING)
pytestmark = pytest.mark.own_process


def require(engine: str) -> None:
    for package in PACKAGES[engine]:
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Raw and averaged weights that differ."""
    path = tmp_path_factory.mktemp("weights") / "x.pth"
    raw = realistic("fat_b0", num_classes=3, **ONE_STAGE["FAT"])
    ema = timm.create_model("fat_b0", num_classes=3, **ONE_STAGE["FAT"])
    torch.save({"model": raw.state_dict(), "ema": ema.state_dict(), "classes": ["0", "1", "2"]}, path)
    return path


def result(tmp_path):
    return json.loads((tmp_path / "output/one_stage/default/eval.json").read_text())


@pytest.mark.parametrize("engine", ["onnxruntime", rest("openvino")])
def test_the_counts_are_torch_s(engine, write_config, tmp_path, checkpoint):
    """Of raw and averaged weights, with views, in batches of which the last is smaller, by two processes."""
    require(engine)
    path = write_config(MODEL=ONE_STAGE, TEST={"CROPS": 5, "FLIP": True})
    run("--cfg", path, "--eval", "--resume", checkpoint)
    expected = result(tmp_path)
    assert expected["raw"] != expected["ema"] and expected["engine"] == "torch" and not expected["fused"]
    launch(2, "--cfg", path, "--eval", "--resume", checkpoint, "--engine", engine)
    found = result(tmp_path)
    assert (found["engine"], found["fused"], found["precision"]) == (engine, True, "float32")
    for name in ("raw", "ema"):
        assert same_figures(found[name], expected[name])


@pytest.mark.parametrize("name, engine", [
    ("fat_b0", "onnxruntime"), ("resnet10t", "openvino"), rest("fat_b0", "openvino"), rest("resnet10t", "onnxruntime"),
])  # fmt: skip
def test_logits_are_the_model_s(name, engine):
    """Of any number of images, whatever their layout in memory; a distilled FAT's two heads are one."""
    require(engine)
    model = (
        realistic("fat_b0", num_classes=3, distilled=True, **SMALLEST)
        if name == "fat_b0"
        else timm.create_model(name, num_classes=3)
    )
    model.eval()
    opened: InferenceEngine = open_engine(engine, model, NativePrecision(CPU, None), 32)
    assert opened.name == engine
    for count in (1, 5, 2):
        images = torch.randn(count, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            expected = model(images)
            assert (opened(images) - expected).abs().max() < 1e-4 * expected.std(correction=0)


@pytest.mark.skipif(not is_native_on_cpu(torch.bfloat16), reason="this processor has no bfloat16")
def test_openvino_in_bfloat16():
    """It rounds, which it would do by itself on such a processor, and does not where float32 is asked for."""
    require("openvino")
    model, images = realistic("fat_b0", num_classes=3, **ONE_STAGE["FAT"]).eval(), torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        expected = model(images)
        gaps = {}
        for dtype in (None, torch.bfloat16):
            opened = open_engine("openvino", model, NativePrecision(CPU, dtype), 32)
            gaps[opened.precision] = ((opened(images) - expected).abs().max() / expected.std(correction=0)).item()
    assert gaps["float32"] < 1e-4 < 1e-3 < gaps["bfloat16"] < 0.2


@pytest.mark.parametrize("engine", ["onnxruntime", rest("openvino")])
def test_predictions_are_torch_s(engine, checkpoint, write_config, digits, tmp_path):
    require(engine)
    predict = importlib.import_module("predict")
    images = [str(path) for path in sorted(digits.glob("val/*/*"))[:7]]
    found = {}
    for name in ("torch", engine):
        argv = [
            "--checkpoint",
            str(checkpoint),
            "--cfg",
            str(write_config(MODEL=ONE_STAGE)),
            "--json",
            str(tmp_path / "found.json"),
        ]
        assert (
            predict.main([*images, *argv, "--engine", name, "--batch-size", "3", "--topk", "3", "--weights", "raw"])
            == 0
        )
        found[name] = json.loads((tmp_path / "found.json").read_text())
    assert found[engine]["engine"] == engine and found[engine]["fused"] and not found["torch"]["fused"]
    for a, b in zip(found["torch"]["images"], found[engine]["images"], strict=True):
        assert [p["class"] for p in a["top"]] == [p["class"] for p in b["top"]]
        assert [p["probability"] for p in a["top"]] == pytest.approx([p["probability"] for p in b["top"]], abs=1e-5)


@pytest.mark.parametrize("engine", ["openvino", rest("onnxruntime")])
def test_throughput_says_what_ran(engine, write_config, capsys):
    require(engine)
    run("--cfg", write_config(MODEL=ONE_STAGE), "--throughput", "--engine", engine)
    printed = capsys.readouterr().out
    assert (
        f"cpu | 1 process | float32 | fused | {engine}, exported in memory | batch 8" in printed
        and "images/s" in printed
    )


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("command", ["--eval", "--throughput"])
def test_a_missing_package_is_one_line(engine, command, write_config, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[engine][-1], None)
    argv = [
        "--cfg",
        write_config(MODEL=ONE_STAGE),
        command,
        "--engine",
        engine,
        *["--resume", checkpoint] * (command == "--eval"),
    ]
    message = str(error_of(*argv))
    assert message.startswith(f"{engine}: cannot be imported") and message.endswith(
        f"pip install {' '.join(PACKAGES[engine])}"
    )


def test_what_an_engine_does_not_do():
    precision = NativePrecision(CPU, None)
    require_engine("torch", torch.device("cuda", 0), precision)
    with pytest.raises(
        ConfigError, match="^--engine onnxruntime: computes on the CPU here, .* cuda:0; set DEVICE to cpu"
    ):
        require_engine("onnxruntime", torch.device("cuda", 0), precision)
    require("onnxruntime")

    class Branching(torch.nn.Module):
        def forward(self, images):
            return images.sum((2, 3)) if images.sum() > 0 else images.mean((2, 3))

    with pytest.raises(ConfigError, match="^--engine onnxruntime: Branching cannot be used in it .*; use torch$"):
        open_engine("onnxruntime", Branching(), precision, 32)


def test_bfloat16_that_would_be_emulated_is_refused(monkeypatch):
    require("openvino")
    import openvino

    class WithoutBfloat16:
        def get_property(self, device, name):
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "Core", WithoutBfloat16)
    require_engine("openvino", CPU, NativePrecision(CPU, None))
    with pytest.raises(ConfigError, match="^openvino: this processor has no bfloat16, and it would be emulated; use"):
        require_engine("openvino", CPU, NativePrecision(CPU, torch.bfloat16))


def test_threads_are_torch_s():
    """Several processes share the cores; none is pinned to the first ones."""
    require("openvino")
    import openvino

    program = trace(torch.nn.Flatten(), 4)
    engine = OpenVinoEngine(openvino.convert_model(program))
    compiled = engine.request((5, 3, 4, 4)).get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert list(compiled.input(0).shape) == [5, 3, 4, 4]
    for count in range(1, 9):
        engine.request((count, 3, 4, 4))
    assert list(engine.requests) == [(count, 3, 4, 4) for count in range(5, 9)]


def test_with_avx2_only_openvino_has_other_kernels_and_parts(monkeypatch):
    """The values are the same. Grouped convolutions, which have no such kernel, keep OpenVINO's choice."""
    require("openvino")
    engines = importlib.import_module("engine.inference.engines.openvino_engine")
    depthwise, grouped = torch.nn.Conv2d(16, 16, 5, padding=2, groups=16), torch.nn.Conv2d(16, 16, 3, groups=2)
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 1), depthwise, grouped).eval()
    source = engines.to_openvino(trace(model, 8, in_chans=16))
    images = torch.randn(4 * torch.get_num_threads() + 1, 16, 8, 8)
    kernels, shapes = {}, {}
    for avx2_only in (False, True):
        monkeypatch.setattr(engines, "has_avx2_only", lambda: avx2_only)
        opened = OpenVinoEngine(source)
        with torch.inference_mode():
            assert torch.allclose(opened(images), model(images), atol=1e-5)
        shapes[avx2_only] = [shape[0] for shape in opened.requests]
        compiled = opened.request(tuple(images.shape)).get_compiled_model().get_runtime_model()
        infos = [layer.get_rt_info() for layer in compiled.get_ordered_ops()]
        kernels[avx2_only] = [i["primitiveType"].value for i in infos if i["layerType"].value == "Convolution"]
    assert shapes == {False: [len(images)], True: [len(images) - 1, 1]}
    expected = {"AVX2": "jit_avx2_dw_f32", "AVX512": "brgconv_avx512_dw_f32"}  # of others nothing is known
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in expected:
        assert kernels[True] == [kernels[False][0], expected[capability], kernels[False][2]]
