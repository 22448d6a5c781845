"""Every config key with its default value and, below, what values it may take.

The defaults are the paper's ImageNet recipe for 8 processes. Names follow Swin's config, which the released FAT code
uses; `MODEL.FAT` has the released lower-case names.
"""

import math
import re
from pathlib import Path
from typing import Any, Callable

from yacs.config import CfgNode as Node

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
BACKENDS = ("pil", "cv2", "nvimgcodec")

DEFAULTS = Node()
DEFAULTS.BASE = []  # configs to start from, paths relative to this file
DEFAULTS.TASK = "classification"
DEFAULTS.OUTPUT = "output"  # a run lies in OUTPUT/MODEL.NAME/TAG
DEFAULTS.TAG = "default"
# the cell of the results tables that a run measures: its config's path below configs/, without .yaml
DEFAULTS.REPRODUCES = ""
DEFAULTS.SEED = 0
DEFAULTS.DEVICE = "auto"  # auto, cuda, cpu
DEFAULTS.DETERMINISTIC = False  # only algorithms that give the same bits in each run; slower on GPUs
DEFAULTS.RANK_TIMEOUT = 60.0  # seconds without a sign of life from a process after which the run ends and names it
DEFAULTS.SAVE_FREQ = 50  # keep a checkpoint of every n-th epoch, besides last and best; 0: none
DEFAULTS.PRINT_FREQ = 10  # updates between two lines of the log
DEFAULTS.LOGGERS = []  # besides TensorBoard: csv, wandb (Weights & Biases, whose own WANDB_... variables say where to)

DEFAULTS.DATA = Node()
# imagenet or folder (train/ and val/ with a folder per class), zip, tar, wds, hfds, cifar10, cifar100, synthetic
DEFAULTS.DATA.DATASET = "imagenet"
DEFAULTS.DATA.DATA_PATH = ""
# name of the split in DATA_PATH: a folder, archive, pattern of shards, split of a hub's set
DEFAULTS.DATA.TRAIN_SPLIT = "train"
DEFAULTS.DATA.VAL_SPLIT = "val"
# of hfds: columns; of wds: members by their suffixes, such as [rgb.png, cls]; image and label stand for the usual
# ones
DEFAULTS.DATA.COLUMNS = ["image", "label"]
DEFAULTS.DATA.ZIP_MODE = False  # True: the same as DATASET zip, for imagenet
# zip, tar: files in memory: no, full (all in each process), part (each process has its share, and trains on it)
DEFAULTS.DATA.CACHE_MODE = "no"
DEFAULTS.DATA.SHUFFLE_BUFFER = 1000  # wds: images among which a loading process chooses the next one
# labels of the classes: a text file with a name per line, or imagenet-22k, -12k, -21k-goog ...; empty: see
# CLASS_ORDER
DEFAULTS.DATA.CLASS_MAP = ""
# of classes without a CLASS_MAP: torchvision (0, 1, 10, 2; Zebra, apple) or timm (0, 1, 2, 10; apple, Zebra)
DEFAULTS.DATA.CLASS_ORDER = "torchvision"
DEFAULTS.DATA.BATCH_SIZE = 128  # images per process and micro-batch
DEFAULTS.DATA.IMG_SIZE = 224
DEFAULTS.DATA.INTERPOLATION = "bicubic"
DEFAULTS.DATA.MEAN = [0.485, 0.456, 0.406]
DEFAULTS.DATA.STD = [0.229, 0.224, 0.225]
# sizes, crop, mean, std and interpolation as timm has them for its model; those of --opts stay
DEFAULTS.DATA.FROM_MODEL = False
# for training: pil (timm's pixels), cv2 (faster, the same draws), nvimgcodec (cv2, decodes crops only)
DEFAULTS.DATA.BACKEND = "pil"
DEFAULTS.DATA.NUM_WORKERS = 8  # per process
DEFAULTS.DATA.PREFETCH = 2  # batches that each of them loads ahead
DEFAULTS.DATA.TIMEOUT = 900.0  # seconds without a batch after which a run ends and names the file; 0: it waits for ever
DEFAULTS.DATA.PIN_MEMORY = True  # has an effect with CUDA only
DEFAULTS.DATA.ON_ERROR = "raise"  # an image that cannot be read: raise (ends the run), skip (left out, counted, listed)
DEFAULTS.DATA.OUTSIDE_LINKS = False  # follow links that lead out of the train or val folder
DEFAULTS.DATA.EXIF = True  # turn images upright as their EXIF orientation says
DEFAULTS.DATA.SYNTHETIC_IMAGES = 1024  # images in each split of the synthetic set

