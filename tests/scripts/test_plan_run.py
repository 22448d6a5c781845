"""A training on more GPUs, on paper: what follows from the assumptions, and a run's speed beside a prediction."""

import json
from pathlib import Path

import pytest

import plan_run
from conftest import ROOT
from parts.plan_run.links import BETWEEN_NODES, IN_NODE
from parts.plan_run.scaling import BUCKET, FIRST_BUCKET, Cluster, Work, buckets, not_hidden, update_on
from utils.errors import ConfigError, DataError

CLUSTER = Cluster(gpus_per_node=8, in_node=100e9, between_nodes=10e9, efficiency=0.5, latency_in_node=1e-5, latency_between=1e-4)  # fmt: skip
WORK = Work(images_per_second=1000.0, gradient_bytes=70 * 10**6, sync_layers=30, backward_share=0.6)


def test_a_ring_sends_the_gradients_twice_and_the_slowest_link_counts():
    assert CLUSTER.all_reduce(1e9, 1) == 0
    assert CLUSTER.all_reduce(1e9, 2) == pytest.approx(1e9 / 50e9 + 1e-5)
    assert CLUSTER.all_reduce(1e9, 8) == pytest.approx(2 * 7 / 8 * 1e9 / 50e9 + 1e-5)
    assert CLUSTER.all_reduce(1e9, 16) == pytest.approx(2 * 15 / 16 * 1e9 / 5e9 + 1e-4)
    assert [CLUSTER.nodes(gpus) for gpus in (1, 8, 9, 16, 512)] == [1, 1, 2, 2, 64]


def test_the_backward_pass_hides_all_but_the_last_bucket():
    sizes = list(buckets(WORK.gradient_bytes))
    assert sum(sizes) == WORK.gradient_bytes and sizes[:3] == [FIRST_BUCKET, BUCKET, BUCKET] and sizes[3] < BUCKET
    assert not_hidden(WORK, CLUSTER, 8, backward=10.0) == pytest.approx(CLUSTER.all_reduce(sizes[-1], 8))
    everything = sum(CLUSTER.all_reduce(size, 16) for size in sizes)
    assert not_hidden(WORK, CLUSTER, 16, backward=1e-9) == pytest.approx(everything)
    halfway = not_hidden(WORK, CLUSTER, 16, backward=everything / 2)
    assert CLUSTER.all_reduce(sizes[-1], 16) < halfway < everything


def test_an_update_s_time_and_what_limits_it():
    alone = update_on(1, 128, 8, WORK, CLUSTER)
    assert (
        alone.seconds == pytest.approx(1.024) and alone.images_per_second == pytest.approx(1000) and not alone.network
    )
    eight = update_on(8, 128, 2, WORK, CLUSTER)  # SyncBN waits in each micro-batch, the all-reduce in the last one
    assert eight.syncing == pytest.approx(2 * 30 * 2 * 1e-5) and eight.compute == pytest.approx(0.256)
    assert eight.images == 2048 and eight.bottleneck == "compute" and 0.9 < eight.efficiency < 1
    assert update_on(512, 2, 1, WORK, CLUSTER).bottleneck == "network"
    starved = update_on(8, 128, 2, Work(1000.0, 80 * 10**6, 30, 0.6, data_per_process=400.0), CLUSTER)
    assert starved.bottleneck == "data" and starved.images_per_second == pytest.approx(8 * 400)
    floored = update_on(512, 2, 1, Work(1000.0, 80 * 10**6, 30, 0.6, least_step=0.02), CLUSTER)
    assert floored.compute == 0.02


