"""The paper's ablations: their equations, what they cost by arithmetic alone, their configs, and that each trains."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from matplotlib.axes import Axes
from torch import nn

import models
from conftest import ROOT, SMALLEST, error_of, load, rest, run
from engine.tasks import create_task
from known_weights import draw_norm
from models.layers import DOWNSAMPLINGS, FASA, ConvFFN, FATBlock
from parts.benchmark.plain_fat import PlainFAT
from parts.reproduce import target_ablations as ablations
from parts.reproduce.results import Expected, Outcome, read_expected
from utils.config import load_config, value_of
from utils.macs import measure_complexity
from utils.schema import KEYS

FOLDER = ROOT / "configs" / "ablations"
CHANGES = {  # of each config against base.yaml
    "base": {},
    "interaction_bidirectional": {"interaction": "bidirectional"},
    "interaction_add": {"interaction": "add"},
    "interaction_concat": {"interaction": "concat"},
    "interaction_local": {"interaction": "local"},
    "interaction_global": {"interaction": "global"},
    "downsampling_avg_pool": {"downsampling": "avg_pool"},
    "downsampling_strided_conv": {"downsampling": "strided_conv"},
    "downsampling_avg_pool_strided_conv": {"downsampling": "avg_pool_strided_conv"},
    "no_cpe": {"cpe": False},
    "no_self_modulation": {"self_modulation": False},
    "ffn_mlp": {"ffn": "mlp"},
}
NEW = [changes for name, changes in CHANGES.items() if changes and "interaction" not in changes]


def variants(changes=NEW):
    return pytest.mark.parametrize("settings", changes, ids=lambda s: "_".join(map(str, *s.items())))


# Parameters and multiply-accumulates by arithmetic: arrays of (parameters, MACs of convolutions, MACs of all matrix products)

SIZES = {  # channels and blocks of each stage
    "fat_b0": ((32, 80, 160, 256), (2, 2, 6, 2)),
    "fat_b1": ((48, 96, 192, 384), (2, 2, 6, 2)),
    "fat_b2": ((64, 128, 256, 512), (2, 2, 6, 2)),
    "fat_b3": ((64, 128, 256, 512), (4, 4, 16, 4)),
}
SHARED = dict(kernel_sizes=(3, 5, 7, 9), window_sizes=(8, 4, 2, 1), mlp_ratios=(4, 4, 4, 4))


def conv(c_in: int, c_out: int, kernel: int, side: int, groups: int = 1) -> np.ndarray:
    """With a bias; `side` is the output's."""
    weights = c_in // groups * c_out * kernel**2
    return np.array([weights + c_out, weights * side**2, weights * side**2])


def depthwise(channels: int, kernel: int, side: int) -> np.ndarray:
    return conv(channels, channels, kernel, side, groups=channels)


def norm(channels: int) -> np.ndarray:
    """GroupNorm or BatchNorm."""
    return np.array([2 * channels, 0, 0])


def attention(channels: int, queries: int, keys: int) -> np.ndarray:
    """Q K^T and its product with V."""
    return np.array([0, 0, 2 * queries * keys * channels])


def downsampling_cost(downsampling: str, channels: int, window: int, side: int) -> np.ndarray:
    total = np.zeros(3, dtype=np.int64)
    steps = round(math.log2(window))
    if downsampling == "fine_grained":
        for step in range(1, steps + 1):
            side = math.ceil(side / 2)
            total += depthwise(channels, 5, side) + norm(channels)
            if step < steps:
                total += conv(channels, channels, 1, side)
    elif downsampling != "avg_pool" and window > 1:
        total += depthwise(channels, 2 * window + 1, math.ceil(side / window)) + norm(channels)
    return total


def fasa_cost(channels: int, kernel: int, window: int, side: int, interaction: str, downsampling: str) -> np.ndarray:
    total = conv(channels, channels, 1, side)  # Q
    total += conv((2 if interaction == "concat" else 1) * channels, channels, 1, side)  # W
    if interaction != "global":
        total += depthwise(channels, kernel, side)
    if interaction != "local":
        small = math.ceil(side / window)
        total += downsampling_cost(downsampling, channels, window, side)
        total += conv(channels, 2 * channels, 1, small) + attention(channels, side**2, small**2)  # K and V
    return total