DEFAULTS.MODEL = Node()
DEFAULTS.MODEL.TYPE = "fat"  # fat, or timm for any timm model by name
DEFAULTS.MODEL.NAME = "fat_b0"
DEFAULTS.MODEL.NUM_CLASSES = 0  # 0: as many as the data set has
DEFAULTS.MODEL.PRETRAINED = ""  # weights to start from; a head of another size is initialised anew
DEFAULTS.MODEL.RESUME = ""  # training: checkpoint to go on from where the run has none; --eval: checkpoint to evaluate
DEFAULTS.MODEL.DROP_RATE = 0.0
DEFAULTS.MODEL.DROP_PATH_RATE = 0.0
DEFAULTS.MODEL.LABEL_SMOOTHING = 0.1
DEFAULTS.MODEL.FAT = Node()  # an empty list: as in the registered model MODEL.NAME
DEFAULTS.MODEL.FAT.in_chans = 3
DEFAULTS.MODEL.FAT.embed_dims = []
DEFAULTS.MODEL.FAT.depths = []
DEFAULTS.MODEL.FAT.kernel_sizes = []
DEFAULTS.MODEL.FAT.num_heads = []
DEFAULTS.MODEL.FAT.window_sizes = []
DEFAULTS.MODEL.FAT.mlp_kernel_sizes = []
DEFAULTS.MODEL.FAT.mlp_ratios = []
DEFAULTS.MODEL.FAT.interaction = "released"  # of FASA's two sides: released, bidirectional, add, concat, local, global
# of FASA's keys and values: fine_grained, avg_pool, strided_conv, avg_pool_strided_conv
DEFAULTS.MODEL.FAT.downsampling = "fine_grained"
DEFAULTS.MODEL.FAT.cpe = True  # conditional position encoding
DEFAULTS.MODEL.FAT.self_modulation = True  # FASA's local side is l * sigmoid(l); False: l
DEFAULTS.MODEL.FAT.ffn = "conv"  # conv (ConvFFN), or mlp: without its convolution in blocks with stride 1
DEFAULTS.MODEL.FAT.distilled = False  # a second head, which DISTILL's teacher trains

DEFAULTS.TRAIN = Node()
DEFAULTS.TRAIN.EPOCHS = 300
DEFAULTS.TRAIN.WARMUP_EPOCHS = 20
DEFAULTS.TRAIN.BASE_LR = 5e-4  # this LR and the next two are per 512 images of the global batch
DEFAULTS.TRAIN.WARMUP_LR = 5e-7
DEFAULTS.TRAIN.MIN_LR = 5e-6
DEFAULTS.TRAIN.WEIGHT_DECAY = 0.05
DEFAULTS.TRAIN.IMG_SIZES = []  # [[epoch, size], ...]: size of training images from that epoch on; empty: DATA.IMG_SIZE
DEFAULTS.TRAIN.LOSS = "ce"  # cross-entropy, or bce: binary cross-entropy of each class
# bce: targets above it count as 1, others as 0; 0: as they are, mixed and smoothed
DEFAULTS.TRAIN.BCE_TARGET_THRESH = 0.0
DEFAULTS.TRAIN.CLIP_GRAD = 5.0  # largest norm of the gradient; 0: no clipping
DEFAULTS.TRAIN.LAYER_DECAY = 1.0  # LR factor from each layer to the one below
# parts that stay as they are: stem, stages by number from 1 on, or backbone (all but the head)
DEFAULTS.TRAIN.FREEZE = []
DEFAULTS.TRAIN.ACCUMULATION_STEPS = 1
DEFAULTS.TRAIN.TOTAL_BATCH_SIZE = 0  # images per update over all processes; derives the accumulation; 0: not used
DEFAULTS.TRAIN.USE_CHECKPOINT = False  # activation checkpointing
DEFAULTS.TRAIN.COMPILE = False  # torch.compile
DEFAULTS.TRAIN.COMPILE_MODE = "default"  # torch.compile's mode
# maps lie in memory position by position (NHWC), which convolutions are faster with
DEFAULTS.TRAIN.CHANNELS_LAST = True
DEFAULTS.TRAIN.AUTO_RESUME = True  # go on from the run's last.pth
DEFAULTS.TRAIN.SAVE_EVERY_STEPS = 0  # updates between two saves of last.pth within an epoch; 0: after epochs only
DEFAULTS.TRAIN.SAVE_EVERY_MINUTES = 30.0  # the same by the clock; 0: not
# loss or gradient not finite: raise, skip (that update), rollback (to the last save, without it)
DEFAULTS.TRAIN.NONFINITE = "raise"
DEFAULTS.TRAIN.LR_SCHEDULER = Node()
DEFAULTS.TRAIN.LR_SCHEDULER.NAME = "cosine"  # cosine, linear, step
# False: the warmup hides the schedule's start, so the LR jumps after it
DEFAULTS.TRAIN.LR_SCHEDULER.WARMUP_PREFIX = False
DEFAULTS.TRAIN.LR_SCHEDULER.DECAY_EPOCHS = 30  # step
DEFAULTS.TRAIN.LR_SCHEDULER.DECAY_RATE = 0.1  # step
DEFAULTS.TRAIN.OPTIMIZER = Node()
DEFAULTS.TRAIN.OPTIMIZER.NAME = "adamw"  # any of timm's; fused* ones need NVIDIA apex
DEFAULTS.TRAIN.OPTIMIZER.EPS = 1e-8
DEFAULTS.TRAIN.OPTIMIZER.BETAS = [0.9, 0.999]
DEFAULTS.TRAIN.OPTIMIZER.MOMENTUM = 0.9  # optimizers with momentum

