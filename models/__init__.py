"""FAT models; importing this package registers fat_tiny, fat_small and fat_b0 .. fat_b3 with timm."""

from . import fat  # noqa: F401  (registers the models)
from .dense import DenseBackbone, backbone_of, create_segmenter
from .fat import FAT, FATFeatures
from .fuse import FusedFAT, fuse
from .layers import FASA
from .released import load_released_state_dict

__all__ = [
    "FAT", "FASA", "FATFeatures", "FusedFAT", "DenseBackbone", "backbone_of", "create_segmenter", "fuse", "load_released_state_dict",
]  # fmt: skip
