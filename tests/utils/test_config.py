"""Configs: what is read, what is refused, and that nothing in them is dead."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from engine.arguments import command_of, config_flags, parse_args
from engine.tasks import create_task
from engine.training.plan import plan_batches
from utils.config import config_from, load_config, to_dict, value_of
from utils.conflicts import CONFLICTS
from utils.errors import ConfigError, UserError
from utils.schema import ALIASES, DEFAULTS, KEYS

SIZES = ["fat_b0", "fat_b1", "fat_b2", "fat_b3"]


@pytest.fixture
def write(tmp_path):
    def write_text(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_text


@pytest.mark.parametrize("name, drop_path_rate", zip(SIZES, [0.05, 0.1, 0.1, 0.15]))
def test_recipe_is_the_paper_s(name, drop_path_rate):
    cfg = load_config(ROOT / "configs" / f"{name}.yaml")
    assert (cfg.MODEL.NAME, cfg.MODEL.DROP_PATH_RATE, cfg.MODEL.NUM_CLASSES) == (name, drop_path_rate, 1000)
    assert (cfg.TRAIN.EPOCHS, cfg.TRAIN.WARMUP_EPOCHS, cfg.TRAIN.OPTIMIZER.NAME) == (300, 20, "adamw")
    assert (cfg.TRAIN.BASE_LR, cfg.TRAIN.TOTAL_BATCH_SIZE, cfg.TRAIN.LR_SCHEDULER.NAME) == (5e-4, 1024, "cosine")
    assert (cfg.TRAIN.WEIGHT_DECAY, cfg.TRAIN.CLIP_GRAD, cfg.MODEL.LABEL_SMOOTHING) == (0.05, 5.0, 0.1)
    assert (cfg.AUG.MIXUP, cfg.AUG.CUTMIX, cfg.AUG.REPROB) == (0.8, 1.0, 0.25)
    assert cfg.AUG.AUTO_AUGMENT.startswith("rand-m9")
    assert cfg.TRAIN.LR_SCHEDULER.WARMUP_PREFIX is False


@pytest.mark.parametrize("world_size, steps", [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_the_same_recipe_on_fewer_gpus(world_size, steps):
    cfg = load_config(ROOT / "configs/fat_b0.yaml")
    plan = plan_batches(
        1281167, cfg.DATA.BATCH_SIZE, world_size, cfg.TRAIN.ACCUMULATION_STEPS, cfg.TRAIN.TOTAL_BATCH_SIZE
    )
    assert (plan.accumulation_steps, plan.total_batch_size, plan.scale_lr(cfg.TRAIN.BASE_LR)) == (steps, 1024, 1e-3)
    assert (plan.updates_per_epoch, plan.batches_per_epoch) == (1251, 1251 * steps)


def test_the_lr_of_large_batches():
    """LAMB's grows with the square root of the batch, LARS's with the batch."""
    for name, at_2048, at_8192 in [("lamb", 4e-3, 8e-3), ("lars", 2.0, 8.0)]:
        cfg = load_config(ROOT / f"configs/large_batch/fat_b0_{name}.yaml")
        assert (cfg.TRAIN.OPTIMIZER.NAME, cfg.MODEL.NAME, cfg.REPRODUCES) == (name, "fat_b0", "")
        plans = [plan_batches(1281167, 128, 16, 1, total, cfg.TRAIN.LR_SCALING) for total in (2048, 8192)]
        assert [plan.scale_lr(cfg.TRAIN.BASE_LR) for plan in plans] == pytest.approx([at_2048, at_8192])


@pytest.mark.parametrize("name", SIZES)
def test_released_yaml_loads_unchanged(write, name):
    released = json.loads((ROOT / "tests/models/released_parity.json").read_text())["models"][name]["config"]
    path = write(
        "r.yaml",
        yaml.safe_dump(
            {
                "DATA": {"IMG_SIZE": 224, "ZIP_MODE": False, "CACHE_MODE": "part"},
                "MODEL": {"TYPE": "FAT", "NAME": name.upper(), "FAT": released},
            }
        ),
    )
    cfg = load_config(path)
    assert cfg.MODEL.NUM_CLASSES == released["num_classes"]
    assert cfg.MODEL.DROP_PATH_RATE == released["drop_path_rate"]
    assert cfg.TRAIN.USE_CHECKPOINT == released["use_checkpoint"]
    assert create_task(cfg).build_model(cfg.MODEL.NUM_CLASSES).num_features == released["embed_dims"][-1]


def test_architecture_of_one_s_own(write):
    text = "MODEL: {NAME: mine, FAT: {embed_dims: [16, 32, 48], depths: [1, 1, 1], num_heads: [1, 2, 3], kernel_sizes: [3, 3, 3], window_sizes: [4, 2, 1], mlp_ratios: [2, 2.5, 3], mlp_kernel_sizes: [3, 3, 3], interaction: add}}"
    model = create_task(load_config(write("m.yaml", text))).build_model(7)
    assert len(model.layers) == 3 and model.layers[0].blocks[0].attn.interaction == "add"


def test_base_files_come_first_and_opts_and_flags_last(write):
    write("a.yaml", "TRAIN: {EPOCHS: 10, BASE_LR: 1e-3}\nTAG: a")
    write("b.yaml", "BASE: a.yaml\nTRAIN: {EPOCHS: 20}")
    path = write("c.yaml", "BASE: [b.yaml]\nDATA: {BATCH_SIZE: 4}\nMODEL:\n")
    cfg = load_config(
        path, ["TRAIN.BASE_LR", "2e-3", "AUG.SCALE", "[0.5, 1]", "EMA.ENABLED", "true"], {"DATA.BATCH_SIZE": 6}
    )
    assert (cfg.TRAIN.EPOCHS, cfg.TRAIN.BASE_LR, cfg.TAG, cfg.DATA.BATCH_SIZE) == (20, 2e-3, "a", 6)
    assert cfg.AUG.SCALE == [0.5, 1] and cfg.EMA.ENABLED is True
    assert load_config(path).DATA.BATCH_SIZE == 4


def test_text_stays_text(write):
    assert load_config(write("a.yaml", "TAG: a"), ["TAG", "0x10", "OUTPUT", "2001-99-99"]).TAG == "0x10"


def test_paths_are_expanded_as_a_shell_does_it(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.delenv("NOWHERE", raising=False)
    cfg = load_config(
        write("a.yaml", "OUTPUT: ~/out\nDATA: {DATA_PATH: $SCRATCH/data}\nTAG: ~x$SCRATCH\n"),
        ["MODEL.RESUME", "${SCRATCH}/a~b.pth"],
    )
    assert (cfg.OUTPUT, cfg.DATA.DATA_PATH, cfg.MODEL.RESUME, cfg.TAG) == (
        "/home/me/out",
        "/scratch/data",
        "/scratch/a~b.pth",
        "~x$SCRATCH",
    )
    with pytest.raises(ConfigError, match=r"OUTPUT is '\$NOWHERE/x', but the variable \$NOWHERE is not set; export it"):
        load_config(write("b.yaml", "OUTPUT: $NOWHERE/x\n"))


def test_config_is_frozen_and_dumps_to_itself(write):
    cfg = load_config(write("a.yaml", "TRAIN: {CLIP_GRAD: 1}"))
    with pytest.raises(AttributeError):
        cfg.TRAIN.EPOCHS = 1
    assert to_dict(load_config(write("b.yaml", cfg.dump()))) == to_dict(cfg)


@pytest.mark.parametrize("text, parts", [
    ("TRAIN: {EPOCS: 3}", ["a.yaml", "TRAIN.EPOCS", "'TRAIN.EPOCHS'"]),
    ("EPOCHS: 3", ["EPOCHS", "'TRAIN.EPOCHS'"]),
    ("TRIAN: {EPOCHS: 3}", ["TRIAN.EPOCHS", "'TRAIN.EPOCHS'"]),
    ("TRAIN: {EPOCHS: many}", ["TRAIN.EPOCHS", "'many'", "int"]),
    ("TRAIN: {EPOCHS: 2.5}", ["TRAIN.EPOCHS", "2.5", "int"]),
    ("TRAIN: {EPOCHS: true}", ["TRAIN.EPOCHS", "True", "int"]),
    ("TRAIN: {EPOCHS: -1}", ["TRAIN.EPOCHS", "-1", "greater than 0"]),
    ("TRAIN: {BASE_LR: .nan}", ["TRAIN.BASE_LR", "finite"]),
    ("TRAIN: {BASE_LR: [1]}", ["TRAIN.BASE_LR", "float"]),
    ("TRAIN: 5", ["TRAIN", "section"]),
    ("TRAIN: {LR_SCHEDULER: {NAME: cosin}}", ["LR_SCHEDULER.NAME", "'cosin'", "'cosine'"]),
    ("AMP: {ENABLED: 1}", ["AMP.ENABLED", "bool"]),
    ("AUG: {SCALE: [1, a]}", ["AUG.SCALE"]),
    ("AUG: {SCALE: {low: 1}}", ["AUG.SCALE.low"]),
    ("MODEL: {TYPE: resnet}", ["MODEL.TYPE", "fat, timm"]),
    ("MODEL: {FAT: {depths: [2, x]}}", ["MODEL.FAT.depths"]),
    ("MODEL: {FAT: {in_chans: 0}}", ["MODEL.FAT.in_chans", "between 1 and 512"]),
    ("DATA: {MEAN: [0.5, a]}", ["DATA.MEAN", "one for each band"]),
    ("DATA: {BATCH_SIZE: 0}", ["DATA.BATCH_SIZE", "0"]),
    ("", ["a.yaml", "no keys"]),
    ("- 1", ["a.yaml", "no keys"]),
    ("a: [", ["a.yaml", "no YAML"]),
    ("BASE: missing.yaml", ["missing.yaml", "a.yaml", "cannot be read"]),
    ("BASE: a.yaml", ["a.yaml", "BASE leads back"]),
    ("BASE: [1]", ["BASE", "[1]"]),
    ("TRAIN: {EPOCHS: 3}\nTRAIN: {BASE_LR: 1}", ["'TRAIN' stands twice"]),
    ("MODEL: {NUM_CLASSES: 10, FAT: {num_classes: 1000}}", ["num_classes", "10", "1000"]),
    ("DATA: {ZIP_MODE: 3}", ["DATA.ZIP_MODE", "bool"]),
    ("DATA: {CACHE_MODE: all}", ["DATA.CACHE_MODE", "full"]),
    ("DATA: {MEAN: [a, 1, 1]}", ["DATA.MEAN"]),
    ("TAG: 012", ["TAG", "str"]),
    ('TAG: "a\\nb"', ["TAG", "printable"]),
    ("TRAIN: {EPOCHS: 99999999999}", ["TRAIN.EPOCHS", "2147483648"]),
    ("TRAIN: {BASE_LR: " + "9" * 400 + "}", ["TRAIN.BASE_LR"]),
    ("MODEL: {FAT: {kernel_sizes: [2, 4, 6, 8]}}", ["kernel_sizes", "odd"]),
    ("AUG: {SCALE: [1, 5]}", ["AUG.SCALE", "at most 1"]),
    ("a: " + "[" * 3000, ["a.yaml"]),
    ("? [a, b]\n: 1", ["a.yaml", "no YAML"]),
])  # fmt: skip
def test_refused_files(write, text, parts):
    with pytest.raises(ConfigError) as caught:
        load_config(write("a.yaml", text))
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_error_names_the_chain_of_files(write):
    write("base.yaml", "TRAIN: {EPOCS: 3}")
    with pytest.raises(ConfigError, match="base.yaml from .*child.yaml: unknown key TRAIN.EPOCS"):
        load_config(write("child.yaml", "BASE: base.yaml"))


@pytest.mark.parametrize("opts, part", [
    (["TRAIN.EPOCHS"], "no value"), (["TRAIN.EPOCHZ", "3"], "'TRAIN.EPOCHS'"), (["TRAIN", "3"], "section"),
    (["TRAIN.EPOCHS", "nan"], "int"), (["TRAIN.BASE_LR", "nan"], "finite"), (["TRAIN.BASE_LR", ""], "float"),
    (["BASE", "x.yaml"], "file only"), (["TRAIN.EPOCHS", "9" * 5000], "TRAIN.EPOCHS"),
])  # fmt: skip
def test_refused_opts(write, opts, part):
    with pytest.raises(ConfigError, match="--opts") as caught:
        load_config(write("a.yaml", "TAG: a"), opts)
    assert part in str(caught.value)


def test_unknown_names_get_the_nearest(write_config):
    from conftest import error_of

    for values, part in [
        (dict(MODEL={"NAME": "fat_b9", "FAT": {}}), "fat_b"),
        (dict(MODEL={"TYPE": "timm", "NAME": "resnet_18"}), "'resnet18'"),
        (dict(TRAIN={"OPTIMIZER": {"NAME": "adamm"}}), "did you mean 'adam"),
        (dict(DATA={"DATASET": "imagnet"}), "'imagenet'"),
        (dict(TASK="classify"), "classification"),
    ]:
        assert part in str(error_of("--cfg", write_config(**values)))


def test_a_flag_left_out_changes_nothing():
    args = parse_args(["--cfg", "x.yaml"])
    assert config_flags(args) == {}


def test_every_flag_sets_its_key():
    args = parse_args(
        "--cfg c --data-path d --batch-size 4 --accumulation-steps 2 --pretrained p --resume r --use-checkpoint "
        "--amp-opt-level O1 --output o --tag t".split()
    )
    assert config_flags(args) == {
        "DATA.DATA_PATH": "d", "DATA.BATCH_SIZE": 4, "TRAIN.ACCUMULATION_STEPS": 2, "MODEL.PRETRAINED": "p",
        "MODEL.RESUME": "r", "TRAIN.USE_CHECKPOINT": True, "AMP.ENABLED": True, "OUTPUT": "o",
        "TAG": "t",
    }  # fmt: skip
    for flags in (["--disable_amp"], ["--amp-opt-level", "O0"]):
        assert config_flags(parse_args(["--cfg", "c", *flags])) == {"AMP.ENABLED": False}


def test_keys_that_have_gone_are_read_where_they_change_nothing(write_config):
    path = write_config(AMP={"ENABLED": True, "BACKEND": "native", "OPT_LEVEL": "O1"})
    assert load_config(path, ["AMP.BACKEND", "native"]) == load_config(path)
    assert "BACKEND" not in load_config(path).AMP
    for key, value in [("BACKEND", "apex"), ("OPT_LEVEL", "O2"), ("BACKEND", None)]:
        with pytest.raises(ConfigError, match=f"AMP.{key} is {value!r}; .*leave the key out"):
            load_config(write_config(AMP={"BACKEND": "native", key: value}))


def test_a_checkpoint_of_any_amp_is_read():
    """Its weights do not depend on the package that trained them."""
    for backend, level in [("native", "O1"), ("apex", "O2")]:
        values = to_dict(DEFAULTS)
        values["AMP"] = {**values["AMP"], "BACKEND": backend, "OPT_LEVEL": level}
        assert config_from(values, "a.pth: its config") == DEFAULTS


def test_no_dead_option():
    """Config values are read in full, as cfg.SECTION.KEY, so a key that nothing reads can be found by its name."""
    code = "\n".join(
        path.read_text() for folder in ("engine", "data", "models", "utils") for path in (ROOT / folder).rglob("*.py")
        if path.name != "schema.py"
    ) + (ROOT / "main.py").read_text()  # fmt: skip
    read = set(re.findall(r"\bcfg\.([A-Za-z_]+(?:\.[A-Za-z_]+)*)", code))
    whole_sections = {"MODEL.FAT"} & read
    dead = [
        key for key in KEYS
        if key != "BASE" and key not in read and not any(key.startswith(f"{s}.") for s in whole_sections)
    ]  # fmt: skip
    assert dead == []


def test_aliases_are_of_real_keys_and_defaults_keep_the_rules():
    assert set(ALIASES.values()) <= set(KEYS) and not set(ALIASES) & set(KEYS)
    for name, key in KEYS.items():
        assert key.rule.holds(key.default) and value_of(DEFAULTS, name) == key.default, name


def test_the_page_lists_every_key():
    named = re.findall(r"`([\w.]+)`", (ROOT / "docs/training.md").read_text())
    assert [name for name in KEYS if name not in named] == []


# Contradictions

UNMIXED = "AUG.MIXUP 0 AUG.CUTMIX 0"
WEIGHTS = "MODEL.RESUME x.pth"
GREY = "DATA.IN_CHANS 1 DATA.MEAN [0.5] DATA.STD [0.5]"
COLOURLESS = "AUG.AUTO_AUGMENT none AUG.COLOR_JITTER 0"
SEVERAL = "TASK multilabel DATA.DATASET list"


@pytest.fixture
def recipe(write):
    return write("recipe.yaml", "TAG: a")


# main.py's command, --opts, the message's beginning
CASES = [
    ("train", "TRAIN.MIN_LR 1.0", "TRAIN.WARMUP_LR and TRAIN.MIN_LR: 5e-07 and 1.0; they must not be above TRAIN.BASE_LR, 0.0005"),
    ("eval", "TAG b", "--eval: there are no weights to evaluate; add --resume"),
    ("eval", f"{WEIGHTS} TEST.KNN [3] TEST.FUSED True", "TEST.KNN compares features, which the deployed form (--fused) does"),
    ("eval", f"{WEIGHTS} TEST.KNN [3] TEST.ENGINE openvino", "TEST.KNN compares features, which --engine openvino does not"),
    ("eval", f"{WEIGHTS} TEST.ENGINE onnxruntime AMP.DTYPE bfloat16", "--engine onnxruntime computes in float32, but AMP.DTYPE"),
    ("throughput", "TEST.ENGINE openvino AMP.DTYPE float16", "--engine openvino computes in float32 or bfloat16, but AMP.DTYPE"),
    ("eval", f"{WEIGHTS} TASK segmentation TEST.ENGINE cudagraphs", "--engine cudagraphs has a graph for each size of images"),
    ("throughput", "TEST.ENGINE openvino TRAIN.COMPILE True", "TRAIN.COMPILE compiles torch's model, which --engine openvino"),
    ("eval", f"{WEIGHTS} TEST.CROP_MODE border TEST.CROPS 5", "TEST.CROPS is 5, but an image of TEST.CROP_MODE border has no corners"),
    ("eval", f"{WEIGHTS} TEST.KNN [3] TEST.SETS [imagenet_v2]", "TEST.KNN is about the validation images; add val to"),
    ("eval", f"{WEIGHTS} DATA.IN_CHANS 2", "DATA.MEAN is [0.485, 0.456, 0.406], DATA.STD [0.229, 0.224, 0.225], but DATA.IN_CHANS is 2; give"),
    ("eval", f"{WEIGHTS} DATA.MEAN [0.5]", "DATA.MEAN is [0.5], DATA.STD [0.229, 0.224, 0.225], but DATA.IN_CHANS is 3; give a number"),
    ("throughput", f"{GREY} TASK segmentation", "DATA.IN_CHANS is 1, but TASK segmentation is for RGB images"),
    ("benchmark_data", f"{GREY} AUG.COLOR_JITTER 0", "AUG.AUTO_AUGMENT is 'rand-m9-mstd0.5-inc1', AUG.COLOR_JITTER 0.0: they change"),
    ("benchmark_data", f"{GREY} AUG.AUTO_AUGMENT none", "AUG.AUTO_AUGMENT is 'none', AUG.COLOR_JITTER 0.4: they change the colours"),
    ("benchmark_data", f"{GREY} {COLOURLESS} DATA.BACKEND nvimgcodec", "DATA.BACKEND nvimgcodec decodes RGB images, but DATA.IN_CHANS"),
    ("eval", f"{WEIGHTS} {GREY} DATA.INTERPOLATION lanczos", "DATA.INTERPOLATION lanczos is for RGB images, but DATA.IN_CHANS is 1"),
    ("eval", f"{WEIGHTS} {GREY} DATA.DATASET cifar10", "DATA.IN_CHANS is 1, but the images of DATA.DATASET cifar10 are RGB"),
    ("train", f"{GREY} {COLOURLESS} DISTILL.TEACHER resnet10t", "DISTILL.TEACHER sees RGB images, but DATA.IN_CHANS is 1; leave it"),
    ("train", "TRAIN.COMPILE True TRAIN.USE_CHECKPOINT True", "TRAIN.COMPILE contradicts TRAIN.USE_CHECKPOINT (--use-checkp"),
    ("train", "TRAIN.SHARD optimizer TRAIN.OPTIMIZER.NAME muon", "TRAIN.SHARD optimizer: TRAIN.OPTIMIZER.NAME is muon, but the"),
    ("train", "TRAIN.SHARD optimizer TRAIN.OPTIMIZER.NAME lamb", "TRAIN.CLIP_GRAD is 5.0, but TRAIN.SHARD optimizer leaves timm's"),
    ("train", "DATA.BATCH_SIZE auto TRAIN.TOTAL_BATCH_SIZE 0", "DATA.BATCH_SIZE (--batch-size) auto keeps the images of an update"),
    ("check", "DATA.BATCH_SIZE auto TRAIN.TOTAL_BATCH_SIZE 64 TRAIN.ACCUMULATION_STEPS 2", "TRAIN.ACCUMULATION_STEPS (--accumulation-steps) is 2, but DATA.BATCH"),
    ("train", "TRAIN.WARMUP_EPOCHS 5 TRAIN.EPOCHS 5", "TRAIN.WARMUP_EPOCHS is 5, TRAIN.EPOCHS 5; the warmup must be shorter"),
    ("check", "TRAIN.WARMUP_EPOCHS 6 TRAIN.EPOCHS 5", "TRAIN.WARMUP_EPOCHS is 6, TRAIN.EPOCHS 5; the warmup must be shorter"),
    ("train", "DATA.SAMPLING balanced AUG.REPEATS 3", "DATA.SAMPLING balanced contradicts AUG.REPEATS above 1 and DATA.CACHE_MODE"),
    ("train", "DATA.SAMPLING balanced TRAIN.CLASS_WEIGHTS effective", "DATA.SAMPLING balanced makes all classes as frequent, which"),
    ("check", "TRAIN.LOGIT_ADJUSTMENT 1.0 TRAIN.LOSS bce", "TRAIN.CLASS_WEIGHTS and TRAIN.LOGIT_ADJUSTMENT are of the cross-entropy, but"),
    ("train", "TASK segmentation DATA.SAMPLING balanced", "TRAIN.CLASS_WEIGHTS, TRAIN.LOGIT_ADJUSTMENT and DATA.SAMPLING are about an"),
    ("train", "TRAIN.MAX_HOURS 2.0 TRAIN.IMG_SIZES [[0,96],[100,160]]", "TRAIN.MAX_HOURS takes an epoch's time for that of the"),
    ("train", "DISTILL.WEIGHTS x.pth", "DISTILL.WEIGHTS are given, but no DISTILL.TEACHER, timm's name of the model; add it"),
    ("train", "AUG.SPLITS 3", "AUG.SPLITS is 3, whose loss compares views of one image, which mixup and cutmix would mix"),
    ("train", f"{UNMIXED} AUG.CUTMIX_MINMAX [0.2,0.8] AUG.SPLITS 2", "AUG.SPLITS is 2, whose loss compares views"),
    ("train", f"{UNMIXED} AUG.SPLITS 2 TRAIN.LOSS bce", "TRAIN.LOSS is bce, but AUG.SPLITS 2 brings its own loss; set one"),
    ("train", "TRAIN.BCE_TARGET_THRESH 0.2", "TRAIN.BCE_TARGET_THRESH belongs to TRAIN.LOSS bce, which is ce; set it to 0"),
    ("train", "DATA.BATCH_SIZE 7 AUG.MIXUP_MODE pair", "DATA.BATCH_SIZE (--batch-size) is 7, but mixup and cutmix mix pairs"),
    ("benchmark_data", "DATA.BATCH_SIZE 7 AUG.MIXUP 0", "DATA.BATCH_SIZE (--batch-size) is 7, but mixup and cutmix mix pairs"),
    ("train", "AUG.REPEATS 2 DATA.CACHE_MODE part", "AUG.REPEATS contradicts DATA.CACHE_MODE part, which has another order"),
    ("train", "TRAIN.WARMUP_UPDATES 500", "TRAIN.WARMUP_UPDATES is 500, TRAIN.WARMUP_EPOCHS 20; set one of them to 0"),
    ("train", "TRAIN.LR_SCHEDULER.MILESTONES [8,11]", "TRAIN.LR_SCHEDULER.MILESTONES belong to TRAIN.LR_SCHEDULER.NAME multistep,"),
    ("train", f"{UNMIXED} DATA.BATCH_SIZE 1", "DATA.BATCH_SIZE (--batch-size) is 1; BatchNorm cannot train on one image"),
    ("train", "DATA.BACKEND cv2 DATA.INTERPOLATION lanczos",
     "DATA.INTERPOLATION is 'lanczos', but DATA.BACKEND cv2 has bilinear and bicubic only; use one, or pil"),
    ("train", "DATA.BACKEND nvimgcodec DATA.INTERPOLATION nearest", "DATA.INTERPOLATION is 'nearest', but DATA.BACKEND cv2"),
    ("train", "DATA.ZIP_MODE True DATA.DATASET cifar10", "DATA.ZIP_MODE (--zip) contradicts DATA.DATASET cifar10; leave it"),
    ("eval", f"{WEIGHTS} DATA.ZIP_MODE True DATA.DATASET tar/x", "DATA.ZIP_MODE (--zip) contradicts DATA.DATASET tar/x"),
    ("train", "DATA.DATASET synthetic DATA.CLASS_MAP imagenet-1k", "DATA.CLASS_MAP: the classes of synthetic are fixed;"),
    ("eval", f"{WEIGHTS} DATA.LIST labels.csv", "DATA.LIST is read by DATA.DATASET list, which is imagenet; set it to list"),
    ("eval", f"{WEIGHTS} DATA.SHARD_CACHE shards DATA.DATASET zip", "DATA.SHARD_CACHE keeps the shards of DATA.DATASET wds, which is zip"),
    ("eval", f"{WEIGHTS} DATA.VAL_SHARE 0.1 DATA.DATASET wds", "DATA.VAL_SHARE takes images by their files, which DATA.DATASET wds"),
    ("eval", f"{WEIGHTS} DATA.VAL_SHARE 0.1 TASK segmentation", "DATA.VAL_SHARE takes images by their classes, which TASK"),
    ("eval", f"{WEIGHTS} DATA.VAL_SHARE 0.1 DATA.VAL_SPLIT test", "DATA.VAL_SHARE takes the validation images from DATA.TRAIN_SPLIT"),
    ("eval", f"{WEIGHTS} DATA.VAL_SHARE 0.1 DATA.TRAIN_SPLIT val", "DATA.VAL_SHARE takes the validation images from DATA.TRAIN_SPLIT"),
    ("eval", f"{WEIGHTS} TASK multilabel DATA.DATASET zip/x", "DATA.DATASET is zip/x, whose images have one label each, but TASK is multilabel; use list or"),
    ("eval", f"{WEIGHTS} DATA.LABEL_SEPARATOR ;", "DATA.LABEL_SEPARATOR separates labels of TASK multilabel, which is classification; set it"),
    ("train", f"{SEVERAL}", "TASK multilabel learns yes or no of each class, but TRAIN.LOSS is ce, MODEL.LABEL_SMOOTHING 0.1; set the loss to"),
    ("check", f"{SEVERAL} TRAIN.LOSS bce", "TASK multilabel learns yes or no of each class, but TRAIN.LOSS is bce, MODEL.LABEL_SMOOTHING 0.1"),
    ("train", "TRAIN.LOSS asymmetric", "TRAIN.LOSS asymmetric is for TASK multilabel, which is classification; set the task, or another loss"),
    ("train", f"{SEVERAL} TRAIN.LOSS asymmetric MODEL.LABEL_SMOOTHING 0", "TRAIN.LOSS asymmetric focuses on labels that are 0 or 1, but mixup"),
    ("train", f"{SEVERAL} {UNMIXED} TRAIN.LOSS bce MODEL.LABEL_SMOOTHING 0 DISTILL.TEACHER resnet18", "AUG.SPLITS and DISTILL.TEACHER compare"),
    ("eval", f"{WEIGHTS} {SEVERAL} TEST.KNN [3]", "TEST.SETS and TEST.KNN are about images with one label each, but TASK is multilabel"),
]  # fmt: skip


@pytest.mark.parametrize("command, opts, beginning", CASES)
def test_refused_contradictions(recipe, command, opts, beginning):
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, opts.split(), command=command)
    assert str(caught.value).startswith(beginning) and "\n" not in str(caught.value) and "{" not in str(caught.value)


def test_every_conflict_has_a_case(recipe):
    configs = [(command, load_config(recipe, opts.split())) for command, opts, _ in CASES]
    for conflict in CONFLICTS:
        assert any(command in conflict.commands and conflict.found(cfg) for command, cfg in configs), conflict.text


@pytest.mark.parametrize(
    "command, opts", [(command, opts) for command, opts, _ in CASES if command in ("train", "check")]
)
def test_what_contradicts_in_training_does_not_in_use(recipe, command, opts):
    """A file that is only read, a checkpoint's config, and, but for the data set's format, an evaluation."""
    cfg = load_config(recipe, opts.split())
    assert config_from(to_dict(cfg), "a.pth: its config") == cfg
    assert load_config(recipe, opts.split(), command="throughput") == cfg
    if not (cfg.DATA.ZIP_MODE or cfg.DATA.CLASS_MAP):
        load_config(recipe, [*opts.split(), *WEIGHTS.split()], command="eval")


@pytest.mark.parametrize("flags, command", [
    ([], "train"), (["--check"], "check"), (["--eval"], "eval"), (["--throughput"], "throughput"),
    (["--benchmark-data"], "benchmark_data"), (["--benchmark-data", "2500"], "benchmark_data"),
])  # fmt: skip
def test_the_command_of_the_flags(flags, command):
    assert command_of(parse_args(["--cfg", "x.yaml", *flags])) == command


def test_contradictions_are_found_before_torch_is_imported(recipe):
    code = f"""import sys, main
