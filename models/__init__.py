"""FAT models; importing this package registers fat_tiny, fat_small and fat_b0 .. fat_b3 with timm."""

from . import fat  # noqa: F401  (registers the models)
from .fat import FAT
from .layers import FASA
from .released import load_released_state_dict

__all__ = ["FAT", "FASA", "load_released_state_dict"]
