"""What config keys must not say together. Each contradiction is about commands of main.py, by their flags' names."""

from typing import Callable, NamedTuple

from yacs.config import CfgNode

from .errors import ConfigError
from .schema import AUTO, BY_INDEX, FORMATS_WITH_OWN_ORDER, LIST, SEVERAL_LABELS, SHARDABLE, VALIDATION

TRAINING = ("train", "check")
LOADING = (*TRAINING, "benchmark_data")  # those that open the training images
READING = (*LOADING, "eval")  # those that open any
EVALUATION = ("eval",)
INFERENCE = ("eval", "throughput")
PREDICTING = ("predict",)  # what scripts do with a config file and weights

RGB_FORMATS = ("cifar10", "cifar100")
INTERPOLATIONS_OF_CV2 = ("bilinear", "bicubic")


class Conflict(NamedTuple):
    commands: tuple[str, ...]
    found: Callable[[CfgNode], bool]
    text: str  # with {c.SECTION.KEY} for values


CONFLICTS: list[Conflict] = []


def conflict(commands: tuple[str, ...], found: Callable[[CfgNode], bool], text: str) -> None:
    CONFLICTS.append(Conflict(commands, found, text))


def require_no_conflict(cfg: CfgNode, command: str) -> None:
    """Raises ConfigError: keys that contradict each other in what main.py's `command` does."""
    for commands, found, text in CONFLICTS:
        if command in commands and found(cfg):
            raise ConfigError(text.format(c=cfg))


def format_of(c: CfgNode) -> str:
    """DATA.DATASET without its path."""
    return c.DATA.DATASET.partition("/")[0]


def asks_for(c: CfgNode, *dtypes: str) -> bool:
    """Whether the config says that such a number format is to be used."""
    return c.AMP.ENABLED and c.AMP.DTYPE in dtypes


def mixes(c: CfgNode) -> bool:
    """Whether training images are mixed with others of their batch."""
    return c.AUG.MIXUP > 0 or c.AUG.CUTMIX > 0 or bool(c.AUG.CUTMIX_MINMAX)


def changes_colours(c: CfgNode) -> bool:
    """Whether a step of augmentation is one of RGB images."""
    return c.AUG.COLOR_JITTER > 0 or c.AUG.AUTO_AUGMENT.lower() not in ("", "none", "null")


def is_rgb(c: CfgNode) -> bool:
    """Whether images are RGB photographs, or converted to such."""
    return c.DATA.IN_CHANS == 3


# fmt: off
conflict((*READING, *PREDICTING), lambda c: {len(c.DATA.MEAN), len(c.DATA.STD)} != {c.DATA.IN_CHANS},
    "DATA.MEAN is {c.DATA.MEAN}, DATA.STD {c.DATA.STD}, but DATA.IN_CHANS is {c.DATA.IN_CHANS}; give a number for each band "
    "(scripts/prepare_data.py stats measures them)")
conflict((*READING, *INFERENCE, *PREDICTING), lambda c: not is_rgb(c) and c.TASK in ("segmentation", "detection"),
    "DATA.IN_CHANS is {c.DATA.IN_CHANS}, but TASK {c.TASK} is for RGB images; set it to 3")
conflict(LOADING, lambda c: not is_rgb(c) and changes_colours(c),
    "AUG.AUTO_AUGMENT is '{c.AUG.AUTO_AUGMENT}', AUG.COLOR_JITTER {c.AUG.COLOR_JITTER}: they change the colours of RGB images, but "
    "DATA.IN_CHANS is {c.DATA.IN_CHANS}; set them to none and 0 (random resized crop, flip, erasing, mixup and cutmix go on)")
conflict(LOADING, lambda c: not is_rgb(c) and c.DATA.BACKEND == "nvimgcodec",
    "DATA.BACKEND nvimgcodec decodes RGB images, but DATA.IN_CHANS is {c.DATA.IN_CHANS}; use pil")
conflict((*READING, *PREDICTING), lambda c: not is_rgb(c) and c.DATA.INTERPOLATION == "lanczos",
    "DATA.INTERPOLATION lanczos is for RGB images, but DATA.IN_CHANS is {c.DATA.IN_CHANS}; use bicubic")
conflict(READING, lambda c: not is_rgb(c) and format_of(c) in RGB_FORMATS,
    "DATA.IN_CHANS is {c.DATA.IN_CHANS}, but the images of DATA.DATASET {c.DATA.DATASET} are RGB; set it to 3")
conflict(TRAINING, lambda c: not is_rgb(c) and c.DISTILL.TEACHER,
    "DISTILL.TEACHER sees RGB images, but DATA.IN_CHANS is {c.DATA.IN_CHANS}; leave it out")