DEFAULTS.DISTILL = Node()  # a teacher's logits beside the labels, as in DeiT
DEFAULTS.DISTILL.TEACHER = ""  # any timm model; empty: none
DEFAULTS.DISTILL.WEIGHTS = ""  # its checkpoint; empty: timm's weights, downloaded
DEFAULTS.DISTILL.KIND = "soft"  # soft: its distribution; hard: its first class
DEFAULTS.DISTILL.ALPHA = 0.5  # weight of its loss; that of the labels has the rest
DEFAULTS.DISTILL.TAU = 1.0  # soft: temperature

DEFAULTS.EMA = Node()  # exponential moving average of the weights, evaluated beside them
DEFAULTS.EMA.ENABLED = False
DEFAULTS.EMA.DECAY = 0.9999
DEFAULTS.EMA.WARMUP = False  # start with a shorter average

DEFAULTS.AMP = Node()
DEFAULTS.AMP.ENABLED = True
DEFAULTS.AMP.DTYPE = "auto"  # auto (CUDA: bfloat16, or float16 on GPUs without it; CPU: float32), bfloat16, float16

DEFAULTS.AUG = Node()
DEFAULTS.AUG.SCALE = [0.08, 1.0]  # share of the image that a random crop covers
DEFAULTS.AUG.RATIO = [0.75, 4 / 3]
DEFAULTS.AUG.HFLIP = 0.5
DEFAULTS.AUG.COLOR_JITTER = 0.4  # used where AUTO_AUGMENT is none
# timm's policy strings (rand-..., original, 3a, augmix-...), trivial, none
DEFAULTS.AUG.AUTO_AUGMENT = "rand-m9-mstd0.5-inc1"
DEFAULTS.AUG.SPLITS = 0  # views of each image, the first not augmented, for the Jensen-Shannon loss (AugMix: 3); 0: off
DEFAULTS.AUG.REPEATS = 1  # times that an image stands in an epoch of as many images as ever, augmented anew (DeiT: 3)
DEFAULTS.AUG.REPROB = 0.25  # random erasing
DEFAULTS.AUG.REMODE = "pixel"
DEFAULTS.AUG.RECOUNT = 1
DEFAULTS.AUG.MIXUP = 0.8  # alpha; 0: off
DEFAULTS.AUG.CUTMIX = 1.0  # alpha; 0: off
DEFAULTS.AUG.CUTMIX_MINMAX = []
DEFAULTS.AUG.MIXUP_PROB = 1.0
DEFAULTS.AUG.MIXUP_SWITCH_PROB = 0.5
DEFAULTS.AUG.MIXUP_MODE = "batch"  # batch, pair, elem

