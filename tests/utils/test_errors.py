"""Errors of parts: where, reason, remedy."""

import copy
import pickle
from dataclasses import replace

import pytest
from torch.utils.data import Dataset, IterableDataset

from conftest import ROOT
from data.caught import RaisedElsewhere
from data.loader import EvalLoader, Loader
from loading import LOADING
from utils.errors import DataError, OutputError, ProcessError, Stopped, UserError


def test_parts_make_the_line():
    error = DataError("a.png", "is no image: empty", "remove it; or replace it")
    assert str(error) == "a.png: is no image: empty; remove it; or replace it"
    assert error.problem == "a.png: is no image: empty"
    assert str(DataError("a.png", "is no image")) == "a.png: is no image"
    changed = error.with_remedy("give another")
    assert type(changed) is DataError and str(changed) == "a.png: is no image: empty; give another"
    assert str(error).endswith("or replace it")


def test_a_single_message_still_works():
    error = UserError("a.png: is no image; remove it")
    assert (str(error), error.problem, error.reason, error.remedy) == (str(error),) * 2 + ("", "")


@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
def test_parts_are_kept_when_an_error_is_pickled(again):
    error = again(OutputError("a.png", "cannot be read; it is far away", "wait"))
    assert type(error) is OutputError and vars(error) == {
        "where": "a.png",
        "reason": "cannot be read; it is far away",
        "remedy": "wait",
    }
    assert str(error) == "a.png: cannot be read; it is far away; wait" and error.status == 5 and error.retry
    gone = again(ProcessError("rank 3 is gone; start again", rank=3))
    assert (gone.rank, gone.speaker, str(gone)) == (3, 0, "rank 3 is gone; start again")


class Bad(Dataset):
    """Of four numbers the third cannot be read."""

    classes: list = []
    collate = staticmethod(list)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise DataError("a\nb.png", "is no image; really: none", "remove it")
        return NOTHING


class BadStream(IterableDataset):
    def __iter__(self):
        yield NOTHING
        yield Bad()[2]


class Nothing:
    sample, failures = None, ()


NOTHING = Nothing()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stream", [None, BadStream()])
def test_parts_cross_a_loading_process(num_workers, stream):
    """And where it was raised there is still known."""
    loading = replace(LOADING, num_workers=num_workers)
    loader = Loader(Bad(), loading, stream, batch_size=1) if stream else EvalLoader(Bad(), 1, 0, 1, loading)
    with pytest.raises(DataError) as caught:
        list(loader.batches())
    error = caught.value
    assert (error.where, error.reason, error.remedy) == ("a\nb.png", "is no image; really: none", "remove it")
    if num_workers:
        assert isinstance(error.__cause__, RaisedElsewhere) and "in __getitem__" in str(error.__cause__)


def kinds(error: type) -> set[type]:
    return {error}.union(*map(kinds, error.__subclasses__()))


def test_the_page_lists_every_exit_status():
    page = (ROOT / "docs/faults.md").read_text().split("## Exit statuses")[1].split("\n## ")[0]
    listed = {int(row.split("|")[1]) for row in page.splitlines() if row[:3].strip("| ").isdigit()}
    assert listed == {0, 1, 130} | {kind.status for kind in kinds(UserError) | kinds(Stopped)}
