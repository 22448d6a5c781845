"""Random numbers as functions of where they are used (seed, epoch, sample or step, rank), not of what ran before."""

import hashlib
import random
from typing import Any, Iterable, Union

import numpy as np
import torch


def derive_seed(*parts: Union[int, str]) -> int:
    """A 32-bit seed from any integers and texts; different parts give independent seeds."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")


def fingerprint(parts: Iterable[bytes]) -> str:
    """A short hexadecimal hash of byte strings and their order."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part + b"\n")
    return digest.hexdigest()


def seed_all(*parts: int) -> None:
    """Seeds Python's, NumPy's and torch's (all devices') global generators from any integers."""
    seed_cpu(*parts)
    # Not torch.manual_seed: where there is no GPU it keeps the stack of each call for one to come, 1 ms per training step.
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(derive_seed(*parts))


def seed_cpu(*parts: int) -> None:
    """Seeds as `seed_all` does, but for the GPUs' generators: that takes longer than augmenting an image's colours."""
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def get_rng_state() -> dict[str, Any]:
    """The states of all global generators as plain values and tensors."""
    numpy = np.random.get_state(legacy=False)
    keys, position = torch.from_numpy(numpy["state"]["key"].astype(np.int64)), numpy["state"]["pos"]
    return {
        "python": random.getstate(),
        "numpy": (numpy["bit_generator"], keys, position, numpy["has_gauss"], numpy["gauss"]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restores what `get_rng_state` returned; a CUDA state is left out where CUDA is not in use."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    algorithm, keys, position, has_gauss, cached_gaussian = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), position, has_gauss, cached_gaussian))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"].cpu())
