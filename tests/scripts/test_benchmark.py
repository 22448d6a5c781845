"""scripts/benchmark.py: every candidate is timed, and the results say so."""

import csv
import math
import re

import pytest
import timm
import torch
from matplotlib.axes import Axes

import benchmark
from conftest import ONE_STAGE, SMALLEST, let_fat_tiny_be
from parts.benchmark import speed_report, turns
from parts.benchmark.candidates import Candidate, inference_candidates
from utils.errors import ConfigError


def test_every_form_has_a_figure(tmp_path, monkeypatch):
    let_fat_tiny_be(monkeypatch, SMALLEST)
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: False)
    benchmark.main(
        ["--models", "fat_tiny", "--peers", "test_efficientnet", "--rounds", "2", "--seconds", "0.001", "--img-size", "96", "--threads", "1",
         "--batch-sizes", "1", "2", "--train-batch-sizes", "4", "--precisions", "float32", "--compile-mode", "", "--device", "cpu",
         "--output", str(tmp_path / "new" / "figures")]
    )  # fmt: skip
    with open(tmp_path / "new" / "figures.csv") as file:
        rows = list(csv.DictReader(file))
    forms = ["plain", "eager NCHW", "eager NHWC", "fused"]
    for batch_size in "12":
        own = [row for row in rows if (row["task"], row["batch_size"]) == ("inference", batch_size)]
        assert [row["form"] for row in own] == forms and own[0]["ratio_to_plain_float32"] == "1.0"
    train = {row["form"]: row for row in rows if row["task"] == "train"}
    assert list(train) == ["plain", "eager NCHW", "eager NHWC", "activation checkpointing"]
    memory = {form: float(row["memory_mib"]) for form, row in train.items()}
    assert memory["activation checkpointing"] < 0.65 * memory["plain"] and memory["eager NHWC"] <= memory["plain"]
    assert {row["model"] for row in rows if "peers" in row["task"]} == {"fat_tiny", "test_efficientnet"}
    for row in rows:
        low, middle, high = (float(row[key]) for key in ("lower_quartile", "images_per_second", "upper_quartile"))
        assert 0 < low <= middle <= high < math.inf
    text = (tmp_path / "new" / "figures.md").read_text()
    assert torch.__version__ in text and text.count("| fat_tiny | fused |") == 4


def test_a_gpu_s_candidates_have_their_own_memory_and_their_first_call(monkeypatch):
    """On a pretended GPU: others wait there with their tensors, and the first call is what compiles."""
    gpu, now, clock, MIB = torch.device("cuda", 0), {"held": 0, "peak": 0}, [0.0], 2**20
    for name, function in {
        "memory_allocated": lambda device: now["held"],
        "max_memory_allocated": lambda device: now["peak"],
        "reset_peak_memory_stats": lambda device: now.update(peak=now["held"]),
        "synchronize": lambda device: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])

    def candidate(mib):
        """A model of so many MiB, whose optimizer's state takes as much from the first call on, its activations 10 times."""
        model, calls = torch.nn.Linear(MIB // 4, mib, bias=False), []

        def run():
            calls.append(1)
            if len(calls) == 1:
                clock[0] += 50
                now["peak"] = now["held"] + 1000 * MIB  # what the compiler tries
                now["held"] += mib * MIB
            clock[0] += 1
            now["peak"] = max(now["peak"], now["held"] + 10 * mib * MIB)

        run.parts = (model,)
        now["held"] += mib * MIB
        return Candidate("model", "form", "float32", run)

    candidates = [candidate(2), candidate(3)]
    for each in candidates:
        turns.warm_up(each, gpu, with_memory=True)
    assert [each.memory_mib for each in candidates] == [12 * 2, 12 * 3]
    assert [each.first_seconds for each in candidates] == [51, 51]


@pytest.mark.own_process
def test_other_engines_take_turns_with_torch(monkeypatch):
    let_fat_tiny_be(monkeypatch, ONE_STAGE["FAT"])
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    candidates = list(
        inference_candidates(
            ["fat_tiny", "test_efficientnet"], torch.randn(2, 3, 32, 32), ["float32"], "", ["onnxruntime", "openvino"]
        )
    )
    assert [c.form for c in candidates if c.model == "fat_tiny"][-3:] == [
        "fused",
        "fused, onnxruntime",
        "fused, OpenVINO",
    ]
    assert [c.form for c in candidates if c.model != "fat_tiny"][-2:] == ["exported, onnxruntime", "exported, OpenVINO"]
    for name in ("fat_tiny", "test_efficientnet"):
        expected, *others = [c.run() for c in candidates if c.model == name]
        for logits in others:
            assert (logits - expected).abs().max() < 1e-3 * expected.std()


def test_the_picture_has_the_published_models(tmp_path, monkeypatch):
    rows = [
        {
            "task": "inference" + " beside peers" * (name != "fat_b0"),
            "batch_size": 16,
            "model": name,
            "form": "eager NHWC",
            "precision": "float32",
            "images_per_second": speed,
        }
        for speed, name in enumerate(["fat_b0", "pvt_v2_b0", "swin_tiny_patch4_window7_224"], start=10)
    ]
    points = []
    scatter = Axes.scatter
    monkeypatch.setattr(
        Axes, "scatter", lambda axes, x, y, **how: points.extend(zip(x, y)) or scatter(axes, x, y, **how)
    )
    speed_report.draw(tmp_path / "picture.png", rows, ["today", "here"])
    assert sorted(points) == [(10, 77.6), (11, 70.654), (12, 81.388)] and (tmp_path / "picture.png").exists()
    with open(speed_report.PUBLISHED) as file:
        published = list(csv.DictReader(file))
    assert all(timm.is_model(row["model"]) and row["source"] and 60 < float(row["top1"]) < 90 for row in published)
    # has no published row
    assert {*benchmark.FATS, *benchmark.PEERS} - {row["model"] for row in published} == {"repvit_m1"}


@pytest.mark.parametrize("argv, message", [
    (["--peers", "no_such_model"], "--peers: no_such_model is unknown to timm"),
    (["--models", "resnet50"], "invalid choice: 'resnet50'"),
    (["--rounds", "0"], "must be 1 or greater"),
    (["--device", "cuda"], "torch sees no GPU"),
    (["--seconds", "nan"], "--seconds: nan"),
    (["--compile-mode", "fast"], "invalid choice: 'fast'"),
    (["--img-size", "64"], "takes images of 224 px only"),
    (["--output", "/proc/none/figures"], "--output: /proc/none"),
    (["--device", "cpu", "--precisions", "float16", "--engines", "openvino"], "--engines: compute in float32 or bfloat16"),
    (["--device", "cuda", "--engines", "openvino"], "torch sees no GPU"),
])  # fmt: skip
def test_refused(argv, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(benchmark, "is_native_on_cpu", lambda dtype: True)
    with pytest.raises(ConfigError, match=re.escape(message)):
        benchmark.main(argv)
