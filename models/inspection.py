"""What a trained model does inside: FASA's maps and attention weights, and Grad-CAM."""

from contextlib import contextmanager
from functools import cached_property
from typing import Iterator, Optional

import torch
from torch import nn

from .fat import FAT
from .layers import FASA
from .layers.fasa import interact


class FASAMaps:
    """FASA's inner maps for one input, each computed when it is asked for, by the module's own methods.

    Args:
        fasa: the module, in evaluation mode.
        x: its input (B, C, H, W).

    Maps that the module's `interaction` does not have raise ValueError.
    """

    def __init__(self, fasa: FASA, x: torch.Tensor):
        self.fasa = fasa
        self.x = x

    @cached_property
    @torch.no_grad()
    def q(self) -> torch.Tensor:
        """Q = W_q X: (B, C, H, W)."""
        return self.fasa.q(self.x)

    @cached_property
    @torch.no_grad()
    def local_aggregation(self) -> torch.Tensor:
        """l': (B, C, H, W)."""
        self._require("global", "local aggregation")
        return self.fasa.local_aggregation(self.q)

    @cached_property
    def global_aggregation(self) -> torch.Tensor:
        """g: (B, C, H, W)."""
        return self._global_side[0]

    @cached_property
    @torch.no_grad()
    def attention(self) -> torch.Tensor:
        """softmax(Q K^T / sqrt(d)), which FASA itself never holds: (B, heads, HW, hw)."""
        keys = self._global_side[1].chunk(2, dim=1)[0]  # (B, C, h, w)
        q, k = self.fasa.to_tokens(self.q), self.fasa.to_tokens(keys)  # (B, heads, HW, d), (B, heads, hw, d)
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)

    @property
    def key_size(self) -> tuple[int, int]:
        """(h, w) of the keys' map."""
        return tuple(self._global_side[1].shape[2:])

    @cached_property
    @torch.no_grad()
    def interaction(self) -> torch.Tensor:
        """What the output projection W is given: (B, C, H, W), with interaction `concat` (B, 2C, H, W)."""
        if self.fasa.interaction == "local":
            return self.local_aggregation
        if self.fasa.interaction == "global":
            return self.global_aggregation
        return interact(self.fasa.interaction, self.local_aggregation, self.global_aggregation)

    @cached_property
    @torch.no_grad()
    def added(self) -> torch.Tensor:
        """W(l' + g), "add + linear" with this module's own W: (B, C, H, W)."""
        self._require("concat", "W for l' + g: it maps 2C channels to C")
        return self.fasa.mixer(self.local_aggregation + self.global_aggregation)

    @cached_property
    @torch.no_grad()
    def output(self) -> torch.Tensor:
        """W(interact(l', g)), what FASA's forward returns: (B, C, H, W)."""
        return self.fasa.mixer(self.interaction)

    @cached_property
    @torch.no_grad()
    def _global_side(self) -> tuple[torch.Tensor, torch.Tensor]:
        """g, and K and V side by side (B, 2C, h, w)."""
        self._require("local", "global aggregation, keys and values")
        with captured(self.fasa.kv) as found:
            g = self.fasa.global_aggregation(self.q, self.x)
        return g, found["output"]

    def _require(self, without: str, what: str) -> None:
        if self.fasa.interaction == without:
            raise ValueError(f"interaction {without!r} has no {what}")


def fasa_of(model: nn.Module, stage: int, block: int) -> FASA:
    """FASA of a FAT's block; both numbers count from 0, negative ones from the end.

    Raises:
        ValueError: not a FAT, or no such stage or block.
    """
    if not isinstance(model, FAT):
        raise ValueError(f"{type(model).__name__} has no FASA; it is not a FAT")
    _require_index("stages", stage, len(model.layers))
    _require_index("blocks in this stage", block, len(model.layers[stage].blocks))
    return model.layers[stage].blocks[block].attn


def _require_index(name: str, number: int, size: int) -> None:
    if not -size <= number < size:
        raise ValueError(f"there are {size} {name}")


@torch.no_grad()
def inspect_fasa(model: FAT, images: torch.Tensor, stage: int, block: int = -1) -> FASAMaps:
    """The inner maps of FASA in a block, for images (B, 3, H, W); see `fasa_of` for the errors.

    The model is left in evaluation mode, which the maps are of.
    """
    fasa = fasa_of(model, stage, block)
    with captured(fasa) as found:
        model.eval()(images)
    return FASAMaps(fasa, found["input"])


def grad_cam(
    model: nn.Module, images: torch.Tensor, layer: nn.Module, classes: Optional[torch.Tensor] = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, Eq. 1 and 2); the model is left in evaluation mode.

        alpha_k = mean over positions of d y_c / d A_k,    map = ReLU(sum_k alpha_k A_k)

    Args:
        model: images (B, 3, H, W) -> logits y (B, classes).
        layer: the module in it whose output is A (B, K, h, w).
        classes: c, (B,); None: the predicted ones.

    Returns:
        Maps (B, h, w), not scaled, and the classes (B,).

    Raises:
        ValueError: the model does not use the layer, or its output has another shape.
    """
    with torch.enable_grad(), captured(layer, as_leaf=True) as found:
        logits = model.eval()(images)
        features = found.get("output")
        if not isinstance(features, torch.Tensor) or features.dim() != 4:
            raise ValueError(f"{type(layer).__name__} gives no maps (B, K, h, w) in this model")
        classes = logits.argmax(dim=1) if classes is None else classes
        (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)  # (B, K, h, w)
    alphas = gradients.mean(dim=(2, 3), keepdim=True)  # (B, K, 1, 1)
    return (alphas * features.detach()).sum(dim=1).relu(), classes  # (B, h, w)


@contextmanager
def captured(module: nn.Module, as_leaf: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """Collects the module's last input and output while the context lasts.

    With `as_leaf` the output is a leaf that gradients are taken at, and nothing before it is differentiated.
    """
    found = {}

    def hook(module, inputs, output):
        found.update(input=inputs[0], output=output)
        if as_leaf and isinstance(output, torch.Tensor):
            found["output"] = output.detach().requires_grad_()
            return found["output"].clone()  # what comes next may work in place

    handle = module.register_forward_hook(hook)
    try:
        yield found
    finally:
        handle.remove()
