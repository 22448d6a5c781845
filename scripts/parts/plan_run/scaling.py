"""How long an update takes on N GPUs, on paper: from one GPU's speed, the gradients' bytes and the links between the GPUs.

- A ring all-reduce sends 2 (N - 1) / N of the gradients' bytes over each GPU's link (Patarasuk and Yuan 2009), and has 2 (N - 1)
  steps of a latency each.
- DistributedDataParallel reduces buckets as the backward pass fills them, in the last micro-batch of an update only. Gradients
  are taken to be ready evenly over that pass. What is still on its way at its end is waited for.
- SyncBatchNorm waits twice in each layer of each micro-batch (statistics forward, their gradients backward) for messages so small
  that only their latency counts.
- Images are loaded beside all that: the slower of the two is the run's speed.
"""

from dataclasses import dataclass
from typing import Iterator

FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes, torch's defaults (dist._DEFAULT_FIRST_BUCKET_BYTES, bucket_cap_mb)


@dataclass(frozen=True)
class Cluster:
    """What joins the GPUs.

    Args:
        gpus_per_node: of a machine.
        in_node: bytes/s that a GPU sends to another one of its machine.
        between_nodes: bytes/s that all network cards of a machine send together.
        efficiency: share of these that an all-reduce reaches.
        latency_in_node, latency_between: seconds that a small message to all takes.
    """

    gpus_per_node: int
    in_node: float
    between_nodes: float
    efficiency: float
    latency_in_node: float
    latency_between: float

    def nodes(self, gpus: int) -> int:
        return -(-gpus // self.gpus_per_node)

    def bandwidth(self, gpus: int) -> float:
        """Bytes/s of the ring's slowest link."""
        slowest = self.in_node if self.nodes(gpus) == 1 else min(self.in_node, self.between_nodes)
        return slowest * self.efficiency

    def latency(self, gpus: int) -> float:
        return self.latency_in_node if self.nodes(gpus) == 1 else self.latency_between

    def all_reduce(self, num_bytes: float, gpus: int) -> float:
        """Seconds.

        A ring's latency grows with its length; libraries change to trees before it counts (NCCL does), so that it is taken once.
        """
        if gpus == 1:
            return 0.0
        return 2 * (gpus - 1) / gpus * num_bytes / self.bandwidth(gpus) + self.latency(gpus)


@dataclass(frozen=True)
class Work:
    """What a GPU has to do.

    Args:
        images_per_second: of one GPU in training, alone and without waiting for images.
        gradient_bytes: of all weights that are trained.
        sync_layers: BatchNorms over all processes.
        backward_share: of a step's time.
        data_per_process: images/s that a process' workers load; 0: enough.
        least_step: seconds that a step takes however small its batch is.
    """

    images_per_second: float
    gradient_bytes: int
    sync_layers: int
    backward_share: float
    data_per_process: float = 0.0
    least_step: float = 0.0


@dataclass(frozen=True)
class Update:
    """An update's seconds."""

    images: int  # of all GPUs
    gpus: int
    batch_size: int  # images per GPU and micro-batch, the most that one has
    accumulation_steps: int
    compute: float
    reducing: float  # of the all-reduce that the backward pass does not hide
    syncing: float  # of SyncBatchNorm
    loading: float  # that its images take to be loaded, beside the rest

    @property
    def network(self) -> float:
        return self.reducing + self.syncing

    @property
    def seconds(self) -> float:
        return max(self.compute + self.network, self.loading)

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    @property
    def bottleneck(self) -> str:
        """What most of the time is spent with."""
        if self.loading > self.compute + self.network:
            return "data"
        return "network" if self.network > self.compute else "compute"

    @property
    def efficiency(self) -> float:
        """Share of an update's time in which the GPU computes."""
        return self.compute / self.seconds


def buckets(num_bytes: int) -> Iterator[int]:
    """The bytes of DistributedDataParallel's buckets, in the order in which they are filled."""
    size = min(FIRST_BUCKET, num_bytes)
    while num_bytes:
        yield size
        num_bytes -= size
        size = min(BUCKET, num_bytes)


def not_hidden(work: Work, cluster: Cluster, gpus: int, backward: float) -> float:
    """Seconds for which an all-reduce goes on after a backward pass of `backward` seconds."""
    done, ended = 0, 0.0
    for size in buckets(work.gradient_bytes):
        done += size
        filled = backward * done / work.gradient_bytes
        ended = max(filled, ended) + cluster.all_reduce(size, gpus)
    return ended - backward


def update_on(
    gpus: int, batch_size: int, accumulation_steps: int, work: Work, cluster: Cluster, images: int = 0
) -> Update:
    """An update of so many images; 0: as many as the micro-batches can have."""
    step = max(batch_size / work.images_per_second, work.least_step)
    alone = gpus == 1
    waits = 0 if alone else 2 * work.sync_layers * accumulation_steps
    return Update(
        images or gpus * batch_size * accumulation_steps,
        gpus,
        batch_size,
        accumulation_steps,
        compute=step * accumulation_steps,
        reducing=0.0 if alone else not_hidden(work, cluster, gpus, step * work.backward_share),
        syncing=waits * cluster.latency(gpus),
        loading=batch_size * accumulation_steps / work.data_per_process if work.data_per_process else 0.0,
    )
