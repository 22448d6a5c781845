"""What is decided for a device: the arithmetic of float32, and which errors say that memory is used up."""

import pytest
import torch

import engine.session
from conftest import run
from utils.device import choose_arithmetic, is_out_of_memory, use_deterministic_algorithms

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def flags_as_before():
    """torch's flags are the process'."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.mark.parametrize("exact, deterministic, fixed_sizes, tf32, benchmark, said", [
    (False, False, True, True, True, "TF32 for float32, cuDNN's algorithms by trial"),
    (False, False, False, True, False, "TF32 for float32"),
    (True, False, True, False, True, "exact float32, cuDNN's algorithms by trial"),
    (False, True, True, False, False, "exact float32"),
])  # fmt: skip
def test_what_float32_is_on_a_gpu(exact, deterministic, fixed_sizes, tf32, benchmark, said):
    assert choose_arithmetic(GPU, exact, deterministic, fixed_sizes) == said
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is tf32
    assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if tf32 else "ieee")  # what the compiler reads
    assert torch.backends.cudnn.benchmark is benchmark


def test_nothing_is_decided_on_a_cpu():
    torch.backends.cudnn.benchmark = True
    assert choose_arithmetic(torch.device("cpu"), True, True, True) == "" and torch.backends.cudnn.benchmark


def test_deterministic_algorithms_do_not_fill_new_memory():
    use_deterministic_algorithms()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory and not torch.backends.cudnn.benchmark


def test_each_command_has_its_arithmetic(write_config, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(engine.session, "choose_arithmetic", lambda device, *how: asked.append(how) or "said so")
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    run("--cfg", path)
    assert "cpu | 1 process | said so | float32" in capsys.readouterr().out
    run("--cfg", path, "--eval", "--resume", path.parent / "output/fat_tiny/default/last.pth")
    assert "cpu | 1 process | said so | float32" in capsys.readouterr().out
    run("--cfg", path, "--check", "--opts", "TRAIN.IMG_SIZES", "[[0, 48]]", "TAG", "b")
    assert asked == [(False, False, True), (True, False, True), (False, False, False)]


@pytest.mark.parametrize("text", [
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory",
])  # fmt: skip
def test_errors_of_memory(text):
    assert is_out_of_memory(RuntimeError(text))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")) and is_out_of_memory(MemoryError())


def test_other_errors():
    assert not is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"))