DEFAULTS.TEST = Node()
DEFAULTS.TEST.FUSED = False  # --eval, --throughput: the deployed form, models.fuse(model), instead of the trained one
DEFAULTS.TEST.CROP_PCT = 0.875  # evaluation resizes to its IMG_SIZE / CROP_PCT and crops the centre
DEFAULTS.TEST.IMG_SIZE = 0  # of evaluation; 0: DATA.IMG_SIZE
DEFAULTS.TEST.CROPS = 1  # 5: the corners of the resized image too; the mean of the probabilities counts
DEFAULTS.TEST.FLIP = False  # the same with each mirror image
DEFAULTS.TEST.KNN = []  # --eval: classify by so many nearest training images too, such as [10, 20], without the head
DEFAULTS.TEST.KNN_TEMPERATURE = 0.07  # of their votes
# --eval: evaluation sets by name: val, and those of SETS_FILE; empty: val alone, without the reports
DEFAULTS.TEST.SETS = []
DEFAULTS.TEST.SETS_FILE = ""  # YAML that describes them; empty: configs/evaluation_sets.yaml
DEFAULTS.TEST.SETS_PATH = ""  # folder that holds them; empty: DATA.DATA_PATH
DEFAULTS.TEST.PREDICTIONS = True  # write each image's prediction, too (ImageNet-C: half a gigabyte)


# Keys of the released YAMLs that mean the same as one of ours.
ALIASES = {
    "MODEL.FAT.num_classes": "MODEL.NUM_CLASSES",
    "MODEL.FAT.drop_path_rate": "MODEL.DROP_PATH_RATE",
    "MODEL.FAT.use_checkpoint": "TRAIN.USE_CHECKPOINT",
}

# What shapes the images that a trained model sees; of DATA and TEST, a model in use depends on no other key.
INPUT_KEYS = (
    "DATA.IMG_SIZE", "DATA.INTERPOLATION", "DATA.MEAN", "DATA.STD", "DATA.EXIF",
    "TEST.IMG_SIZE", "TEST.CROP_PCT", "TEST.CROPS", "TEST.FLIP",
)  # fmt: skip

# Files and folders: a config has them as a shell does, with ~ and $VARIABLE.
PATH_KEYS = (
    "OUTPUT", "DATA.DATA_PATH", "DATA.CLASS_MAP", "MODEL.PRETRAINED", "MODEL.RESUME", "DISTILL.WEIGHTS", "TEST.SETS_FILE", "TEST.SETS_PATH",
)  # fmt: skip

# Keys of older configs that have gone: the values that mean what is done today, and what to say of others.
RETIRED = {
    "AMP.BACKEND": (("native",), "NVIDIA took apex.amp out of apex in 2025; leave the key out, torch.autocast is used"),
    "AMP.OPT_LEVEL": (
        ("O1",),
        "O2 was NVIDIA apex's, which has no amp any more; leave the key out, torch.autocast is used",
    ),
}


class Rule:
    """What a value must satisfy, and how to say so."""

    def __init__(self, text: str, holds: Callable[[Any], bool]):
        self.text, self.holds = text, holds


def one_of(*choices: str) -> Rule:
    return Rule("one of " + ", ".join(choices), lambda value: value in choices)


