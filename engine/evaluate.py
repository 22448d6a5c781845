"""Exact evaluation: every image once, whatever the number of processes and the batch size."""

from typing import Any

import torch
from torch import nn

from data.loader import EvalLoader
from utils.device import to_device
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
    for batch in log.progress(loader, len(loader), "evaluate"):
        with precision.autocast():
            task.evaluate_batch(model, to_device(batch, device, channels_last), metrics)
    model.train(was_training)
    return metrics.compute()


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
