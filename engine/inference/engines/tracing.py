"""A model as a program of torch.export, from which all exported forms are made."""

from typing import Any, Optional

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from utils.errors import UserError
from utils.image_size import Size, height_and_width

MAX_BATCH = 4096  # for which torch wants a limit


class ConversionError(UserError):
    """A model that torch's exporter or an engine does not take. The message goes on after the model's name."""

    status = 1


def trace(model: nn.Module, size: Size, sizes: Optional[dict[str, int]] = None, in_chans: int = 3) -> ExportedProgram:
    """The model's program for any number of images up to `MAX_BATCH`.

    Args:
        model: in evaluation mode, on the CPU.
        size: of the images.
        in_chans: their channels.
        sizes: {"min": px, "max": px} of the sides, where the program is to take any height and width.

    Raises:
        ConversionError: the model cannot be traced.
    """
    dims: dict[int, Any] = {0: Dim("batch", min=1, max=MAX_BATCH)}
    example = torch.zeros(2, in_chans, *height_and_width(size))
    if sizes:
        dims |= {2: Dim("height", **sizes), 3: Dim("width", **sizes)}
        example = torch.zeros(2, in_chans, 96, 160)  # a square one would be taken for always square
    try:
        with torch.inference_mode(False), torch.no_grad():
            return torch.export.export(model, (example,), dynamic_shapes=(dims,))
    except Exception as error:  # torch raises of many kinds
        what = "for images of any size" if sizes else "for any number of images"
        raise ConversionError(f"cannot be exported {what} ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """An error of another package, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
