"""An update is the same whatever the number of processes is that share it: TRAIN.TOTAL_BATCH_SIZE."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath
from torch import nn
from torch.utils.checkpoint import checkpoint

from data.batches import Examples, Item
from data.lanes import Lanes
from data.sample import Sample
from data.samplers import TrainBatchSampler
from data.schedule import Schedule
from data.stream import TrainStream
from data.update_split import UpdateSplit
from engine.checkpoints.progress import Progress, Window
from engine.session import Session
from engine.setup.group_draws import Group, draw_by_groups, drawing
from engine.setup.precision import NativePrecision
from engine.tasks.classification import Classification
from engine.training.networks import Networks
from engine.training.nonfinite import FiniteGuard
from engine.training.optim import LearningRate, Optimisation, create_lr_scheduler
from engine.training.plan import BatchPlan, Sharing, plan_batches
from engine.training.run_length import RunLength
from engine.training.trainer import Trainer
from engine.training.training_data import TrainingData
from utils.errors import ConfigError
from utils.processes.launch import Launch
from utils.processes.peers import Peers
from utils.rng import derive_seed
from utils.run_log import RunLog
from utils.schema import DEFAULTS

CPU = torch.device("cpu")
IMAGES, CLASSES, SEED = 60, 3, 5


class Net(nn.Module):
    """Residual branches with one drop path, dropout of values and of maps, and what `checkpoint` computes again."""

    def __init__(self, recomputes: bool):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.drop_path, self.drop_maps, self.drop = DropPath(0.4), nn.Dropout2d(0.3), nn.Dropout(0.2)
        self.head = nn.Linear(4, CLASSES)
        self.recomputes = recomputes

    def block(self, x):
        x = x + self.drop_path(self.first(x).tanh())
        return x + self.drop_path(self.drop_maps(self.second(x)).tanh())

    def forward(self, x):
        x = self.stem(x)
        x = checkpoint(self.block, x, use_reentrant=False) if self.recomputes else self.block(x)
        return self.head(self.drop(x).mean((2, 3)))


def network(recomputes: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Net(recomputes).double().to(memory_format=torch.channels_last)


def task(mode: str = "batch") -> Classification:
    cfg = copy.deepcopy(DEFAULTS)
    cfg.AUG.MIXUP_MODE, cfg.AUG.MIXUP_PROB = mode, 0.8
    made = Classification(cfg)
    made.prepare_training(CLASSES)
    return made


def trainer_of(rank: int, plan: BatchPlan, model: nn.Module, task: Classification) -> Trainer:
    """One rank's part of a run. No other processes are there: it learns from its own gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lr_scheduler = create_lr_scheduler(optimizer, LearningRate("step", 10, decay_epochs=100), plan.updates_per_epoch)
    launch, progress = Launch(rank, plan.world_size), Progress(epoch=1)
    precision = NativePrecision(CPU, None)
    guard = FiniteGuard("raise", False, model, CPU)
    return Trainer(
        Session(None, launch, CPU, Peers(launch), None, RunLog(None, enabled=False)), task,
        TrainingData(None, None, plan, [], plan.batch_size), Networks(model, model), Optimisation(optimizer, lr_scheduler, precision, guard, 0.0),
        progress, None, None, [], RunLength(10, 0, 0.0, progress), seed=SEED,
    )  # fmt: skip


def batches_of(rank: int, plan: BatchPlan, repeats: int = 1):
    """This rank's micro-batches of epoch 1; an image's pixels and label are a function of its key, as augmented ones are."""
    schedule = Schedule(plan.batches_per_epoch, plan.batch_size, rank, plan.world_size, SEED, repeats, split=plan.split)
    sampler = TrainBatchSampler(IMAGES, schedule)
    sampler.set_position(1)
    for keys in sampler:
        images = [torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(key.seed)) for key in keys]
        labels = torch.tensor([key.index % CLASSES for key in keys])
        yield Examples(torch.stack(images).double(), labels, [str(key.index) for key in keys])


class Shards:
    """Of images, the pixels of which are a function of their augmentation's seed, as above."""

    shards = list("abcdef")
    source = property(lambda self: self)

    def read(self, shard: int):
        yield from range(10 * shard, 10 * shard + 10)

    def item(self, image: int, seed: int, size) -> Item:
        pixels = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(seed))
        return Item(Sample(pixels, image % CLASSES, str(image)))


