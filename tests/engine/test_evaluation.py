"""Evaluation: the same numbers for any split of the work, and the right ones."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score

from conftest import error_of, launch, rest, run, smallest_model
from engine.evaluation.loop import summarize
from near import rows_of, same_figures
from utils.metrics import ACC1, ClassificationMetrics


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, digits):
    """Weights good enough that the accuracy is neither 0 nor 100 %, with an average that differs."""
    torch.manual_seed(0)
    raw, ema = (smallest_model(num_classes=3) for _ in range(2))
    path = tmp_path_factory.mktemp("weights") / "x.pth"
    torch.save({"model": raw.state_dict(), "ema": ema.state_dict(), "classes": ["0", "1", "2"]}, path)
    return path


def result(tmp_path):
    return json.loads((tmp_path / "output/fat_tiny/default/eval.json").read_text())


@pytest.mark.parametrize("others", [
    [(2, 3, 0), (3, 64, 2)], rest([(1, 8, 2), (3, 8, 0), (2, 29, 0)]),
], ids=["some", "more"])  # fmt: skip
def test_same_numbers_for_any_processes_batch_and_workers(write_config, tmp_path, checkpoint, others):
    """29 images: divisible by none of these."""
    path = write_config()
    found, tables = [], []
    for world_size, batch_size, num_workers in [(1, 1, 0), *others]:
        launch(
            world_size, "--cfg", path, "--eval", "--resume", checkpoint, "--opts", "DATA.BATCH_SIZE", batch_size,
            "DATA.NUM_WORKERS", num_workers,
        )  # fmt: skip
        found.append(result(tmp_path))
        tables.append(
            [path.read_text() for path in sorted(tmp_path.glob("output/fat_tiny/default/eval_classes_*.csv"))]
        )
    assert [len(table.splitlines()) for table in tables[0]] == [1 + 3] * 2 and all(
        table == tables[0] for table in tables
    )
    assert found[0]["num_images"] == 29 and all(same_figures(other, found[0]) for other in found)


def test_fewer_images_than_processes(write_config, tmp_path, digits, checkpoint):
    """Three images, four processes: one has nothing to do, and nobody waits."""
    for label in "012":
        (tmp_path / "few/val" / label).mkdir(parents=True)
        shutil.copy(sorted((digits / "val" / label).iterdir())[0], tmp_path / "few/val" / label)
    path = write_config(DATA={"DATA_PATH": str(tmp_path / "few")})
    found = []
    for world_size in (1, 4):
        launch(world_size, "--cfg", path, "--eval", "--resume", checkpoint, "--opts", "TRAIN.BEST_METRIC", "f1_macro")
        found.append(result(tmp_path))
    assert same_figures(found[1], found[0]) and found[0]["num_images"] == 3
    assert found[0]["f1_macro"] == max(found[0][name]["f1_macro"] for name in ("raw", "ema"))


def test_numbers_are_right(write_config, tmp_path, digits, checkpoint):
    """Against a loop of one image at a time over the files."""
    from PIL import Image
    from timm.data import create_transform

    transform = create_transform(
        32, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=0.875
    )
    expected, labels = {}, {}
    for name, key in (("raw", "model"), ("ema", "ema")):
        model = smallest_model(num_classes=3).eval()
        model.load_state_dict(torch.load(checkpoint, weights_only=True)[key])
        correct = loss = 0
        labels[name] = [], []
        for file in sorted((digits / "val").rglob("*.png")):
            with torch.no_grad():
                logits = model(transform(Image.open(file).convert("RGB"))[None])[0]
            label = int(file.parent.name)
            correct += int(logits.argmax() == label)
            labels[name][0].append(label)
            labels[name][1].append(int(logits.argmax()))
            loss += F.cross_entropy(logits, torch.tensor(label)).item()
        expected[name] = (100 * correct / 29, loss / 29)
    run("--cfg", write_config(), "--eval", "--resume", checkpoint)
    found = result(tmp_path)
    for name, (acc1, loss) in expected.items():
        assert found[name]["acc1"] == acc1 and found[name]["loss"] == pytest.approx(loss, abs=2e-6)
        assert found[name]["acc5"] == 100.0
        classes = rows_of((tmp_path / f"output/fat_tiny/default/eval_classes_{name}.csv").read_bytes())
        f1 = [float(row["f1"]) for row in classes]
        assert f1 == pytest.approx(100 * f1_score(*labels[name], average=None), abs=1e-4)
        assert found[name]["f1_macro"] == pytest.approx(sum(f1) / 3, abs=1e-4)
    better = max(expected, key=lambda name: (expected[name][0], name == "raw"))
    assert found["weights"] == better and found["acc1"] == expected[better][0]
    assert found["checkpoint"] == str(checkpoint)


def test_top_5_and_loss_of_known_logits():
    metrics = ClassificationMetrics(torch.device("cpu"))
    logits = torch.eye(10)[[3, 3, 3, 3]] * 5 + torch.arange(10) * 0.1
    metrics.update(logits[:3], torch.tensor([3, 9, 0]))
    metrics.update(logits[3:], torch.tensor([6]))
    values = metrics.compute()
    assert (values["acc1"], values["acc5"], values["num_images"]) == (25.0, 75.0, 4)
    assert values["loss"] == pytest.approx(F.cross_entropy(logits, torch.tensor([3, 9, 0, 6])).item(), abs=1e-6)


def test_eval_needs_no_train_folder_and_no_dataset_sized_head_in_the_config(write_config, tmp_path, digits, checkpoint):
    shutil.copytree(digits / "val", tmp_path / "only/val")
    run("--cfg", write_config(DATA={"DATA_PATH": str(tmp_path / "only")}), "--eval", "--resume", checkpoint)
    assert result(tmp_path)["num_images"] == 29


def test_eval_of_the_named_checkpoint_not_of_the_run_s_last(write_config, tmp_path, checkpoint):
    path = write_config()
    run("--cfg", path)
    run("--cfg", path, "--eval", "--resume", checkpoint)
    assert result(tmp_path)["checkpoint"] == str(checkpoint)
    run("--cfg", path, "--eval", "--pretrained", tmp_path / "output/fat_tiny/default/last.pth")
    assert result(tmp_path)["checkpoint"].endswith("last.pth")


def test_a_run_s_own_numbers_are_those_of_its_checkpoint(write_config, tmp_path):
    """What the log says of an epoch is what --eval of its checkpoint says, also after training on two processes."""
    path = write_config(DATA={"BATCH_SIZE": 4})
    launch(2, "--cfg", path)
    folder = tmp_path / "output/fat_tiny/default"
    last = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1]
    run("--cfg", path, "--eval", "--resume", folder / "last.pth")
    for name in ("raw", "ema"):
        assert result(tmp_path)[name] == last[name]


def test_images_of_another_size_than_in_training_are_pointed_out(write_config, tmp_path, capsys):
    path = write_config()
    run("--cfg", path)
    last = tmp_path / "output/fat_tiny/default/last.pth"
    capsys.readouterr()
    run("--cfg", path, "--eval", "--resume", last, "--opts", "DATA.IMG_SIZE", 48, "PRINT_FREQ", 7)
    out = capsys.readouterr().out
    assert "since training DATA.IMG_SIZE changed from 32 to 48" in out and "PRINT_FREQ" not in out


def test_refused(write_config, tmp_path, digits, checkpoint):
    assert "there are no weights" in str(error_of("--cfg", write_config(), "--eval"))
    shutil.copytree(digits / "val", tmp_path / "other/val")
    (tmp_path / "other/val/2").rename(tmp_path / "other/val/7")
    message = str(
        error_of("--cfg", write_config(DATA={"DATA_PATH": str(tmp_path / "other")}), "--eval", "--resume", checkpoint)
    )
    assert "only in train: 2" in message
    assert not (tmp_path / "output").exists()


def test_summary_prefers_raw_weights_when_equal():
    results = {"raw": {"acc1": 50.0}, "ema": {"acc1": 50.0}}
    assert summarize(results, ACC1)["weights"] == "raw"
    results["ema"]["acc1"] = 50.1
    assert summarize(results, ACC1)["weights"] == "ema"
