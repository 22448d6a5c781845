"""predict.py --embeddings: one file of vectors, whatever computes it; visualize.py neighbours and map show it."""

import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib import colormaps

import predict
import visualize
from command_line import run_script
from conftest import SMALLEST, Job
from engine.inference.embedding_files import UNKNOWN, Embeddings, read_embeddings, write_embeddings
from engine.inference.neighbours import principal_plane
from engine.inference.trained import load_trained
from engine.tasks import create_task
from parts.visualize import show_map
from utils.config import config_from, to_dict
from utils.errors import ConfigError, UserError


def saved(path: Path, **model) -> Path:
    """A checkpoint of a model of three digits that was not trained."""
    torch.manual_seed(0)
    cfg = config_from({"MODEL": model, "DATA": {"DATASET": "folder", "IMG_SIZE": 32}}, "here")
    weights = create_task(cfg).build_model(3).state_dict()
    torch.save({"config": to_dict(cfg), "classes": ["0", "1", "2"], "model": weights}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "best.pth", NAME="fat_tiny", FAT=SMALLEST)


@pytest.fixture(scope="module")
def inputs(digits) -> list[str]:
    """29 images of classes in another order than that of their paths, and one of none."""
    return [str(digits / "val" / name) for name in "201"]


@pytest.fixture(scope="module")
def computed(checkpoint, inputs, tmp_path_factory) -> Embeddings:
    """By one process, in one batch."""
    path = tmp_path_factory.mktemp("embeddings") / "all.npz"
    assert start(checkpoint, path, *inputs) == 0
    return read_embeddings(path)


def start(checkpoint, path, *arguments) -> int:
    fixed = ["--checkpoint", checkpoint, "--embeddings", path, "--device", "cpu", "--workers", 0]
    return predict.main([str(word) for word in [*fixed, *arguments]])


def features_of(checkpoint, paths) -> np.ndarray:
    """What timm calls the features before the head."""
    trained = load_trained(checkpoint)
    images = trained.normalise([trained.read(Path(path)) for path in paths])
    with torch.no_grad():
        return trained.model.forward_head(trained.model.forward_features(images), pre_logits=True).numpy()


def test_the_vectors_are_what_the_head_sees_in_the_order_of_the_files(computed, checkpoint, inputs):
    expected = [str(path) for folder in inputs for path in sorted(Path(folder).iterdir())]
    assert computed.paths == expected and computed.vectors.dtype == np.float32
    assert [computed.name(row) for row in range(29)] == [Path(path).parent.name for path in expected]
    assert np.abs(computed.vectors - features_of(checkpoint, expected)).max() < 1e-5
    assert computed.vectors.std(axis=0).max() > 1e-3  # the images differ
    assert computed.facts["model"] == "fat_tiny" and computed.facts["img_size"] == 32


def assert_equal(values: Embeddings, others: Embeddings) -> None:
    assert values.paths == others.paths and values.classes == others.classes
    assert (values.labels == others.labels).all() and np.abs(values.vectors - others.vectors).max() < 1e-5


def test_batches_workers_and_the_format_change_nothing(computed, checkpoint, inputs, tmp_path):
    assert start(checkpoint, tmp_path / "x.parquet", *inputs, "--batch-size", 7, "--workers", 2) == 0
    assert_equal(read_embeddings(tmp_path / "x.parquet"), computed)


def test_processes_share_the_work_and_write_one_file(computed, checkpoint, inputs, tmp_path):
    """Three processes, of 29 images; the first one alone reads standard input."""

    def in_place_of_main():
        reading, writing = os.pipe()
        with os.fdopen(writing, "w") as file:
            file.write("\n".join(inputs) if os.environ["RANK"] == "0" else "not to be read")
        sys.stdin = os.fdopen(reading)
        run_script(lambda: start(checkpoint, tmp_path / "x.npz", "-", "--batch-size", 4))

    job = Job(world_size=3, prepare=lambda: exits_as_it_does(in_place_of_main))
    assert job.wait() == [0, 0, 0], job.text()
    assert_equal(read_embeddings(tmp_path / "x.npz"), computed)
    assert job.text().count("wrote ") == 1 and os.listdir(tmp_path) == ["x.npz"]


def exits_as_it_does(program) -> None:
    try:
        program()
    except SystemExit as ended:
        sys.stderr.flush()
        os._exit(ended.code or 0)


def test_a_model_of_timm_s_and_a_file_that_is_no_image(digits, tmp_path, capsys):
    checkpoint = saved(tmp_path / "best.pth", TYPE="timm", NAME="test_resnet")
    image = sorted((digits / "val/1").iterdir())[0]
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "elsewhere.png").write_bytes(image.read_bytes())
    names = [tmp_path / "elsewhere.png", tmp_path / "text.png", image]
    assert start(checkpoint, tmp_path / "x.npz", *names) == 1
    values = read_embeddings(tmp_path / "x.npz")
    assert values.paths == [str(names[0]), str(image)] and values.labels.tolist() == [UNKNOWN, 1]
    assert np.abs(values.vectors - features_of(checkpoint, values.paths)).max() < 1e-5
    said = capsys.readouterr().err
    assert "2 images" in said and "1 labels, of folders" in said and "text.png: cannot be read" in said


