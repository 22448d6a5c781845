"""RetinaNet and Mask R-CNN: torchvision's size, the paper's anchors, matching and losses, and what goes in and out."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, sigmoid_focal_loss

from conftest import rest
from engine.training.freeze import parts_of
from models import backbone_of
from models.detection import DETECTORS, create_detector
from models.detection.anchors import StridedAnchors
from models.detection.proposals import FloorMatcher, ProposalNetwork
from models.detection.pyramid import CHANNELS, ConvolvedLevels
from models.detection.regions import AlignedRoIAlign, box_losses, cropped_masks, mask_loss
from models.detection.retinanet import SCALES, BatchAveragedHead

LOSSES = {
    "retinanet": {"classification", "bbox_regression"},
    "mask_rcnn": {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"},
}


def example(with_objects=True):
    """Two images of different sizes; the second has no objects."""
    images = [torch.rand(3, 100, 150), torch.rand(3, 120, 90)]
    count = 2 if with_objects else 0
    masks = torch.zeros(2, 100, 150, dtype=torch.uint8)
    masks[0, 10:70, 10:60], masks[1, 20:50, 30:90] = 1, 1
    boxes, labels = torch.tensor([[10.0, 10, 60, 70], [30, 20, 90, 50]]), torch.tensor([0, 2])
    targets = [
        {"boxes": boxes[:count], "labels": labels[:count], "masks": masks[:count]},
        {"boxes": boxes[:0], "labels": labels[:0], "masks": torch.zeros(0, 120, 90, dtype=torch.uint8)},
    ]
    return images, targets


@pytest.fixture(scope="module", params=DETECTORS)
def detector(request, narrow_heads):
    torch.manual_seed(0)
    model = create_detector(request.param, "fat_tiny", 3, min_size=96, max_size=128, drop_path_rate=0.1)
    model.name = request.param
    if model.name == "mask_rcnn":
        take_fewer_regions(model)
    return model


def take_fewer_regions(model):
    """For less time."""
    model.roi_heads.fg_bg_sampler.batch_size_per_image = 32
    model.rpn._post_nms_top_n = {"training": 100, "testing": 100}


def test_every_parameter_learns(detector):
    """Also from images without objects, as DistributedDataParallel asks."""
    for with_objects in (True, False):
        detector.zero_grad()
        losses = detector.train()(*example(with_objects))
        assert set(losses) == LOSSES[detector.name] and all(one.isfinite() for one in losses.values())
        sum(losses.values()).backward()
        assert [name for name, p in detector.named_parameters() if p.grad is None] == []


def test_targets_stay_as_they_are(detector):
    images, targets = example()
    detector.train()(images, targets)
    assert targets[0]["labels"].tolist() == [0, 2] and targets[0]["boxes"][0].tolist() == [10, 10, 60, 70]


def test_detections(detector):
    """In px of the image as it was given, with classes from 0 on."""
    images, _ = example()
    if detector.name == "retinanet":  # so that an untrained net finds something
        nn.init.zeros_(detector.head.classification_head.cls_logits.bias)
    with torch.no_grad():
        outputs = detector.eval()(images)
    for image, found in zip(images, outputs, strict=True):
        assert 0 < len(found["scores"]) <= 100
        assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
        assert found["labels"].min() >= 0 and found["labels"].max() <= 2
        height, width = image.shape[1:]
        limits = torch.tensor([width, height, width, height])
        assert found["boxes"].min() >= 0 and (found["boxes"] <= limits + 1e-3).all()  # scaling back rounds
        if detector.name == "mask_rcnn":
            assert found["masks"].shape == (len(found["scores"]), 1, height, width)


def test_outputs_are_float32_under_autocast(detector):
    images, targets = example()
    with torch.autocast("cpu", torch.bfloat16):
        losses, found = detector.train()(images, targets), detector.eval()(images)
    assert {one.dtype for one in losses.values()} == {torch.float32}
    assert found[0]["boxes"].dtype == found[0]["scores"].dtype == torch.float32


def test_parts_and_checkpointing(detector):
    parts = parts_of(detector)
    assert list(parts) == ["stem", "1", "2", "3", "4", "backbone"]
    assert all(name.startswith("backbone.body.") for name in parts["backbone"])
    detector.set_grad_checkpointing()
    assert backbone_of(detector).network.model.layers[0].grad_checkpointing
    detector.set_grad_checkpointing(False)


@pytest.mark.parametrize("name, builder", [
    ("retinanet", torchvision.models.detection.retinanet_resnet50_fpn),
    ("mask_rcnn", torchvision.models.detection.maskrcnn_resnet50_fpn),
])  # fmt: skip
def test_parameters_beside_the_backbone_are_torchvision_s(published_heads, name, builder):
    """But for RetinaNet's P6, which torchvision takes from the backbone's last map."""
    with torch.device("meta"):
        theirs = builder(weights=None, weights_backbone=None, num_classes=81 if name == "mask_rcnn" else 80)
        ours = create_detector(name, "resnet50", 80)
    expected = count(theirs) - count(theirs.backbone.body)
    if name == "retinanet":
        expected -= theirs.backbone.fpn.extra_blocks.p6.weight.numel() - 256 * 256 * 9
    assert count(ours) - count(backbone_of(ours)) == expected


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name, params", [("retinanet", 13_779_332), ("mask_rcnn", 24_282_821)])
def test_parameters_over_fat_b0(published_heads, name, params):
    """No figure was published; the sums are of the layouts."""
    with torch.device("meta"):
        assert count(create_detector(name, "fat_b0", 80)) == params


# Learning


def scene():
    """Two bright rectangles, of classes 2 and 0."""
    images, boxes = 0.1 * torch.rand(1, 3, 96, 128), torch.tensor([[12.0, 20, 60, 72], [76, 30, 124, 90]])
    masks = torch.zeros(2, 96, 128, dtype=torch.uint8)
    masks[0, 20:72, 12:60], masks[1, 30:90, 76:124] = 1, 1
    images[0, :2] += 0.8 * masks
    return list(images), [{"boxes": boxes, "labels": torch.tensor([2, 0]), "masks": masks}]


@pytest.mark.parametrize("name", ["retinanet", rest("mask_rcnn")])
def test_a_scene_is_learned(published_heads, name):
    """What is only right if boxes, classes and masks go in and come out alike, in px of an image that is resized between."""
    torch.manual_seed(0)
    model = create_detector(name, "fat_tiny", 3, min_size=64, max_size=96).train()
    if name == "mask_rcnn":
        take_fewer_regions(model)
    images, targets = scene()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for _ in range(40):
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    with torch.no_grad():
        (found,) = model.eval()(images)
    for box, label, mask in zip(*targets[0].values()):
        best = (found["labels"] == label).nonzero()[0, 0]  # the highest score of the class
        assert found["scores"][best] > 0.5
        assert box_iou(found["boxes"][best : best + 1], box[None]).item() > 0.7
        if name == "mask_rcnn":
            drawn = found["masks"][best, 0] > 0.5
            assert (drawn & (mask > 0)).sum() / (drawn | (mask > 0)).sum() > 0.7


# Anchors and matching


@pytest.mark.parametrize("height, width", [(1, 1), (2, 1), (1, 2), (3, 3)])
def test_extra_levels_of_small_maps_learn_in_bfloat16_as_in_float32(published_heads, height, width):
    """Of images of 64 px and less, the level at stride 64 is one column."""
    torch.manual_seed(0)
    levels, maps = ConvolvedLevels(), torch.randn(2, CHANNELS, height, width)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
            results, names = levels([maps], [maps], ["0"])
        _ = [torch.full((2**power,), torch.nan) for power in range(8, 21) for _ in range(4)]
        del _  # a kernel that reads memory which it did not write finds NaN
        sum(result.float().square().sum() for result in results).backward()
        gradients.append([parameter.grad for parameter in levels.parameters()])
        levels.zero_grad()
    assert names == ["0", "p6", "p7"]
    for expected, found in zip(*gradients):
        assert (found - expected).norm() < 0.03 * expected.norm()


def test_anchors_have_exact_sides_and_strides():
    """An image of 800x1344: the coarsest map is rounded up, its stride is 128 px all the same."""
    anchors = StridedAnchors((8, 16, 32, 64, 128), SCALES)
    maps = [torch.empty(1, 1, -(-800 // s), -(-1344 // s)) for s in anchors.strides]
    (boxes,) = anchors(ImageList(torch.empty(1, 3, 800, 1344), [(800, 1333)]), maps)
    assert len(boxes) == 9 * sum(one.shape[2] * one.shape[3] for one in maps)
    first, last = boxes[:9], boxes[-9:]
    sides = ((first[:, 2] - first[:, 0]) * (first[:, 3] - first[:, 1])).sqrt().sort().values
    assert sides.tolist() == pytest.approx([32] * 3 + [32 * 2 ** (1 / 3)] * 3 + [32 * 2 ** (2 / 3)] * 3)
    ratios = ((first[:, 3] - first[:, 1]) / (first[:, 2] - first[:, 0])).sort().values
    assert ratios.tolist() == pytest.approx([0.5] * 3 + [1] * 3 + [2] * 3)
    centres = (last[:, :2] + last[:, 2:]) / 2
    assert torch.allclose(centres, torch.tensor([10 * 128.0, 6 * 128.0]).expand(9, 2), atol=1e-3)


def test_a_box_that_hardly_any_anchor_meets_takes_none():
    overlaps = torch.tensor([[0.8, 0.1, 0.0, 0.0], [0.0, 0.35, 0.2, 0.0], [0.0, 0.0, 0.0, 0.2]])
    assert FloorMatcher(0.7, 0.3, floor=0.3)(overlaps).tolist() == [0, 1, -1, -1]
    assert FloorMatcher(0.7, 0.3, floor=0.1)(overlaps).tolist() == [0, 1, -1, 2]


# Losses, written again


def test_retinanet_s_losses_are_means_over_the_batch_s_matches():
    torch.manual_seed(0)
    head, anchors = (
        BatchAveragedHead(256, 1, 3),
        [torch.tensor([[0.0, 0, 10, 10], [5, 5, 25, 25], [40, 0, 50, 30]])] * 2,
    )
    targets = [
        {"boxes": torch.tensor([[1.0, 0, 12, 10]]), "labels": torch.tensor([2])},
        {"boxes": torch.tensor([[0.0, 0, 9, 9], [6, 6, 24, 24]]), "labels": torch.tensor([0, 1])},
    ]
    matches = [torch.tensor([0, -1, -2]), torch.tensor([0, 1, 0])]  # -2: neither object nor background
    outputs = {"cls_logits": torch.randn(2, 3, 3), "bbox_regression": torch.randn(2, 3, 4)}
    losses = head.compute_loss(targets, outputs, anchors, matches)

    wanted = torch.zeros(2, 3, 3)
    wanted[0, 0, 2], wanted[1, 0, 0], wanted[1, 1, 1], wanted[1, 2, 0] = 1, 1, 1, 1
    focal = sigmoid_focal_loss(outputs["cls_logits"], wanted, alpha=0.25, gamma=2)
    focal[0, 2] = 0
    assert losses["classification"].item() == pytest.approx(focal.sum().item() / 4, rel=1e-5)
    distance = 0.0
    for i, (target, match) in enumerate(zip(targets, matches)):
        for anchor, value, which in zip(anchors[i], outputs["bbox_regression"][i], match):
            if which >= 0:
                distance += (value - offsets(target["boxes"][which], anchor)).abs().sum().item()
    assert losses["bbox_regression"].item() == pytest.approx(distance / 4, rel=1e-5)


def offsets(box, anchor):
    """Of the centres in units of the anchor's sides, and the logarithms of the sides' ratios."""
    size, sides = box[2:] - box[:2], anchor[2:] - anchor[:2]
    return torch.cat([((box[:2] + box[2:]) - (anchor[:2] + anchor[2:])) / 2 / sides, (size / sides).log()])


def test_proposals_losses_are_l1_over_the_sampled_anchors():
    torch.manual_seed(0)
    network = ProposalNetwork(8)  # samples 256 of an image: all of these
    labels = [torch.tensor([1.0, 0, 0, -1]), torch.tensor([0.0, 1, -1, -1])]
    objectness, deltas, wanted = torch.randn(8, 1), torch.randn(8, 4), [torch.randn(4, 4) for _ in labels]
    objectness_loss, box_loss = network.compute_loss(objectness, deltas, labels, wanted)
    distance = (deltas[0] - wanted[0][0]).abs().sum() + (deltas[5] - wanted[1][1]).abs().sum()
    assert box_loss.item() == pytest.approx(distance.item() / 5)
    probability = objectness.flatten().sigmoid()
    expected = -(probability[[0, 5]].log().sum() + (1 - probability[[1, 2, 4]]).log().sum()) / 5
    assert objectness_loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_box_losses():
    torch.manual_seed(0)
    logits, outputs, wanted = torch.randn(3, 4), torch.randn(3, 16), torch.randn(3, 4)
    losses = box_losses(logits, outputs, torch.tensor([0, 3, 1]), wanted)
    distance = (outputs[1, 12:16] - wanted[1]).abs().sum() + (outputs[2, 4:8] - wanted[2]).abs().sum()
    assert losses["loss_box_reg"].item() == pytest.approx(distance.item() / 3)
    log_probabilities = logits.log_softmax(1)
    expected = -(log_probabilities[0, 0] + log_probabilities[1, 3] + log_probabilities[2, 1]) / 3
    assert losses["loss_classifier"].item() == pytest.approx(expected.item())


def test_masks_are_cropped_to_zeros_and_ones():
    """The left half of a box of 28 px is an object's, the right half is not; a second object fills the image."""
    masks = torch.zeros(2, 40, 60, dtype=torch.uint8)
    masks[0, :, :24], masks[1] = 1, 1
    boxes = torch.tensor([[10.0, 5, 38, 33], [10, 5, 38, 33]])
    cropped = cropped_masks(masks, boxes, torch.tensor([0, 1]), 28)
    assert cropped.unique().tolist() == [0, 1]
    assert cropped[0].sum(1).tolist() == [14] * 28 and cropped[1].all()
    logits = torch.randn(2, 4, 28, 28)
    probability = logits[torch.arange(2), torch.tensor([3, 1])].sigmoid()
    expected = -torch.where(cropped > 0, probability.log(), (1 - probability).log()).mean()
    assert mask_loss(logits, torch.tensor([3, 1]), cropped).item() == pytest.approx(expected.item(), rel=1e-4)


def test_regions_are_pooled_where_they_are():
    """From maps whose values are the image's coordinates: the mean of a region is its centre, at each level."""
    pool, maps = AlignedRoIAlign(7), {}
    for level, stride in enumerate((4, 8, 16, 32)):
        x = (torch.arange(1024 // stride) + 0.5) * stride  # where a value of the map lies in the image
        maps[str(level)] = torch.stack(torch.meshgrid(x, x, indexing="ij"))[None].flip(1) + 10_000 * level
    maps["pool"] = torch.zeros(1, 2, 16, 16)
    boxes = torch.tensor([[100.0, 200, 150, 260], [200, 300, 350, 420], [300, 300, 560, 600], [100, 100, 700, 900]])
    pooled = pool(maps, [boxes], [(1024, 1024)])
    assert pooled.shape == (4, 2, 7, 7)
    expected = (boxes[:, :2] + boxes[:, 2:]) / 2 + 10_000 * torch.arange(4)[:, None]
    assert torch.allclose(pooled.mean((2, 3)), expected, rtol=1e-5)


def test_unknown_detector():
    with pytest.raises(ValueError, match="detector is 'yolo'; known: retinanet, mask_rcnn"):
        create_detector("yolo", "fat_tiny", 3)