conflict(EVALUATION, lambda c: not (c.MODEL.RESUME or c.MODEL.PRETRAINED),
    "--eval: there are no weights to evaluate; add --resume path/to/best.pth")
conflict(EVALUATION, lambda c: c.TEST.KNN and c.TEST.FUSED,
    "TEST.KNN compares features, which the deployed form (--fused) does not give; leave one of them out")
conflict(EVALUATION, lambda c: c.TEST.KNN and c.TEST.ENGINE != "torch",
    "TEST.KNN compares features, which --engine {c.TEST.ENGINE} does not give; leave one of them out")
conflict(INFERENCE, lambda c: c.TEST.ENGINE == "onnxruntime" and asks_for(c, "bfloat16", "float16"),
    "--engine onnxruntime computes in float32, but AMP.DTYPE is {c.AMP.DTYPE}; add --disable_amp, or use openvino for bfloat16")
conflict(INFERENCE, lambda c: c.TEST.ENGINE == "openvino" and asks_for(c, "float16"),
    "--engine openvino computes in float32 or bfloat16, but AMP.DTYPE is float16; set it to bfloat16, or add --disable_amp")
conflict(INFERENCE, lambda c: c.TEST.ENGINE == "cudagraphs" and c.TASK in ("segmentation", "detection"),
    "--engine cudagraphs has a graph for each size of images, of which TASK {c.TASK} has too many; use torch")
conflict(("throughput",), lambda c: c.TRAIN.COMPILE is True and c.TEST.ENGINE != "torch",
    "TRAIN.COMPILE compiles torch's model, which --engine {c.TEST.ENGINE} does not call; leave one of them out")
conflict((*TRAINING, *EVALUATION), lambda c: c.TEST.CROP_MODE == "border" and c.TEST.CROPS > 1,
    "TEST.CROPS is {c.TEST.CROPS}, but an image of TEST.CROP_MODE border has no corners beside its centre; set one of them back")
conflict(EVALUATION, lambda c: c.TEST.KNN and c.TEST.SETS and "val" not in c.TEST.SETS,
    "TEST.KNN is about the validation images; add val to TEST.SETS, or leave it out")
conflict(TRAINING, lambda c: max(c.TRAIN.WARMUP_LR, c.TRAIN.MIN_LR) > c.TRAIN.BASE_LR,
    "TRAIN.WARMUP_LR and TRAIN.MIN_LR: {c.TRAIN.WARMUP_LR} and {c.TRAIN.MIN_LR}; they must not be above TRAIN.BASE_LR, {c.TRAIN.BASE_LR}")
conflict(TRAINING, lambda c: c.TRAIN.COMPILE is True and c.TRAIN.USE_CHECKPOINT,
    "TRAIN.COMPILE contradicts TRAIN.USE_CHECKPOINT (--use-checkpoint); switch one of them off")
conflict(TRAINING, lambda c: c.TRAIN.SHARD == "optimizer" and c.TRAIN.OPTIMIZER.NAME.lower() not in SHARDABLE,
    "TRAIN.SHARD optimizer: TRAIN.OPTIMIZER.NAME is {c.TRAIN.OPTIMIZER.NAME}, but the state of "
    f"{', '.join(SHARDABLE)} can be shared out; use one of these, or set TRAIN.SHARD to none")
conflict(TRAINING, lambda c: c.TRAIN.SHARD == "optimizer" and c.TRAIN.OPTIMIZER.NAME.lower() == "lamb" and not 0 < c.TRAIN.CLIP_GRAD <= 1,
    "TRAIN.CLIP_GRAD is {c.TRAIN.CLIP_GRAD}, but TRAIN.SHARD optimizer leaves timm's lamb to scale down each process' part of the gradient "
    "whose norm is above 1; set it to 1.0 or less, above 0")
conflict(TRAINING, lambda c: c.TRAIN.WARMUP_EPOCHS >= c.TRAIN.EPOCHS,
    "TRAIN.WARMUP_EPOCHS is {c.TRAIN.WARMUP_EPOCHS}, TRAIN.EPOCHS {c.TRAIN.EPOCHS}; the warmup must be shorter than "
    "the run")
conflict(TRAINING, lambda c: c.TRAIN.MAX_HOURS and c.TRAIN.IMG_SIZES,
    "TRAIN.MAX_HOURS takes an epoch's time for that of the others, but TRAIN.IMG_SIZES changes it; leave one of them out")
conflict(TRAINING, lambda c: c.TRAIN.WARMUP_UPDATES and c.TRAIN.WARMUP_EPOCHS,
    "TRAIN.WARMUP_UPDATES is {c.TRAIN.WARMUP_UPDATES}, TRAIN.WARMUP_EPOCHS {c.TRAIN.WARMUP_EPOCHS}; set one of them to 0")
