"""LN on GPUs: the Triton kernel, run by Triton's interpreter, and when torch's operators take its place."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

import models  # noqa: F401
from models.layers import LayerNorm, norm

CPU = torch.device("cpu")


def test_the_kernel_gives_torch_s_values_and_gradients():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("norm_in_triton.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "all equal\n", done.stderr[-3000:]


@pytest.fixture
def fresh():
    norm.find_kernel.cache_clear()
    yield
    norm.find_kernel.cache_clear()


def found(device=CPU):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return norm.find_kernel(device), [str(warning.message) for warning in caught]


def test_what_is_in_the_way_is_said_once(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "models.layers.norm_triton", None)
    kernel, said = found()
    assert kernel is None and len(said) == 1 and said[0].startswith("FAT's norm is computed by torch's operators")
    assert found() == (None, [])


def test_a_kernel_with_other_values_is_not_used(fresh, monkeypatch):
    def wrong(x, weight, bias, eps, dtype):
        return 1.01 * F.group_norm(x, 1, weight, bias, eps)

    monkeypatch.setitem(sys.modules, "models.layers.norm_triton", type("Module", (), {"group_norm": wrong}))
    kernel, said = found()
    assert kernel is None and "away from torch's norm on cpu" in said[0]


def test_a_kernel_with_the_same_values_is_used_and_nothing_is_drawn(fresh, monkeypatch):
    def right(x, weight, bias, eps, dtype):
        return F.group_norm(x, 1, weight, bias, eps)

    monkeypatch.setitem(sys.modules, "models.layers.norm_triton", type("Module", (), {"group_norm": right}))
    before = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):  # as --eval may come to it first
        assert found() == (right, [])
    assert torch.equal(torch.get_rng_state(), before)


def test_it_can_be_left_out(fresh, monkeypatch):
    monkeypatch.setenv("FAT_TRITON", "0")
    assert found() == (None, [])


def test_only_maps_that_the_kernel_knows_go_to_it(monkeypatch):
    monkeypatch.setattr(norm, "find_kernel", lambda device: "kernel")
    x = torch.zeros(2, 3, 4, 4)
    assert norm.kernel_for(x) == norm.kernel_for(x.half()) == "kernel"
    assert norm.kernel_for(x.double()) is norm.kernel_for(x[:0]) is None
    assert norm.kernel_for(torch.nn.Parameter(x)) is None  # nor any other kind of tensor
    seen = []
    torch.func.vmap(lambda row: seen.append(norm.kernel_for(row)) or row)(x)
    assert seen == [None]


def test_convolutions_read_16_bits_under_autocast():
    """Those of the blocks; the stem's and the last norm stay in float32, which residuals and the head read."""
    x = torch.zeros(1, 2, 3, 3)
    assert norm.result_dtype(x.half(), True) is norm.result_dtype(x.half(), False) is torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert (norm.result_dtype(x, True), norm.result_dtype(x, False)) == (torch.bfloat16, torch.float32)
    model = timm.create_model("fat_tiny")
    wide = {name for name, m in model.named_modules() if isinstance(m, LayerNorm) and not m.before_convolution}
    assert wide == {"patch_embed.layernorm", "norm"}


SIGNATURES = {  # (pointers by their type, constants); the others are int32, eps float32
    "moments_kernel": ({"x": "x", "parts": "*fp32"}, {"BLOCK": 2048}),
    "normalise_kernel": (
        {"x": "x", "y": "y", **dict.fromkeys(["weight", "bias", "parts", "stats"], "*fp32")},
        {"AFFINE": True, "PARTS": 8, "BLOCK": 2048},
    ),
    "sums_kernel": ({"grad": "y", "x": "x", "stats": "*fp32", "sums": "*fp32"}, {"ROWS": 16, "CHANNELS": 128}),
    "input_gradient_kernel": (
        {"grad": "y", "x": "x", "grad_x": "x", **dict.fromkeys(["weight", "stats", "terms"], "*fp32")},
        {"AFFINE": True, "BLOCK": 2048},
    ),
}


@pytest.mark.parametrize("x, y, capability", [("*bf16", "*bf16", 90), ("*fp32", "*bf16", 80)])
@pytest.mark.parametrize("name", SIGNATURES)
def test_the_kernels_compile_for_gpus(name, x, y, capability, monkeypatch, tmp_path):
    """Down to machine code, for which no GPU is needed; the interpreter takes more than the compiler does."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from models.layers import norm_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel, (pointers, constants) = getattr(norm_triton, name), SIGNATURES[name]
    kinds = {argument: {"x": x, "y": y}.get(kind, kind) for argument, kind in pointers.items()}
    others = {"eps": "fp32", **dict.fromkeys(constants, "constexpr")}
    signature = {argument: kinds.get(argument, others.get(argument, "i32")) for argument in kernel.arg_names}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
