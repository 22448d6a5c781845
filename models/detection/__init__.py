"""RetinaNet and Mask R-CNN of torchvision's parts, set to the paper's (mmdet's) values; needs torchvision, as timm does."""

from .detector import DETECTORS, create_detector
from .mask_rcnn import MaskRCNN
from .retinanet import RetinaNet

__all__ = ["DETECTORS", "MaskRCNN", "RetinaNet", "create_detector"]
