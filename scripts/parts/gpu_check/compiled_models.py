"""Stage: torch.compile gives the eager model's losses, in one graph for training and one for evaluation."""

from typing import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from engine.setup.compilation import compile_model
from engine.training.graphs import replayed
from utils.device import choose_arithmetic

from .setting import Check, Setting, at_least, below, distance, equal, logits_of

MODES = ("default", "reduce-overhead")
UPDATES, MICRO_BATCHES = 4, 2


def checks(setting: Setting) -> Iterator[Check]:
    choose_arithmetic(setting.device, exact=True, deterministic=False, fixed_sizes=False)
    batch = setting.images(4 if setting.dry_run else 16).to(setting.device, memory_format=torch.channels_last)
    eager = placed(setting)
    expected = train(eager, batch, "")
    for mode in MODES[: 1 if setting.dry_run else 2]:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = placed(setting)
        compiled(setting, model, mode)
        losses = train(model, batch, mode)
        graphs = count_graphs()
        logits = logits_of(model, batch)
        yield below(f"{mode} losses", distance(losses, expected), 1e-3, losses=torch.stack(losses).tolist())
        yield below(f"{mode} weights", distance(list(model.parameters()), list(eager.parameters())), 1e-3)
        yield below(f"{mode} logits", distance([logits], [logits_of(eager, batch)]), 1e-2)
        yield equal(f"{mode} graphs of training", graphs, 1)
        train(model, batch, mode)
        logits_of(model, batch)
        yield equal(f"{mode} graphs in all", count_graphs(), 2)
        breaks = dict(torch._dynamo.utils.counters["graph_break"])
        yield equal(
            f"{mode} graph breaks", sum(breaks.values()), 0, reasons={str(key)[:200]: n for key, n in breaks.items()}
        )
        if mode == "reduce-overhead":
            yield at_least("reduce-overhead CUDA graphs", recorded_graphs(), 1)


def placed(setting: Setting) -> nn.Module:
    """FAT-Tiny, which compiles fast; drop path is off, as eager and compiled code draw other numbers."""
    return setting.new_model("fat_tiny").to(setting.device, memory_format=torch.channels_last)


def compiled(setting: Setting, model: nn.Module, mode: str) -> None:
    """As training does it; on a CPU without the compiler's last part, which takes a minute there."""
    if setting.dry_run:
        model.compile(backend="aot_eager", dynamic=False)
    else:
        compile_model(model, mode)


def train(model: nn.Module, batch: torch.Tensor, mode: str) -> list[torch.Tensor]:
    """Losses of some updates, whose gradients add up over micro-batches."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(UPDATES):
        for number, images in enumerate(batch.chunk(MICRO_BATCHES)):
            targets = torch.arange(len(images), device=images.device)
            with replayed(model, mode, keep_gradients=number < MICRO_BATCHES - 1):
                loss = F.cross_entropy(model(images), targets) / MICRO_BATCHES
                loss.backward()
            losses.append(loss.detach().clone())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def count_graphs() -> int:
    """A break or another compilation adds to it."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def recorded_graphs() -> int:
    """CUDA graphs that inductor has recorded on this device; 0 if it has left them out."""
    from torch._inductor.cudagraph_trees import get_container

    tree = get_container(torch.cuda.current_device()).tree_manager
    return 0 if tree is None else sum(len(roots) for roots in tree.roots.values())
