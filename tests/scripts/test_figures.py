"""The figures of scripts/reproduce.py: what they show is what models, runs and tables hold."""

import csv
import json
import os
import shutil

import cv2
import numpy as np
import pytest
import timm
import torch
import yaml
from matplotlib.axes import Axes
from torch import nn

import reproduce
from conftest import ROOT, SMALL, run
from models.inspection import captured, fasa_of, grad_cam, inspect_fasa
from parts.reproduce import cells, figure_inputs, quickstart
from parts.reproduce import target_curves as curves
from parts.reproduce import target_figure2 as figure2
from parts.reproduce import target_figure4 as figure4
from parts.reproduce import target_overlays as overlays
from utils.config import config_from
from utils.errors import CheckpointError, ConfigError, DataError, OutputError, ProcessError, UserError
from utils.macs import measure_complexity
from utils.run_files import read_figures


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits):
    """Folders of runs of FAT-Tiny on three digits, by tag, that differ in four keys."""
    folder = tmp_path_factory.mktemp("runs")
    base = {
        **SMALL, "OUTPUT": str(folder), "DATA": {**SMALL["DATA"], "DATA_PATH": str(digits)}, "MODEL": {**SMALL["MODEL"], "FAT": {}},
    }  # fmt: skip
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    found = {"small": folder / "fat_tiny/small", "paper": folder / "fat_tiny/paper"}
    run("--cfg", folder / "base.yaml", "--tag", "small")
    own = [
        "MODEL.FAT.interaction",
        "bidirectional",
        "TRAIN.EPOCHS",
        "1",
        "EMA.ENABLED",
        "False",
        "TRAIN.WARMUP_EPOCHS",
        "0",
    ]
    run("--cfg", folder / "base.yaml", "--tag", "paper", "--opts", *own)
    return found


@pytest.fixture(scope="module")
def image(digits):
    return min((digits / "val" / "0").iterdir())


def made(output, *argv) -> tuple[str, list[dict[str, str]]]:
    """A target's Markdown and CSV; it has a PNG as well."""
    assert reproduce.main([str(arg) for arg in (*argv, "--output", output)]) == 0
    assert cv2.imread(str(output / f"{argv[0]}.png")).std() > 5
    with open(output / f"{argv[0]}.csv", newline="") as file:
        return (output / f"{argv[0]}.md").read_text(), list(csv.DictReader(file))


def fat(interaction="released", **settings):
    torch.manual_seed(0)
    return timm.create_model("fat_tiny", num_classes=5, interaction=interaction, **settings).eval()


# Inside a model


@pytest.mark.parametrize("interaction", ["released", "bidirectional", "add"])
def test_inner_maps_are_fasa_s(interaction):
    model, images = fat(interaction), torch.randn(2, 3, 96, 72)
    fasa = model.layers[1].blocks[0].attn
    with captured(fasa) as seen:
        model(images)
    maps = inspect_fasa(model.train(), images, stage=1, block=0)
    assert torch.equal(maps.output, seen["output"]) and not model.training
    with torch.no_grad(), captured(fasa.kv) as keys_and_values:
        fasa(maps.x)
        l, g = maps.local_aggregation, maps.global_aggregation  # noqa: E741
        met = {"released": l * g.sigmoid() * g, "bidirectional": l * g.sigmoid() * g * l.sigmoid(), "add": l + g}[
            interaction
        ]
        torch.testing.assert_close(maps.interaction, met)
        weight, bias = fasa.mixer.weight[:, :, 0, 0], fasa.mixer.bias
        by_hand = torch.einsum("oc,bchw->bohw", weight, l + g) + bias[:, None, None]
    torch.testing.assert_close(maps.added, by_hand)
    values = keys_and_values["output"].chunk(2, dim=1)[1]  # (B, C, h, w)
    assert maps.key_size == tuple(values.shape[2:]) == (3, 3) and maps.attention.shape == (2, 2, 12 * 9, 9)
    torch.testing.assert_close(maps.attention.sum(-1), torch.ones(2, 2, 12 * 9))
    attended = (maps.attention @ fasa.to_tokens(values)).transpose(-1, -2).reshape(maps.q.shape)
    torch.testing.assert_close(attended, maps.global_aggregation)


