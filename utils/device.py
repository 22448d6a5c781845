"""The device of a process: which one it is, how batches get there, how much memory was used."""

import os
import resource
from typing import Any, Callable, Iterator, Mapping

import torch

from .errors import ConfigError


def select_device(name: str, local_rank: int) -> torch.device:
    """'auto' is this rank's GPU if CUDA works here, else the CPU; 'cuda' without CUDA is an error, never a CPU run.

    Raises:
        ConfigError: 'cuda' is asked for and absent, or there are fewer GPUs than local ranks.
    """
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise ConfigError("DEVICE: 'cuda' is asked for, but torch sees no GPU; check the driver or use DEVICE cpu")
    if name == "cpu" or not cuda:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"--nproc_per_node: local rank {local_rank} has no GPU, torch sees {torch.cuda.device_count()}; "
            "start one process per GPU"
        )
    return torch.device("cuda", local_rank)


def use_deterministic_algorithms() -> None:
    """Makes torch use only algorithms that give the same bits in each run; one that has none raises a RuntimeError."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA is first used
    torch.use_deterministic_algorithms(True)
    # a pass over each new tensor, which all here write to; torch makes a property of it that no checker sees
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def choose_arithmetic(device: torch.device, exact: bool, deterministic: bool, fixed_sizes: bool) -> str:
    """Decides what a GPU makes of float32 and how cuDNN finds its algorithms, which is undecided otherwise: torch takes
    TF32 for convolutions and not for matrix products.

    Args:
        exact: products of float32 numbers in float32; else in TF32, whose numbers have 10 bits after the point.
        deterministic: the same bits in each run, so exact, and without trying algorithms, whose times differ.
        fixed_sizes: batches have one size, for which cuDNN times its algorithms once and keeps the fastest.

    Returns:
        What was decided, in words; '' on CPUs, where nothing is to decide.
    """
    if device.type != "cuda":
        return ""
    tf32, tries = not (exact or deterministic), fixed_sizes and not deterministic
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = tries
    return ("TF32 for float32" if tf32 else "exact float32") + ", cuDNN's algorithms by trial" * tries


# What allocators say of themselves: torch's on CPUs, CUDA's (also when a kernel or a graph asks for memory), cuDNN's and
# cuBLAS', whose errors are plain RuntimeErrors.
OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's or this machine's memory is used up."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(text in str(error) for text in OUT_OF_MEMORY)


def map_tensors(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A batch with its tensors changed; they may lie in tuples, named or not, lists and dictionaries, at any depth."""
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(value, change) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        values = [map_tensors(value, change) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch


def tensors_of(batch: Any) -> Iterator[torch.Tensor]:
    """The tensors of a batch, at any depth, see `map_tensors`."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from tensors_of(value)


def to_device(batch: Any, device: torch.device, channels_last: bool = False) -> Any:
    """A batch with its tensors, at any depth, on the device; images (4-D) in the asked memory format."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        memory_format = torch.channels_last if channels_last and tensor.ndim == 4 else torch.preserve_format
        return tensor.to(device, non_blocking=True, memory_format=memory_format)

    return map_tensors(batch, moved)


def memory_mib(device: torch.device) -> float:
    """The largest memory so far: what torch allocated on a GPU, else this process' resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def forget_memory(device: torch.device) -> None:
    """Gives unused memory back and lets `memory_mib` count anew, on a GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
