"""Random erasing of a whole batch at once, as on GPUs: the pixels of one box after the other."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data.batches import erase_in_turn, erase_together
from utils.rng import seed_all


def batch_with(boxes, shape=(6, 3, 20, 24), memory_format=torch.channels_last):
    """Images, boxes with the sizes of their fills, and the fills."""
    seed_all(len(boxes))
    images = torch.randn(shape).contiguous(memory_format=memory_format)
    return images, boxes, torch.randn(sum(3 * box[5] * box[6] for box in boxes))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("boxes", [
    [(0, 0, 0, 20, 24, 20, 24)],  # a whole image
    [(1, 2, 3, 4, 5, 4, 5), (3, 0, 7, 9, 1, 9, 1), (5, 19, 23, 1, 1, 1, 1)],
    [(2, 2, 3, 8, 5, 1, 1), (4, 0, 7, 9, 3, 1, 1)],  # of one colour each
    [(2, 2, 3, 8, 8, 8, 8), (2, 5, 5, 9, 9, 9, 9), (2, 0, 6, 10, 4, 1, 1), (4, 1, 1, 3, 3, 3, 3)],  # one over the other
    [],
])  # fmt: skip
def test_all_boxes_at_once_have_the_same_pixels(boxes, memory_format):
    images, boxes, fills = batch_with(boxes, memory_format=memory_format)
    expected, before = images.clone(), images.clone()
    erase_in_turn(expected, boxes, fills)
    erase_together(images, boxes, fills)
    assert torch.equal(images, expected) and torch.equal(images, before) is not bool(boxes)


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += 1
        return function(*args, **(kwargs or {}))


def test_more_boxes_take_no_more_operators():
    counts = []
    for number in (1, 100):
        images, boxes, fills = batch_with([(i, 1, 2, 3, 4, 3, 4) for i in range(number)], shape=(100, 3, 8, 8))
        with Operators() as operators:
            erase_together(images, boxes, fills)
        counts.append(operators.number)
    assert counts[1] <= counts[0] < 60, counts
