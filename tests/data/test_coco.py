"""COCO's annotations: what is read, what is learned of, what is measured by, what is refused; batches by aspect."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torchvision.transforms import v2

from coco_files import CATEGORIES, annotations_of, write_annotations, write_coco
from data.joint import JointTransform
from data.object_masks import decode_masks, encode_masks, run_lengths_of
from data.object_targets import objects_to_learn, objects_to_measure
from data.sample import Sample
from data.samplers import TrainBatchSampler
from data.schedule import Schedule
from data.sources.coco import CocoSource
from utils.errors import DataError


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"), train=12)


@pytest.fixture
def changed(tmp_path):
    """The set with its annotations changed by a function; returns the error of opening it, or the source."""

    def opened(change):
        root = write_coco(tmp_path, train=8)
        content = annotations_of(root, "train")
        write_annotations(root, "train", change(content) or content)
        return CocoSource(root, "train")

    return opened


def test_ids_with_gaps_become_labels_and_back(coco):
    source, known = CocoSource(coco, "train"), COCO(str(coco / "annotations/instances_train.json"))
    assert source.classes == ["box", "disc", "never"] and source.category_ids == [3, 17, 90]
    assert len(source) == 12
    for index in range(len(source)):
        image, target = source.load(index)
        assert image.size == (target["width"], target["height"])
        annotations = known.loadAnns(known.getAnnIds(imgIds=target["image_id"]))
        assert [source.category_ids[one["label"]] for one in target["objects"]] == [
            a["category_id"] for a in annotations
        ]
        assert [one["bbox"] for one in target["objects"]] == [a["bbox"] for a in annotations]


def test_a_model_s_classes_decide_labels(coco):
    source = CocoSource(coco, "train", classes=["never", "disc", "more", "box"])
    assert source.category_ids == [90, 17, None, 3]
    assert {one["label"] for index in range(12) for one in source.target(index)["objects"]} == {1, 3}
    with pytest.raises(
        DataError, match="has categories that the model does not know: 'disc', 'never'; give both splits"
    ):
        CocoSource(coco, "train", classes=["box"])


def test_images_without_objects(coco):
    assert len(CocoSource(coco, "train", with_empty=True)) == 12
    source = CocoSource(coco, "train", with_empty=False)
    assert len(source) == 9 and all(source.target(index)["objects"] for index in range(9))
    assert "left out 3 images without objects" in source.notes[0] and source.notes[1].endswith("no image has never")


def test_boxes_and_masks_are_flipped_with_the_image(coco):
    source = CocoSource(coco, "train")
    for index in range(4):
        image, target = source.load(index)
        plain = objects_to_learn(target, (image.height, image.width), with_masks=True)
        flip = JointTransform(
            v2.RandomHorizontalFlip(1.0), lambda one, size: objects_to_learn(one, size, with_masks=True)
        )
        moved = flip(Sample(image, target, "key"))
        assert np.array_equal(moved.image.pixels, np.array(image)[:, ::-1])
        assert torch.equal(moved.target["masks"], torch.as_tensor(plain["masks"]).flip(2))
        x1, y1, x2, y2 = torch.as_tensor(plain["boxes"]).unbind(1)
        expected = torch.stack([image.width - x2, y1, image.width - x1, y2], 1)
        assert torch.allclose(moved.target["boxes"], expected)
        assert type(moved.target["boxes"]) is torch.Tensor and moved.target["labels"].dtype == torch.int64


SIZE = (40, 50)  # height, width
BOX = [10.0, 5.0, 20.0, 15.0]
POLYGON = [10.0, 5.0, 30.0, 5.0, 30.0, 20.0, 10.0, 20.0]
RECTANGLE = np.zeros(SIZE, np.uint8)
RECTANGLE[5:20, 10:30] = 1


def target_of(**annotation):
    entry = {"label": 1, "id": 7, "bbox": BOX, "area": 300.0, "iscrowd": 0, "segmentation": [POLYGON], **annotation}
    return {"image_id": 1, "height": SIZE[0], "width": SIZE[1], "objects": [entry]}


def uncompressed(mask):
    runs, value = [], 0
    for pixel in mask.flatten(order="F").tolist():
        if not runs or pixel != value:
            runs += [0] * (not runs and pixel == 1) + [0]
            value = pixel
        runs[-1] += 1
    return {"size": list(SIZE), "counts": runs}


@pytest.mark.parametrize("segmentation", [
    [POLYGON],
    [POLYGON, [1.0, 2.0, 3.0, 4.0]],
    uncompressed(RECTANGLE),
    {**encode_masks(RECTANGLE[None])[0], "counts": encode_masks(RECTANGLE[None])[0]["counts"].decode()},
])  # fmt: skip
def test_polygons_and_run_lengths_are_the_same_mask(segmentation):
    learned = objects_to_learn(target_of(segmentation=segmentation), SIZE, with_masks=True)
    assert torch.equal(torch.as_tensor(learned["masks"]), torch.from_numpy(RECTANGLE)[None])
    measured = objects_to_measure(target_of(segmentation=segmentation), SIZE, with_masks=True)
    assert np.array_equal(coco_mask.decode(measured["objects"][0]["mask"]), RECTANGLE)


NO_MASKS = [
    [[1.0, 2.0, 3.0, 4.0]], [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]], [], None, "text", [[0.0, 1.0, 2.0, float("nan"), 4.0, 5.0]],
    {"size": [3, 3], "counts": [9]}, {"size": list(SIZE), "counts": [5, 5]}, {"size": list(SIZE), "counts": ""},
    {"size": list(SIZE), "counts": "zz"}, {"counts": "zz"},
]  # fmt: skip


@pytest.mark.parametrize("segmentation", NO_MASKS)
def test_what_is_no_mask(segmentation):
    """Boxes are learned and measured all the same; masks are not learned, and count nowhere."""
    assert run_lengths_of(segmentation, SIZE) is None
    assert len(objects_to_learn(target_of(segmentation=segmentation), SIZE, with_masks=False)["labels"]) == 1
    learned = objects_to_learn(target_of(segmentation=segmentation), SIZE, with_masks=True)
    assert learned["masks"].shape == (0, *SIZE) and learned["boxes"].shape == (0, 4)
    assert objects_to_measure(target_of(segmentation=segmentation), SIZE, with_masks=True)["objects"][0]["mask"] is None


@pytest.mark.parametrize("annotation, box", [
    ({}, [10, 5, 30, 20]),
    ({"bbox": [-5.0, -5.0, 15.0, 100.0]}, [0, 0, 10, 40]),
    ({"bbox": [60.0, 5.0, 20.0, 15.0]}, None),
    ({"bbox": [10.0, 5.0, 0.0, 15.0]}, None),
    ({"bbox": [10.0, 5.0, -4.0, 15.0]}, None),
    ({"bbox": [10.0, 5.0, 0.9, 15.0]}, None),
    ({"area": 0.0}, None),
    ({"iscrowd": 1}, None),
])  # fmt: skip
def test_boxes_to_learn_of_lie_in_the_image(annotation, box):
    learned = objects_to_learn(target_of(**annotation), SIZE, with_masks=False)
    assert learned["boxes"].tolist() == ([box] if box else []) and len(learned["labels"]) == bool(box)
    measured = objects_to_measure(target_of(**annotation), SIZE, with_masks=False)["objects"][0]
    assert measured["bbox"] == annotation.get("bbox", BOX) and measured["iscrowd"] == annotation.get("iscrowd", 0)


def test_an_image_of_another_size_is_an_error_of_the_image():
    for read in (objects_to_learn, objects_to_measure):
        with pytest.raises(
            DataError, match="image 1: has 51 x 40 px, its annotations are of 50 x 40; correct width and height"
        ):
            read(target_of(), (40, 51), with_masks=False)


def test_masks_there_and_back():
    masks = np.random.default_rng(0).integers(0, 2, (3, 5, 7)).astype(np.uint8)
    assert np.array_equal(decode_masks(encode_masks(masks), (5, 7)), masks)
    assert decode_masks([], (5, 7)).shape == (0, 5, 7) and encode_masks(masks[:0]) == []


def without(key):
    return lambda content: content.pop(key) and None


def change(kind, place, **values):
    return lambda content: content[kind][place].update(values)


def twice(kind):
    return lambda content: content[kind].append(copy.deepcopy(content[kind][0]))


BAD = {
    "a list": (lambda content: [content], "holds a list, no annotations"),
    "no images": (without("images"), "has no list of images"),
    "empty images": (lambda content: {**content, "images": []}, "its list of images is empty"),
    "no categories": (without("categories"), "has no list of categories"),
    "no annotations": (without("annotations"), "has no list of annotations"),
    "an image that is not in the file": (change("annotations", 2, image_id=5), "annotation 506 names image_id 5, which is not in the file"),
    "an unknown category": (change("annotations", 2, category_id=5), "annotation 506 names category_id 5, which is not in"),
    "a file that is not there": (change("images", 2, file_name="no.jpg"), "names 1 images that are not in "),
    "a path out of the folder": (change("images", 2, file_name="../no.jpg"), "no path below the split's folder"),
    "no file's name": (change("images", 2, file_name=3), "has the file_name 3"),
    "no width": (change("images", 2, width=None), r"has width and height \[None, 64\]"),
    "an annotation twice": (twice("annotations"), r"the id 500 stands at two entries of its kind \(annotation\)"),
    "an image twice": (twice("images"), r"the id 1000 stands at two entries of its kind \(image\)"),
    "a category twice": (twice("categories"), r"the id 3 stands at two entries of its kind \(category\)"),
    "a name twice": (change("categories", 1, name="box"), "the category name 'box' stands 2 times"),
    "no name": (change("categories", 1, name=""), "the category name '' is no name"),
    "an id that is a text": (change("images", 1, id="7"), "the id '7' of an image is no whole number"),
    "a box of three": (change("annotations", 0, bbox=[1, 2, 3]), r"annotation 500 has the bbox \[1, 2, 3\]"),
    "a box that is not finite": (change("annotations", 0, bbox=[1, 2, 3, float("inf")]), "annotation 500 has the bbox"),
    "no area": (change("annotations", 0, area="large"), "annotation 500 has the area 'large'"),
    "no object": (lambda content: {**content, "annotations": []}, r"has no object \(that is no crowd\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_does_not_fit_is_refused_with_a_line(changed, name):
    how, reason = BAD[name]
    with pytest.raises(DataError, match=reason) as caught:
        changed(how)
    assert "instances_train.json: " in str(caught.value) and "; " in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="instances_train.json: no such file; DATA.DATA_PATH"):
        CocoSource(tmp_path, "train")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train.json").write_text('{"images": [')
    with pytest.raises(DataError, match="cannot be read as JSON .*; copy it again"):
        CocoSource(tmp_path, "train")
    content = {"images": [{"id": 1, "file_name": "a.png", "width": 4, "height": 4}], "categories": CATEGORIES}
    content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 2]}]
    write_annotations(tmp_path, "train", content)
    with pytest.raises(DataError, match="train: cannot be looked into"):
        CocoSource(tmp_path, "train")


GROUPS = np.random.default_rng(0).integers(0, 2, 103)


def batches_of(epoch, first=0, world_size=2, seed=5):
    found = []
    for rank in range(world_size):
        schedule = Schedule(
            num_batches=103 // (4 * world_size), batch_size=4, rank=rank, world_size=world_size, seed=seed
        )
        sampler = TrainBatchSampler(103, schedule, groups=GROUPS)
        sampler.set_position(epoch, first)
        found.append([[index for index, *_ in batch] for batch in sampler])
    return found


def test_a_batch_has_images_of_one_aspect():
    """But for one at the end; each image once; functions of seed and epoch; an epoch can be gone on with."""
    epochs = {epoch: batches_of(epoch) for epoch in range(3)}
    for ranks in epochs.values():
        batches = [batch for rank in ranks for batch in rank]
        assert sum(len({GROUPS[index] for index in batch}) > 1 for batch in batches) <= 1
        counts = Counter(index for batch in batches for index in batch)
        assert len(counts) == 96 and set(counts.values()) == {1}
    assert epochs[0] != epochs[1] and epochs[1] == batches_of(1) and batches_of(1, seed=6) != epochs[1]
    assert [rank[5:] for rank in epochs[2]] == batches_of(2, first=5)
    left_out = [
        set(range(103)) - {index for rank in ranks for batch in rank for index in batch} for ranks in epochs.values()
    ]
    assert left_out[0] != left_out[1]


def test_an_update_has_the_same_images_on_any_number_of_processes():
    one, two = batches_of(0, world_size=1)[0], batches_of(0, world_size=2)
    assert [batch for pair in zip(*two) for batch in pair] == one[: 2 * len(two[0])]
