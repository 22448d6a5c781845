"""Properties of who sees which image when, for any sizes."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.samplers import EvalSampler, TrainBatchSampler
from data.schedule import Schedule
from engine.checkpoints.progress import Progress
from engine.checkpoints.resume import fit_progress
from engine.training.plan import BatchPlan
from utils.errors import ConfigError

sizes = st.integers(1, 300)
batch_sizes = st.integers(1, 9)
world_sizes = st.integers(1, 5)
accumulations = st.integers(1, 4)
seeds = st.integers(0, 2**31 - 1)
epochs = st.integers(0, 400)

settings.register_profile("tests", deadline=None, max_examples=150)
settings.load_profile("tests")


def schedule(plan: BatchPlan, rank: int, seed: int, repeats: int = 1) -> Schedule:
    return Schedule(plan.batches_per_epoch, plan.batch_size, rank, plan.world_size, seed, repeats)


def sampler(plan: BatchPlan, rank: int, seed: int) -> TrainBatchSampler:
    return TrainBatchSampler(plan.num_images, schedule(plan, rank, seed))


def batches(plan, rank, seed, epoch, first=0):
    found = sampler(plan, rank, seed)
    found.set_position(epoch, first)
    return list(found)


def globally(plan, seed, epoch, first=0):
    """The images in the order in which the updates take them, over all processes."""
    by_rank = [batches(plan, rank, seed, epoch, first) for rank in range(plan.world_size)]
    return [key for together in zip(*by_rank) for batch in together for key in batch]


@given(sizes, batch_sizes, world_sizes, accumulations, st.booleans(), seeds, epochs)
def test_each_image_once_per_epoch_over_all_processes(images, batch, world, accumulation, whole, seed, epoch):
    plan = BatchPlan(images, batch, world, accumulation, whole)
    seen = [key.index for key in globally(plan, seed, epoch)]
    assert len(seen) == len(set(seen)) == plan.batches_per_epoch * batch * world and set(seen) <= set(range(images))
    unit = plan.total_batch_size if whole else batch * world
    assert images - len(seen) < unit  # what fills no update, or no micro-batch, is left out
    if images % unit == 0:
        assert sorted(seen) == list(range(images))


@given(sizes, batch_sizes, world_sizes, seeds, epochs, st.data())
def test_any_offset_resumes_to_the_same_remainder(images, batch, world, seed, epoch, data):
    plan = BatchPlan(images, batch, world, 1)
    rank = data.draw(st.integers(0, world - 1))
    whole = batches(plan, rank, seed, epoch)
    first = data.draw(st.integers(0, len(whole)))
    assert batches(plan, rank, seed, epoch, first) == whole[first:]
    used = sampler(plan, rank, seed)  # one that has run other epochs before
    used.set_position(epoch + 1)
    list(used)
    used.set_position(epoch, first)
    assert list(used) == whole[first:]


@given(sizes, st.lists(st.tuples(world_sizes, batch_sizes, accumulations), min_size=2, max_size=3), seeds, epochs)
def test_the_order_of_images_and_their_augmentation_is_the_same_for_any_split(images, splits, seed, epoch):
    orders = [globally(BatchPlan(images, batch, world, steps), seed, epoch) for world, batch, steps in splits]
    shortest = min(map(len, orders))
    assert all(order[:shortest] == orders[0][:shortest] for order in orders)


@given(sizes, seeds, epochs)
def test_epochs_and_seeds_differ(images, seed, epoch):
    plan = BatchPlan(images, 1, 1, 1)
    one, other, reseeded = globally(plan, seed, epoch), globally(plan, seed, epoch + 1), globally(plan, seed + 1, epoch)
    assert {key.seed for key in one} & {key.seed for key in other} == set() == {key.seed for key in one} & {
        key.seed for key in reseeded
    } or images > 50
    if images > 20:
        assert [k.index for k in one] != [k.index for k in other] and [k.index for k in one] != [
            k.index for k in reseeded
        ]


@given(st.integers(0, 300), st.integers(1, 9))
def test_evaluation_never_pads_and_never_leaves_out(images, world):
    parts = [list(EvalSampler(images, rank, world)) for rank in range(world)]
    assert sorted(sum(parts, [])) == list(range(images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [len(EvalSampler(images, rank, world)) for rank in range(world)] == list(map(len, parts))


def entry(plan, seed=0):
    return {
        "classes": ["a"],
        "plan": {
            "num_images": plan.num_images, "images": "x", "seed": seed, "total_batch_size": plan.total_batch_size,
            "updates_per_epoch": plan.updates_per_epoch, "world_size": plan.world_size,
        },
    }  # fmt: skip


splits = st.tuples(batch_sizes, world_sizes, accumulations)


@given(sizes, splits, splits, seeds, st.booleans(), st.data())
def test_another_split_goes_on_with_the_next_image_or_is_refused(images, old, new, seed, whole, data):
    before, after = BatchPlan(images, *old, whole), BatchPlan(images, *new, whole)
    if not before.updates_per_epoch or not after.updates_per_epoch:
        return
    step = data.draw(st.integers(1, before.updates_per_epoch))
    progress = Progress(step=step)
    done = globally(before, seed, 3)[: step * before.total_batch_size]
    try:
        fit_progress(progress, entry(before), entry(after), Path("x.pth"))
    except ConfigError as error:
        assert len(done) % after.total_batch_size and str(before.total_batch_size) in str(error)
        return
    rest = globally(after, seed, 3, progress.step * after.accumulation_steps)
    if step == before.updates_per_epoch:
        assert not rest
    else:
        together = [key.index for key in done + rest]
        assert len(together) == len(set(together))
        assert together == [key.index for key in globally(BatchPlan(images, 1, 1, 1), seed, 3)][: len(together)]
        assert images - len(together) < max(after.total_batch_size, before.total_batch_size) + 1


# Repeats

repeats = st.integers(2, 5)
FIRST_EPOCH = [(0, 1104671200), (4, 3445148934), (3, 1581207211), (2, 3514358936)]


def repeated(plan, repeats, seed, epoch, first=0):
    """By process: its micro-batches of an epoch in which images stand several times."""
    found = [TrainBatchSampler(plan.num_images, schedule(plan, rank, seed, repeats)) for rank in range(plan.world_size)]
    for one in found:
        one.set_position(epoch, first)
    return [list(one) for one in found]


def dealt(by_rank):
    """The positions of an epoch in their order: dealt out to the processes in turns."""
    return [key for together in zip(*by_rank) for keys in zip(*together) for key in keys]


@given(sizes, batch_sizes, world_sizes, repeats, seeds, epochs)
def test_repeats_are_augmented_anew_and_the_epoch_keeps_its_length(images, batch, world, repeats, seed, epoch):
    plan = BatchPlan(images, batch, world, 1)
    by_rank = repeated(plan, repeats, seed, epoch)
    keys = dealt(by_rank)
    assert len(keys) == plan.batches_per_epoch * batch * world and len(set(keys)) == len(keys)
    counts = Counter(key.index for key in keys)
    assert all(count == repeats for count in list(counts.values())[:-1]) and len(counts) == -(-len(keys) // repeats)
    order = [key.index for key in globally(BatchPlan(images, 1, 1, 1), seed, epoch)]  # as without repeats
    assert list(counts) == order[: len(counts)]
    if world >= repeats and keys:
        ranks = {
            index: [r for r, mine in enumerate(by_rank) for b in mine for k in b if k.index == index]
            for index in order[:5]
        }
        assert all(len(set(found)) == len(found) for found in ranks.values())


@given(sizes, repeats, st.lists(st.tuples(world_sizes, batch_sizes), min_size=2, max_size=3), seeds, epochs)
def test_repeats_have_the_same_order_for_any_split(images, repeats, splits, seed, epoch):
    orders = [dealt(repeated(BatchPlan(images, batch, world, 1), repeats, seed, epoch)) for world, batch in splits]
    shortest = min(map(len, orders))
    assert all(order[:shortest] == orders[0][:shortest] for order in orders)


@given(sizes, batch_sizes, world_sizes, repeats, seeds, epochs, st.data())
def test_repeats_resume_anywhere(images, batch, world, repeats, seed, epoch, data):
    plan = BatchPlan(images, batch, world, 1)
    first = data.draw(st.integers(0, plan.batches_per_epoch))
    rest = repeated(plan, repeats, seed, epoch, first)
    assert rest == [found[first:] for found in repeated(plan, repeats, seed, epoch)]


def test_without_repeats_nothing_is_as_with_them():
    """And nothing is other than it ever was: these seeds are of before there were repeats."""
    found = TrainBatchSampler(5, Schedule(2, 2, 0, 1, seed=1))
    assert [key[:2] for batch in found for key in batch] == FIRST_EPOCH
    assert {key.seed for key in dealt(repeated(BatchPlan(5, 2, 1, 1), 2, 1, 0))}.isdisjoint(
        seed for _, seed in FIRST_EPOCH
    )


def test_other_repeats_within_an_epoch_are_refused_and_older_checkpoints_have_none():
    plan = BatchPlan(60, 4, 2, 1)
    old, new = entry(plan), entry(plan)
    new["plan"]["repeats"] = 3
    with pytest.raises(ConfigError, match="repeats 1; now it is 3"):
        fit_progress(Progress(epoch=1, step=3), old, new, Path("x.pth"))
    assert fit_progress(Progress(epoch=1), old, new, Path("x.pth")) == ["repeats changed from 1 to 3"]
    new["plan"]["repeats"] = 1
    assert fit_progress(Progress(epoch=1, step=3), old, new, Path("x.pth")) == []


def test_other_images_or_another_seed_within_an_epoch_are_refused():
    plan = BatchPlan(60, 4, 2, 1)
    for other, part in (
        (entry(BatchPlan(61, 4, 2, 1)), "num_images 60; now it is 61"),
        (entry(plan, seed=1), "seed 0; now it is 1"),
    ):
        with pytest.raises(ConfigError, match=part):
            fit_progress(Progress(epoch=1, step=3), entry(plan), other, Path("x.pth"))
        assert fit_progress(Progress(epoch=1), entry(plan), other, Path("x.pth"))  # between epochs it is said
