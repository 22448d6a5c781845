"""Anchor boxes."""

from typing import Sequence

import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

RATIOS = (0.5, 1.0, 2.0)  # height over width


class StridedAnchors(AnchorGenerator):
    """Anchors on a grid of each level's own stride, with sides that are not rounded.

    torchvision's rounds the sides, and takes the size of the padded image over the map's for the stride, which is 114 px
    and not 128 px where the coarsest map of an image of 800 px has been rounded up.

    Args:
        strides: of the levels, px.
        scales: side of a square anchor over the stride, one anchor of each ratio for each.
    """

    def __init__(self, strides: Sequence[int], scales: Sequence[float]):
        super().__init__(
            sizes=tuple(tuple(stride * scale for scale in scales) for stride in strides),
            aspect_ratios=(RATIOS,) * len(strides),
        )
        self.strides = tuple(strides)

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),
    ) -> torch.Tensor:
        sides = torch.as_tensor(scales, dtype=dtype, device=device)
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        widths, heights = (sides / roots[:, None]).flatten(), (sides * roots[:, None]).flatten()
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """For each image the anchors of all levels, (N, 4), at least float32."""
        dtype = torch.promote_types(feature_maps[0].dtype, torch.float32)
        self.set_cell_anchors(dtype, feature_maps[0].device)
        sizes = [one.shape[-2:] for one in feature_maps]
        anchors = torch.cat(self.grid_anchors(sizes, [(stride, stride) for stride in self.strides]))
        return [anchors] * len(image_list.image_sizes)
