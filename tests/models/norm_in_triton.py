"""Run by test_norm.py in a process of its own, as Triton reads TRITON_INTERPRET when it is imported."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from models.layers import norm, norm_triton  # noqa: E402

TOLERANCES = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}


def compare(shape, dtype, out_dtype, affine, mean):
    """Forward and backward against torch in float64."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    x = (draw(*shape) + mean).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = (draw(shape[1]).requires_grad_() for _ in range(2)) if affine else (None, None)
    slopes = draw(*shape).to(out_dtype)
    inputs = [t for t in (x, weight, bias) if t is not None]
    y = norm_triton.group_norm(x, weight, bias, 1e-5, out_dtype)
    grads = torch.autograd.grad((y.float() * slopes.float()).sum(), inputs)
    assert y.dtype is out_dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert [g.dtype for g in grads] == [t.dtype for t in inputs]
    assert grads[0].is_contiguous(memory_format=torch.channels_last)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    expected = F.group_norm(doubles[0], 1, *(doubles[1:] or (None, None)), 1e-5)
    references = torch.autograd.grad((expected * slopes.double()).sum(), doubles)
    for ours, theirs in zip([y, *grads], [expected, *references], strict=True):
        error = (ours.double() - theirs).abs().max() / theirs.abs().max()
        assert error < max(TOLERANCES[dtype], TOLERANCES[out_dtype]), (shape, dtype, out_dtype, error)


def main():
    f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
    compare((3, 6, 5, 7), f32, f32, True, 0.0)
    compare((1, 80, 9, 11), f32, f32, False, 3.0)  # four parts
    compare((2, 48, 16, 12), bf16, bf16, True, 1.0)
    compare((2, 5, 1, 1), f16, f16, True, 0.0)
    compare((2, 32, 10, 10), f32, bf16, True, -2.0)  # before a convolution, under autocast
    compare((2, 32, 10, 10), bf16, f32, True, 0.0)  # else
    compare((1, 32, 12, 12), f32, f32, True, 100.0)  # sums of squares would lose what they are for
    norm.require_right_values(norm_triton.group_norm, torch.device("cpu"))
    norm_triton.PROGRAMS, norm_triton.BLOCK = 8, 64  # several blocks in each of several parts
    compare((2, 24, 9, 9), f32, f32, True, 0.5)
    compare((3, 3, 30, 30), bf16, bf16, False, 0.5)
    print("all equal")


if __name__ == "__main__":
    main()