def model_cost(
    embed_dims, depths, kernel_sizes, window_sizes, mlp_ratios, image=224, num_classes=1000,
    interaction="released", downsampling="fine_grained", cpe=True, self_modulation=True, ffn="conv",
) -> list[int]:  # fmt: skip
    """`self_modulation` costs neither parameters nor matrix products."""
    c, side = embed_dims[0], math.ceil(image / 4)
    total = conv(3, c // 2, 3, math.ceil(image / 2)) + norm(c // 2) + conv(c // 2, c, 3, side) + norm(c)
    total += 2 * (conv(c, c, 3, side) + norm(c)) + conv(c, c, 1, side) + norm(c)
    for stage, (c, depth, kernel, window, ratio) in enumerate(
        zip(embed_dims, depths, kernel_sizes, window_sizes, mlp_ratios)
    ):
        hidden = int(ratio * c)
        for block in range(depth):
            total += depthwise(c, kernel, side) * cpe + norm(c)
            total += fasa_cost(c, kernel, window, side, interaction, downsampling) + norm(c)
            total += conv(c, hidden, 1, side)
            out = c
            if block == depth - 1 and stage < len(depths) - 1:
                out, side = embed_dims[stage + 1], math.ceil(side / 2)
                total += depthwise(c, 5, side) + norm(c) + conv(c, out, 1, side)  # ShortCut
                total += depthwise(hidden, 5, side) + norm(hidden)
            elif ffn == "conv":
                total += depthwise(hidden, 5, side) + norm(hidden)
            total += conv(hidden, out, 1, side)
    total += norm(c) + [c * num_classes + num_classes, 0, c * num_classes]
    return total.tolist()


CELLS = {f"ablations/{name}": ("fat_b0", changes) for name, changes in CHANGES.items()} | {
    name: (name, {}) for name in SIZES
}


def expected_cost(cell: str) -> list[int]:
    name, changes = CELLS[cell]
    return model_cost(*SIZES[name], **SHARED, **changes)


@pytest.mark.parametrize("cell", CELLS)
def test_parameters_and_macs_are_the_closed_form_s(cell):
    """Of the model that the YAML file builds."""
    model = create_task(load_config(ROOT / "configs" / f"{cell}.yaml")).build_model(1000)
    measured = measure_complexity(model, (3, 224, 224))
    assert [measured.params, measured.conv_macs, measured.macs] == expected_cost(cell)


def test_expected_csv_has_the_closed_form_of_every_ablation():
    expected = {key: value for key, value in read_expected().items() if key[0].startswith("ablations/")}
    computed = {
        (cell, quantity): value
        for cell in CELLS if cell.startswith("ablations/")
        for quantity, value in zip(("params", "conv_macs", "macs"), expected_cost(cell))
    }  # fmt: skip
    assert {key: int(value.text) for key, value in expected.items()} == computed
    assert {value.tolerance for value in expected.values()} == {""}


@pytest.mark.parametrize("size", [(224, 224), (160, 160), (97, 97)])
def test_the_closed_form_at_other_sizes(size):
    """Where windows and strides do not divide the map."""
    settings = dict(
        embed_dims=(16, 24, 40),
        depths=(1, 2, 2),
        kernel_sizes=(3, 5, 3),
        window_sizes=(4, 8, 2),
        mlp_ratios=(2, 2.5, 3),
    )
    for changes in CHANGES.values():
        model = models.FAT(**settings, num_heads=(1, 2, 4), mlp_kernel_sizes=(5, 5, 5), num_classes=7, **changes)
        measured = measure_complexity(model, (3, *size))
        found = [measured.params, measured.conv_macs, measured.macs]
        assert found == model_cost(**settings, image=size[0], num_classes=7, **changes), changes


# Configs


def test_every_ablation_has_its_config():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_a_config_changes_one_key_of_the_base(name):
    """And the run's folder and cell."""
    path = FOLDER / f"{name}.yaml"
    cfg, reference = (
        load_config(path),
        load_config(ROOT / "configs/fat_b0.yaml" if name == "base" else FOLDER / "base.yaml"),
    )
    values = [{key: value_of(node, key) for key in KEYS} for node in (cfg, reference)]
    changed = {key: value for key, value in values[0].items() if values[1][key] != value}
    own = {"TAG": f"ablation_{name}", "REPRODUCES": f"ablations/{name}"}
    assert changed == {**{f"MODEL.FAT.{key}": value for key, value in CHANGES[name].items()}, **own}
    if name != "base":
        assert yaml.safe_load(path.read_text())["BASE"] == "base.yaml"


@pytest.mark.parametrize("name", CHANGES)
def test_a_config_s_header_has_its_command_and_costs(name):
    header = "".join(
        line for line in (FOLDER / f"{name}.yaml").read_text().splitlines(keepends=True) if line.startswith("#")
    )
    params, conv_macs, macs = expected_cost(f"ablations/{name}")
    assert f"--cfg configs/ablations/{name}.yaml --data-path /path/to/imagenet" in header
    assert (
        f"{params / 1e6:.2f} M parameters, {conv_macs / 1e9:.3f} GMACs in convolutions ({macs / 1e9:.3f} with" in header
    )


# Equations


def statistics(model: nn.Module) -> nn.Module:
    """Norms whose statistics, scales and shifts change something, in evaluation mode and float64."""
    torch.manual_seed(0)
    for module in model.modules():
        draw_norm(module)
    return model.double().eval()


def window_means(x: torch.Tensor, window: int) -> torch.Tensor:
    rows = [x[:, :, top : top + window] for top in range(0, x.shape[2], window)]
    means = [[row[..., left : left + window].mean((2, 3)) for left in range(0, x.shape[3], window)] for row in rows]
    return torch.stack([torch.stack(row, dim=-1) for row in means], dim=-2)


def strided(layers: nn.Module, x: torch.Tensor, window: int) -> torch.Tensor:
    """A depthwise convolution, summed up position by position, and its norm."""
    convolution, batch_norm = layers
    kernel = convolution.weight[:, 0]  # (C, 2w + 1, 2w + 1)
    assert kernel.shape[1:] == (2 * window + 1, 2 * window + 1)
    padded = F.pad(x, [window] * 4)
    y = x.new_zeros(*x.shape[:2], math.ceil(x.shape[2] / window), math.ceil(x.shape[3] / window))
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            part = padded[:, :, i * window : (i + 2) * window + 1, j * window : (j + 2) * window + 1]
            y[:, :, i, j] = (part * kernel).sum((2, 3)) + convolution.bias
    scale = batch_norm.weight / (batch_norm.running_var + batch_norm.eps).sqrt()
    return (y - batch_norm.running_mean[:, None, None]) * scale[:, None, None] + batch_norm.bias[:, None, None]


@pytest.mark.parametrize("window", [2, 4, 8])
@pytest.mark.parametrize("size", [(8, 8), (9, 14), (13, 5), (1, 3)])
def test_downsamplings_are_their_equations(window, size):
    """Also where the last windows reach over the border, and where a window is larger than the map."""
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    pools = {name: statistics(DOWNSAMPLINGS[name](6, window)) for name in DOWNSAMPLINGS}
    shape = (2, 6, math.ceil(size[0] / window), math.ceil(size[1] / window))
    assert {name: tuple(pool(x).shape) for name, pool in pools.items()} == dict.fromkeys(DOWNSAMPLINGS, shape)
    both = pools["avg_pool_strided_conv"]
    for pool, expected in [
        (pools["avg_pool"], window_means(x, window)),
        (pools["strided_conv"], strided(pools["strided_conv"], x, window)),
        (both, window_means(x, window) + strided(both.strided_conv, x, window)),
    ]:
        assert torch.allclose(pool(x), expected, atol=1e-12)
    assert not list(pools["avg_pool"].parameters())


@pytest.mark.parametrize("downsampling", DOWNSAMPLINGS)
def test_a_window_of_one_is_the_identity(downsampling):
    layer = FASA(6, num_heads=2, kernel_size=3, window_size=1, downsampling=downsampling)
    x = torch.randn(2, 6, 5, 7)
    assert torch.equal(layer.pool(x), x) and not list(layer.pool.parameters())


def test_a_strided_convolution_of_window_two_is_a_fine_grained_step():
    x = torch.randn(2, 6, 9, 7)
    torch.manual_seed(0)
    fine = DOWNSAMPLINGS["fine_grained"](6, 2)
    torch.manual_seed(0)
    assert torch.equal(DOWNSAMPLINGS["strided_conv"](6, 2)(x), fine(x))


@variants([{"downsampling": name} for name in DOWNSAMPLINGS] + [{"self_modulation": False}])
@pytest.mark.parametrize("interaction", ["released", "bidirectional", "add", "concat", "local", "global"])
def test_fasa_by_hand(interaction, settings):
    layer = statistics(FASA(12, num_heads=3, kernel_size=5, window_size=4, interaction=interaction, **settings))
    x = torch.randn(2, 12, 9, 7, dtype=torch.float64)
    q = layer.q(x)
    l = g = 0  # noqa: E741
    if interaction != "global":
        l = layer.local_mixer(q)  # noqa: E741
        if settings.get("self_modulation", True):
            l = l * torch.sigmoid(l)  # noqa: E741
    if interaction != "local":
        k, v = layer.kv(layer.pool(x)).reshape(2, 2, 3, 4, -1).unbind(1)  # (B, heads, d, n)
        weights = (q.reshape(2, 3, 4, -1).transpose(-1, -2) @ k / 2).softmax(-1)  # (B, heads, N, n); sqrt d = 2
        g = (v @ weights.transpose(-1, -2)).reshape(q.shape)
    mixed = {
        "released": lambda: l * torch.sigmoid(g) * g,
        "bidirectional": lambda: (l * torch.sigmoid(g)) * (g * torch.sigmoid(l)),
        "add": lambda: l + g,
        "concat": lambda: torch.cat([l, g], 1),
        "local": lambda: l,
        "global": lambda: g,
    }[interaction]()
    assert torch.allclose(layer(x), layer.mixer(mixed), atol=1e-12)


def test_bidirectional_without_self_modulation_is_released():
    """SiLU(l) * SiLU(g) = (l * sigmoid(g)) * (g * sigmoid(l))."""
    one = FASA(12, 3, 5, 4, interaction="released").double()
    other = FASA(12, 3, 5, 4, interaction="bidirectional", self_modulation=False).double()
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 12, 9, 7, dtype=torch.float64)
    assert torch.allclose(one(x), other(x), atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_blocks_by_hand(stride):
    """Without CPE X = X_in; an MLP where a block leaves the map's size alone."""
    block = statistics(FATBlock(8, 8 * stride, 2, 3, 2, 4, 5, stride=stride, cpe=False, ffn="mlp"))
    assert isinstance(block.ffn, ConvFFN) == (stride == 2)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    y = block.attn(block.norm1(x)) + x
    if stride == 1:
        z = block.ffn.fc2(F.gelu(block.ffn.fc1(block.norm2(y)))) + y
        assert {name for name, _ in block.ffn.named_children()} == {"fc1", "fc2"}
    else:
        z = block.ffn(block.norm2(y)) + block.downsample(y)
    assert torch.allclose(block(x), z, atol=1e-12)


def test_the_parts_that_a_model_has():
    def blocks(**settings):
        return [block for stage in timm.create_model("fat_b0", **settings).layers for block in stage.blocks]

    convs = [isinstance(block.ffn, ConvFFN) for block in blocks(ffn="mlp")]
    assert convs == [False, True] * 2 + [False] * 5 + [True] + [False, False]  # strided: the last block of three stages
    assert not any(list(block.cpe.parameters()) for block in blocks(cpe=False))
    assert not any(block.attn.self_modulation for block in blocks(self_modulation=False))
    for name, kind in DOWNSAMPLINGS.items():
        assert {type(block.attn.pool) for block in blocks(downsampling=name)} == {kind, nn.Identity}


@variants()
def test_every_parameter_learns(settings):
    model = timm.create_model("fat_small", num_classes=3, **settings)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


# Refusals


@pytest.mark.parametrize("settings, message", [
    ({"downsampling": "max_pool"}, "downsampling is 'max_pool'; known: fine_grained, avg_pool, strided_conv, avg_pool_strided_conv"),
    ({"downsampling": "max_pool", "interaction": "local"}, "downsampling is 'max_pool'"),
    ({"ffn": "glu"}, "ffn is 'glu'; known: conv, mlp"),
    ({"downsampling": "avg_pool", "window_sizes": [3, 2, 2, 1]}, "window_size is 3; it must be a power of two"),
])  # fmt: skip
def test_refused(write_config, settings, message):
    path = write_config(MODEL={"NAME": "fat_tiny", "FAT": settings})
    assert f"MODEL.NAME: fat_tiny cannot be built ({message}" in str(error_of("--cfg", path, "--throughput"))


@pytest.mark.parametrize("key", ["cpe", "self_modulation"])
def test_a_switch_is_true_or_false(write_config, key):
    error = error_of("--cfg", write_config(MODEL={"NAME": "fat_tiny", "FAT": {key: "off"}}), "--throughput")
    assert f"MODEL.FAT.{key} is 'off'; it must be of type bool" in str(error)


@variants([*NEW, {"interaction": "add"}])
def test_the_plain_form_is_that_of_the_released_model(settings):
    """Its parameters may have the same names and shapes, and would be loaded without a word."""
    with pytest.raises(ValueError, match="the plain form is that of the released FAT"):
        PlainFAT(timm.create_model("fat_tiny", **settings))


# In the command line

ONE_OF_EACH_KIND = [{"downsampling": "avg_pool_strided_conv"}, {"cpe": False}, {"ffn": "mlp"}]


@variants([*ONE_OF_EACH_KIND, *(rest(changes) for changes in NEW if changes not in ONE_OF_EACH_KIND)])
def test_each_trains_and_is_evaluated(write_config, tmp_path, capsys, settings):
    """One update with all that changes a step's form; then both forms of the model that was saved."""
    path = write_config(
        MODEL={"NAME": "fat_tiny", "FAT": {**SMALLEST, **settings}},
        DATA={"DATASET": "synthetic", "SYNTHETIC_IMAGES": 8, "DATA_PATH": ""},
        TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "CHANNELS_LAST": True, "USE_CHECKPOINT": True},
    )
    run("--cfg", path, "--check")
    run("--cfg", path)
    folder = tmp_path / "output/fat_tiny/default"
    assert load(folder / "last.pth")["config"]["MODEL"]["FAT"].items() >= settings.items()
    results = []
    for more in ([], ["--fused"]):
        run("--cfg", path, "--eval", "--resume", folder / "last.pth", *more)
        results.append(json.loads((folder / "eval.json").read_text())["loss"])
    assert abs(results[0] - results[1]) < 2e-5
    run("--cfg", path, "--throughput", "--batch-size", 2)
    output = capsys.readouterr().out
    assert "since" not in output and "images/s" in output


