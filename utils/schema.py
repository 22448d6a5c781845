"""Every config key, once: its name, default, rule, role and meaning.

The defaults are the paper's ImageNet recipe for 8 processes, but for what differs between its models (see configs/). Names follow Swin's config, which the released FAT code
uses; `MODEL.FAT` has the released lower-case names. What keys must not say together is in `utils.conflicts`.
"""

import enum
import math
import re
import sys
from pathlib import Path
from typing import Any, Callable, NamedTuple

from yacs.config import CfgNode

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
BACKENDS = ("pil", "cv2", "nvimgcodec")
EXPORTING = ("onnxruntime", "openvino")  # engines that compute an exported model, on a CPU
ENGINES = ("torch", "cudagraphs", *EXPORTING)
# Formats whose classes have their order from elsewhere.
FORMATS_WITH_OWN_ORDER = ("cifar10", "cifar100", "synthetic", "coco")
# Optimizers that step each tensor for itself, as TRAIN.SHARD needs it, and are tested with it.
SHARDABLE = ("adamw", "adam", "sgd", "lion", "lamb", "lars")
VALIDATION = "val"  # the split of the validation images, where no other is named
LIST = "list"  # the format whose labels are a list
SEVERAL_LABELS = (LIST, "hfds", "wds")  # formats whose images may have several labels
BY_INDEX = ("imagenet", "folder", "zip", "tar", "hfds", LIST)  # formats of image files that are read by index


class Role(enum.Enum):
    """What a key's value has to do with a trained model and its figures."""

    RUN = "which run it is, where it lies, what it writes"
    IMAGES = "which data set"
    SPEED = "how soon; the same function of the same images"
    NUMERICS = "changes figures a little, not the recipe"
    MODEL = "the model"
    COLOURS = "the pixels that a model sees, in training as in use"
    VIEW = "size and crop of the images that a model sees, which are a recipe's choice in further training"
    RECIPE = "how it is trained"
    SPLIT = "how an update is split into micro-batches, the recipe's where TRAIN.TOTAL_BATCH_SIZE is not"
    EVALUATION = "which figures --eval makes of it"


RUN, IMAGES, SPEED, NUMERICS, MODEL, COLOURS, VIEW, RECIPE, SPLIT, EVALUATION = Role


class Rule:
    """What a value must satisfy, and how to say so.

    Args:
        kinds: types that it may have besides the default's.
    """

    def __init__(self, text: str, holds: Callable[[Any], bool], kinds: tuple[type, ...] = ()):
        self.text, self.holds, self.kinds = text, holds, kinds


class Key(NamedTuple):
    default: Any
    rule: Rule
    role: Role
    meaning: str


KEYS: dict[str, Key] = {}
DEFAULTS = CfgNode()


def key(name: str, default: Any, rule: Rule, role: Role, meaning: str) -> None:
    """Adds a key to `KEYS`, and to `DEFAULTS` with the sections it is in."""
    KEYS[name] = Key(default, rule, role, meaning)
    # a checkpoint has a name that stands in several sections once, which needs one string
    *sections, last = map(sys.intern, name.split("."))
    node = DEFAULTS
    for section in sections:
        node = node.setdefault(section, CfgNode())
    node[last] = default


def keys_of(*roles: Role) -> tuple[str, ...]:
    return tuple(name for name, key in KEYS.items() if key.role in roles)


# Rules


def one_of(*choices: str) -> Rule:
    return Rule("one of " + ", ".join(choices), lambda value: value in choices)


