"""Scripts with a segmentation model: predictions, export, the comparison with trivial answers, the quickstart's images."""

import numpy as np
import pytest
import yaml
from PIL import Image

import compare_segmentation
import export
import make_segmentation_data
import predict
from conftest import ROOT, SMALLEST_DENSE, run
from masked_images import write_masked_images
from parts.quickstart.stamps import PACKAGE, Stamp
from utils.errors import ConfigError, UserError

pytestmark = pytest.mark.usefixtures("narrow_heads")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(the data set, a checkpoint of a run on it)"""
    folder = tmp_path_factory.mktemp("segmentation")
    root = write_masked_images(folder / "shapes")
    config = {
        "BASE": str(ROOT / "configs/segmentation/base.yaml"), "DEVICE": "cpu", "OUTPUT": str(folder / "output"),
        "DATA": {"DATA_PATH": str(root), "IMG_SIZE": 64, "BATCH_SIZE": 4, "NUM_WORKERS": 0},
        "MODEL": {"NAME": "fat_tiny", "FAT": dict(SMALLEST_DENSE)},
        "TRAIN": {"EPOCHS": 8, "TOTAL_BATCH_SIZE": 4, "BASE_LR": 0.3},
        "SEG": {"CLASSES": str(root / "classes.txt"), "SCALE": [96, 64], "PHOTOMETRIC": False},
    }  # fmt: skip
    (folder / "seg.yaml").write_text(yaml.safe_dump(config))
    run("--cfg", folder / "seg.yaml")
    return root, folder / "output/fat_tiny/default/best.pth"


def test_label_maps_and_overlays(trained, tmp_path, capsys):
    root, checkpoint = trained
    (tmp_path / "bad.jpg").write_bytes(b"x")
    output, images = tmp_path / "labelled", root / "images/val"
    argv = ["--checkpoint", str(checkpoint), "--output", str(output), str(images), str(tmp_path / "bad.jpg")]
    assert predict.main(argv) == 1  # one has no image
    said = capsys.readouterr()
    assert "bad.jpg: cannot be read as an image" in said.err and "100.png  ground " in said.out
    right = []
    for path in sorted(images.iterdir()):
        labels, truth = (np.array(Image.open(place / path.name)) for place in (output, root / "annotations/val"))
        assert labels.shape == truth.shape and labels.max() < 3
        right.append((labels == truth).mean())
        with Image.open(output / f"{path.stem}_overlay.jpg") as overlay:
            assert overlay.size == Image.open(path).size
    assert np.mean(right) > 0.85
    assert len(list(output.iterdir())) == 10


@pytest.mark.parametrize(
    "more, said",
    [
        ([], "--output: is not given"),
        (["--output", "x", "--json", "y.json"], "--json: is for classification"),
        (["--output", "x", "--engine", "onnxruntime"], "--engine: is for classification"),
    ],
)
def test_flags_of_predictions(trained, more, said):
    root, checkpoint = trained
    with pytest.raises(ConfigError, match=said):
        predict.main(["--checkpoint", str(checkpoint), str(root / "images/val"), *more])


def test_trivial_answers_beside_the_model(trained, capsys):
    assert compare_segmentation.main([str(trained[1])]) == 0
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "|" in line
    ]
    figures = {row[0]: float(row[1]) for row in rows[2:]}
    assert list(figures) == ["trained", "untrained", "all pixels of the most frequent class"]
    # all ground: the mean of its share and of two zeros
    pixels = np.concatenate([np.array(Image.open(path)).ravel() for path in (trained[0] / "annotations/val").iterdir()])
    assert figures["all pixels of the most frequent class"] == pytest.approx(100 * (pixels == 0).mean() / 3, abs=0.01)
    assert figures["trained"] >= figures["untrained"]


def test_export_to_onnx(trained, tmp_path, capsys):
    """Logits of onnxruntime are the model's, at the crop's size."""
    root, checkpoint = trained
    argv = ["onnx", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "out")]
    export.main([*argv, "--images", str(root / "images/val")])
    assert (tmp_path / "out/fat_tiny.onnx").is_file()


def test_formats_that_do_not_take_a_segmenter_say_so(trained, tmp_path):
    root, checkpoint = trained
    for form in ("int8", "hub"):
        with pytest.raises(ConfigError, match=f"{form}: is for models of images' classes"):
            export.main(
                [
                    form,
                    "--checkpoint",
                    str(checkpoint),
                    "--output",
                    str(tmp_path / "o"),
                    "--images",
                    str(root / "images/val"),
                ]
            )
    with pytest.raises(UserError, match="--images: not given, .*val: its images have sizes of their own"):
        export.main(["onnx", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "o")])


# The quickstart's images


def test_stand_ins_make_a_whole_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["make", str(tmp_path / "set"), "--stand-in", "--train", "6", "--val", "3"])
    assert make_segmentation_data.main() == 0 and make_segmentation_data.main() == 0
    assert "6 training and 3 validation images" in capsys.readouterr().out
    for split, count in (("train", 6), ("val", 3)):
        images, masks = (sorted((tmp_path / "set" / kind / split).iterdir()) for kind in ("images", "annotations"))
        assert [path.stem for path in images] == [path.stem for path in masks] and len(images) == count
        labels = [np.array(Image.open(path)) for path in masks]
        assert all(Image.open(path).size == (128, 96) for path in images) and max(map(np.max, labels)) <= 3
        assert all(0 < (one > 0).mean() < 0.9 for one in labels)


def test_things_are_of_one_split_alone(tmp_path, monkeypatch):
    """No thing is in training and in validation images."""
    pixels = np.full((40, 40, 4), 255, np.uint8)
    pixels[:5, :5] = 0
    stamps = [Stamp("animals", f"animals/{i}.png", pixels) for i in range(40)]
    monkeypatch.setattr("parts.quickstart.stamps.stamps", lambda kinds, side: stamps)
    things = make_segmentation_data.photographed_things()
    assert {thing.label for thing in things} == {1}
    used: list[set[str]] = []
    composed = make_segmentation_data.composed

    def noting(ground, things, rng):
        used.append({thing.name for thing in things})
        return composed(ground, things, rng)

    monkeypatch.setattr(make_segmentation_data, "composed", noting)
    make_segmentation_data.write(tmp_path, things, [Image.new("RGB", (640, 427))], {"train": 2, "val": 2})
    assert used[0] == used[1] and used[2] == used[3] and used[2] and not used[0] & used[2]
    assert used[0] | used[2] == {thing.name for thing in things}


def test_a_package_that_cannot_be_fetched_is_one_line(monkeypatch):
    import parts.quickstart.stamps as stamps

    def nothing():
        raise OSError("no network")

    monkeypatch.setattr(stamps, "_by_http", nothing)
    monkeypatch.setattr(stamps, "_by_apt", lambda: b"another version")
    with pytest.raises(UserError) as caught:
        stamps.stamps(("animals",), 96)
    assert str(caught.value).startswith(f"{PACKAGE}: cannot be fetched (OSError: no network; it is another version")
    assert "--stand-in" in str(caught.value)