def test_a_checkpoint_of_before_these_keys(write_config, tmp_path, capsys):
    """Goes on and is evaluated as the same model; as another one it is said."""
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    run("--cfg", path)
    last = tmp_path / "output/fat_tiny/default/last.pth"
    checkpoint = load(last)
    for key in ("downsampling", "cpe", "self_modulation", "ffn"):
        del checkpoint["config"]["MODEL"]["FAT"][key]
    torch.save(checkpoint, last)
    capsys.readouterr()
    run("--cfg", path, "--eval", "--resume", last)
    assert "MODEL.FAT" not in capsys.readouterr().out
    run("--cfg", path, "--eval", "--resume", last, "--opts", "MODEL.FAT.self_modulation", "False")
    assert "since training MODEL.FAT.self_modulation changed from None to False" in capsys.readouterr().out
    message = str(error_of("--cfg", path, "--eval", "--resume", last, "--opts", "MODEL.FAT.cpe", "False"))
    assert "layers.0.blocks.0.cpe.weight (8, 1, 3, 3) is not in the model; check MODEL.NAME, MODEL.FAT, " in message
    run("--cfg", path, "--opts", "TRAIN.EPOCHS", 2)
    output = capsys.readouterr().out
    assert "resumed from" in output and "MODEL.FAT" not in output