def is_cell(name: str) -> bool:
    """Whether configs/<name>.yaml is there; a path that leads out of configs/ is none."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name) is not None and (CONFIGS / f"{name}.yaml").is_file()


def is_side(value: Any) -> bool:
    return type(value) is int and 32 <= value <= 4096


def is_size(value: Any) -> bool:
    return is_side(value) or (isinstance(value, list) and len(value) == 2 and all(map(is_side, value)))


def are_size_steps(steps: list) -> bool:
    if not all(len(step) == 2 and type(step[0]) is int and is_size(step[1]) for step in steps):
        return False
    epochs = [epoch for epoch, _ in steps]
    return epochs[:1] in ([], [0]) and epochs == sorted(set(epochs))


def is_part(part: Any) -> bool:
    return part in ("stem", "backbone") or type(part) in (int, str) and bool(re.fullmatch("[1-9][0-9]*", str(part)))


def are_names(values: list) -> bool:
    return all(isinstance(name, str) and name for name in values) and len(set(values)) == len(values)


def are_numbers(values: list) -> bool:
    return bool(values) and all(type(x) in (int, float) for x in values)


def are_counts(values: list) -> bool:
    return all(type(n) is int and n > 0 for n in values)


ANY = Rule("any value", lambda value: True)
SWITCH = Rule("True, False or auto", lambda value: value in (True, False, "auto"), kinds=(str,))
AUTO = "auto"
COUNT_OR_AUTO = Rule(
    "auto, or greater than 0", lambda value: value == AUTO if isinstance(value, str) else value > 0, kinds=(str,)
)
PATH = Rule("a file or folder", lambda value: True)  # as a shell has it, with ~ and $VARIABLE
NOT_EMPTY = Rule("a name", bool)
POSITIVE = Rule("greater than 0", lambda value: value > 0)
NOT_NEGATIVE = Rule("0 or greater", lambda value: value >= 0)
PROBABILITY = Rule("between 0 and 1", lambda value: 0 <= value <= 1)
FRACTION = Rule("greater than 0 and at most 1", lambda value: 0 < value <= 1)
BELOW_ONE = Rule("at least 0 and below 1", lambda value: 0 <= value < 1)
SIZE = Rule("between 32 and 4096, or [height, width] of such numbers", is_size, kinds=(list,))
SIZE_OR_0 = Rule(f"0, or {SIZE.text}", lambda value: value == 0 or is_size(value), kinds=(list,))
SIDE_OR_0 = Rule("0, or between 32 and 4096", lambda value: value == 0 or 32 <= value <= 4096)
CROP = Rule("between 0.1 and 1", lambda value: 0.1 <= value <= 1)
RANGE = Rule("two numbers greater than 0, the smaller first", lambda v: len(v) == 2 and 0 < v[0] <= v[1])
SHARES = Rule("two numbers greater than 0 and at most 1, the smaller first", lambda v: RANGE.holds(v) and v[1] <= 1)
MINMAX = Rule(f"empty, or {SHARES.text}", lambda v: not v or SHARES.holds(v))
BETAS = Rule("two numbers at least 0 and below 1", lambda v: len(v) == 2 and all(0 <= b < 1 for b in v))
PER_BAND = "or with another DATA.IN_CHANS than 3 one for each band"
MEAN = Rule(
    f"three numbers between 0 and 1, {PER_BAND}",
    lambda v: are_numbers(v) and (len(v) != 3 or all(0 <= x <= 1 for x in v)),
)
STD = Rule(
    f"three numbers between 0.001 and 10, {PER_BAND}, greater than 0",
    lambda v: are_numbers(v) and all(0.001 <= x <= 10 if len(v) == 3 else x > 0 for x in v),
)
ODD_PER_STAGE = Rule("odd numbers greater than 0, one per stage", lambda v: are_counts(v) and all(n % 2 for n in v))
PER_STAGE = Rule(
    "numbers greater than 0, one per stage", lambda v: all(isinstance(n, (int, float)) and n > 0 for n in v)
)
PER_STAGE_INT = Rule("whole numbers greater than 0, one per stage", are_counts)
SIZE_STEPS = Rule(
    "a list of [epoch, size], the first of epoch 0, epochs rising, sizes between 32 and 4096 or [height, width] of such numbers",
    are_size_steps,
)
PARTS = Rule("a list of stem, backbone and the numbers of stages, from 1 on", lambda parts: all(map(is_part, parts)))
NEIGHBOURS = Rule(
    "a list of whole numbers greater than 0, each once", lambda v: are_counts(v) and len(set(v)) == len(v)
)
SPLITS = Rule("0, or 2 to 16", lambda value: value == 0 or 2 <= value <= 16)
CROPS = Rule("1 or 5", lambda value: value in (1, 5))
SETS = Rule("names of sets, each once", are_names)
COLUMNS = Rule("two different names", lambda names: len(names) == 2 and are_names(names))
TAG = Rule("a folder name", lambda value: value not in ("", ".", "..") and "/" not in value)
CELL = Rule(
    "empty, or a config's path below configs/ without .yaml, such as fat_b0", lambda value: not value or is_cell(value)
)
SECONDS = Rule("between 3 and 86400 seconds", lambda value: 3 <= value <= 86400)
# The names of `utils.loggers.LOGGERS`, which is imported only when a run begins.
LOGGERS = Rule("names among csv, wandb, each once", lambda v: len(set(v)) == len(v) and set(v) <= {"csv", "wandb"})
MODEL_NAME = Rule(
    "a model's name", lambda value: value and not {".", ".."} & set(value.split("/")) and not value.startswith("/")
)
POSITIVES = Rule(
    "a list of numbers greater than 0, each once",
    lambda v: bool(v) and all(isinstance(n, (int, float)) and n > 0 for n in v) and len(set(v)) == len(v),
)
LONG_SHORT = Rule(
    "two whole numbers between 32 and 16384, the larger first",
    lambda v: len(v) == 2 and all(type(n) is int for n in v) and 32 <= v[1] <= v[0] <= 16384,
)
MILESTONES = Rule(
    "a list of numbers greater than 0, rising",
    lambda v: all(isinstance(n, (int, float)) and n > 0 for n in v) and list(v) == sorted(set(v)),
)
SAMPLING = Rule("empty or balanced", lambda value: value in ("", "balanced"))
COMPILE_MODE = one_of("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


# Keys

# fmt: off
key("BASE", [], ANY, RUN, "configs to start from, paths relative to this file")
key("TASK", "classification", ANY, RECIPE, "what is learned")
key("OUTPUT", "output", PATH, RUN, "a run lies in OUTPUT/MODEL.NAME/TAG")
key("TAG", "default", TAG, RUN, "name of the run")
key("REPRODUCES", "", CELL, RUN, "the cell of the results tables that a run measures: its config below configs/, without .yaml")
key("SEED", 0, NOT_NEGATIVE, RUN, "all draws are a function of it, the epoch and the image")
key("DEVICE", "auto", one_of("auto", "cuda", "cpu"), RUN, "auto: a GPU if there is one")
key("DETERMINISTIC", False, ANY, NUMERICS, "only algorithms that give the same bits in each run; slower on GPUs")
key("RANK_TIMEOUT", 60.0, SECONDS, RUN, "seconds without a sign of life from a process after which the run ends and names it")
key("SAVE_FREQ", 50, NOT_NEGATIVE, RUN, "keep a checkpoint of every n-th epoch, besides last and best; 0: none")
key("PRINT_FREQ", 10, POSITIVE, RUN, "updates between two lines of the log")
key("LOGGERS", [], LOGGERS, RUN, "besides TensorBoard: csv, wandb (Weights & Biases, whose own WANDB_... variables say where to)")

key("DATA.DATASET", "imagenet", ANY, IMAGES,
    "imagenet or folder (train/ and val/ with a folder per class), list, zip, tar, wds, hfds, cifar10, cifar100, synthetic; "
    "TASK detection: coco")
key("DATA.DATA_PATH", "", PATH, IMAGES, "where it lies")
key("DATA.LIST", "", PATH, IMAGES, "list: the list in DATA_PATH; empty: DATA_PATH is the list, or has one for each split")
key("DATA.TRAIN_SPLIT", "train", NOT_EMPTY, IMAGES, "its split in DATA_PATH: a folder, archive, pattern of shards, split of a hub's set")
key("DATA.VAL_SPLIT", VALIDATION, NOT_EMPTY, IMAGES, "the same of the validation images")
key("DATA.VAL_SHARE", 0.0, BELOW_ONE, IMAGES,
    "share of each class' images of TRAIN_SPLIT that are validation images, instead of VAL_SPLIT; 0: none")
key("DATA.VAL_SEED", 0, NOT_NEGATIVE, IMAGES, "VAL_SHARE: chooses which ones they are; SEED does not")
key("DATA.COLUMNS", ["image", "label"], COLUMNS, IMAGES,
    "of hfds, list: columns; of wds: members by their suffixes, such as [rgb.png, cls]; image and label stand for the usual ones")
key("DATA.LABEL_SEPARATOR", "", ANY, IMAGES,
    "TASK multilabel: what stands between two labels in a cell; empty: | or ;, whichever the first such cell has")
key("DATA.ZIP_MODE", False, ANY, IMAGES, "True: the same as DATASET zip, for imagenet")
key("DATA.CACHE_MODE", "no", one_of("no", "full", "part"), NUMERICS,
    "zip, tar: files in memory: no, full (all in each process), part (each process has its share, and trains on it)")
key("DATA.SHUFFLE_BUFFER", 1000, POSITIVE, RECIPE, "wds: images among which a loading process chooses the next one")
key("DATA.SAMPLING", "", SAMPLING, RECIPE,
    "balanced: an epoch of as many images as ever has each class equally often; empty: each image once")
key("DATA.SHARD_TRIES", 8, POSITIVE, SPEED, "wds: times that a shard elsewhere is asked for; the waits between them double")
key("DATA.SHARD_CACHE", "", PATH, SPEED, "wds: folder that keeps such shards, for all processes of the machine; empty: none")
key("DATA.SHARD_CACHE_GB", 100.0, POSITIVE, SPEED, "its size at most; the shards that were read longest ago make room")
key("DATA.CLASS_MAP", "", PATH, IMAGES,
    "labels of the classes: a text file with a name per line, or imagenet-22k, -12k, -21k-goog ...; empty: see CLASS_ORDER")
key("DATA.CLASS_ORDER", "torchvision", one_of("torchvision", "timm"), IMAGES,
    "of classes without a CLASS_MAP: torchvision (0, 1, 10, 2; Zebra, apple) or timm (0, 1, 2, 10; apple, Zebra)")
key("DATA.BATCH_SIZE", 128, COUNT_OR_AUTO, SPLIT,
    "images per process and micro-batch; auto: as many as fit this machine's memory, TRAIN.TOTAL_BATCH_SIZE being kept")
key("DATA.IMG_SIZE", 224, SIZE, VIEW, "px of square images' sides, or [height, width]")
key("DATA.INTERPOLATION", "bicubic", one_of("nearest", "bilinear", "bicubic", "lanczos"), COLOURS, "how images are resized")
key("DATA.IN_CHANS", 3, Rule("between 1 and 512", lambda value: 1 <= value <= 512), COLOURS,
    "bands of an image; 3: RGB, to which any image is converted; another number: as files have them, with their full range")
key("DATA.MEAN", [0.485, 0.456, 0.406], MEAN, COLOURS, "of red, green and blue, or of each band, to normalise (prepare_data.py stats)")
key("DATA.STD", [0.229, 0.224, 0.225], STD, COLOURS, "of red, green and blue, or of each band, to normalise (prepare_data.py stats)")
key("DATA.FROM_MODEL", False, ANY, RECIPE,
    "sizes, crop, mean, std and interpolation as timm has them for its model; those of --opts stay")
key("DATA.BACKEND", "pil", one_of(*BACKENDS), NUMERICS,
    "for training: pil (timm's pixels), cv2 (faster, the same draws), nvimgcodec (cv2, decodes crops only)")
key("DATA.NUM_WORKERS", 8, NOT_NEGATIVE, SPEED, "loading processes per process")
key("DATA.PREFETCH", 2, POSITIVE, SPEED, "batches that each of them loads ahead")
key("DATA.TIMEOUT", 900.0, NOT_NEGATIVE, SPEED,
    "seconds without a batch after which a run ends and names the file; 0: it waits for ever")
key("DATA.PIN_MEMORY", True, ANY, SPEED, "has an effect with CUDA only")
key("DATA.ON_ERROR", "raise", one_of("raise", "skip"), NUMERICS,
    "an image that cannot be read: raise (ends the run), skip (left out, counted, listed)")
key("DATA.OUTSIDE_LINKS", False, ANY, IMAGES, "follow links that lead out of the train or val folder")
key("DATA.EXIF", True, ANY, VIEW, "turn images upright as their EXIF orientation says")
key("DATA.SYNTHETIC_IMAGES", 1024, POSITIVE, IMAGES, "images in each split of the synthetic set")

key("MODEL.TYPE", "fat", one_of("fat", "timm"), MODEL, "fat, or timm for any timm model by name")
key("MODEL.NAME", "fat_b0", MODEL_NAME, MODEL, "registered name")
key("MODEL.HEAD", "", ANY, MODEL,
    "what stands on the backbone MODEL.NAME: semantic_fpn, upernet (TASK segmentation), retinanet, mask_rcnn (TASK detection)")
key("MODEL.NUM_CLASSES", 0, NOT_NEGATIVE, IMAGES, "0: as many as the data set has")
key("MODEL.PRETRAINED", "", PATH, RECIPE, "weights to start from; a head of another size is initialised anew")
key("MODEL.RESUME", "", PATH, RUN,
    "training: checkpoint to go on from where the run has none; --eval: checkpoint to evaluate")
key("MODEL.DROP_RATE", 0.0, BELOW_ONE, RECIPE, "dropout before the head")
key("MODEL.DROP_PATH_RATE", 0.0, BELOW_ONE, RECIPE, "share of images for which the last block is left out; earlier ones less")
key("MODEL.LABEL_SMOOTHING", 0.1, BELOW_ONE, RECIPE, "share of a target that all classes have alike")
# an empty list: as in the registered model MODEL.NAME
key("MODEL.FAT.embed_dims", [], PER_STAGE_INT, MODEL, "channels")
key("MODEL.FAT.depths", [], PER_STAGE_INT, MODEL, "blocks")
key("MODEL.FAT.kernel_sizes", [], ODD_PER_STAGE, MODEL, "of FASA's local side")
key("MODEL.FAT.num_heads", [], PER_STAGE_INT, MODEL, "of FASA's attention")
key("MODEL.FAT.window_sizes", [], PER_STAGE_INT, MODEL, "factors by which FASA's keys and values are fewer")
key("MODEL.FAT.mlp_kernel_sizes", [], ODD_PER_STAGE, MODEL, "of ConvFFN's convolution")
key("MODEL.FAT.mlp_ratios", [], PER_STAGE, MODEL, "hidden channels of ConvFFN over channels")
key("MODEL.FAT.interaction", "released", ANY, MODEL,
    "of FASA's two sides: released, bidirectional, add, concat, local, global")
key("MODEL.FAT.downsampling", "fine_grained", ANY, MODEL,
    "of FASA's keys and values: fine_grained, avg_pool, strided_conv, avg_pool_strided_conv")
key("MODEL.FAT.cpe", True, ANY, MODEL, "conditional position encoding")
key("MODEL.FAT.self_modulation", True, ANY, MODEL, "FASA's local side is l * sigmoid(l); False: l")
key("MODEL.FAT.ffn", "conv", ANY, MODEL, "conv (ConvFFN), or mlp: without its convolution in blocks with stride 1")
key("MODEL.FAT.distilled", False, ANY, MODEL, "a second head, which DISTILL's teacher trains")

key("TRAIN.EPOCHS", 300, POSITIVE, RECIPE, "passes over the training images")
key("TRAIN.PATIENCE", 0, NOT_NEGATIVE, RECIPE, "epochs without a better BEST_METRIC after which the run ends; 0: it does not")
key("TRAIN.MAX_HOURS", 0.0, NOT_NEGATIVE, RECIPE,
    "time for training and evaluation, of all starts: EPOCHS become as many as fit, and the schedule ends with them; 0: any")
key("TRAIN.WARMUP_EPOCHS", 20, NOT_NEGATIVE, RECIPE, "epochs in which the LR rises from WARMUP_LR")
key("TRAIN.WARMUP_UPDATES", 0, NOT_NEGATIVE, RECIPE, "the same in updates, with WARMUP_EPOCHS 0; 0: not used")
key("TRAIN.BASE_LR", 5e-4, POSITIVE, RECIPE, "this LR and the next two are per 512 images of the global batch")
key("TRAIN.LR_SCALING", "linear", one_of("linear", "sqrt"), RECIPE,
    "how these LRs grow with the batch: linear (Goyal et al. 2017), sqrt: with its square root (LAMB's rule, You et al. 2020)")
key("TRAIN.WARMUP_LR", 5e-7, NOT_NEGATIVE, RECIPE, "the first LR")
key("TRAIN.MIN_LR", 5e-6, NOT_NEGATIVE, RECIPE, "the last LR")
key("TRAIN.WEIGHT_DECAY", 0.05, NOT_NEGATIVE, RECIPE, "of all weights but biases and norms")
key("TRAIN.IMG_SIZES", [], SIZE_STEPS, RECIPE,
    "[[epoch, size], ...]: size of training images from that epoch on; empty: DATA.IMG_SIZE")
key("TRAIN.LOSS", "ce", one_of("ce", "bce", "asymmetric"), RECIPE,
    "cross-entropy, or bce: binary cross-entropy of each class; TASK multilabel: bce, or asymmetric (Ridnik et al., ICCV 2021)")
key("TRAIN.CLASS_WEIGHTS", "", PATH, RECIPE,
    "of the loss: balanced (as 1 / images), effective (Cui et al. 2019, beta 0.999), or a CSV file of class,weight; their mean is 1; empty: "
    "all alike")
key("TRAIN.LOGIT_ADJUSTMENT", 0.0, NOT_NEGATIVE, RECIPE,
    "tau: the loss sees logits + tau x log(share of a class' images) (Menon et al. 2021); 0: as they are")
key("TRAIN.BCE_TARGET_THRESH", 0.0, BELOW_ONE, RECIPE,
    "bce: targets above it count as 1, others as 0; 0: as they are, mixed and smoothed")
key("TRAIN.BEST_METRIC", "", ANY, RECIPE,
    "what best.pth is chosen by: a figure of the task's evaluation, such as f1_macro or loss; empty: its first (acc1, miou, box_ap)")
key("TRAIN.CLIP_GRAD", 5.0, NOT_NEGATIVE, RECIPE, "largest norm of the gradient; 0: no clipping")
key("TRAIN.LAYER_DECAY", 1.0, FRACTION, RECIPE, "LR factor from each layer to the one below")
key("TRAIN.FREEZE", [], PARTS, RECIPE,
    "parts that stay as they are: stem, stages by number from 1 on, or backbone (all but the head)")
key("TRAIN.ACCUMULATION_STEPS", 1, POSITIVE, SPLIT, "micro-batches per update")
key("TRAIN.TOTAL_BATCH_SIZE", 0, NOT_NEGATIVE, RECIPE,
    "images per update, the same for any number of processes; derives the accumulation; 0: not used")
key("TRAIN.SYNC_BN", "auto", one_of("auto", "all", "none", "torch"), RECIPE,
    "whose images BatchNorm's statistics are of: auto (GPUs: all processes', CPUs: its own), all, none (its own), torch (as "
    "all, by torch's own layer, which needs GPUs)")
key("TRAIN.SHARD", "none", one_of("none", "optimizer"), SPEED,
    "what is shared out over the processes instead of being whole in each: none, or optimizer, its state (ZeRO's first stage)")
key("TRAIN.USE_CHECKPOINT", False, ANY, SPEED, "activation checkpointing")
key("TRAIN.COMPILE", False, SWITCH, SPEED, "torch.compile; auto: on GPUs, where nothing known is in the way")
key("TRAIN.COMPILE_MODE", "default", COMPILE_MODE, SPEED, "torch.compile's mode")
key("TRAIN.CHANNELS_LAST", True, ANY, SPEED,
    "maps lie in memory position by position (NHWC), which convolutions are faster with")
key("TRAIN.AUTO_RESUME", True, ANY, RUN, "go on from the run's last.pth")
key("TRAIN.SAVE_EVERY_STEPS", 0, NOT_NEGATIVE, RUN,
    "updates between two saves of last.pth within an epoch; 0: after epochs only")
key("TRAIN.SAVE_EVERY_MINUTES", 30.0, NOT_NEGATIVE, RUN, "the same by the clock; 0: not")
key("TRAIN.NONFINITE", "raise", one_of("raise", "skip", "rollback"), NUMERICS,
    "loss or gradient not finite: raise, skip (that update), rollback (to the last save, without it)")
key("TRAIN.LR_SCHEDULER.NAME", "cosine", one_of("cosine", "linear", "poly", "step", "multistep"), RECIPE,
    "cosine, linear, poly, step, multistep")
key("TRAIN.LR_SCHEDULER.WARMUP_PREFIX", False, ANY, RECIPE,
    "False: the warmup hides the schedule's start, so the LR jumps after it")
key("TRAIN.LR_SCHEDULER.DECAY_EPOCHS", 30, POSITIVE, RECIPE, "step: epochs between two")
key("TRAIN.LR_SCHEDULER.DECAY_RATE", 0.1, FRACTION, RECIPE, "step, multistep: factor of each")
key("TRAIN.LR_SCHEDULER.POWER", 0.9, POSITIVE, RECIPE, "poly: the LR falls with (1 - progress) to this power")
key("TRAIN.LR_SCHEDULER.MILESTONES", [], MILESTONES, RECIPE, "multistep: epochs after which the LR falls by DECAY_RATE")
key("TRAIN.OPTIMIZER.NAME", "adamw", ANY, RECIPE, "any of timm's; fused* ones need NVIDIA apex")
key("TRAIN.OPTIMIZER.EPS", 1e-8, POSITIVE, RECIPE, "optimizers with epsilon")
key("TRAIN.OPTIMIZER.BETAS", [0.9, 0.999], BETAS, RECIPE, "optimizers with two betas")
key("TRAIN.OPTIMIZER.MOMENTUM", 0.9, BELOW_ONE, RECIPE, "optimizers with momentum")

# a teacher's logits beside the labels, as in DeiT
key("DISTILL.TEACHER", "", ANY, RECIPE, "any timm model; empty: none")
key("DISTILL.WEIGHTS", "", PATH, RECIPE, "its checkpoint; empty: timm's weights, downloaded")
key("DISTILL.KIND", "soft", one_of("soft", "hard"), RECIPE, "soft: its distribution; hard: its first class")
key("DISTILL.ALPHA", 0.5, PROBABILITY, RECIPE, "weight of its loss; that of the labels has the rest")
key("DISTILL.TAU", 1.0, POSITIVE, RECIPE, "soft: temperature")

# exponential moving average of the weights, evaluated beside them
key("EMA.ENABLED", False, ANY, RECIPE, "make one")
key("EMA.DECAY", 0.9999, BELOW_ONE, RECIPE, "share of it that an update keeps")
key("EMA.WARMUP", False, ANY, RECIPE, "start with a shorter average")

key("AMP.ENABLED", True, ANY, NUMERICS, "torch.autocast")
key("AMP.DTYPE", "auto", one_of("auto", "bfloat16", "float16"), NUMERICS,
    "auto (CUDA: bfloat16, or float16 on GPUs without it; CPU: float32), bfloat16, float16")

key("AUG.SCALE", [0.08, 1.0], SHARES, RECIPE, "share of the image that a random crop covers")
key("AUG.RATIO", [0.75, 4 / 3], RANGE, RECIPE, "width over height of a random crop")
key("AUG.HFLIP", 0.5, PROBABILITY, RECIPE, "probability of a mirror image")
key("AUG.COLOR_JITTER", 0.4, NOT_NEGATIVE, RECIPE, "used where AUTO_AUGMENT is none")
key("AUG.AUTO_AUGMENT", "rand-m9-mstd0.5-inc1", ANY, RECIPE,
    "timm's policy strings (rand-..., original, 3a, augmix-...), trivial, none")
key("AUG.SPLITS", 0, SPLITS, RECIPE,
    "views of each image, the first not augmented, for the Jensen-Shannon loss (AugMix: 3); 0: off")
key("AUG.REPEATS", 1, POSITIVE, RECIPE,
    "times that an image stands in an epoch of as many images as ever, augmented anew (DeiT: 3)")
key("AUG.REPROB", 0.25, PROBABILITY, RECIPE, "random erasing")
key("AUG.REMODE", "pixel", one_of("pixel", "rand", "const"), RECIPE, "what is put there")
key("AUG.RECOUNT", 1, POSITIVE, RECIPE, "rectangles")
key("AUG.MIXUP", 0.8, NOT_NEGATIVE, RECIPE, "alpha; 0: off")
key("AUG.CUTMIX", 1.0, NOT_NEGATIVE, RECIPE, "alpha; 0: off")
key("AUG.CUTMIX_MINMAX", [], MINMAX, RECIPE, "least and largest side of a patch, instead of CUTMIX")
key("AUG.MIXUP_PROB", 1.0, PROBABILITY, RECIPE, "of mixup or cutmix")
key("AUG.MIXUP_SWITCH_PROB", 0.5, PROBABILITY, RECIPE, "of cutmix where both are on")
key("AUG.MIXUP_MODE", "batch", one_of("batch", "pair", "elem"), RECIPE, "what has one share: batch, pair, elem")

# TASK segmentation
key("SEG.CLASSES", "", PATH, IMAGES,
    "names of the classes: a text file with a name per line, or ade20k, cityscapes, voc")
key("SEG.IGNORE", 255, NOT_NEGATIVE, IMAGES, "the value of pixels in a mask that count nowhere")
key("SEG.REDUCE_ZERO_LABEL", False, ANY, IMAGES, "0 in a mask counts nowhere too, and 1 is the first class")
key("SEG.SCALE", [2048, 512], LONG_SHORT, VIEW, "images are resized to fit into a longer and a shorter side of so many px")
key("SEG.RATIO_RANGE", [0.5, 2.0], RANGE, RECIPE, "in training SCALE times a factor between these; DATA.IMG_SIZE is the crop")
key("SEG.CAT_MAX_RATIO", 0.75, FRACTION, RECIPE, "largest share of a class in a crop, of ten tries; 1: any")
key("SEG.PHOTOMETRIC", True, ANY, RECIPE, "brightness, contrast, saturation and hue are changed, each for half of the images")
key("SEG.MODE", "whole", one_of("whole", "slide"), VIEW, "evaluation sees the image whole, or through windows of DATA.IMG_SIZE")
key("SEG.STRIDE", 0, NOT_NEGATIVE, VIEW, "px from a window to the next; 0: two thirds of DATA.IMG_SIZE")
key("SEG.SCALES", [1.0], POSITIVES, VIEW, "factors of SCALE at which evaluation sees an image; the mean of the probabilities counts")

# TASK multilabel
key("MULTILABEL.GAMMA_NEG", 4.0, NOT_NEGATIVE, RECIPE, "asymmetric: focusing of classes that an image does not have")
key("MULTILABEL.GAMMA_POS", 1.0, NOT_NEGATIVE, RECIPE, "asymmetric: focusing of those that it has")
key("MULTILABEL.CLIP", 0.05, BELOW_ONE, RECIPE, "asymmetric: by so much the probability of what it does not have is lowered; 0: off")
key("MULTILABEL.THRESHOLD", 0.0, BELOW_ONE, EVALUATION,
    "probability from which on an image has a class; 0: one per class, with the largest F1 on the validation images in training")

# TASK detection
key("DET.MAX_SIZE", 1333, POSITIVE, MODEL, "px of an image's longer side at most, where its shorter one has DATA.IMG_SIZE")
key("DET.MIN_SIZE", 0, SIDE_OR_0, RECIPE,
    "training draws an image's shorter side between it and DATA.IMG_SIZE; 0: that is DATA.IMG_SIZE")
key("DET.EMPTY_IMAGES", False, ANY, RECIPE, "train on images without objects, too")
key("DET.AP_BY", "pycocotools", one_of("pycocotools", "faster_coco_eval"), EVALUATION,
    "the package that computes AP; faster_coco_eval gives the same figures sooner")

key("TEST.FUSED", False, ANY, EVALUATION,
    "--eval, --throughput: the deployed form, models.fuse(model), instead of the trained one")
key("TEST.ENGINE", "torch", one_of(*ENGINES), EVALUATION,
    "--eval, --throughput: what computes: torch; on a GPU cudagraphs, torch's kernels started once for a batch; on a CPU onnxruntime "
    "and openvino, which get the deployed form, exported in memory")
key("TEST.CROP_PCT", 0.875, CROP, VIEW, "evaluation resizes to its IMG_SIZE / CROP_PCT, as CROP_MODE says, and crops the centre")
key("TEST.CROP_MODE", "center", one_of("center", "border", "squash"), VIEW,
    "timm's crop_mode: center (keeps the sides' ratio, cuts off), border (keeps it, pads), squash (both sides to IMG_SIZE / CROP_PCT)")
key("TEST.IMG_SIZE", 0, SIZE_OR_0, VIEW, "of evaluation; 0: DATA.IMG_SIZE")
key("TEST.CROPS", 1, CROPS, VIEW, "5: the corners of the resized image too; the mean of the probabilities counts")
key("TEST.FLIP", False, ANY, VIEW, "the same with each mirror image")
key("TEST.KNN", [], NEIGHBOURS, EVALUATION,
    "--eval: classify by so many nearest training images too, such as [10, 20], without the head")
key("TEST.KNN_TEMPERATURE", 0.07, POSITIVE, EVALUATION, "of their votes")
key("TEST.SETS", [], SETS, EVALUATION,
    "--eval: evaluation sets by name: val, and those of SETS_FILE; empty: val alone, without the reports")
key("TEST.SETS_FILE", "", PATH, EVALUATION, "YAML that describes them; empty: configs/evaluation_sets.yaml")
key("TEST.SETS_PATH", "", PATH, EVALUATION, "folder that holds them; empty: DATA.DATA_PATH")
key("TEST.PREDICTIONS", True, ANY, EVALUATION, "write each image's prediction, too (ImageNet-C: half a gigabyte)")
# fmt: on

# What shapes the images that a trained model sees; of DATA and TEST, a model in use depends on no other key.
INPUT_KEYS = keys_of(COLOURS, VIEW)

# Keys of the released YAMLs that mean the same as one of ours.
ALIASES = {
    "MODEL.FAT.in_chans": "DATA.IN_CHANS",
    "MODEL.FAT.num_classes": "MODEL.NUM_CLASSES",
    "MODEL.FAT.drop_path_rate": "MODEL.DROP_PATH_RATE",
    "MODEL.FAT.use_checkpoint": "TRAIN.USE_CHECKPOINT",
}

# Keys of older configs that have gone: the values that mean what is done today, and what to say of others.
RETIRED = {
    "AMP.BACKEND": (("native",), "NVIDIA took apex.amp out of apex in 2025; leave the key out, torch.autocast is used"),
    "AMP.OPT_LEVEL": (
        ("O1",),
        "O2 was NVIDIA apex's, which has no amp any more; leave the key out, torch.autocast is used",
    ),
}


def is_finite(value: Any) -> bool:
    """False for a number, or a list with a number, that is infinite or not a number."""
    if isinstance(value, (list, tuple)):
        return all(is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
