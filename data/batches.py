"""Batches: uint8 from the workers, float32 and normalised on the device.

A worker sends a quarter of the bytes that it would send as float32, and the device does the arithmetic. What random
erasing fills its boxes with is drawn in the worker, image by image, so that it stays a function of the image's seed;
it is laid over the normalised batch. On the CPU the result has the bits of torchvision's `ToTensor` and `Normalize` and
timm's `RandomErasing`, one image at a time.
"""

import itertools
from collections import Counter, defaultdict
from typing import Any, Callable, NamedTuple, Optional, Sequence, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from utils.device import map_tensors, to_device
from utils.image_size import Size, height_and_width

from .sample import Sample


class Erasure(NamedTuple):
    """A box of a normalised image and its new content."""

    top: int
    left: int
    height: int
    width: int
    fill: torch.Tensor  # float32 (C, height, width), or (C, 1, 1) for a single colour


class Picture(NamedTuple):
    """An image as a worker leaves it."""

    pixels: np.ndarray  # uint8 (H, W, 3); of other images than RGB float32 (H, W, C), see `data.bands`
    erasures: tuple[Erasure, ...] = ()


class Item(NamedTuple):
    """A sample, and what could not be read on the way to it."""

    sample: Optional[Sample]
    failures: tuple[str, ...] = ()


class Batch(NamedTuple):
    """What workers send. The erasures of all images lie in two parts, so that two tensors go to the device, not dozens.

    Images are uint8 with 3 channels; other ones than RGB are float32 with C. Where an image has V views, images[v * B + b] is view v of image b. Where images have sizes of their own, `images` is a
    list of B tensors, uint8 (3, H, W).
    """

    images: Union[torch.Tensor, list[torch.Tensor]]  # uint8 (V * B, 3, H, W), channels last in memory
    targets: Any  # of the B images, as collated: of labels int64 (B,); tensors at any depth
    keys: list[str]  # of the B images, see `Sample`
    # per erasure: image in the batch, top, left, height, width, height and width of its fill
    boxes: Sequence[tuple[int, ...]] = ()
    fills: torch.Tensor = torch.empty(0)  # float32 (n,), the erasures' fills one after the other

    @property
    def tensor(self) -> torch.Tensor:
        """The images, where they all have one size."""
        assert isinstance(self.images, torch.Tensor)
        return self.images


def collate_pictures(samples: Sequence[Sample], collate_targets: Callable[[list[Any]], Any] = default_collate) -> Batch:
    """The batch of samples with a `Picture`, or several views, of one size.

    Args:
        collate_targets: B targets -> tensors, which may lie in tuples, lists and dictionaries, at any depth.
    """
    views = [(sample.image,) if isinstance(sample.image, Picture) else sample.image for sample in samples]
    pictures = [picture for view in zip(*views, strict=True) for picture in view]
    erasures = [(i, *erasure) for i, picture in enumerate(pictures) for erasure in picture.erasures]
    return Batch(
        images=default_collate([torch.from_numpy(picture.pixels) for picture in pictures]).permute(0, 3, 1, 2),
        targets=collate_targets([sample.target for sample in samples]),
        keys=[sample.key for sample in samples],
        boxes=[(*box, *fill.shape[1:]) for *box, fill in erasures],
        fills=torch.cat([fill.flatten() for *_, fill in erasures]) if erasures else torch.empty(0),
    )


def collate_lists(samples: Sequence[Sample]) -> Batch:
    """The batch of samples with a `Picture`, each of a size of its own, and targets that stay a list."""
    return Batch(
        images=[torch.from_numpy(sample.image.pixels).permute(2, 0, 1) for sample in samples],
        targets=[sample.target for sample in samples],
        keys=[sample.key for sample in samples],
    )


def collate_items(
    items: Sequence[Item], collate: Callable[[Sequence[Sample]], Batch] = collate_pictures
) -> tuple[Optional[Batch], list[str]]:
    """The batch of the items' samples, None if there are none, and all failures."""
    failures = [text for item in items for text in item.failures]
    samples = [item.sample for item in items if item.sample is not None]
    return collate(samples) if samples else None, failures