def test_maps_that_an_interaction_does_not_have():
    images = torch.randn(1, 3, 64, 64)
    local, glob, concat = (inspect_fasa(fat(name), images, 0) for name in ("local", "global", "concat"))
    for maps, name in ((local, "global_aggregation"), (local, "attention"), (local, "key_size"), (local, "added"),
                       (glob, "local_aggregation"), (glob, "added"), (concat, "added")):  # fmt: skip
        with pytest.raises(ValueError, match=f"interaction '{maps.fasa.interaction}' has no"):
            getattr(maps, name)
    assert local.output.shape == glob.output.shape == concat.output.shape == (1, 16, 16, 16)
    assert concat.interaction.shape[1] == 32 and glob.attention.shape == (1, 1, 256, 4)
    with pytest.raises(ValueError, match="there are 4 stages"):
        fasa_of(fat(), 4, 0)
    with pytest.raises(ValueError, match="1 blocks in this stage"):
        fasa_of(fat(), 0, 1)
    with pytest.raises(ValueError, match="ResNet has no FASA"):
        fasa_of(timm.create_model("resnet10t"), 0, 0)


def test_grad_cam_by_hand():
    layer, head = nn.Identity(), nn.Linear(2, 2, bias=False)
    head.weight.data = torch.tensor([[3.0, -2.0], [1.0, 4.0]])
    model = nn.Sequential(layer, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).requires_grad_(
        False
    )
    maps = torch.tensor([[[[1.0, 5.0, 0.5]], [[2.0, 1.0, 4.0]]]])  # (1, 2, 1, 3)
    # Each of 3 positions has 1/3 of the weight in the mean, so alpha_k = weight_ck / 3.
    found, classes = grad_cam(model, maps, layer, torch.tensor([0]))
    torch.testing.assert_close(found, torch.tensor([[[0.0, 13 / 3, 0.0]]]))
    assert classes.tolist() == [0]
    found, classes = grad_cam(model, maps, layer)
    assert classes.tolist() == [1]  # logits: 3 * 6.5 - 2 * 7 < 6.5 + 4 * 7, over 3
    torch.testing.assert_close(found, torch.tensor([[[9 / 3, 9 / 3, 16.5 / 3]]]))
    by_place = nn.Sequential(layer, nn.Flatten(), nn.Linear(6, 1))
    by_place[2].weight.data = torch.tensor([[1.0, 2.0, 6.0, -3.0, 0.0, 0.0]])  # means 3 and -1
    torch.testing.assert_close(grad_cam(by_place, maps, layer)[0], torch.tensor([[[1.0, 14.0, 0.0]]]))
    with pytest.raises(ValueError, match="Linear gives no maps"):
        grad_cam(model, maps, head)


def test_grad_cam_of_fat_and_of_timm_s_models_at_odd_sizes():
    model, images = fat(), torch.randn(3, 3, 75, 117)
    maps, classes = grad_cam(model, images, model.norm)
    assert maps.shape == (3, 3, 4) and torch.equal(classes, model(images).argmax(1)) and maps.min() >= 0
    with torch.no_grad():  # the head is linear in the mean of the norm's map
        weights = model.head.weight[classes] / 12
        torch.testing.assert_close(maps, torch.einsum("bk,bkhw->bhw", weights, model.forward_features(images)).relu())
    given, _ = grad_cam(model, images, model.layers[0], torch.tensor([0, 1, 2]))
    one, _ = grad_cam(model, images[1:2], model.layers[0], torch.tensor([1]))
    assert given.shape == (3, 10, 15)
    torch.testing.assert_close(given[1:2], one)  # images do not mix
    resnet = timm.create_model("resnet10t", num_classes=4)
    assert grad_cam(resnet, images, resnet.layer4)[0].shape == (3, 3, 4)


# Figure 4