conflict(TRAINING, lambda c: (c.TRAIN.LR_SCHEDULER.NAME == "multistep") != bool(c.TRAIN.LR_SCHEDULER.MILESTONES),
    "TRAIN.LR_SCHEDULER.MILESTONES belong to TRAIN.LR_SCHEDULER.NAME multistep, which is {c.TRAIN.LR_SCHEDULER.NAME}; set both, or "
    "neither")
conflict(TRAINING, lambda c: c.DISTILL.WEIGHTS and not c.DISTILL.TEACHER,
    "DISTILL.WEIGHTS are given, but no DISTILL.TEACHER, timm's name of the model; add it")
conflict(LOADING, lambda c: mixes(c) and c.AUG.SPLITS,
    "AUG.SPLITS is {c.AUG.SPLITS}, whose loss compares views of one image, which mixup and cutmix would mix with "
    "another; set AUG.MIXUP and AUG.CUTMIX to 0 (AUG.CUTMIX_MINMAX to []), or AUG.SPLITS to 0")
conflict(LOADING, lambda c: c.TRAIN.LOSS != "ce" and c.AUG.SPLITS,
    "TRAIN.LOSS is {c.TRAIN.LOSS}, but AUG.SPLITS {c.AUG.SPLITS} brings its own loss; set one of them back")
conflict(LOADING, lambda c: c.TRAIN.BCE_TARGET_THRESH and c.TRAIN.LOSS != "bce",
    "TRAIN.BCE_TARGET_THRESH belongs to TRAIN.LOSS bce, which is {c.TRAIN.LOSS}; set it to 0, or the loss to bce")
conflict(TRAINING, lambda c: c.DATA.BATCH_SIZE == AUTO and not c.TRAIN.TOTAL_BATCH_SIZE,
    "DATA.BATCH_SIZE (--batch-size) auto keeps the images of an update, and TRAIN.TOTAL_BATCH_SIZE, which says how many, is 0; set it")
conflict(TRAINING, lambda c: c.DATA.BATCH_SIZE == AUTO and c.TRAIN.ACCUMULATION_STEPS != 1,
    "TRAIN.ACCUMULATION_STEPS (--accumulation-steps) is {c.TRAIN.ACCUMULATION_STEPS}, but DATA.BATCH_SIZE auto decides it; leave it out")
conflict(LOADING, lambda c: mixes(c) and c.DATA.BATCH_SIZE != AUTO and c.DATA.BATCH_SIZE % 2,
    "DATA.BATCH_SIZE (--batch-size) is {c.DATA.BATCH_SIZE}, but mixup and cutmix mix pairs; use an even one, or set "
    "AUG.MIXUP and AUG.CUTMIX to 0")
conflict(LOADING, lambda c: c.AUG.REPEATS > 1 and c.DATA.CACHE_MODE == "part",
    "AUG.REPEATS contradicts DATA.CACHE_MODE part, which has another order of the images; use full or no")
conflict(LOADING, lambda c: c.DATA.SAMPLING and (c.AUG.REPEATS > 1 or c.DATA.CACHE_MODE == "part"),
    "DATA.SAMPLING {c.DATA.SAMPLING} contradicts AUG.REPEATS above 1 and DATA.CACHE_MODE part, which have orders of their own; leave one "
    "of them out")
conflict(LOADING, lambda c: c.DATA.SAMPLING and (c.TRAIN.CLASS_WEIGHTS in ("balanced", "effective") or c.TRAIN.LOGIT_ADJUSTMENT),
    "DATA.SAMPLING {c.DATA.SAMPLING} makes all classes as frequent, which TRAIN.CLASS_WEIGHTS '{c.TRAIN.CLASS_WEIGHTS}' and "
    "TRAIN.LOGIT_ADJUSTMENT {c.TRAIN.LOGIT_ADJUSTMENT} would make up for again; leave one of them out")
conflict(LOADING, lambda c: (c.TRAIN.CLASS_WEIGHTS or c.TRAIN.LOGIT_ADJUSTMENT) and (c.TRAIN.LOSS != "ce" or c.AUG.SPLITS),
    "TRAIN.CLASS_WEIGHTS and TRAIN.LOGIT_ADJUSTMENT are of the cross-entropy, but TRAIN.LOSS is {c.TRAIN.LOSS}, AUG.SPLITS {c.AUG.SPLITS}; "
    "leave them out, or set TRAIN.LOSS ce and AUG.SPLITS 0")
conflict(LOADING, lambda c: c.TASK != "classification" and (c.TRAIN.CLASS_WEIGHTS or c.TRAIN.LOGIT_ADJUSTMENT or c.DATA.SAMPLING),
    "TRAIN.CLASS_WEIGHTS, TRAIN.LOGIT_ADJUSTMENT and DATA.SAMPLING are about an image's one class, which TASK {c.TASK} does not give; "
    "leave them out")
