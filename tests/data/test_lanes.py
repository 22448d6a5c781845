"""The order of an epoch of shards: a function of the seed, the epoch and the processes with which it began."""

import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data import stream
from data.batches import Item
from data.dataset import MAX_IN_A_ROW
from data.lanes import Lanes
from data.sample import Sample
from data.schedule import Schedule
from data.stream import TrainStream
from data.update_split import UpdateSplit
from utils.errors import DataError
from utils.rng import derive_seed

SEED, EPOCH, BUFFER = 3, 2, 5
SIZES = [(0, 24), (2, 40)]


class Shards:
    """Six of ten images each."""

    shards = list("abcdef")

    def read(self, shard):
        for number in range(10):
            yield shard, number


class Images:
    """What an item is made of, in place of a picture: the image, the seed of its augmentation, and its size."""

    source = Shards()

    def __init__(self, damaged=()):
        self.damaged = set(damaged)

    def item(self, stored, seed, size):
        if stored in self.damaged:
            return Item(None, (f"{stored} cannot be read",))
        return Item(Sample(None, None, (stored, seed, size)))


def schedule_of(lanes: Lanes, rank: int, num_batches: int, repeats: int = 1) -> Schedule:
    batch_size = lanes.split.most if lanes.split else lanes.batch_size
    return Schedule(num_batches, batch_size, rank, lanes.world_size, SEED, repeats, SIZES, split=lanes.split)


def given_by(own: Lanes, images: range, monkeypatch, lanes=None, repeats=1, damaged=()) -> dict[int, Item]:
    """What all loading processes of a run give for some positions of the epoch, which begin and end with micro-batches."""
    micro = own.total // own.split.accumulation_steps if own.total else own.batch_size * own.world_size
    first, end = images.start // micro, images.stop // micro
    found: dict[int, Item] = {}
    for rank, worker in itertools.product(range(own.world_size), range(own.workers)):
        monkeypatch.setattr(stream, "place_of_worker", lambda place=(worker, own.workers): place)
        made = TrainStream(Images(damaged), schedule_of(own, rank, end, repeats), BUFFER)
        made.set_position(EPOCH, first, lanes)
        for batch, items in zip(range(first + worker, end, own.workers), made, strict=True):
            found.update(zip(own.positions(batch, rank), items, strict=True))
    assert sorted(found) == list(images)
    return found


