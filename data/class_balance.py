"""How many images each class has, and an order in which all classes are as frequent."""

import numpy as np
import torch

from utils.errors import ConfigError

from .sources.source import AnySource, StreamSource


def labels_in(source: AnySource, key: str) -> np.ndarray:
    """The label of each image of a source that is read by index, int64 (N,).

    Args:
        key: the config's that asks for it.

    Raises:
        ConfigError: it is read in streams, or its targets are no labels.
    """
    labels = getattr(source, "labels", None)
    if isinstance(source, StreamSource) or labels is None:
        raise ConfigError(
            key,
            "asks how many images each class has, which is not known of shards before they are read",
            "leave it out, or use a format whose images are read one by one (docs/data.md#formats)",
        )
    return np.asarray(labels, dtype=np.int64)


def balanced_order(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """As many images as there are labels (N,), in random order, so that each class which has any stands among them equally
    often, but for one image; which classes have that one more is drawn.

    A class with more images than that is drawn from without replacement; each image of one with fewer stands in the
    order equally often, but for one time.
    """
    count = len(labels)
    shuffled = torch.randperm(count, generator=generator)
    by_class = shuffled[torch.sort(labels[shuffled], stable=True).indices]  # class after class, each in random order
    _, sizes = torch.unique(labels, return_counts=True)
    present = len(sizes)
    wanted = torch.full((present,), count // present)
    wanted[torch.randperm(present, generator=generator)[: count % present]] += 1
    number = torch.arange(count) - (wanted.cumsum(0) - wanted).repeat_interleave(wanted)  # within its class
    begins = (sizes.cumsum(0) - sizes).repeat_interleave(wanted)
    chosen = by_class[begins + number % sizes.repeat_interleave(wanted)]
    return chosen[torch.randperm(count, generator=generator)]
