"""Learning from a teacher's logits beside the labels, as in DeiT (arXiv 2012.12877)."""

from dataclasses import dataclass
from typing import Any, Mapping, Optional, Sequence

import timm
import torch
import torch.nn.functional as F
from torch import nn

import models  # noqa: F401  (registers FAT with timm)
from utils.errors import CheckpointError, ConfigError, one_line
from utils.image_size import height_and_width

from ..checkpoints.file import CheckpointFile
from ..checkpoints.load import fit
from ..setup.model import published


@dataclass(frozen=True)
class Inputs:
    """What images a model was trained on."""

    mean: Sequence[float]
    std: Sequence[float]
    size: Optional[tuple[int, int]] = None  # height and width; None: it takes any


class Teacher(nn.Module):
    """A trained model that is asked, in evaluation mode and without gradients, about a student's images.

    Args:
        model: the model.
        own: the images it knows.
        given: the images it gets.

    Shapes: (B, 3, H, W) -> (B, classes).
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: nn.Module, own: Inputs, given: Inputs):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.size = own.size
        self.renormalises = list(own.mean) != list(given.mean) or list(own.std) != list(given.std)
        pairs = (own.mean, given.mean), (own.std, given.std)
        means, stds = ([torch.tensor(values).view(3, 1, 1) for values in pair] for pair in pairs)
        self.register_buffer("scale", stds[1] / stds[0])
        self.register_buffer("shift", (means[1] - means[0]) / stds[0])

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.renormalises:
            images = images * self.scale + self.shift
        if self.size and images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        return self.model(images)


class Distillation:
    """(1 - alpha) x the loss of the labels + alpha x the loss of the teacher.

    The teacher's loss is, with kind 'soft', tau^2 x KL(teacher || student) of the distributions at temperature tau,
    divided by the number of logits, as DeiT's code has it; with 'hard' the cross-entropy with the teacher's first class.
    """

    def __init__(self, teacher: Teacher, kind: str, alpha: float, tau: float):
        self.teacher, self.kind, self.alpha, self.tau = teacher, kind, alpha, tau

    def __call__(self, loss: torch.Tensor, logits: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """
        Args:
            loss: of the labels.
            logits: (B, classes), the student's, which the teacher's part trains.
            images: (B, 3, H, W), what the student saw.
        """
        student, teacher = logits.float(), self.teacher(images).float()
        if self.kind == "hard":
            taught = F.cross_entropy(student, teacher.argmax(1))
        else:
            learned, wanted = (F.log_softmax(values / self.tau, dim=1) for values in (student, teacher))
            taught = F.kl_div(learned, wanted, reduction="sum", log_target=True) * self.tau**2 / student.numel()
        return (1 - self.alpha) * loss + self.alpha * taught


def pretrained_teacher(name: str, num_classes: int) -> tuple[nn.Module, Inputs]:
    """A timm model with timm's weights, which are downloaded if they are not here.

    Raises:
        ConfigError: unknown name, no weights, they cannot be downloaded, or are for another number of classes.
    """
    facts = published(name, "DISTILL.TEACHER")
    if facts.num_classes != num_classes and facts.has_weights:
        raise ConfigError(
            f"DISTILL.TEACHER: timm's {name} knows {facts.num_classes} classes, the data set has {num_classes}; give a file of "
            "one trained on it with DISTILL.WEIGHTS, or take another teacher"
        )
    try:
        return timm.create_model(name, pretrained=True), _inputs(facts)
    except MemoryError:
        raise
    except Exception as error:  # timm, its hub and the network have many
        reason = one_line(error, 200)
        raise ConfigError(
            f"DISTILL.TEACHER: timm's weights of {name} cannot be had ({reason}); check the network, or give a file with "
            "DISTILL.WEIGHTS"
        ) from error


def trained_teacher(
    name: str, num_classes: int, checkpoint: CheckpointFile, data: Mapping[str, Any]
) -> tuple[nn.Module, Inputs, str]:
    """A timm model with the weights of a file, the images it knows, and what was done to get the weights (see `fit`).

    Args:
        data: the DATA section of the config that it was trained with here, {} if it is another tool's: then its images
            are taken to be those of timm's model of that name.

    Raises:
        ConfigError: unknown name.
        CheckpointError: the weights are of another model or number of classes.
    """
    facts = published(name, "DISTILL.TEACHER")
    settings: dict[str, Any] = {}
    if facts.fixed_input_size and "IMG_SIZE" in data:
        settings["img_size"] = height_and_width(data["IMG_SIZE"])
    model = timm.create_model(name, pretrained=False, num_classes=num_classes, **settings)
    fitted = fit(model, checkpoint, checkpoint.better)
    if fitted.difference:
        raise CheckpointError(
            f"{checkpoint.path}: is no {name} for {num_classes} classes: {fitted.difference}; "
            "check DISTILL.TEACHER and DISTILL.WEIGHTS"
        )
    model.load_state_dict(fitted.state)
    own = _inputs(facts)
    size = settings.get("img_size", own.size)
    return model, Inputs(data.get("MEAN", own.mean), data.get("STD", own.std), size), fitted.note


def _inputs(known) -> Inputs:
    return Inputs(known.mean, known.std, tuple(known.input_size[1:]) if known.fixed_input_size else None)