# The table


def test_the_table_has_each_count_beside_the_base_s(tmp_path, monkeypatch):
    counts = {"base": (4_000_000, 1_000_000_000, 2_000_000_000), "no_cpe": (3_000_000, 1_250_000_000, 2_500_000_000)}
    expected = {
        (f"ablations/{name}", quantity): Expected(str(value), "", "a source")
        for name, values in counts.items()
        for quantity, value in zip(("params", "conv_macs", "macs"), values)
    }
    expected["ablations/no_cpe", "macs"] = Expected("2500000001", "", "a source")
    monkeypatch.setattr(ablations, "read_expected", lambda: expected)
    monkeypatch.setattr(
        ablations, "count", lambda name: SimpleNamespace(**dict(zip(("params", "conv_macs", "macs"), counts[name])))
    )
    bars, barh = [], Axes.barh
    monkeypatch.setattr(
        Axes, "barh", lambda axes, y, width, **how: bars.append(list(width)) or barh(axes, y, width, **how)
    )
    outcome = Outcome()
    rows = [ablations.row_of(name, None, outcome) for name in counts]
    assert outcome.missed == ["ablations/no_cpe: macs is 2500000000, expected 2500000001 (a source)"]
    assert [row["top1"] for row in rows] == ["not measured"] * 2 and rows[1]["change"] == "cpe: False"
    ablations.write_table(SimpleNamespace(output=tmp_path, command="a command"), rows)
    [line] = [line for line in (tmp_path / "ablations.md").read_text().splitlines() if line.startswith("| [no_cpe]")]
    cells = [
        "cpe: False",
        "3.000",
        "-1.000",
        "1.250",
        "+0.250",
        "2.500",
        "+0.500",
        "differs, reproduced",
        "not measured",
    ]
    assert line.strip("| ").split(" | ")[1:] == cells
    assert bars == [[-25.0], [25.0]]
