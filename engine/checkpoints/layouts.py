"""Where the files of training codes have their weights, and what these put before the tensors' names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Sequence

import torch

from utils.errors import CheckpointError

State = Mapping[str, torch.Tensor]

RAW = ("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network", "weights", "params")
EMA = ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "params_ema")
PAIR = ("student", "teacher")  # of self-distillation: which one is meant, the file does not say
LIGHTNING = "pytorch-lightning_version"
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, torch.compile and Lightning's modules
COUNTERS = ("n_averaged",)  # what torch.optim.swa_utils.AveragedModel has beside `module.*`


@dataclass(frozen=True)
class Taken:
    """Tensors of a file, and how they come from it."""

    state: State
    prefix: str = ""  # taken off their names
    left_out: tuple[str, ...] = ()  # names in the file of what is beside them


@dataclass(frozen=True)
class Weights:
    """The weights of one kind, raw or average, in a file."""

    key: str  # 'model', 'ema.module' ...; '' for a plain state dict
    steps: tuple[Taken, ...]  # as they are in the file, then with one prefix less each

    @property
    def plain(self) -> Taken:
        """Without all prefixes that are known to be wrappers'."""
        return self.steps[-1]

    def under(self, first: str) -> Iterator[Taken]:
        """Those tensors that have something in common before their name, where one of them is `<that>.<first>`."""
        stored = self.steps[0]
        for key in stored.state:
            if key.endswith(f".{first}"):
                yield _without(stored, key[: -len(first)])


def weights_in(content: Mapping[Any, Any], path: Path) -> dict[str, Weights]:
    """The weights in a file's content: 'raw', 'ema' or both.

    Raises:
        CheckpointError: there are none, or it is open which ones are meant.
    """
    lightning = LIGHTNING in content
    stored = {"raw": _under(content, RAW, path) or _under(content, PAIR, path), "ema": _under(content, EMA, path)}
    if not any(stored.values()) and (bare := _tensors(content)):
        stored["raw"] = ("", bare)
    found = {name: Weights(entry[0], tuple(_steps(entry[1], lightning))) for name, entry in stored.items() if entry}
    if not found:
        keys = ", ".join(repr(key) for key in list(content)[:5])
        raise CheckpointError(f"{path}: holds no model weights (it has {keys}); use a checkpoint or a state dict")
    for weights in found.values():
        for key, value in weights.steps[0].state.items():
            if value.layout is not torch.strided or value.is_meta or value.is_quantized:
                raise CheckpointError(
                    f"{path}: its {key} is {value.dtype} ({value.layout}), no plain tensor; use another file"
                )
    return found


def _under(content: Mapping[Any, Any], keys: Sequence[str], path: Path, above: str = "") -> Optional[tuple[str, Taken]]:
    """The weights under one of the keys, or under one of `RAW` in what is there."""
    found = []
    for key in keys:
        value = content.get(key)
        if not isinstance(value, Mapping):
            continue
        name = f"{above}{key}"
        if taken := _tensors(value):
            found.append((name, taken))
        elif not above and (inner := _under(value, RAW, path, f"{name}.")):
            found.append(inner)
    if len(found) > 1:
        names = " and ".join(repr(name) for name, _ in found)
        raise CheckpointError(f"{path}: has weights under {names}; save those that you mean in a file alone")
    return found[0] if found else None


def _tensors(content: Mapping[Any, Any]) -> Optional[Taken]:
    """A state dict's tensors; None for what holds none, or holds more than single values beside them."""
    if any(isinstance(value, (Mapping, list, tuple)) or not isinstance(key, str) for key, value in content.items()):
        return None
    state = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    return Taken(state, left_out=tuple(key for key in content if key not in state)) if state else None


def _steps(stored: Taken, lightning: bool) -> Iterator[Taken]:
    taken = stored
    while True:
        yield taken
        prefix = next((prefix for prefix in PREFIXES if _is_a_wrapper_s(prefix, taken.state, lightning)), None)
        if prefix is None:
            return
        lightning = False  # what a LightningModule has beside its model stands at the outermost level
        inner = _without(taken, prefix)
        taken = Taken(
            inner.state, taken.prefix + prefix, taken.left_out + tuple(taken.prefix + key for key in inner.left_out)
        )


def _is_a_wrapper_s(prefix: str, state: State, lightning: bool) -> bool:
    """Whether all tensors have the prefix, but for what the wrappers themselves put beside them."""
    others = [key for key in state if not key.startswith(prefix) or key == prefix]
    return len(others) < len(state) and ((lightning and prefix == "model.") or set(others) <= set(COUNTERS))


def _without(taken: Taken, prefix: str) -> Taken:
    state = {
        key[len(prefix) :]: value for key, value in taken.state.items() if key.startswith(prefix) and key != prefix
    }
    return Taken(state, prefix, tuple(key for key in taken.state if not key.startswith(prefix) or key == prefix))
