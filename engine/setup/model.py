"""The model of a run: created by name, moved, and wrapped for its devices."""

import inspect
import re
from typing import Any, Mapping, Optional, Protocol, TypeVar, cast

import timm
import torch
import torch.distributed as dist
from timm.layers import DropPath, convert_sync_batchnorm
from timm.models import is_model, list_models
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import models
from models.sync_batchnorm import synchronise_batchnorm
from utils.errors import ConfigError, did_you_mean
from utils.image_size import Size, frozen

Model = TypeVar("Model", bound=nn.Module)
ENOUGH_CHANNELS = 16  # of a strided convolution, see `require_layout`
ARCHITECTURE = ("embed_dims", "depths", "num_heads")  # what a FAT that is not registered must say of itself


def create_model(
    model_type: str,
    name: str,
    num_classes: int,
    drop_rate: float,
    drop_path_rate: float,
    img_size: Size,
    fat: dict[str, Any],
    in_chans: int = 3,
) -> nn.Module:
    """A model by type and name.

    Args:
        model_type: 'fat', or 'timm' for any model in timm's registry.
        name: a registered model, or for 'fat' a name of one's own with the architecture in `fat`.
        drop_path_rate: left out where a timm model has no drop path, see `has_drop_path`.
        fat: arguments of `models.FAT` that differ from the registered model; empty ones do not.
        in_chans: channels of an image.

    Raises:
        ConfigError: unknown name, or values that the model refuses.
    """
    settings: dict[str, Any] = {"num_classes": num_classes, "drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    if in_chans != 3:
        settings["in_chans"] = in_chans
    registered = name.lower() if model_type == "fat" else name
    if model_type == "fat":
        settings.update({key: value for key, value in fat.items() if value not in ([], "")})
        registered_names = list_models(module="fat")
        if registered not in registered_names:
            missing = [key for key in ARCHITECTURE if key not in settings]
            if missing:
                raise ConfigError(
                    f"MODEL.NAME is {name!r}, which is not registered, and MODEL.FAT has no {', '.join(missing)}; "
                    + did_you_mean(registered, registered_names)
                )
            registered = "fat_b0"
    elif not is_model(registered):
        raise ConfigError(_unknown_to_timm(name, "MODEL.NAME"))
    try:
        if model_type == "timm" and getattr(timm.get_pretrained_cfg(registered), "fixed_input_size", False):
            settings["img_size"] = frozen(img_size)
        try:
            return timm.create_model(registered, pretrained=False, **settings)
        except TypeError as error:
            if model_type == "fat" or "drop_path_rate" not in str(error):
                raise
            del settings["drop_path_rate"]  # not every timm model takes it; `has_drop_path` tells
            return timm.create_model(registered, pretrained=False, **settings)
    except (TypeError, ValueError, AssertionError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise ConfigError(f"MODEL.NAME: {name} cannot be built ({reason}); check MODEL's values") from error


def has_drop_path(model: nn.Module) -> bool:
    """Whether training leaves out residual branches of the model at random."""
    return any(isinstance(module, DropPath) and module.drop_prob for module in model.modules())


def published(name: str, key: str):
    """What timm says of its model of that name, a `timm.models.PretrainedCfg`, or None if it says nothing; `key` is the
    config's that gives the name.

    Raises:
        ConfigError: timm knows no such model, or no such weights of it.
    """
    if not is_model(name):
        raise ConfigError(_unknown_to_timm(name, key))
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ConfigError(f"{key} is {name!r}: {error} Give another one, or the name without it") from error


class TimmModel(Protocol):
    """What timm's models, and FAT as they do, have besides `forward`; some of them not all of it."""

    def forward_features(self, images: torch.Tensor) -> torch.Tensor: ...

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor: ...

    def set_grad_checkpointing(self, enable: bool = True) -> None: ...

    def group_matcher(self, coarse: bool = False) -> Mapping[str, Any]: ...

    def set_distilled_training(self, enable: bool = True) -> None: ...


class PooledFeatures(nn.Module):
    """What a model's classifier sees of images: (B, 3, H, W) -> (B, D).

    Args:
        asked_by: the key or flag that asks for it.

    Raises:
        ConfigError: it is no model of this project's or timm's, in which features and head are apart.
    """

    def __init__(self, model: nn.Module, asked_by: str = "TEST.KNN"):
        super().__init__()
        if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
            raise ConfigError(f"{asked_by}: {type(model).__name__} does not give its features; leave it out")
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        model = cast(TimmModel, self.model)
        return model.forward_head(model.forward_features(images), pre_logits=True)


def prepare_model(
    model: nn.Module, device: torch.device, channels_last: bool, use_checkpoint: bool, sync_bn: str = "none"
) -> nn.Module:
    """Moves the model; BatchNorm is synchronised over processes as `sync_bn`, TRAIN.SYNC_BN, says.

    Raises:
        ConfigError: activation checkpointing is asked for and the model has none; torch's own layer, and no GPU.
    """
    if use_checkpoint:
        try:
            cast(TimmModel, model).set_grad_checkpointing(True)
        except (AttributeError, AssertionError, NotImplementedError) as error:
            raise ConfigError(
                f"TRAIN.USE_CHECKPOINT: {type(model).__name__} has no activation checkpointing; leave it off"
            ) from error
    if dist.is_initialized():
        if sync_bn == "torch":
            if device.type != "cuda":
                raise ConfigError("TRAIN.SYNC_BN torch: torch's own layer works on GPUs only; use all")
            model = convert_sync_batchnorm(model)  # timm's, which keeps the activations of BatchNormAct2d
        elif sync_bn == "all" or (sync_bn == "auto" and device.type == "cuda"):
            model = synchronise_batchnorm(model)
    return place(model, device, channels_last)


def place(model: Model, device: torch.device, channels_last: bool) -> Model:
    """Moves the model; with `channels_last` its weights of convolutions of images lie as NHWC maps do.

    `Module.to(memory_format=...)` refuses models with weights of five dimensions, as of timm's lambda networks.
    """
    model = model.to(device)
    if channels_last:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.ndim == 4:
                tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return model


def require_layout(model: nn.Module, device: torch.device, channels_last: bool) -> None:
    """Refuses what ends the process: on CPUs, torch 2.15 writes beyond its memory in the backward pass of a strided
    convolution of 1 x 1 px over fewer than 16 channels in NHWC (tried with 1 to 12, 16 and more), such as those of an image in
    the stems of RepVGG and FastViT.

    Raises:
        ConfigError: the model has one.
    """
    if device.type != "cpu" or not channels_last:
        return
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d) or module.in_channels >= ENOUGH_CHANNELS:
            continue
        if module.kernel_size == (1, 1) and module.stride > (1, 1):
            raise ConfigError(
                f"TRAIN.CHANNELS_LAST: torch on CPUs cannot train {type(model).__name__} with it (its {name}, 1 x 1 px "
                f"with stride over {module.in_channels} channels, ends the process); set it to False"
            )


def deploy_model(model: nn.Module, dtype: Optional[torch.dtype]) -> nn.Module:
    """The model's deployed form (`models.fuse`) in a run's number format, None for float32.

    Raises:
        ConfigError: there is none for this model, or not in this format on this machine.
    """
    try:
        return models.fuse(model.eval(), dtype or torch.float32)
    except ValueError as error:
        raise ConfigError(f"TEST.FUSED (--fused): {error}") from error


def wrap_model(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as training calls it: with gradients averaged over all processes.

    DDP's `static_graph` stays off: no parameter is ever unused here, so it would save nothing, and with no_sync (gradient
    accumulation) it crashes the process in torch 2.15.

    Buffers are not broadcast in every step: BatchNorm's batch statistics do not need them, and
    `utils.processes.collectives.broadcast_buffers` brings them together where they are used, before evaluation and saving.
    """
    if not dist.is_initialized():
        return model
    parameters = inspect.signature(DistributedDataParallel).parameters
    # its name depends on torch's version
    per_step_broadcast = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    switched_off: dict[str, Any] = {per_step_broadcast: False}
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **switched_off,
    )


def _unknown_to_timm(name: str, key: str) -> str:
    """A line with a name that timm knows for a model of the Hugging Face hub (timm/..., hf_hub:timm/...), for the beginning
    of a name, or for one with a slip.
    """
    plain = re.sub("^hf[-_]hub:", "", name).removeprefix("timm/")
    if is_model(plain):
        return f"{key} is {name!r}, a name of the Hugging Face hub; timm's own is {plain!r}"
    longer = [known for known in list_models() if known.startswith(plain.partition(".")[0] + "_")][:5]
    near = (
        f"timm has {', '.join(longer)} and others" if longer else did_you_mean(plain.partition(".")[0], list_models())
    )
    return f"{key} is {name!r}, unknown to timm; {near}"
