"""The classes of an image's pixels, from one view of it or several."""

import functools
from dataclasses import dataclass
from typing import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F

from data.segmentation_transforms import fitted_size
from utils.image_size import Size, height_and_width

Segmenting = Callable[[torch.Tensor], torch.Tensor]  # (1, 3, H, W) -> logits (1, C, H, W)


@dataclass(frozen=True)
class DenseInference:
    """How a segmentation model sees an image of any size, as mmseg's whole and slide modes do.

    The image is resized to fit into `scale` times each of the factors. The logits of a view are resized to the image's own
    size; where there are several views, the mean of their probabilities counts.
    """

    scale: Sequence[int]  # longer and shorter side, px
    factors: Sequence[float] = (1.0,)
    flip: bool = False  # whether the mirror image of each view is one more
    window: Size = 0  # of the windows; 0: the view whole
    stride: Size = 0  # px from a window to the next, down and across

    def classes(self, model: Segmenting, image: torch.Tensor) -> torch.Tensor:
        """The likeliest class of each pixel of an image (3, H, W): (H, W), int64."""
        size = image.shape[1:]
        views = len(self.factors) * (2 if self.flip else 1)
        if views == 1:
            (logits,) = self._logits(model, image)
            return at_image_size(logits, size).argmax(0)
        probabilities = (at_image_size(logits, size).softmax(0) for logits in self._logits(model, image))
        return functools.reduce(torch.add, probabilities).argmax(0)

    def _logits(self, model: Segmenting, image: torch.Tensor) -> Iterator[torch.Tensor]:
        """Of each view: (C, h, w), float32."""
        height, width = image.shape[1:]
        for factor in self.factors:
            size = fitted_size(height, width, [side * factor for side in self.scale])
            view = image[None]
            if size != (height, width):
                view = F.interpolate(view, size, mode="bilinear", align_corners=False, antialias=True)
            yield self._of_view(model, view)
            if self.flip:
                yield self._of_view(model, view.flip(3)).flip(2)

    def _of_view(self, model: Segmenting, view: torch.Tensor) -> torch.Tensor:
        if not self.window:
            return model(view)[0].float()
        height, width = view.shape[2:]
        window_height, window_width = height_and_width(self.window)
        sides = zip((height, width), (window_height, window_width), height_and_width(self.stride))
        tops, lefts = (starts(length, window, stride) for length, window, stride in sides)
        total, seen = torch.zeros(()), torch.zeros(height, width, device=view.device)
        for top in tops:
            for left in lefts:
                rows, columns = slice(top, top + window_height), slice(left, left + window_width)
                logits = model(view[:, :, rows, columns])[0].float()
                if not total.ndim:  # the first window says how many classes there are
                    total = logits.new_zeros(len(logits), height, width)
                total[:, rows, columns] += logits
                seen[rows, columns] += 1
        return total / seen


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side, so that they cover it; the last one ends with the side."""
    last = max(length - window, 0)
    return [min(i * stride, last) for i in range(-(-last // stride) + 1)]


def at_image_size(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Logits (C, h, w) as (C, *size), bilinearly."""
    if tuple(logits.shape[1:]) == tuple(size):
        return logits
    return F.interpolate(logits[None], tuple(size), mode="bilinear", align_corners=False)[0]