def table(capsys, *argv) -> tuple[list[dict[str, str]], str]:
    """The rows that the script prints, and all that it prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["plan_run.py", "--cfg", str(ROOT / "configs/fat_b0.yaml"), *map(str, argv)])
        assert plan_run.main() == 0
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(rows[0], row)) for row in rows[2:]], text


def write_run(folder: Path, processes: object, speed: float, wait: float) -> Path:
    """What a run leaves of its speed."""
    folder.mkdir()
    records = [
        {"kind": "start", "update": 0, "model": "fat_b0", "params": 1, "device": f"{processes} x cuda", "processes": processes},
        *({"kind": "train", "update": n, "epoch": 0, "images_per_second": speed, "data_wait": wait} for n in (1, 2)),
        {"kind": "epoch", "update": 2, "epoch": 0, "train_loss": 1.0, "raw": {"acc1": 1.0}},
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_the_table_of_the_paper_s_recipe(capsys):
    rows, text = table(capsys, "--images-per-second", 1000, "--price-per-gpu-hour", 2)
    assert [row["GPUs"] for row in rows] == ["1", "2", "4", "8", "16", "32", "64", "128", "256", "512"]
    sizes = [row["batch x accumulation"] for row in rows]
    assert sizes[:5] == ["128 x 8", "128 x 4", "128 x 2", "128 x 1", "64* x 1"] and sizes[-1] == "2* x 1"
    hours = 300 * 1_281_167 / 1000 / 3600
    assert rows[0]["hours"] == f"{hours:.1f}" and rows[0]["price"] == f"{2 * hours:.0f}"
    rising = [float(row["images/s"].replace(",", "")) for row in rows]
    assert rising == sorted(rising) and rising[-1] < 512_000
    uneven, _ = table(capsys, "--images-per-second", 1000, "--gpus", 3)
    assert uneven[0]["batch x accumulation"] == "114* x 3"
    assert 2900 < float(uneven[0]["images/s"].replace(",", "")) < 3000
    assert "On paper, not measured" in text and "gradients: 18.0 MB" in text and "SyncBN: 35 layers" in text
    assert IN_NODE["nvlink4"].source in text and BETWEEN_NODES["8xib400"].source in text


def test_a_run_s_speed_is_taken_and_compared(capsys, tmp_path):
    """Of one process, without its wait for images; beside what a run of two has measured."""
    one, two = write_run(tmp_path / "one", 1, 500.0, 0.5), write_run(tmp_path / "two", 2, 900.0, 0.0)
    links = ["--link-in-node", 1, "--latency-us", 0, "--link-efficiency", 1, "--opts", "TRAIN.SYNC_BN", "none"]
    rows, text = table(capsys, "--run", one, "--compare", two, "--gpus", 1, *links)
    assert rows[0]["images/s"] == "1,000" and "SyncBN: 0 layers" in text
    last = text.splitlines()[-1]
    predicted = float(last.split()[2])
    last_bucket = 17_975_776 - 2**20  # FAT-B0's gradients but for the first bucket, at 1 GB/s
    assert last.startswith("2 processes: ") and "900.0 measured" in last
    assert predicted == pytest.approx(1024 / (0.512 + last_bucket / 1e9), rel=1e-3)
    assert last.endswith(f"{900 / predicted:.2f} of the prediction")


def test_what_cannot_be_planned(capsys, tmp_path):
    with pytest.raises(ConfigError, match="DATA.BATCH_SIZE: is auto, .*; give a number by --opts"):
        table(capsys, "--images-per-second", 1000, "--opts", "DATA.BATCH_SIZE", "auto")
    with pytest.raises(ConfigError, match="TRAIN.TOTAL_BATCH_SIZE is 1024, too few images for 1024 processes"):
        table(capsys, "--images-per-second", 1000, "--gpus", 1024)
    with pytest.raises(
        DataError, match="metrics.jsonl: does not say how many processes the run had; give --images-per"
    ):
        table(capsys, "--run", write_run(tmp_path / "old", None, 1.0, 0.0))
    with pytest.raises(ConfigError, match="'fast' is neither a number of GB/s nor one of nvlink4"):
        table(capsys, "--images-per-second", 1000, "--link-in-node", "fast")
    with pytest.raises(ConfigError, match="one of the arguments --images-per-second --run is required"):
        table(capsys)
