"""Parts of a model that training leaves as they are (TRAIN.FREEZE), in FAT and timm's models alike."""

from typing import Sequence, Union, cast

from timm.models import group_parameters
from torch import nn

from utils.errors import ConfigError

from ..checkpoints.load import classifier_of
from ..setup.model import TimmModel

BACKBONE = "backbone"


def parts_of(model: nn.Module) -> dict[str, list[str]]:
    """The names of the parameters of each part that can be frozen: 'stem'; '1', '2', ..., the stages (or blocks); 'backbone'.

    Stem and stages are the coarse groups of the model's `group_matcher`, so models without one, or without coarse groups, have
    none. The backbone is everything but the classifiers, the layers whose outputs are logits: norms and layers in front of
    these belong to it, also where timm's model has them in a module called head.
    """
    classifier = classifier_of(model)
    backbone = [name for name, _ in model.named_parameters() if not name.startswith(classifier)] if classifier else []
    groups = coarse_groups(model)
    frozen_as_backbone = set(backbone)
    # the last has the classifier, and what follows no stage
    groups = [names for names in groups if frozen_as_backbone.issuperset(names)]
    names = ["stem", *map(str, range(1, len(groups)))]
    return {**dict(zip(names, groups)), **({BACKBONE: backbone} if backbone else {})}


def coarse_groups(model: nn.Module) -> list[list[str]]:
    """The names of the parameters by stage, the stem first; none if timm's model does not say them."""
    try:
        matcher = cast(TimmModel, model).group_matcher(coarse=True)
    except (AttributeError, AssertionError, NotImplementedError):  # it has none, or none that is coarse
        return []
    return list(group_parameters(model, matcher).values())


def freeze(model: nn.Module, parts: Sequence[Union[str, int]]) -> None:
    """Makes the parts' parameters constants: they get no gradient and no weight decay, and `train` leaves the layers made
    of them in evaluation mode.

    Raises:
        ConfigError: the model has no such part.
    """
    parameters = parts_of(model)
    for part in map(str, parts):
        if part not in parameters:
            raise ConfigError(
                f"TRAIN.FREEZE: {type(model).__name__} has no part {part!r}; it has {', '.join(parameters) or 'none by name'}"
            )
    names = {name for part in parts for name in parameters[str(part)]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in names)


def train(model: nn.Module) -> None:
    """`model.train()`, but for layers whose parameters are all frozen: their BatchNorms use the running statistics and keep
    them, and their dropout and drop path are off.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def describe(model: nn.Module, parts: Sequence[Union[str, int]]) -> str:
    """How much of the model is trained."""
    sizes = {
        trained: sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)
        for trained in (True, False)
    }
    return f"training {sizes[True]:,} of {sizes[False]:,} parameters; frozen: {', '.join(map(str, parts))}"