try: main.main(["--cfg", {str(recipe)!r}, "--opts", "AUG.SPLITS", "3"])
except main.ending.UserError as error: print(error.status, "torch" in sys.modules, error)"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.startswith("2 False AUG.SPLITS is 3, whose loss compares views"), ended.stderr


# which describes sets
CONFIGS = sorted({*(ROOT / "configs").rglob("*.yaml")} - {ROOT / "configs" / "evaluation_sets.yaml"})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_loads(path):
    load_config(path)


@pytest.mark.parametrize("arguments, parts", [
    (dict(num_images=5000, batch_size=32, world_size=2, accumulation_steps=3, total_batch_size=128), ["3", "128", "2"]),
    (dict(num_images=31, batch_size=16, world_size=2, accumulation_steps=1, total_batch_size=0), ["31", "32"]),
    (dict(num_images=100, batch_size=16, world_size=2, accumulation_steps=4, total_batch_size=0), ["ACCUMULATION", "4", "3"]),
    (dict(num_images=100, batch_size=16, world_size=2, accumulation_steps=1, total_batch_size=128), ["TOTAL", "128", "100"]),
])  # fmt: skip
def test_refused_plans(arguments, parts):
    with pytest.raises(UserError) as caught:
        plan_batches(**arguments)
    assert all(part in str(caught.value) for part in parts)