def shard_batches(rank: int, plan: BatchPlan, first: int, lanes: Lanes):
    """The same from update `first` on, of shards, in the order of these lanes."""
    schedule = Schedule(plan.batches_per_epoch, plan.batch_size, rank, plan.world_size, SEED, split=plan.split)
    stream = TrainStream(Shards(), schedule, buffer=10)
    stream.set_position(1, first * plan.accumulation_steps, lanes)
    for items in stream:
        samples = [item.sample for item in items]
        images = torch.stack([sample.image for sample in samples]).double()
        yield Examples(images, torch.tensor([sample.target for sample in samples]), [sample.key for sample in samples])


def learn(plan: BatchPlan, updates: int = 2, repeats: int = 1, groups: bool = True, **how) -> tuple[list, list]:
    """The model's weights and the loss after some updates of all ranks."""
    model = network(how.pop("recomputes", False))
    batches = [batches_of(rank, plan, repeats) for rank in range(plan.world_size)]
    return go_on(model, plan, batches, range(updates), groups, **how)


def go_on(model: nn.Module, plan: BatchPlan, batches, steps: range, groups: bool = True, **how) -> tuple[list, list]:
    """The same from a model on, by each rank's micro-batches. Gradients are averaged as DDP does it."""
    if groups and plan.split and not plan.split.keeps_groups:
        draw_by_groups(model)
    trainers = [trainer_of(rank, plan, copy.deepcopy(model), task(**how)) for rank in range(plan.world_size)]
    losses = []
    for step in steps:
        windows = [Window(CPU, Progress(), Launch()) for _ in trainers]
        for trainer, own, window in zip(trainers, batches, windows):
            trainer.update(step, own, window)
        losses.append(sum(window.sums["loss"] for window in windows) / windows[0].images)
        with torch.no_grad():  # plain SGD: the mean of the weights is what the mean of the gradients leads to
            for same in zip(*(trainer.networks.model.parameters() for trainer in trainers)):
                mean = torch.stack([*same]).mean(0)
                for parameter in same:
                    parameter.copy_(mean)
    return [*trainers[0].networks.model.parameters()], losses


def plan_of(world_size: int, batch_size: int = 8, total: int = 24, steps: int = 1) -> BatchPlan:
    return plan_batches(IMAGES, batch_size, world_size, steps, total, sharing=Sharing(pairs=True, group_size=8))


def assert_near(some, others):
    for one, other in zip(some[0] + some[1], others[0] + others[1], strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("how", [
    {}, {"mode": "pair"}, {"mode": "elem"}, {"recomputes": True}, {"repeats": 3},
], ids=["batch", "pair", "elem", "recomputed", "repeats"])  # fmt: skip
def test_any_number_of_processes_makes_the_same_updates(how):
    """24 images by 8 in one process. Of 3 ranks each has such a micro-batch; 2 and 4 have 6 each, 5 have 4 or 6."""
    one = learn(plan_of(1), **how)
    for world_size in (2, 3, 4, 5):
        assert_near(learn(plan_of(world_size), **how), one)
    for more in (12, 24):  # images at a time, of which 8 draw together
        assert_near(learn(plan_of(1, batch_size=more), **how), one)
    with pytest.raises(AssertionError):
        assert_near(learn(plan_of(4), **{**how, "groups": False}), one)


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2), (2, 3)])
def test_an_epoch_of_shards_goes_on_to_the_same_losses(before, after):
    """After the first of three updates of 16 images; as where nothing has changed, but for rounding."""
    first, then = (plan_of(world_size, total=16) for world_size in (before, after))
    lanes = Lanes(before, 1, 8, 16, 2, 8)

    def updates(plan: BatchPlan, steps: range, weights, order: Lanes) -> tuple[list, list]:
        model = network()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), weights, strict=True):
                parameter.copy_(value)
        batches = [shard_batches(rank, plan, steps.start, order) for rank in range(plan.world_size)]
        return go_on(model, plan, batches, steps)

    whole = updates(first, range(3), [*network().parameters()], lanes)
    cut = updates(first, range(1), [*network().parameters()], lanes)
    rest = updates(then, range(1, 3), cut[0], lanes)
    assert_near((rest[0], cut[1] + rest[1]), whole)
    with pytest.raises(AssertionError):
        assert_near(updates(then, range(1, 3), cut[0], Lanes(after, 1, 8, 16, 2, 8)), (whole[0], whole[1][1:]))


def test_one_process_makes_the_updates_that_it_made_without_a_total():
    """To the bit: accumulation draws for each micro-batch."""
    total, accumulated = learn(plan_of(1)), learn(BatchPlan(IMAGES, 8, 1, 3))
    assert all(map(torch.equal, total[0] + total[1], accumulated[0] + accumulated[1]))


