"""Errors of a user's data on their way out of a loading process.

The DataLoader would send an error's class and text alone. A `Caught` takes the place of a sample instead, so that the
error arrives with its parts, and with the text of where it was raised.
"""

import traceback
from typing import Any, Iterator, NamedTuple, NoReturn

from torch.utils.data import Dataset, IterableDataset

from utils.errors import UserError

from .dataset import ImageDataset


class RaisedElsewhere(Exception):
    """The traceback of an error in another process, as text."""


class Caught(NamedTuple):
    """An error instead of a sample."""

    error: UserError
    traceback: str

    @classmethod
    def of(cls, error: UserError) -> "Caught":
        return cls(error, "".join(traceback.format_exception(error)))

    def raise_again(self) -> NoReturn:
        """Raises the error; if it comes from another process, with that process' traceback as its cause."""
        if self.error.__traceback__ is None:
            raise self.error from RaisedElsewhere(self.traceback)
        raise self.error


class CaughtDataset(Dataset):
    """A data set that gives its errors as items."""

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except UserError as error:
            return Caught.of(error)


class CaughtStream(IterableDataset):
    """A stream that gives its error as its last item."""

    def __init__(self, stream: IterableDataset):
        self.stream = stream

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.stream
        except UserError as error:
            yield Caught.of(error)
