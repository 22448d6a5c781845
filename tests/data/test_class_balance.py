"""Epochs in which all classes are as frequent (DATA.SAMPLING)."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.class_balance import balanced_order, labels_in
from data.samplers import TrainBatchSampler
from data.schedule import Schedule
from data.sources.synthetic import SyntheticSource
from utils.errors import ConfigError

several = st.lists(st.integers(0, 6), min_size=1, max_size=120)


@settings(deadline=None, max_examples=50)
@given(several, st.integers(0, 2**31 - 1))
def test_each_class_is_as_frequent_and_each_of_its_images(labels, seed):
    """Some of the seven classes have no images."""
    order = balanced_order(torch.tensor(labels), torch.Generator().manual_seed(seed)).tolist()
    assert len(order) == len(labels)
    by_class = Counter(labels[index] for index in order)
    assert set(by_class) == set(labels) and max(by_class.values()) - min(by_class.values()) <= 1
    times = Counter(order)
    for label, count in by_class.items():
        each = [times[index] for index, found in enumerate(labels) if found == label]
        assert sum(each) == count and max(each) - min(each) <= 1


def epoch_of(labels, world_size, batch_size, epoch=3, first=0, seed=5):
    """What all processes see, in the order of the updates."""
    batches = len(labels) // (world_size * batch_size)
    parts = []
    for rank in range(world_size):
        schedule = Schedule(batches, batch_size, rank, world_size, seed, balanced=True)
        sampler = TrainBatchSampler(len(labels), schedule, labels=np.array(labels))
        sampler.set_position(epoch, first)
        parts.append(list(sampler))
    return [key for together in zip(*parts) for batch in together for key in batch]


def test_the_same_order_for_any_processes_from_any_batch_and_another_in_each_epoch():
    labels = [0] * 36 + [1] * 9 + [2] * 3
    whole = epoch_of(labels, 1, 4)
    assert len(whole) == 48 and Counter(labels[key.index] for key in whole) == {0: 16, 1: 16, 2: 16}
    assert epoch_of(labels, 2, 4) == whole == epoch_of(labels, 4, 2)
    assert epoch_of(labels, 2, 2, first=5) == whole[20:]
    assert epoch_of(labels, 1, 4, epoch=4) != whole != epoch_of(labels, 1, 4, seed=6)
    seeds = [key.seed for key in whole if labels[key.index] == 2]
    assert len(set(seeds)) == 16  # each time with another augmentation
    runs = sum(labels[one.index] == labels[other.index] for one, other in zip(whole, whole[1:]))
    assert runs < 30  # classes do not come one after the other


def test_labels_of_shards_are_not_known():
    class Shards(SimpleNamespace):
        classes, fingerprint, shards = ["a"], "x", ["a.tar"]

        def __len__(self):
            return 3

        def read(self, shard):
            return iter(())

        def load(self, stored):
            return None, 0

    with pytest.raises(ConfigError) as caught:
        labels_in(Shards(), "DATA.SAMPLING")
    assert str(caught.value).startswith(
        "DATA.SAMPLING: asks how many images each class has, which is not known of shards"
    )
    assert labels_in(SyntheticSource(5, 3, "train"), "DATA.SAMPLING").tolist() == [0, 1, 2, 0, 1]