@pytest.mark.parametrize("size", [8, 7])
def test_spectrum_of_known_maps(size):
    constant = figure4.spectrum(np.full((size, size), 3.0))
    assert (
        constant[size // 2, size // 2] == pytest.approx(3 * size**2)
        and np.delete(constant.ravel(), np.argmax(constant)).max() < 1e-9
    )
    assert figure4.measured(constant)["high_share"] == 0 and figure4.measured(constant)["high_share_without_mean"] == ""
    wave = np.cos(2 * np.pi * np.arange(size) / size)[None, :] * np.ones((size, 1))
    slow = figure4.spectrum(1 + wave)
    places = {tuple(place) for place in np.argwhere(slow > 1)}
    assert places == {(size // 2, size // 2 + step) for step in (-1, 0, 1)}
    assert figure4.frequencies(size, size)[size // 2, size // 2 + 1] == pytest.approx(2 / size)
    fast = np.cos(2 * np.pi * 3 * np.arange(size) / size)[:, None] * np.ones((1, size))  # 3 of at most 3.5 or 4 cycles
    row = figure4.measured(figure4.spectrum(fast + wave + 1))
    # Energies: the mean 1, each wave 1/2.
    assert row["high_share"] == pytest.approx(25) and row["high_share_without_mean"] == pytest.approx(50)
    # Of 40 positions, the Nyquist frequency is 20 cycles: 9 are below its half, 11 above.
    for cycles, share in ((9, 0), (11, 100)):
        waves = np.cos(2 * np.pi * cycles * np.arange(40) / 40)[None, :] * np.ones((40, 1))
        assert figure4.measured(figure4.spectrum(waves))["high_share"] == pytest.approx(share)
    profile = [value for key, value in figure4.measured(slow).items() if key.startswith("log10")]
    assert profile[0] == pytest.approx(np.log10(size**2), abs=1e-3) and profile[0] > profile[1] > profile[2]


def test_figure4_shows_the_checkpoint_s_own_spectra(runs, image, tmp_path, monkeypatch):
    panels = []
    imshow = Axes.imshow
    monkeypatch.setattr(
        Axes, "imshow", lambda axes, data, **how: panels.append((data, how)) or imshow(axes, data, **how)
    )
    chosen = ["--stage", "2", "--block", "1", "--channels", "3", "31", "0", "--img-size", "64"]
    text, rows = made(tmp_path, "figure4", "--checkpoint", runs["paper"] / "best.pth", "--image", image, *chosen)
    trained = figure_inputs.load_fat(runs["paper"] / "best.pth")
    maps = inspect_fasa(trained.model, figure_inputs.read_image(image, trained, 64)[1], 1, 0)
    expected = [
        maps.local_aggregation,
        maps.global_aggregation,
        maps.fasa.mixer(maps.local_aggregation + maps.global_aggregation),
        maps.output,
    ]
    assert len(panels) == 12 and all(
        how["interpolation"] == "nearest" and how["cmap"] == "viridis" for _, how in panels
    )
    for number, (panel, _) in enumerate(panels):
        own = expected[number // 3][0, [3, 31, 0][number % 3]].detach().double()
        magnitude = torch.fft.fftshift(torch.fft.fft2(own)).abs()
        torch.testing.assert_close(torch.from_numpy(panel), (magnitude / magnitude.max()).clamp(min=1e-4).log10())
    assert len(rows) == 4 * 32 and sorted({row["channel"] for row in rows if row["in_figure"] == "1"}) == [
        "0",
        "3",
        "31",
    ]
    assert "(d) bidirectional interaction (the paper's equation)" in text and "the same weights W as (d)" in text
    for words in (
        "not on ImageNet: 3 classes, 32 px",
        "no statement about ImageNet",
        "shown here with 64 px",
        str(image),
        "raw weights",
    ):
        assert words in text
    shares = [float(row["high_share"]) for row in rows if row["map"].startswith("(a)")]
    line = next(line for line in text.splitlines() if line.startswith("| (a)"))
    assert line.split("|")[3].strip() == f"{sum(shares) / len(shares):.2f}"


def test_what_figure4_says_follows_from_its_shares():
    shares = {"(a)": [9, 9, 1], "(b)": [2, 2, 2], "(c)": [3, 3, ""], "(d)": [1, 4, 5]}
    rows = [
        {"map": f"{name} x", "channel": c, "high_share_without_mean": share}
        for name, own in shares.items()
        for c, share in enumerate(own)
    ]
    said = " ".join(figure4.findings(rows))
    assert "(a) local has the larger share of high frequencies than (b) global in 2 of 3" in said
    assert "than (c) addition in 1 of 2" in said and "than (b) global aggregation in 2 of 3" in said


def test_imagenet_s_classes_carry_no_warning():
    from timm.data import ImageNetInfo

    cfg = config_from({"MODEL": {"NAME": "fat_b0"}, "BASE": ["x.yaml"]}, "here")
    trained = figure_inputs.TrainedFAT(ROOT / "best.pth", None, cfg, ImageNetInfo("imagenet-1k").label_names(), "ema")
    assert trained.introduce(224).endswith("trained on ImageNet-1k: 1000 classes, 224 px") and trained.limits == ""
    assert trained.names[0] == "tench"


# Overlays


def test_overlays_panels_are_the_model_s_maps(runs, image, tmp_path):
    queries = ["0.5,0.5", "0,0", "1,1"]
    path = runs["paper"] / "best.pth"
    text, rows = made(
        tmp_path, "overlays", "--checkpoint", path, "--image", image, "--img-size", "128", "--queries", *queries
    )
    trained = figure_inputs.load_fat(path)
    _, normalised = figure_inputs.read_image(image, trained, 128)
    probabilities = trained.model(normalised).detach().softmax(1)[0]
    first, *others = [row for row in rows if row["kind"] == "prediction"]
    assert first["class"] == str(int(probabilities.argmax())) and len(others) == 2  # of three classes
    assert float(first["probability"]) == pytest.approx(float(probabilities.max()), abs=1e-5)
    attention = {(row["stage"], row["query"]): row for row in rows if row["kind"] == "attention"}
    assert len(attention) == 12
    weights = inspect_fasa(trained.model, normalised, 0).attention[0].mean(0)  # (32 * 32, 4 * 4)
    for query, place in (("0.5,0.5", 16 * 32 + 16), ("0,0", 0), ("1,1", 32 * 32 - 1)):
        row, own = attention["1", query], weights[place]
        assert (row["height"], row["width"]) == ("4", "4") and float(row["largest"]) == pytest.approx(float(own.max()))
        y, x = divmod(int(own.argmax()), 4)
        assert (float(row["peak_x"]), float(row["peak_y"])) == ((x + 0.5) / 4, (y + 0.5) / 4)
    cam = next(row for row in rows if row["kind"] == "grad-cam" and row["stage"] == "norm")
    assert float(cam["largest"]) == pytest.approx(
        float(grad_cam(trained.model, normalised, trained.model.norm)[0].max()), rel=1e-5
    )
    assert "At 128 px the model takes it for" in text and "at its own 32 px for" in text and "single token" not in text
    height, width, _ = cv2.imread(str(tmp_path / "overlays.png")).shape
    title = height - 5 * (224 + 20)  # above the panels: lines of 16 px
    assert width == 4 * (224 + 4) and title > 16 and title % 16 == 6


def test_overlays_of_single_keys_are_grey_and_say_so(runs, image, tmp_path):
    text, rows = made(tmp_path, "overlays", "--checkpoint", runs["small"] / "best.pth", "--image", image)
    assert "In stage 1, 2, 3, 4 the keys are a single token" in text and "at its own" not in text
    attention = [row for row in rows if row["kind"] == "attention"]
    assert {(row["least"], row["largest"], row["note"]) for row in attention} == {("1.0", "1.0", "one key")}
    picture = cv2.imread(str(tmp_path / "overlays.png")).astype(int)
    second_row = picture[244:488, : 3 * 228]
    assert (second_row.max(axis=2) == second_row.min(axis=2)).all()
    coloured = picture[244:488, 3 * 228 :]
    assert (coloured.max(axis=2) - coloured.min(axis=2)).max() > 100


def test_overlay_is_red_where_the_map_is_largest():
    from utils.pictures import overlay

    heat = np.zeros((2, 2))
    heat[0, 1] = 7.0
    blended = overlay(np.full((64, 64, 3), 100, np.uint8), heat).astype(int)
    assert blended.shape == (64, 64, 3)
    assert blended[0, -1].argmax() == 0 and blended[-1, 0].argmax() == 2  # red, blue
    assert (blended[-1, 0] >= 50).all()  # the picture shines through
    grey = np.repeat(np.arange(64, dtype=np.uint8)[:, None, None], 3, axis=2).repeat(64, axis=1)
    assert (overlay(grey, np.full((2, 2), 0.25)) == grey).all() and (overlay(grey, np.zeros((2, 2))) == grey).all()


# Figure 2


MEASURED = {
    "acc1": 77.5, "acc5": 95.0, "loss": 1.0, "num_images": 50_000, "weights": "raw", "source": "a run", "other_settings": {},
    "date": "2026-11-01T00:00:00+00:00", "commit": "abc", "machine": "a machine", "versions": "Python 3",
}  # fmt: skip
SPEEDS = """task,batch_size,model,form,precision,images_per_second
inference,16,fat_b0,plain,float32,10
inference,16,fat_b0,fused,float32,30
inference,16,fat_b0,"fused, OpenVINO",float32,99
inference,16,fat_b0,fused,bfloat16,80
inference,1,fat_b0,fused,float32,7
inference,1,swin_tiny_patch4_window7_224,eager,float32,6
inference beside peers,16,fat_b0,fused,float32,29
inference beside peers,16,pvt_v2_b0,eager NCHW,float32,11
inference beside peers,16,pvt_v2_b0,eager NHWC,float32,12
inference beside peers,16,repvit_m1,eager NCHW,float32,13
train,16,pvt_v2_b0,eager NCHW,float32,1000
"""


@pytest.fixture
def tiny_only(monkeypatch):
    """Counting the MACs of the four FATs takes seconds; here they are those of two."""
    sizes = {name: measure_complexity(timm.create_model(name), (3, 224, 224)) for name in ("fat_tiny", "fat_b0")}
    create = timm.create_model
    monkeypatch.setattr(figure2.timm, "create_model", lambda name: create("fat_b0" if name == "fat_b0" else "fat_tiny"))
    return sizes


def test_points_of_figure2_are_the_published_and_the_measured_ones(tmp_path, monkeypatch, tiny_only):
    (tmp_path / "speed.csv").write_text(SPEEDS)
    (tmp_path / "speed.md").write_text("# B\n\n`command`. 2026-01-01, commit abc; A machine, 1 thread(s); Python 3\n")
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "fat_b2.json").write_text(json.dumps({**MEASURED, "cell": "fat_b2", "acc1": 81.5}))
    points = []
    scatter = Axes.scatter
    monkeypatch.setattr(
        Axes,
        "scatter",
        lambda axes, x, y, **how: points.append((how["label"], [*zip(x, y)])) or scatter(axes, x, y, **how),
    )
    text, rows = made(tmp_path, "figure2")
    assert [label for label, _ in points] == [
        "FAT, top-1 measured here", "FAT, top-1 of the paper", "timm's models, published", "FAT, convolutions only (the paper's count)",
        "FAT, top-1 of the paper", "timm's models, published",
    ]  # fmt: skip
    macs, conv_macs = tiny_only["fat_b0"].macs / 1e9, tiny_only["fat_b0"].conv_macs / 1e9
    assert 1.05 < macs / conv_macs < 1.1
    assert (
        points[0][1][0][1] == 81.5
        and (macs, 77.6) in points[1][1]
        and (conv_macs, 77.6) in points[3][1]
        and len(points[3][1]) == 4
    )
    with open(ROOT / "configs" / "published.csv") as file:
        published = {row["model"]: row for row in csv.DictReader(file)}
    assert sorted(points[2][1]) == sorted(
        (float(r["gmacs"]), float(r["top1"])) for r in published.values() if r["weights"]
    )
    assert points[4][1] == [(29, 77.6)] and points[5][1] == [(12, 70.654)]
    by_model = {row["model"]: row for row in rows}
    assert by_model["fat_b0"]["form"] == "fused" and by_model["fat_b2"]["top1_source"] == "measured here"
    assert by_model["swin_tiny_patch4_window7_224"]["images_per_second"] == ""
    assert "batch 16, float32, A machine, 1 thread(s)" in text and "neither panel: repvit_m1." in text
    left_out = next(line for line in text.splitlines() if line.startswith("Without a measurement"))
    assert "swin_tiny" in left_out and "fat_b1" in left_out and "fat_b0" not in left_out and "pvt_v2_b0" not in left_out


def test_the_largest_batch_and_float32_where_as_many_models_were_timed(tmp_path):
    head, *lines = SPEEDS.splitlines()
    kinds = [("1", "float32"), ("16", "bfloat16"), ("16", "float32"), ("4", "float32")]
    for order in (kinds, kinds[::-1]):
        rows = [
            f"inference,{batch_size},fat_b0,fused,{precision},{number}"
            for number, (batch_size, precision) in enumerate(order, 1)
        ]
        (tmp_path / "speed.csv").write_text("\n".join([head, *rows]))
        found = figure2.read_speeds(tmp_path / "speed.csv")
        assert (found.batch_size, found.precision) == (16, "float32") and found.by_model["fat_b0"][0] == order.index(
            ("16", "float32")
        ) + 1


def test_published_macs_are_those_of_the_tables():
    with open(ROOT / "configs" / "published.csv") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert [rows[f"fat_b{n}"]["gmacs"] for n in range(4)] == ["0.7", "1.2", "2.0", "4.4"]
    counted = measure_complexity(timm.create_model("resnet50"), (3, 224, 224)).macs / 1e9
    assert counted == pytest.approx(float(rows["resnet50"]["gmacs"]), abs=0.03)  # the same convention


def test_labels_lie_apart():
    import matplotlib.pyplot as plt

    from parts.reproduce.plots import label_points

    figure, axes = plt.subplots(figsize=(6, 6))
    places = [(0.5, 0.5), (0.5, 0.51), (0.52, 0.5), (0.98, 0.5), (0.51, 0.52)]
    axes.scatter(*zip(*places), s=4)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    label_points(axes, [(x, y, f"a model {n}") for n, (x, y) in enumerate(places)])
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) == 5
    for n, box in enumerate(boxes):
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:n])
    plt.close(figure)


# Curves


def test_curves_have_every_epoch_and_what_differs(runs, tmp_path, monkeypatch):
    lines = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes,
        "plot",
        lambda axes, x, y, **how: lines.append((how["label"], list(x), list(y))) or plot(axes, x, y, **how),
    )
    text, rows = made(tmp_path, "curves", runs["small"], runs["paper"])
    own = [json.loads(line) for line in (runs["small"] / "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in own if record["kind"] == "epoch"]
    drawn = {(label, len(x)): [] for label, x, _ in lines}
    for label, x, y in lines:
        drawn[label, len(x)].append(y)
    assert drawn["fat_tiny/small", 2] == [[r["train_loss"] for r in epochs]]
    for name in ("raw", "ema"):
        assert drawn[f"fat_tiny/small, {name}", 2] == [
            [r[name]["loss"] for r in epochs],
            [r[name]["acc1"] for r in epochs],
        ]
    assert len(drawn["fat_tiny/paper, raw", 1]) == 2 and ("fat_tiny/paper, ema", 1) not in drawn
    assert [(row["run"], row["epoch"]) for row in rows] == [
        ("fat_tiny/small", "1"),
        ("fat_tiny/small", "2"),
        ("fat_tiny/paper", "1"),
    ]
    assert float(rows[1]["acc1_ema"]) == epochs[1]["ema"]["acc1"] and rows[2]["acc1_ema"] == ""
    keys = {
        line.split(" | ")[0][2:]: line
        for line in text.splitlines()
        if line.startswith("| ") and "." in line.split(" | ")[0]
    }
    assert set(keys) == {"MODEL.FAT.interaction", "TRAIN.EPOCHS", "TRAIN.WARMUP_EPOCHS", "EMA.ENABLED"}
    assert "| 'released' | 'bidirectional' |" in keys["MODEL.FAT.interaction"]
    best, weights, epoch = max(
        ((r[n]["acc1"], n, r["epoch"] + 1) for r in epochs for n in ("raw", "ema")), key=lambda found: found[0]
    )
    assert (
        f"| 2 of 2 | {best:.2f} ({weights}, epoch {epoch}) | {epochs[1]['raw']['acc1']:.2f} | {epochs[1]['ema']['acc1']:.2f} |"
        in text
    )


def test_runs_of_one_name_are_told_apart_and_lines_that_are_no_records_left_out(runs, tmp_path, capsys):
    shutil.copytree(runs["small"], tmp_path / "moved/fat_tiny/small")
    with open(tmp_path / "moved/fat_tiny/small/metrics.jsonl", "a") as file:
        file.write(
            '{"kind": "epoch", "epoch": 7}\n{"kind": "epoch", "epoch": 8, "train_loss": 1, "raw": 3}\n{"kind": "ep'
        )
    text, rows = made(tmp_path / "out", "curves", runs["small"], tmp_path / "moved/fat_tiny/small")
    names = {row["run"] for row in rows}
    assert names == {f"{runs['small'].parts[-3]}/fat_tiny/small", "moved/fat_tiny/small"} and len(rows) == 4
    assert capsys.readouterr().err.count("left out a line that is no record") == 3
    assert "the same in every key" in text


@pytest.mark.parametrize("kind, key, value", [
    ("epoch", "raw", {"acc1": "77", "loss": 1.0}), ("epoch", "raw", {"acc1": float("nan"), "loss": 1.0}), ("epoch", "raw", []),
    ("epoch", "epoch", "x"), ("epoch", "train_loss", None), ("epoch", "train_loss", 10**400), ("start", "params", "x"),
    ("start", "model", None), ("train", "images_per_second", [1]),
])  # fmt: skip
def test_records_whose_figures_are_none_are_left_out(runs, tmp_path, capsys, kind, key, value):
    lines = [json.loads(line) for line in (runs["small"] / "metrics.jsonl").read_text().splitlines()]
    lines.append({**next(line for line in lines if line["kind"] == kind), key: value})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "[" * 100_000)
    records = read_figures(tmp_path)
    assert records == read_figures(runs["small"]) and capsys.readouterr().err.count("left out a line") == 2


@pytest.mark.parametrize("name", ["$x_{^$", "a\nb|c", "\udcff"])
def test_names_are_drawn_as_they_are(runs, tmp_path, name):
    shutil.copytree(runs["small"], tmp_path / name)
    text, _ = made(tmp_path / "out", "curves", runs["paper"], tmp_path / name)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table[:4]}) == 1