@pytest.mark.parametrize("own", [
    Lanes(1, 1, 4), Lanes(2, 1, 4), Lanes(2, 3, 4), Lanes(3, 2, 4), Lanes(2, 2, 6, 24, 2, 8), Lanes(2, 1, 8, 16, 2, 8),
], ids=str)  # fmt: skip
def test_where_nothing_changes_each_loading_process_gives_its_own_images(own):
    """Micro-batch m of a rank has the next images of its loading process m % workers: the shards c, c + n, ... of loading process c
    of all n, mixed, each augmented by a seed of its place among that process' images.
    """
    batch_size = own.split.most if own.split else own.batch_size
    for rank, worker, first in itertools.product(range(own.world_size), range(own.workers), (0, 5)):
        schedule = schedule_of(own, rank, 8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stream, "place_of_worker", lambda place=(worker, own.workers): place)
            made = TrainStream(Images(), schedule, BUFFER)
            made.set_position(EPOCH, first)
            batches = list(made)
        turn = (worker + first) % own.workers
        reader = rank * own.workers + turn
        everything = list(itertools.islice(made.samples(EPOCH, reader, own.world_size * own.workers), 200))
        for batch, items in zip(range(first + worker, 8, own.workers), batches, strict=True):
            places = range(batch // own.workers * batch_size, (batch // own.workers + 1) * batch_size)
            expected = [(everything[place], derive_seed(SEED, EPOCH, reader, place), 40) for place in places]
            assert [item.sample.key for item in items] == expected


DAMAGED = [(shard, number) for shard in range(6) for number in (3, 4)]
PLAIN, OTHERS = Lanes(2, 1, 4), Lanes(1, 2, 8)
# of 24 images, of which 8 draw together: 3 processes have 8 each, 2 have twice 6, 5 have 4 or 6
UPDATES = {world_size: Lanes(world_size, 2, 8, 24, 2, 8) for world_size in (1, 2, 3, 4, 5)}


@pytest.mark.parametrize("before, after, start", [
    (PLAIN, Lanes(1, 1, 4), 24), (PLAIN, Lanes(1, 1, 8), 24), (PLAIN, OTHERS, 24), (PLAIN, Lanes(3, 1, 4), 24), (PLAIN, Lanes(2, 3, 4), 24),
    (Lanes(1, 1, 4), PLAIN, 24), (Lanes(2, 2, 4), Lanes(1, 3, 2), 48), *((UPDATES[some], UPDATES[other], 24) for some, other in
    [(1, 2), (2, 1), (2, 3), (2, 5), (3, 2), (4, 1), (5, 4)]), (UPDATES[2], Lanes(3, 1, 6, 16, 2, 6), 48), (UPDATES[4], PLAIN, 48),
])  # fmt: skip
@pytest.mark.parametrize("how", [
    {}, {"repeats": 3}, {"damaged": DAMAGED}, {"repeats": 3, "damaged": DAMAGED},
], ids=["whole", "repeats", "damaged", "both"])  # fmt: skip
def test_other_processes_go_on_with_the_order_of_the_first(before, after, start, how, monkeypatch):
    """The same images with the same augmentation in the same positions, and the same failures."""
    whole = given_by(before, range(96), monkeypatch, **how)
    assert len({item.sample.key for item in whole.values()}) == 96
    rest = given_by(after, range(start, 96), monkeypatch, before, **how)
    assert rest == {position: whole[position] for position in range(start, 96)}
    assert any(item.failures for item in rest.values()) == bool(how.get("damaged"))
    if before != after:
        with pytest.raises(AssertionError):
            assert given_by(after, range(start, 96), monkeypatch, None, **how) == rest


def test_too_many_images_in_a_row_that_cannot_be_read(monkeypatch):
    damaged = {(shard, number) for shard in range(6) for number in range(10)}
    with pytest.raises(DataError, match=f"cannot be read; nor can the {MAX_IN_A_ROW} before it"):
        given_by(PLAIN, range(8), monkeypatch, damaged=damaged)


sizes = st.integers(2, 9)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 20), sizes, sizes, st.integers(1, 6), st.integers(1, 4), st.sampled_from([0, 1, 2]))
def test_each_position_is_in_one_micro_batch_and_in_one_lane(units, batch_size, group_size, world_size, workers, unit):
    """`unit` 0: without TRAIN.TOTAL_BATCH_SIZE."""
    total = units * unit
    lanes = Lanes(world_size, workers, batch_size, total, max(unit, 1), group_size)
    assume(not lanes.split or lanes.split.least)
    turns = workers * (lanes.split.accumulation_steps if total else 1)  # updates, or micro-batches
    cells = itertools.product(range(turns), range(world_size))
    positions = {cell: lanes.positions(*cell) for cell in cells}
    assert sorted(itertools.chain(*positions.values())) == list(range(sum(map(len, positions.values()))))
    for (batch, rank), own in positions.items():
        assert {lanes.batch_of(position) for position in own} <= {(batch, rank)}
        assert {lanes.lane_of(position) for position in own} <= {rank * workers + batch % workers}
    for lane in range(lanes.count):
        filled = list(itertools.islice(lanes.filled_by(lane), 10))
        assert {lanes.lane_of(position) for position in filled} == {lane}
        assert len(set(filled)) == 10
    assert all(lanes.lane_of(position) == lanes.lane_of(position + lanes.period) for position in range(50))


@pytest.mark.parametrize("first, others, lanes, readers", [
    (Lanes(2, 2, 4), Lanes(1, 2, 4), 2, 1), (Lanes(2, 2, 4), Lanes(1, 4, 4), 1, 1), (Lanes(2, 2, 4), Lanes(2, 4, 4), 1, 2),
    (Lanes(2, 2, 4), Lanes(3, 2, 4), 2, 3), (Lanes(2, 2, 4), Lanes(1, 1, 4), 4, 1),
    *((Lanes(8, 8, 128, 1024, 2, 128), Lanes(number, 8, 128, 1024, 2, 128), *figures) for number, *figures in [(4, 2, 1), (7, 4, 3)]),
], ids=str)  # fmt: skip
def test_how_many_read_a_lane(first, others, lanes, readers):
    """Where the number of loading processes divides what it was, each lane is read by one."""
    assert first.shared_with(others, range(8 * 1024, 10**9)) == (lanes, readers)


def test_an_update_that_does_not_divide_is_shared_by_lanes_of_different_lengths():
    lanes = Lanes(3, 1, 8, 20, 2, 8)
    assert isinstance(lanes.split, UpdateSplit)
    assert [len(lanes.positions(batch, rank)) for batch in (0, 1) for rank in range(3)] == [6, 6, 8, 6, 6, 8]
    assert lanes.shared_with(lanes, range(200)) == (1, 1)
