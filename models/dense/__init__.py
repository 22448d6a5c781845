"""Dense prediction: a backbone's maps at several strides, and what is built on them for segmentation.

Detection is in `models.detection`, which needs torchvision and is imported by whoever wants it.
"""

from .backbone import DenseBackbone, backbone_of
from .segmenter import SEGMENTERS, SemanticFPN, UperNet, create_segmenter

__all__ = ["DenseBackbone", "SEGMENTERS", "SemanticFPN", "UperNet", "backbone_of", "create_segmenter"]