def test_pipes_are_not_waited_for(runs, image, tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    for argv in (["curves", runs["small"], tmp_path], ["figure2", "--speed", tmp_path / "metrics.jsonl"],
                 ["figure4", "--checkpoint", tmp_path / "metrics.jsonl", "--image", image],
                 ["overlays", "--checkpoint", runs["small"] / "best.pth", "--image", tmp_path / "metrics.jsonl"]):  # fmt: skip
        with pytest.raises(UserError, match="metrics.jsonl: cannot be read .*is no regular file"):
            reproduce.main([str(arg) for arg in (*argv, "--output", tmp_path / "out")])


# Without arguments


def test_the_quickstart_s_checkpoint_is_made_once(tmp_path, monkeypatch, runs):
    def train(words, cwd, env):
        commands.append(words[1:])
        if "main.py" in words:
            folder = tmp_path / "output/fat_tiny/digits"
            folder.mkdir(parents=True)
            for name in ("best.pth", "last.pth"):
                shutil.copy(runs["small"] / name, folder)
        return type("Done", (), {"returncode": status})

    commands, status = [], 0
    config = quickstart.load_config(ROOT / "configs/fat_quickstart.yaml", ["TRAIN.EPOCHS", "2"])
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    monkeypatch.setattr(quickstart, "CONFIG", tmp_path / "configs/fat_quickstart.yaml")
    monkeypatch.setattr(quickstart, "load_config", lambda path: config)
    monkeypatch.setattr(quickstart.subprocess, "run", train)
    monkeypatch.chdir(tmp_path)
    assert str(quickstart.checkpoint()) == "output/fat_tiny/digits/best.pth"
    assert [words[0] for words in commands] == ["scripts/make_quickstart_data.py", "-m"]
    assert commands[1][-2:] == ["--cfg", "configs/fat_quickstart.yaml"]
    quickstart.checkpoint()
    assert len(commands) == 2
    config.defrost()
    config.TRAIN.EPOCHS = 3  # not finished: main.py goes on
    status = 7
    with pytest.raises(ProcessError, match="make_quickstart_data.py digits datasets/digits: ended with status 7"):
        quickstart.checkpoint()


# What cannot be used


def test_refused(runs, image, tmp_path):
    good, other = runs["small"] / "best.pth", tmp_path / "other.pth"
    damaged, bare, text = tmp_path / "damaged.pth", tmp_path / "bare.pth", tmp_path / "text.png"
    damaged.write_bytes(good.read_bytes()[:-5000])
    text.write_text("no image")
    content = torch.load(good, weights_only=True)
    torch.save({"model": content["model"]}, bare)
    strange, local, concat, clash = (tmp_path / f"{name}.pth" for name in ("strange", "local", "concat", "clash"))
    torch.save({**content, "config": {**content["config"], "MODEL": {"NAME": "fat_tiny", "NO_KEY": 1}}}, strange)
    for path, interaction in ((local, "local"), (concat, "concat")):
        model = timm.create_model("fat_tiny", num_classes=3, interaction=interaction)
        config = {**content["config"], "MODEL": {"NAME": "fat_tiny", "FAT": {"interaction": interaction}}}
        torch.save({**content, "config": config, "model": model.state_dict(), "ema": None}, path)
    resnet = timm.create_model("resnet10t", num_classes=3).state_dict()
    torch.save(
        {**content, "config": {"MODEL": {"TYPE": "timm", "NAME": "resnet10t"}}, "model": resnet, "ema": None}, other
    )
    torch.save({**content, "classes": ["a", "b"]}, clash)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/metrics.jsonl").write_text('{"kind": "start", "model": "fat_tiny", "params": 1}\n')
    (tmp_path / "bad.csv").write_text("model,speed\nfat_b0,1\n")
    (tmp_path / "train.csv").write_text(
        "\n".join(line for line in SPEEDS.splitlines() if not line.startswith("inference"))
    )
    both = ["--checkpoint", good, "--image", image, "--img-size", 64]
    cases = [
        (
            ["figure4", "--checkpoint", tmp_path / "none.pth", "--image", image],
            CheckpointError,
            "none.pth: cannot be read",
        ),
        (["figure4", "--checkpoint", tmp_path, "--image", image], CheckpointError, "is a folder without weights"),
        (["figure4", "--checkpoint", damaged, "--image", image], CheckpointError, "damaged.pth: is damaged"),
        (
            ["figure4", "--checkpoint", bare, "--image", image],
            CheckpointError,
            "bare.pth: has no config; say which model",
        ),
        (
            ["figure4", "--checkpoint", strange, "--image", image],
            CheckpointError,
            "strange.pth: its config: unknown key MODEL.NO_KEY",
        ),
        (["figure4", "--checkpoint", clash, "--image", image], CheckpointError, "clash.pth: is of another model"),
        (["figure4", "--checkpoint", other, "--image", image], CheckpointError, "is of resnet10t, no FAT"),
        (["overlays", "--checkpoint", other, "--image", image], CheckpointError, "is of resnet10t, no FAT"),
        (["figure4", "--checkpoint", local, "--image", image], CheckpointError, "'local' has no global aggregation"),
        (["figure4", "--checkpoint", concat, "--image", image], CheckpointError, "'concat' has no W for l' + g"),
        (["overlays", "--checkpoint", local, "--image", image], CheckpointError, "'local' has no attention"),
        (["figure4", "--checkpoint", good], ConfigError, "--image: which one"),
        (
            ["figure4", "--checkpoint", good, "--image", tmp_path / "none.png"],
            DataError,
            "none.png: cannot be read as an image (FileNotFoundError: No such file",
        ),
        (["overlays", "--checkpoint", good, "--image", text], DataError, "text.png: cannot be read"),
        (["figure4", *both, "--stage", 5], ConfigError, "--stage: there is no 5; fat_tiny has 4"),
        (["figure4", *both, "--stage", 0], ConfigError, "--stage: there is no 0"),
        (["figure4", *both, "--block", 2], ConfigError, "--block: there is no 2; stage 1 has 1"),
        (["figure4", *both, "--channels", 16], ConfigError, "--channels: there is no 16; the stage has 16"),
        (["figure4", *both, "--channels", 1, 1], ConfigError, "--channels: give each once"),
        (["figure4", *both, "--stage", 4], ConfigError, "stage 4 has maps of 2 x 2; give a greater one"),
        (["figure4", *both, "--img-size", 16], ConfigError, "--img-size is 16; it must be between 32 and 4096"),
        (["overlays", *both, "--img-size", 0], ConfigError, "--img-size is 0"),
        (["overlays", *both, "--queries", "0.5,1.5"], ConfigError, "--queries: '0.5,1.5' is no point"),
        (["overlays", *both, "--queries", "nan,0"], ConfigError, "'nan,0' is no point"),
        (["overlays", *both, "--queries", "0.5"], ConfigError, "'0.5' is no point"),
        (["overlays", *both, "--queries", *(f"0.{n},0" for n in range(9))], ConfigError, "9 points; give at most 8"),
        (["overlays", *both, "--output", tmp_path / "file" / "x"], OutputError, "cannot be written"),
        (["figure2", "--speed", tmp_path / "none.csv"], DataError, "none.csv: cannot be read"),
        (["figure2", "--speed", tmp_path / "bad.csv"], DataError, "bad.csv: is no table of scripts/benchmark.py"),
        (["figure2", "--speed", tmp_path / "train.csv"], DataError, "train.csv: has no inference"),
        (["figure2", "--speed", good], DataError, "best.pth: is no table"),
        (["curves", runs["small"]], ConfigError, "1 run(s); give between 2 and 10"),
        (["curves", runs["small"], runs["small"] / ".." / "small"], ConfigError, "stands twice"),
        (["curves", runs["small"], tmp_path / "nope"], DataError, "nope/metrics.jsonl: cannot be read"),
        (["curves", runs["small"], tmp_path / "empty"], DataError, "empty/metrics.jsonl: cannot be read"),
        (["curves", runs["small"], tmp_path / "begun"], DataError, "has no finished epoch yet"),
    ]
    for argv, kind, message in cases:
        with pytest.raises(UserError) as caught:
            reproduce.main([str(arg) for arg in (argv[:1] + ["--output", tmp_path / "out"] + argv[1:])])
        assert type(caught.value) is kind and message in str(caught.value) and "\n" not in str(caught.value), argv
        assert kind.status == {CheckpointError: 3, OutputError: 5}.get(kind, 2)
    assert not (tmp_path / "out").exists()
    shutil.copytree(runs["paper"], tmp_path / "bare_run")
    (tmp_path / "bare_run/config.yaml").unlink()
    with pytest.raises(DataError, match="config.yaml: no such file"):
        curves.read_runs([runs["small"], tmp_path / "bare_run"])
    with pytest.raises(ConfigError, match="at most"):
        figure4.channels_shown(range(17), 32)


@pytest.mark.parametrize("text", ["{}", '{"cell": "fat_b0", "acc1": 77.6}', "[", None])
def test_a_measurement_that_is_none_is_refused(tmp_path, tiny_only, capsys, text):
    path = tmp_path / "measured/fat_b0.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**MEASURED, "cell": "fat_b0", "num_images": 49_999}) if text is None else text)
    (tmp_path / "speed.csv").write_text(SPEEDS)
    assert reproduce.main(["figure2", "--output", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: ")
    assert "measured here" not in (tmp_path / "figure2.csv").read_text()


def test_a_measurement_of_the_repository_stands_in(tmp_path, monkeypatch, tiny_only):
    """As in the classification table."""
    monkeypatch.setattr(cells, "MEASURED", tmp_path)
    (tmp_path / "fat_b2.json").write_text(json.dumps({**MEASURED, "cell": "fat_b2", "acc1": 81.5}))
    measured, refused = cells.kept(tmp_path / "elsewhere", ["fat_b2", "fat_b0"])
    row = {"model": "fat_b2", "weights": "", "img_size": "224", "top1": "81.9", "source": "paper"}
    assert figure2.point_of(row, measured["fat_b2"]).top1 == 81.5 and list(measured) == ["fat_b2"] and not refused


def test_default_channels_are_evenly_spaced():
    assert figure4.channels_shown(None, 64) == [0, 9, 18, 27, 36, 45, 54, 63] and len(overlays.QUERIES) > 1