def is_cell(name: str) -> bool:
    """Whether configs/<name>.yaml is there; a path that leads out of configs/ is none."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name) is not None and (CONFIGS / f"{name}.yaml").is_file()


NOT_EMPTY = Rule("a name", bool)
POSITIVE = Rule("greater than 0", lambda value: value > 0)
NOT_NEGATIVE = Rule("0 or greater", lambda value: value >= 0)
PROBABILITY = Rule("between 0 and 1", lambda value: 0 <= value <= 1)
FRACTION = Rule("greater than 0 and at most 1", lambda value: 0 < value <= 1)
BELOW_ONE = Rule("at least 0 and below 1", lambda value: 0 <= value < 1)
RANGE = Rule("two numbers greater than 0, the smaller first", lambda v: len(v) == 2 and 0 < v[0] <= v[1])
SHARES = Rule("two numbers greater than 0 and at most 1, the smaller first", lambda v: RANGE.holds(v) and v[1] <= 1)
ODD_PER_STAGE = Rule(
    "odd numbers greater than 0, one per stage", lambda v: all(type(n) is int and n > 0 and n % 2 for n in v)
)
PER_STAGE = Rule(
    "numbers greater than 0, one per stage", lambda v: all(isinstance(n, (int, float)) and n > 0 for n in v)
)
PER_STAGE_INT = Rule("whole numbers greater than 0, one per stage", lambda v: all(type(n) is int and n > 0 for n in v))

SIZE_STEPS = Rule(
    "a list of [epoch, size], the first of epoch 0, epochs rising, sizes between 32 and 4096",
    lambda v: (
        all(len(s) == 2 and all(type(n) is int for n in s) and 32 <= s[1] <= 4096 for s in v)
        and all(s[0] == 0 for s in v[:1])
        and all(a[0] < b[0] for a, b in zip(v, v[1:]))
    ),
)

RULES = {
    "SEED": NOT_NEGATIVE,
    "TAG": Rule("a folder name", lambda value: value not in ("", ".", "..") and "/" not in value),
    "REPRODUCES": Rule(
        "empty, or a config's path below configs/ without .yaml, such as fat_b0",
        lambda value: not value or is_cell(value),
    ),
    "DEVICE": one_of("auto", "cuda", "cpu"),
    "RANK_TIMEOUT": Rule("between 3 and 86400 seconds", lambda value: 3 <= value <= 86400),
    "SAVE_FREQ": NOT_NEGATIVE,
    "PRINT_FREQ": POSITIVE,
    "LOGGERS": Rule(
        "names among csv, wandb, each once", lambda v: len(set(v)) == len(v) and set(v) <= {"csv", "wandb"}
    ),
    "DATA.TRAIN_SPLIT": NOT_EMPTY,
    "DATA.VAL_SPLIT": NOT_EMPTY,
    "DATA.COLUMNS": Rule(
        "two different names", lambda v: len(v) == 2 and v[0] != v[1] and all(isinstance(n, str) and n for n in v)
    ),
    "DATA.CACHE_MODE": one_of("no", "full", "part"),
    "DATA.SHUFFLE_BUFFER": POSITIVE,
    "DATA.CLASS_ORDER": one_of("torchvision", "timm"),
    "DATA.BATCH_SIZE": POSITIVE,
    "DATA.IMG_SIZE": Rule("between 32 and 4096", lambda value: 32 <= value <= 4096),
    "DATA.INTERPOLATION": one_of("nearest", "bilinear", "bicubic", "lanczos"),
    "DATA.MEAN": Rule("three numbers between 0 and 1", lambda v: len(v) == 3 and all(0 <= x <= 1 for x in v)),
    "DATA.STD": Rule("three numbers between 0.001 and 10", lambda v: len(v) == 3 and all(0.001 <= x <= 10 for x in v)),
    "DATA.NUM_WORKERS": NOT_NEGATIVE,
    "DATA.BACKEND": one_of(*BACKENDS),
    "DATA.PREFETCH": POSITIVE,
    "DATA.TIMEOUT": NOT_NEGATIVE,
    "DATA.ON_ERROR": one_of("raise", "skip"),
    "DATA.SYNTHETIC_IMAGES": POSITIVE,
    "MODEL.TYPE": one_of("fat", "timm"),
    "MODEL.NAME": Rule(
        "a model's name", lambda value: value and not {".", ".."} & set(value.split("/")) and not value.startswith("/")
    ),
    "MODEL.NUM_CLASSES": NOT_NEGATIVE,
    "MODEL.DROP_RATE": BELOW_ONE,
    "MODEL.DROP_PATH_RATE": BELOW_ONE,
    "MODEL.LABEL_SMOOTHING": BELOW_ONE,
    "MODEL.FAT.in_chans": Rule("3, as images are read as RGB", lambda value: value == 3),
    "MODEL.FAT.embed_dims": PER_STAGE_INT,
    "MODEL.FAT.depths": PER_STAGE_INT,
    "MODEL.FAT.kernel_sizes": ODD_PER_STAGE,
    "MODEL.FAT.num_heads": PER_STAGE_INT,
    "MODEL.FAT.window_sizes": PER_STAGE_INT,
    "MODEL.FAT.mlp_kernel_sizes": ODD_PER_STAGE,
    "MODEL.FAT.mlp_ratios": PER_STAGE,
    "TRAIN.EPOCHS": POSITIVE,
    "TRAIN.WARMUP_EPOCHS": NOT_NEGATIVE,
    "TRAIN.BASE_LR": POSITIVE,
    "TRAIN.WARMUP_LR": NOT_NEGATIVE,
    "TRAIN.MIN_LR": NOT_NEGATIVE,
    "TRAIN.WEIGHT_DECAY": NOT_NEGATIVE,
    "TRAIN.IMG_SIZES": SIZE_STEPS,
    "TRAIN.LOSS": one_of("ce", "bce"),
    "TRAIN.BCE_TARGET_THRESH": BELOW_ONE,
    "TRAIN.CLIP_GRAD": NOT_NEGATIVE,
    "TRAIN.LAYER_DECAY": FRACTION,
    "TRAIN.FREEZE": Rule(
        "a list of stem, backbone and the numbers of stages, from 1 on",
        lambda v: all(
            part in ("stem", "backbone") or type(part) in (int, str) and re.fullmatch("[1-9][0-9]*", str(part))
            for part in v
        ),
    ),
    "TRAIN.ACCUMULATION_STEPS": POSITIVE,
    "TRAIN.TOTAL_BATCH_SIZE": NOT_NEGATIVE,
    "TRAIN.COMPILE_MODE": one_of("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "TRAIN.SAVE_EVERY_STEPS": NOT_NEGATIVE,
    "TRAIN.SAVE_EVERY_MINUTES": NOT_NEGATIVE,
    "TRAIN.NONFINITE": one_of("raise", "skip", "rollback"),
    "TRAIN.LR_SCHEDULER.NAME": one_of("cosine", "linear", "step"),
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": POSITIVE,
    "TRAIN.LR_SCHEDULER.DECAY_RATE": FRACTION,
    "TRAIN.OPTIMIZER.EPS": POSITIVE,
    "TRAIN.OPTIMIZER.BETAS": Rule(
        "two numbers at least 0 and below 1", lambda v: len(v) == 2 and all(0 <= b < 1 for b in v)
    ),
    "TRAIN.OPTIMIZER.MOMENTUM": BELOW_ONE,
    "DISTILL.KIND": one_of("soft", "hard"),
    "DISTILL.ALPHA": PROBABILITY,
    "DISTILL.TAU": POSITIVE,
    "EMA.DECAY": BELOW_ONE,
    "AMP.DTYPE": one_of("auto", "bfloat16", "float16"),
    "AUG.SCALE": SHARES,
    "AUG.RATIO": RANGE,
    "AUG.HFLIP": PROBABILITY,
    "AUG.COLOR_JITTER": NOT_NEGATIVE,
    "AUG.SPLITS": Rule("0, or 2 to 16", lambda value: value == 0 or 2 <= value <= 16),
    "AUG.REPEATS": POSITIVE,
    "AUG.REPROB": PROBABILITY,
    "AUG.REMODE": one_of("pixel", "rand", "const"),
    "AUG.RECOUNT": POSITIVE,
    "AUG.MIXUP": NOT_NEGATIVE,
    "AUG.CUTMIX": NOT_NEGATIVE,
    "AUG.CUTMIX_MINMAX": Rule(f"empty, or {SHARES.text}", lambda v: not v or SHARES.holds(v)),
    "AUG.MIXUP_PROB": PROBABILITY,
    "AUG.MIXUP_SWITCH_PROB": PROBABILITY,
    "AUG.MIXUP_MODE": one_of("batch", "pair", "elem"),
    "TEST.KNN": Rule(
        "a list of whole numbers greater than 0, each once",
        lambda v: all(type(k) is int and k > 0 for k in v) and len(set(v)) == len(v),
    ),
    "TEST.KNN_TEMPERATURE": POSITIVE,
    "TEST.SETS": Rule(
        "names of sets, each once", lambda v: all(isinstance(n, str) and n for n in v) and len(set(v)) == len(v)
    ),
    "TEST.IMG_SIZE": Rule("0, or between 32 and 4096", lambda value: value == 0 or 32 <= value <= 4096),
    "TEST.CROPS": Rule("1 or 5", lambda value: value in (1, 5)),
    "TEST.CROP_PCT": Rule("between 0.1 and 1", lambda value: 0.1 <= value <= 1),
}


def is_finite(value: Any) -> bool:
    """False for a number, or a list with a number, that is infinite or not a number."""
    if isinstance(value, (list, tuple)):
        return all(is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