def test_views_of_an_image_draw_as_in_one_process():
    """AUG.SPLITS: two views of each of 8 images, of which 2 micro-batches have 4 each."""
    layer, x = DropPath(0.5).train(), torch.ones(16, 5)
    draw_by_groups(layer)
    torch.manual_seed(derive_seed(1, 2))
    whole = layer(x).view(2, 8, 5)
    for rows in ([0, 1, 6, 7], [2, 3, 4, 5]):
        with drawing([Group((1, 2), 8, rows)]):
            assert torch.equal(layer(x[:8]).view(2, 4, 5), whole[:, rows])


totals, sizes = st.integers(2, 40), st.integers(2, 9)


@settings(deadline=None, max_examples=150)
@given(totals, sizes, sizes, st.integers(1, 12), st.sampled_from([1, 2]), st.sampled_from([1, 3]))
def test_each_image_of_an_update_is_in_one_micro_batch(units, batch_size, group_size, world_size, unit, repeats):
    split = UpdateSplit(units * unit, batch_size, world_size, unit, group_size)
    cells = [(batch, rank) for batch in range(split.accumulation_steps) for rank in range(world_size)]
    positions = [split.positions(*cell, repeats) for cell in cells]
    assert sorted(sum(positions, [])) == list(range(split.total))
    counts = [split.count(*cell) for cell in cells]
    assert counts == list(map(len, positions)) and (min(counts), max(counts)) == (split.least, split.most)
    assert split.most <= batch_size and split.most - split.least <= unit
    alone = UpdateSplit(split.total, group_size, 1, unit)
    assert alone.keeps_groups
    for part in sum((split.parts(*cell) for cell in cells), []):
        (whole,) = alone.parts(part.group, 0)
        assert whole.is_whole and part.size == whole.size and set(part.rows) <= set(whole.rows)
        assert list(part.rows) == sorted(part.rows)
        if unit == 2:
            assert [part.size - 1 - row for row in part.rows] == list(part.rows)[::-1]


def test_copies_of_an_image_are_in_different_groups():
    split = UpdateSplit(24, 8, 1, 2)
    groups = [{position // 3 for position in split.positions(batch, 0, repeats=3)} for batch in range(3)]
    assert groups == [set(range(8))] * 3


@pytest.mark.parametrize("world_size, text, note", [
    (8, "8 x 128 x 1", ""), (16, "16 x 64 x 1", "64 images, where DATA.BATCH_SIZE is 128"),
    (12, "12 x 84 or 86 x 1", "84 or 86 images, where DATA.BATCH_SIZE is 128; each image counts the same in the gradient"),
    (3, "3 x 112 or 114 x 3", "112 or 114 images, where DATA.BATCH_SIZE is 128; each image counts the same in the gradient"),
])  # fmt: skip
def test_the_recipe_on_any_number_of_processes(world_size, text, note):
    plan = plan_batches(1281167, 128, world_size, 1, 1024, sharing=Sharing(pairs=True))
    assert plan.describe() == f"global batch {text} accumulated = 1024"
    assert [line.partition(": micro-batches of ")[2] for line in plan.notes(128, compiled=False)] == [note] * bool(note)
    assert (plan.updates_per_epoch, plan.total_batch_size, plan.scale_lr(5e-4)) == (1251, 1024, 1e-3)


@pytest.mark.parametrize("total, world_size, changes, part", [
    (25, 1, {}, "is 25, but mixup and cutmix mix pairs"),
    (24, 13, {"pairs": False}, "is 24, too few images for 13 processes, which need 26"),
    (24, 5, {"alike": True}, "is 24, which 5 processes cannot share evenly"),
    (24, 2, {"steps": 3}, "needs 2 at 2 processes x batch 8"),
])  # fmt: skip
def test_totals_that_cannot_be_divided(total, world_size, changes, part):
    sharing = Sharing(**{"pairs": True, **{key: value for key, value in changes.items() if key != "steps"}})
    with pytest.raises(ConfigError, match=part):
        plan_batches(IMAGES, 8, world_size, changes.get("steps", 1), total, sharing=sharing)


def test_where_the_order_is_of_the_processes_all_have_as_many_images():
    plan = plan_batches(IMAGES, 8, 2, 1, 20, sharing=Sharing(pairs=True, alike=True))
    assert (plan.batch_size, plan.accumulation_steps, plan.split.keeps_groups) == (2, 5, True)
