"""Exact evaluation: every image once, whatever the number of processes and the batch size."""

from pathlib import Path
from typing import Any, Optional

import torch
from torch import nn

from data.loader import EvalLoader
from utils.run_log import RunLog


@torch.inference_mode()
def evaluate(
    model: nn.Module, task, loader: EvalLoader, precision, device: torch.device, log: RunLog, channels_last: bool = False
) -> dict[str, Any]:
    """The task's metrics of a model over all images of all processes' loaders.

    Processes meet only once, to add up their sums, so a process with fewer images, or none, holds nobody up.
    """
    was_training = model.training
    model.eval()
    metrics = task.metrics(device)
    for images, targets in log.progress(loader, len(loader), "evaluate"):
        images = to_device(images, device, channels_last)
        with precision.autocast():
            outputs = model(images)
        metrics.update(outputs, targets.to(device, non_blocking=True))
    model.train(was_training)
    return metrics.compute()


def to_device(images: torch.Tensor, device: torch.device, channels_last: bool) -> torch.Tensor:
    return images.to(
        device, non_blocking=True, memory_format=torch.channels_last if channels_last else torch.preserve_format
    )


def summarize(results: dict[str, dict[str, Any]], metric: str) -> dict[str, Any]:
    """The better of {'raw': metrics, 'ema': metrics} at the top level, with its name, and both below."""
    weights = max(results, key=lambda name: (results[name][metric], name == "raw"))
    return {**results[weights], "weights": weights, **results}


def describe(results: dict[str, dict[str, Any]]) -> str:
    """One line of a log for {'raw': metrics, 'ema': metrics}."""
    return ", ".join(
        f"{name} " + " ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics.items())
        for name, metrics in results.items()
    )
