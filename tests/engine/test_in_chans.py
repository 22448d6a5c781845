"""DATA.IN_CHANS through a run: training on images of five bands, its report, evaluation, predictions; pretrained weights."""

import contextlib
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from timm.models import adapt_input_conv

import predict
from conftest import SMALLEST, config_writer, run
from engine.checkpoints.file import open_checkpoint
from engine.checkpoints.load import load_pretrained
from engine.inference.trained import load_trained
from engine.setup.model import create_model, require_layout
from engine.setup.preprocessing import data_config, of_model
from engine.tasks import create_task
from parts.export.export_job import Job
from utils.config import load_config
from utils.errors import CheckpointError, ConfigError
from utils.pictures import pixels_of, three_bands

BANDS = 5
COLOURLESS = {"AUTO_AUGMENT": "none", "COLOR_JITTER": 0.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """A run on the digits as 16-bit arrays and TIFFs of five bands, the digit in the second one."""
    folder = tmp_path_factory.mktemp("bands")
    for path in digits.rglob("*.png"):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 257
        pixels = np.stack([grey if band == 1 else grey // 9 + band for band in range(BANDS)], axis=-1)
        place = folder / "set" / path.relative_to(digits).with_suffix("")
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.stem.endswith("1"):
            tifffile.imwrite(f"{place}.tif", pixels, photometric="minisblack", planarconfig="contig")
        else:
            np.save(f"{place}.npy", pixels)
    data = {"DATA_PATH": str(folder / "set"), "IN_CHANS": BANDS, "MEAN": [0.1] * BANDS, "STD": [0.3] * BANDS}
    config = config_writer(folder, digits)(MODEL={"FAT": dict(SMALLEST)}, DATA=data, AUG=COLOURLESS)
    run("--cfg", config)
    return SimpleNamespace(folder=folder / "output/fat_tiny/default", config=config, images=folder / "set")


def test_eval_gives_the_run_s_figures_and_the_report_has_pictures(trained):
    last = json.loads((trained.folder / "metrics.jsonl").read_text().splitlines()[-1])
    run("--cfg", trained.config, "--eval", "--resume", trained.folder / "last.pth")
    assert json.loads((trained.folder / "eval.json").read_text())["raw"] == last["raw"]
    assert "data:image/jpeg" in (trained.folder / "report.html").read_text()


def test_predictions_and_exports_have_the_bands(trained, digits, tmp_path, capsys):
    files = [next((trained.images / "val").rglob(name)) for name in ("*.npy", "*.tif")]
    grey = next((digits / "val").rglob("*.png"))
    checkpoint = ["--checkpoint", str(trained.folder / "best.pth")]
    sheet = ["--sheet", str(tmp_path / "x.png"), "--device", "cpu"]
    assert predict.main([*checkpoint, *map(str, files), str(grey), *sheet]) == 1
    error = re.search(r"error: (.*)", capsys.readouterr().err)[1]
    assert error.startswith(f"{grey}: has 1 band (8 x 8)") and "DATA.IN_CHANS is 5" in error
    model = load_trained(trained.folder / "best.pth")
    shown = model.shown(model.read(files[0]))
    assert shown.dtype == np.uint8 and shown.shape == (32, 32, 3) and shown[..., 1].max() > 200 > shown[..., 0].max()
    described = Job(model, tmp_path, files).description()
    assert described["input"]["shape"] == ["batch", BANDS, 32, 32] and "RGB" not in described["input"]["layout"]
    assert described["preprocessing"]["colour"] == "5 bands, as the file has them"
    assert data_config(model.cfg)["input_size"] == (BANDS, 32, 32)


def test_what_is_shown_of_bands():
    levels = torch.rand(2, 4, 4)
    picture = pixels_of((levels - 0.5) / 0.25, [0.5] * 2, [0.25] * 2)
    assert (picture == picture[..., :1]).all() and abs(picture[..., 0] / 255 - levels[0].numpy()).max() < 0.003
    far = three_bands(torch.zeros(4, 1, 1), [300.0] * 4, [20.0] * 4)  # pixels at the mean of floats of any range
    assert far[0].shape == (3, 1, 1) and pixels_of(torch.zeros(4, 1, 1), [300.0] * 4, [20.0] * 4)[0, 0, 0] == 128


# Models


def model_of(in_chans: int, name: str = "fat_tiny", **fat):
    kind = "fat" if name.startswith("fat") else "timm"
    return create_model(
        kind, name, num_classes=3, drop_rate=0.0, drop_path_rate=0.0, img_size=32, fat=fat, in_chans=in_chans
    ).eval()


def saved(model, path, **config):
    torch.save({"model": model.state_dict(), **({"config": config} if config else {})}, path)
    return open_checkpoint(path)


@pytest.mark.parametrize("name, first", [("fat_tiny", "patch_embed.conv1.conv.0"), ("test_vit", "patch_embed.proj")])
@pytest.mark.parametrize("in_chans", [1, 5])
def test_the_first_convolution_is_adapted_as_timm_does(tmp_path, name, first, in_chans):
    of_rgb, model = model_of(3, name), model_of(in_chans, name)
    skipped, note = load_pretrained(model, saved(of_rgb, tmp_path / "x.pth"), "raw")
    weights, own = of_rgb.state_dict(), model.state_dict()
    assert not skipped and f"first convolution ({first}) adapted from 3 to {in_chans} channels, as timm does" in note
    assert torch.equal(own[f"{first}.weight"], adapt_input_conv(in_chans, weights[f"{first}.weight"]))
    assert all(torch.equal(own[key], value) for key, value in weights.items() if key != f"{first}.weight")
    grey = torch.rand(2, 1, 32, 32)
    if in_chans == 1:
        with torch.no_grad():
            assert torch.allclose(model(grey), of_rgb(grey.repeat(1, 3, 1, 1)), atol=1e-5)


def test_weights_of_bands_become_those_of_rgb_and_others_are_refused(tmp_path):
    of_bands, of_rgb = model_of(BANDS), model_of(3)
    checkpoint = saved(of_bands, tmp_path / "x.pth", DATA={"IN_CHANS": BANDS}, MODEL={"FAT": {}})
    assert "from 5 to 3 channels" in load_pretrained(of_rgb, checkpoint, "raw")[1]
    key = "patch_embed.conv1.conv.0.weight"
    expected = of_bands.state_dict()[key][:, :3] * 5 / 3
    assert torch.allclose(of_rgb.state_dict()[key], expected)
    with pytest.raises(CheckpointError, match="not of images of 3 channels"):  # who does not say that they are of five
        load_pretrained(of_rgb, saved(of_bands, tmp_path / "y.pth"), "raw")
    narrow = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    with pytest.raises(CheckpointError, match="is of another model"):
        load_pretrained(model_of(1, **narrow), checkpoint, "raw")


def test_the_same_channels_are_not_spoken_of(tmp_path):
    assert load_pretrained(
        model_of(1), saved(model_of(1), tmp_path / "x.pth", DATA={"IN_CHANS": 1}, MODEL={"FAT": {}}), "raw"
    ) == ([], "")


# Configs


def test_timm_s_mean_is_left_where_images_are_no_rgb(write_config):
    path = write_config(MODEL={"TYPE": "timm", "NAME": "resnet10t"}, DATA={"IN_CHANS": 1, "MEAN": [0.1], "STD": [0.2]})
    assert "DATA.MEAN" not in of_model(load_config(path)) and "DATA.IMG_SIZE" in of_model(load_config(path))


def test_the_released_name_of_the_key_builds_such_a_model(write_config):
    cfg = load_config(write_config(MODEL={"FAT": {**SMALLEST, "in_chans": 2}}))
    assert cfg.DATA.IN_CHANS == 2 and create_task(cfg).build_model(3).in_chans == 2


def test_throughput_and_check_know_the_bands(write_config, trained, capsys):
    run("--cfg", trained.config, "--check", "--opts", "TAG", "other", "DATA.NUM_WORKERS", "0")
    assert "GMACs" in capsys.readouterr().out


def test_a_config_for_predictions_is_checked(trained, write_config, tmp_path):
    path = write_config(DATA={"IN_CHANS": 4})
    with pytest.raises(
        ConfigError, match="DATA.MEAN is .* DATA.STD .* but DATA.IN_CHANS is 4; give a number for each band"
    ):
        load_trained(trained.folder / "best.pth", path)


@pytest.mark.parametrize("channels, refused", [(1, True), (3, True), (12, True), (16, False)])
def test_a_layout_that_ends_the_process_is_refused_for_images_of_any_bands(channels, refused):
    conv = torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 1, stride=2))
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match=f"over {channels} channels") if refused else contextlib.nullcontext():
        require_layout(conv, cpu, channels_last=True)
    require_layout(conv, cpu, channels_last=False)
