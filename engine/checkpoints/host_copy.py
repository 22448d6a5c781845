"""A copy of a run's state in the host's memory, which the next updates leave as it is."""

import copy
from typing import Any

import torch


def copy_to_host(state: Any) -> Any:
    """The same containers, with copies of their tensors; other values are shared, so they must be ones that nobody changes.

    torch.save writes the same bytes of both (on a GPU but for the name of the device): what shares memory, or is one object
    in several places, does so in the copy too.
    """
    return _Copying().of(state)


class _Copying:
    def __init__(self) -> None:
        self.copies: dict[int, Any] = {}  # by the original's id
        self.storages: dict[int, torch.UntypedStorage] = {}  # by the original's address

    def of(self, value: Any) -> Any:
        if not isinstance(value, (torch.Tensor, dict, list, tuple)):
            return value
        if id(value) not in self.copies:
            self.copies[id(value)] = self._tensor(value) if isinstance(value, torch.Tensor) else self._container(value)
        return self.copies[id(value)]

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        address = storage.data_ptr()
        if not address:  # it is empty
            return value.detach().clone()
        if address not in self.storages:
            self.storages[address] = storage.clone() if storage.device.type == "cpu" else storage.cpu()
        empty = torch.empty(0, dtype=value.dtype)
        return empty.set_(self.storages[address], value.storage_offset(), value.size(), value.stride())

    def _container(self, value: Any) -> Any:
        if isinstance(value, dict):
            result = copy.copy(value)  # of its type, with its attributes: a model's state dict has some
            for key, item in value.items():
                result[key] = self.of(item)
            return result
        return type(value)(self.of(item) for item in value)