class Examples(NamedTuple):
    """A batch on the device."""

    images: Union[torch.Tensor, list[torch.Tensor]]  # float32 (V * B, 3, H, W), normalised; or a list, see `Batch`
    targets: Any  # see `Batch`
    keys: list[str]

    @property
    def tensor(self) -> torch.Tensor:
        """The images, where they all have one size."""
        assert isinstance(self.images, torch.Tensor)
        return self.images


def resize_examples(batch: Examples, size: Size) -> Examples:
    """The batch with images of another size, for rehearsals, in which the pixels do not matter."""
    sides = height_and_width(size)
    return batch if batch.tensor.shape[2:] == sides else batch._replace(images=F.interpolate(batch.tensor, sides))


def erase_in_turn(images: torch.Tensor, boxes: Sequence[tuple[int, ...]], fills: torch.Tensor) -> None:
    """Lays the fills over the images, box by box, as `Batch` has them."""
    start = 0
    for i, top, left, height, width, *shape in boxes:
        channels = images.shape[1]
        fill = fills[start : start + channels * shape[0] * shape[1]].view(channels, *shape)
        images[i, :, top : top + height, left : left + width] = fill
        start += fill.numel()


def erase_together(images: torch.Tensor, boxes: Sequence[tuple[int, ...]], fills: torch.Tensor) -> None:
    """The same in a number of operators that does not depend on the number of boxes, for GPUs: value by value, each with
    its place in the images and in the fills. Boxes of one image, which may lie over one another, come in turns.
    """
    channels = images.shape[1]
    starts = itertools.accumulate((channels * box[5] * box[6] for box in boxes), initial=0)
    turns: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    seen: Counter[int] = Counter()  # boxes of each image
    for box, first_value in zip(boxes, starts):
        turns[seen[box[0]]].append((*box, first_value))
        seen[box[0]] += 1
    for rows in turns.values():
        sizes = [channels * height * width for _, _, _, height, width, *_ in rows]
        firsts = itertools.accumulate(sizes[:-1], initial=0)
        table = torch.tensor([(*row, first, size) for row, first, size in zip(rows, firsts, sizes)])
        table = table.to(images.device, non_blocking=True)
        # With the length known, nothing waits for the device.
        table = table.repeat_interleave(table[:, -1], dim=0, output_size=sum(sizes))  # a row for each value
        image, top, left, height, width, fill_height, fill_width, start, first, _ = table.unbind(1)
        inside = torch.arange(len(table), device=images.device) - first
        channel, y, x = inside // (height * width), inside // width % height, inside % width
        # a fill is as large as its box, or a single pixel
        source = start + (channel * fill_height + y % fill_height) * fill_width + x % fill_width
        images[image, channel, top + y, left + x] = fills[source]


class Finish:
    """Makes a `Batch` what a model takes, `Examples`, on the device.

    Args:
        mean, std: of the normalisation, a number for each channel, for pixels between 0 and 1 or as floats are.
        device: where the batch goes.
        channels_last: the images' memory format there.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device, channels_last: bool = False):
        self.device = device
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # A tensor, as CUDA would multiply by the reciprocal of a plain number, which rounds differently.
        self.levels = torch.tensor(255.0, device=device)
        self.mean, self.std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, batch: Batch) -> Examples:
        images, fills, targets = to_device([batch.images, batch.fills, batch.targets], self.device)
        images = map_tensors(images, self._normalised)
        if batch.boxes:
            erase = erase_together if images.is_cuda else erase_in_turn
            erase(images, batch.boxes, fills)
        return Examples(images, targets, batch.keys)

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (..., 3, H, W), or float32 (..., C, H, W) -> float32."""
        memory_format = self.memory_format if images.ndim == 4 else torch.contiguous_format
        floats = images.to(torch.float32, memory_format=memory_format, copy=True)
        if images.dtype == torch.uint8:
            floats.div_(self.levels)
        return floats.sub_(self.mean).div_(self.std)