@pytest.mark.parametrize("arguments, message", [
    (["x.npz", "--csv", "a.csv"], "--csv contradicts --embeddings"), (["x.npz", "--fused"], "--fused contradicts"),
    (["x.txt"], "give a name that ends with .npz or .parquet"), (["-"], ".npz or .parquet"),
    (["x.npz", "x.npz"], "--embeddings x.npz: is one of the images, too"),
])  # fmt: skip
def test_refused(checkpoint, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("x.npz").write_text("as it was")
    with pytest.raises(ConfigError) as caught:
        start(checkpoint, *arguments, "photo.png")
    assert message in str(caught.value) and Path("x.npz").read_text() == "as it was"


# What is shown of them


@pytest.fixture
def known(digits, tmp_path) -> Path:
    """Nine images of three classes, whose vectors are corners of a cube and lie a little off them."""
    paths = [str(path) for name in "012" for path in sorted((digits / "val" / name).iterdir())[:3]]
    corners = np.repeat(np.eye(3, 5), 3, axis=0) * np.tile([1, 2, 3], 3)[:, None]  # lengths are no distance
    vectors = corners + 0.01 * np.random.default_rng(0).normal(size=corners.shape)
    values = Embeddings(
        paths, np.repeat([0, 1, UNKNOWN], 3), vectors.astype(np.float32), ["0", "1", "2"], {"model": "x"}
    )
    with open(tmp_path / "known.npz", "wb") as file:
        write_embeddings(values, ".npz", file)
    return tmp_path / "known.npz"


def show(*argv) -> int:
    return visualize.main([str(word) for word in argv])


def rows_in(path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text().splitlines()[1:]]


def test_neighbours_are_the_nearest_by_angle_and_not_the_image_itself(known, tmp_path):
    assert show("neighbours", known, "--number", 9, "--k", 2) == 0
    rows = rows_in(tmp_path / "look/neighbours.csv")
    vectors, paths = read_embeddings(known).vectors, read_embeddings(known).paths
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for query, label, _, path, other_label, distance in rows:
        assert path != query and Path(path).parent == Path(query).parent and label == other_label
        assert abs(float(distance) - (1 - unit[paths.index(query)] @ unit[paths.index(path)])) < 1e-6
    assert len(rows) == 18 and (tmp_path / "look/neighbours.png").stat().st_size > 10_000


def test_queries_by_name_and_images_that_are_gone(known, tmp_path, capsys):
    paths = read_embeddings(known).paths
    values = read_embeddings(known)
    moved = Embeddings([paths[0], "gone.png", *paths[2:]], values.labels, values.vectors, values.classes, values.facts)
    with open(tmp_path / "moved.npz", "wb") as file:
        write_embeddings(moved, ".npz", file)
    assert show("neighbours", tmp_path / "moved.npz", "--queries", known, "--images", paths[0], "--k", 20) == 2
    rows = rows_in(tmp_path / "look/neighbours.csv")
    assert (
        {row[0] for row in rows} == {paths[0]} and len(rows) == 8 and {"gone.png", paths[8]} <= {row[3] for row in rows}
    )
    assert capsys.readouterr().err.count("gone.png: ") == 1
    with pytest.raises(ConfigError, match="other.png: is not in the file"):
        show("neighbours", known, "--images", "other.png")


@pytest.mark.parametrize("seed", range(4))
def test_the_plane_is_that_of_the_largest_variance_with_one_sign(seed):
    vectors = torch.from_numpy(np.random.default_rng(seed).normal(size=(20, 5)) * [1, 2, 3, 4, 5])
    points, shares = principal_plane(vectors)
    centred = vectors - vectors.mean(0)
    _, sizes, components = torch.linalg.svd(centred, full_matrices=False)
    assert torch.allclose(points.abs(), (centred @ components[:2].T).abs())
    assert np.allclose(shares, sizes[:2] ** 2 / (sizes**2).sum())
    weights = centred.T @ points
    assert (weights.gather(0, weights.abs().argmax(dim=0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_map_has_a_point_of_each_image_in_its_class_colour(known, tmp_path, method):
    if method == "tsne":
        pytest.importorskip("sklearn")
    assert show("map", known, "--method", method) == 0
    rows = rows_in(tmp_path / "look/map.csv")
    assert [row[1] for row in rows] == [*"000111", "", "", ""]
    picture = cv2.imread(str(tmp_path / "look/map.png"))[:, :, ::-1]
    for number in (0, 1):
        assert (np.abs(picture - 255 * np.array(colormaps["tab10"](number)[:3])).max(axis=2) < 4).sum() > 50
    places = np.array([[float(value) for value in row[2:]] for row in rows])
    assert np.linalg.norm(places[0] - places[1]) < np.linalg.norm(places[0] - places[3])


def test_the_legend_has_the_classes_with_the_most_images():
    labels = np.array([*range(30), *range(10, 30), UNKNOWN])
    values = Embeddings(["x"] * 51, labels, np.zeros((51, 2), np.float32), [f"c{n}" for n in range(30)], {})
    groups = show_map.groups_of(values)
    assert [name for name, _ in groups] == [*(f"c{n}" for n in range(10, 30)), "10 other classes", "class not known"]
    assert [int(rows.sum()) for _, rows in groups] == [2] * 20 + [10, 1]


@pytest.mark.parametrize("name, content, part", [
    ("x.npz", b"no archive", "cannot be read as embeddings"), ("x.parquet", b"no table", "cannot be read as embeddings"),
    ("x.csv", b"", "is no file of embeddings by its name"), ("none.npz", None, "No such file"),
])  # fmt: skip
def test_what_is_no_file_of_embeddings_is_said(tmp_path, name, content, part):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=part):
        show("map", tmp_path / name)
