"""The region proposal network."""

import torch
import torch.nn.functional as F
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from .anchors import StridedAnchors
from .trainable import keep_float32

STRIDES = (4, 8, 16, 32, 64)
SCALE = 8  # side of a square anchor over the stride


class FloorMatcher(Matcher):
    """A box that no anchor reaches the upper threshold for takes its best anchors only if they overlap it by `floor` at least."""

    def __init__(self, high_threshold: float, low_threshold: float, floor: float):
        super().__init__(high_threshold, low_threshold, allow_low_quality_matches=True)
        self.floor = floor

    def set_low_quality_matches_(
        self, matches: torch.Tensor, all_matches: torch.Tensor, match_quality_matrix: torch.Tensor
    ) -> None:
        reached = match_quality_matrix.amax(dim=1) >= self.floor
        super().set_low_quality_matches_(matches, all_matches, match_quality_matrix[reached])


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's, with the paper's anchors, numbers of proposals, matching and L1 loss."""

    def __init__(self, channels: int):
        anchors = StridedAnchors(STRIDES, [SCALE])
        super().__init__(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 1000, "testing": 1000},
            nms_thresh=0.7,
        )
        self.proposal_matcher = FloorMatcher(0.7, 0.3, floor=0.3)
        keep_float32(self.head)

    def compute_loss(
        self,
        objectness: torch.Tensor,
        pred_bbox_deltas: torch.Tensor,
        labels: list[torch.Tensor],
        regression_targets: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Binary cross-entropy of the sampled anchors, and the L1 loss of the positive ones over the number of sampled ones."""
        positive, negative = (torch.where(torch.cat(chosen))[0] for chosen in self.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])
        box_loss = F.l1_loss(pred_bbox_deltas[positive], torch.cat(regression_targets)[positive], reduction="sum")
        objectness_loss = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], torch.cat(labels)[sampled])
        return objectness_loss, box_loss / max(1, len(sampled))