conflict(LOADING, lambda c: c.DATA.BATCH_SIZE == 1,
    "DATA.BATCH_SIZE (--batch-size) is 1; BatchNorm cannot train on one image, use 2 or more")
conflict(LOADING, lambda c: c.DATA.BACKEND != "pil" and c.DATA.INTERPOLATION not in INTERPOLATIONS_OF_CV2,
    "DATA.INTERPOLATION is '{c.DATA.INTERPOLATION}', but DATA.BACKEND cv2 has "
    f"{' and '.join(INTERPOLATIONS_OF_CV2)} only; use one, or pil")
conflict(READING, lambda c: c.DATA.ZIP_MODE and format_of(c) not in ("imagenet", "folder", "zip"),
    "DATA.ZIP_MODE (--zip) contradicts DATA.DATASET {c.DATA.DATASET}; leave it out, or set DATA.DATASET zip")
conflict(READING, lambda c: c.DATA.CLASS_MAP and format_of(c) in FORMATS_WITH_OWN_ORDER,
    "DATA.CLASS_MAP: the classes of {c.DATA.DATASET} are fixed; leave it out")
conflict(READING, lambda c: c.DATA.LIST and format_of(c) != LIST,
    "DATA.LIST is read by DATA.DATASET list, which is {c.DATA.DATASET}; set it to list, or leave the key out")
conflict(READING, lambda c: c.DATA.SHARD_CACHE and format_of(c) != "wds",
    "DATA.SHARD_CACHE keeps the shards of DATA.DATASET wds, which is {c.DATA.DATASET}; leave it out, or correct that")
conflict(READING, lambda c: c.DATA.VAL_SHARE and format_of(c) not in BY_INDEX,
    "DATA.VAL_SHARE takes images by their files, which DATA.DATASET {c.DATA.DATASET} does not have one by one; leave it out")
conflict(READING, lambda c: c.DATA.VAL_SHARE and c.TASK in ("segmentation", "detection"),
    "DATA.VAL_SHARE takes images by their classes, which TASK {c.TASK} does not give them; name its splits, and set it to 0")
conflict(READING, lambda c: c.DATA.VAL_SHARE and (c.DATA.VAL_SPLIT != VALIDATION or c.DATA.TRAIN_SPLIT == VALIDATION),
    "DATA.VAL_SHARE takes the validation images from DATA.TRAIN_SPLIT, {c.DATA.TRAIN_SPLIT}, but DATA.VAL_SPLIT is "
    "{c.DATA.VAL_SPLIT}; set it, or the share, back")
conflict(READING, lambda c: c.TASK == "multilabel" and format_of(c) not in SEVERAL_LABELS,
    "DATA.DATASET is {c.DATA.DATASET}, whose images have one label each, but TASK is multilabel; use " + " or ".join(SEVERAL_LABELS))
conflict(READING, lambda c: c.DATA.LABEL_SEPARATOR and c.TASK != "multilabel",
    "DATA.LABEL_SEPARATOR separates labels of TASK multilabel, which is {c.TASK}; set it, or leave the separator out")
conflict(LOADING, lambda c: c.TASK == "multilabel" and (c.TRAIN.LOSS == "ce" or c.MODEL.LABEL_SMOOTHING > 0),
    "TASK multilabel learns yes or no of each class, but TRAIN.LOSS is {c.TRAIN.LOSS}, MODEL.LABEL_SMOOTHING {c.MODEL.LABEL_SMOOTHING}; "
    "set the loss to bce or asymmetric and the smoothing to 0, as configs/multilabel/base.yaml does")
conflict(LOADING, lambda c: c.TRAIN.LOSS == "asymmetric" and c.TASK != "multilabel",
    "TRAIN.LOSS asymmetric is for TASK multilabel, which is {c.TASK}; set the task, or another loss")
conflict(LOADING, lambda c: c.TRAIN.LOSS == "asymmetric" and mixes(c),
    "TRAIN.LOSS asymmetric focuses on labels that are 0 or 1, but mixup and cutmix mix them; set AUG.MIXUP and AUG.CUTMIX to 0 "
    "(AUG.CUTMIX_MINMAX to []), or the loss to bce")
conflict(LOADING, lambda c: c.TASK == "multilabel" and (c.AUG.SPLITS or c.DISTILL.TEACHER),
    "AUG.SPLITS and DISTILL.TEACHER compare probabilities of which an image has one class, but TASK is multilabel; set them to 0 and ''")
conflict(EVALUATION, lambda c: c.TASK == "multilabel" and (c.TEST.SETS or c.TEST.KNN),
    "TEST.SETS and TEST.KNN are about images with one label each, but TASK is multilabel; leave them out")
# fmt: on
