"""Every command and Python block of the README, results/README.md and docs/ runs; every link leads somewhere.

A command runs for real, by the repository's code, in a copy of the repository of its own, so that nothing is written here
and paths such as configs/ and output/ mean what they say. It is made small, or else it would take days:

    SUBSTITUTED    a pattern in the command, and what stands in for it: a data set, a number of processes
    APPENDED       a pattern, and the words that are added to a command with it: a small model, one epoch
    SHORTENED      a file of the copy, a pattern in it, and what stands in for that: fewer seconds, smaller heads
    MADE           a pattern, and the files that such a command must have written
    EARLIER        a path that a command may name, and the command that makes it, which then runs first
    NOT_RUN        commands that cannot run in a test: why, and the test that has what they do
    ONLY_ALL       a pattern in commands that run with --all only, and the test that has what they do in the usual suite

A new command in a page needs nothing if it is quick. Else add one line to one of these. A command that is neither run nor
in NOT_RUN fails, and so does a line that no command needs any more.
"""

import compileall
import itertools
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Callable

import matplotlib
import pytest
import torch
import yaml
from PIL import Image
from timm.data import ImageNetInfo

import engine.commands.evaluate
import engine.commands.train  # noqa: F401  (with the packages that they need, so that no command has to import them again)
from coco_files import write_coco
from conftest import ROOT, SMALLEST_DENSE, free_port, rest, speak_into
from make_quickstart_data import digits as all_digits
from markdown_pages import PAGES, anchors_of, blocks, commands_of, links_of, markdown_files, prose, words_of
from masked_images import write_masked_images
from models.fuse import is_native_on_cpu
from test_structure import FLOORS
from utils.config import load_config

matplotlib.use("Agg")
import matplotlib.pyplot  # noqa: E402, F401  (once here, instead of in each command)

SECONDS = 300  # for one command, on a machine that others use too

SUBSTITUTED = [
    (r"--nproc_per_node 8", "--nproc_per_node 2"),
    (r"(scripts/(?:train|eval)\.sh \S+) 8", r"\1 2"),
    (r"--batch-size 64", "--batch-size 4"),
    (
        r"/path/to/imagenet (.*)output/fat_b0/default(\S+ --opts TEST.SETS \"\[val, real)",
        r"/path/to/thousand \1output/fat_b0/thousand\2",
    ),
    (r"--data-path /path/to/(\w+)", r"--data-path {stand_ins}/\1"),
    (r"folders /downloads --output /data/imagenet", "folders {stand_ins}/downloads --output prepared --partial"),
    (r"--output /data/", "--output prepared/"),
    (r"verify /data/imagenet_wds", "verify {stand_ins}/shards"),
    (r" /data/imagenet", " {stand_ins}/yours"),
    (r"https://host/imagenet_wds", "'pipe:cat {stand_ins}/shards/{}'"),
    (r"SHARD_CACHE /nvme/shards", "SHARD_CACHE shards"),
    (r"datasets/photos 64", "datasets/new_photos 4"),
    (r"--benchmark-data 5000", "--benchmark-data 50"),
    (r"SEG.STRIDE 341", "SEG.STRIDE 20"),
    (r"curves RUN RUN", "curves output/fat_b0/default output/fat_b0/classes"),
    (r"([ =])best\.pth", r"\1output/fat_b0/default/best.pth"),
    # without an average of the weights, so that one model is exported, not two
    (r"digits/best\.pth (--engine onnxruntime)", r"mnist_probe/last.pth \1"),
    (r"\[csv, wandb\]", "[csv]"),  # tests/utils/test_loggers.py has the other one
]

SHORTENED = [  # files of the repository's copy
    ("engine/commands/throughput.py", r"(WARMUP_SECONDS, MEASURED_SECONDS) = 3, 10", r"\1 = 0, 0.1"),
    ("models/detection/proposals.py", r'"training": 1000, "testing": 1000', '"training": 16, "testing": 16'),
    ("models/detection/regions.py", r"batch_size_per_image=512", "batch_size_per_image=16"),
    ("models/detection/regions.py", r"\b1024\b|\b256\b", "32"),
    ("models/detection/pyramid.py", r"CHANNELS = 256", "CHANNELS = 32"),
]

TINY = " ".join(f"MODEL.FAT.{key} {value}".replace(", ", ",") for key, value in SMALLEST_DENSE.items())
QUICK = "DEVICE cpu DATA.IMG_SIZE 32 DATA.NUM_WORKERS 0 TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 PRINT_FREQ 1"
APPENDED = [
    (r"main\.py", f"--opts {QUICK}"),
    (r"main\.py (?!.* TYPE timm).*configs/(fat_b0|ablations/|finetune/fat_b0|multilabel/)", f"--opts {TINY}"),
    (r"main\.py .*configs/segmentation/\w+_fat_b0", f"--opts {TINY} SEG.SCALE [64,48]"),
    (
        r"main\.py .*configs/detection/\w+_fat_b0",
        f"--opts {TINY} TRAIN.WARMUP_UPDATES 0 DATA.TRAIN_SPLIT train DATA.VAL_SPLIT val",
    ),
    (r"main\.py .*stand_ins/coco", "--opts MODEL.NUM_CLASSES 0 TRAIN.TOTAL_BATCH_SIZE 4 DATA.BATCH_SIZE 2"),
    (r"main\.py .*stand_ins/ade20k", "--opts TRAIN.TOTAL_BATCH_SIZE 4 DATA.BATCH_SIZE 2"),
    (r"main\.py .*stand_ins/imagenet", "--opts MODEL.NUM_CLASSES 0 TRAIN.TOTAL_BATCH_SIZE 16 DATA.BATCH_SIZE 8"),
    (r"main\.py .*stand_ins/(?:yours|shards)", "--opts TRAIN.TOTAL_BATCH_SIZE 8 DATA.BATCH_SIZE 4"),
    (r"main\.py .*stand_ins/shards", "--opts MODEL.NUM_CLASSES 0"),
    (
        r"main\.py .*stand_ins/thousand",
        "--opts TRAIN.TOTAL_BATCH_SIZE 500 DATA.BATCH_SIZE 250 AUG.AUTO_AUGMENT none TRAIN.FREEZE [backbone]",
    ),
    (r"scripts/benchmark\.py", "--models fat_tiny --peers --tasks inference --batch-sizes 1 --rounds 1 --seconds 0.01"),
    (r"scripts/benchmark_saves\.py", "--model fat_tiny --rounds 1"),
    (r"scripts/benchmark\.py", "--img-size 32 --compile-mode '' --device cpu"),
]

TRAINS = r"main\.py (?!.*--(eval|check|throughput|benchmark-data))"
MADE = [
    (TRAINS, ["output/*/*/last.pth", "output/*/*/best.pth", "output/*/*/result.json"]),
    (r"--eval", ["output/*/*/eval.json"]),
    (r"TEST\.SETS ", ["output/*/*/eval/table.md", "output/*/*/eval/val.json"]),
    (r"summarize_run\.py (\S+)$", [r"\1/curves.png"]),
    (r"summarize_run\.py \S+ --curves (\S+)", [r"\1"]),
    (r"reproduce\.py (\w+)", [r"results/\1.md"]),
    (r"scripts/benchmark\.py", [f"results/benchmark_cpu.{suffix}" for suffix in ("csv", "md")]),
    (r"prepare_data\.py \w+ .*--output (\S+)", [r"\1/*"]),
    (r"predict\.py .*--output (\S+) photo", [r"\1/photo.png", r"\1/photo_overlay.jpg"]),
    (r"export\.py onnx --checkpoint", ["exported/*.onnx"]),
    (r"predict\.py .*--json (\S+) --sheet (\S+)", [r"\1", r"\2"]),
    (r"predict\.py .*--csv (\S+) --json (\S+)", [r"\1", r"\2"]),
    (r"predict\.py .*--embeddings (\S+)", [r"\1"]),
    (r"visualize\.py (neighbours|map) vectors", [r"look/\1.png", r"look/\1.csv"]),
    (
        r"visualize\.py (?!mistakes)(\w+)\S* photo\.jpg",
        [r"output/fat_tiny/digits/look/*.png", "output/fat_tiny/digits/look/tensorboard/*"],
    ),
    (
        r"visualize\.py mistakes",
        [
            f"output/fat_tiny/digits/look/{name}"
            for name in ("mistakes.png", "mistakes.csv", "confusion.png", "confusion.csv")
        ],
    ),
    (r"export\.py onnx program hub int8", ["exported/*.onnx", "exported/*.pt2", "exported/*_hub/model.safetensors"]),
    (r"export\.py openvino", ["exported/openvino/*.xml", "exported/openvino/*.bin", "exported/openvino/*.json"]),
    (r"checkpoint\.py (?:strip|average|convert) .*--output (\S+)", [r"\1"]),
    (r"scripts/report\.py (\S+)", [r"\1/report.html"]),
    (r"make_benchmark_photos\.py (\S+)", [r"\1/train/*/*.jpg", r"\1/val/*/*.jpg"]),
]

FINETUNE_ON_CELLS = (
    "python main.py --cfg configs/finetune/fat_tiny_solar_cells.yaml --pretrained output/fat_tiny/digits/best.pth"
)
EARLIER = {
    "output/fat_b0/default": "python main.py --cfg configs/fat_b0.yaml --data-path /path/to/imagenet",
    "output/fat_b0/semantic_fpn": (
        "python -m torch.distributed.launch --nproc_per_node 8 main.py --cfg configs/segmentation/semantic_fpn_fat_b0.yaml "
        "--data-path /path/to/ade20k --pretrained output/fat_b0/default/best.pth"
    ),
    "output/fat_b0/mask_rcnn_1x": (
        "python -m torch.distributed.launch --nproc_per_node 8 main.py --cfg configs/detection/mask_rcnn_fat_b0_1x.yaml "
        "--data-path /path/to/coco --pretrained output/fat_b0/default/best.pth"
    ),
    "output/fat_b0/thousand": "python main.py --cfg configs/fat_b0.yaml --data-path /path/to/thousand --tag thousand",
    "output/fat_tiny/digits": "bash scripts/quickstart.sh",
    "exported/openvino": "python scripts/export.py openvino --checkpoint output/fat_tiny/digits/best.pth --output exported/openvino",
    "exported/fat_tiny_hub": "python scripts/export.py hub --checkpoint output/fat_tiny/digits/best.pth --output exported",
    "output/fat_tiny/mnist_probe": (
        "python main.py --cfg configs/finetune/fat_tiny_mnist_probe.yaml --pretrained output/fat_tiny/digits/best.pth"
    ),
    "output/fat_tiny/solar_cells": FINETUNE_ON_CELLS,
    "output/fat_b0/classes": (
        "python main.py --cfg configs/finetune/fat_b0_classes.yaml --data-path /path/to/yours --pretrained output/fat_b0/default/best.pth"
    ),
    "output/fat_b0/labels": (
        "python main.py --cfg configs/multilabel/fat_b0_labels.yaml --data-path /path/to/yours/several.csv "
        "--pretrained output/fat_b0/default/best.pth"
    ),
    "output/fat_b0/shared": (
        "python main.py --cfg configs/finetune/fat_b0_classes.yaml --data-path /path/to/yours --tag shared "
        "--pretrained output/fat_b0/default/best.pth --opts DATA.VAL_SHARE 0.1"
    ),
    " vectors.npz": "python scripts/predict.py --checkpoint output/fat_tiny/digits/best.pth datasets/digits/val --embeddings vectors.npz",
    " small.pth": "python scripts/checkpoint.py strip output/fat_tiny/digits/best.pth --output small.pth",
}

LOOP_OF_SEEDS = (
    "for seed in 0 1 2; do "
    f"{FINETUNE_ON_CELLS} --tag cells_plain_$seed --opts SEED $seed; "
    f"{FINETUNE_ON_CELLS} --tag cells_weights_$seed --opts SEED $seed TRAIN.CLASS_WEIGHTS balanced; "
    f"{FINETUNE_ON_CELLS} --tag cells_sampled_$seed --opts SEED $seed DATA.SAMPLING balanced; "
    f"{FINETUNE_ON_CELLS} --tag cells_adjusted_$seed --opts SEED $seed TRAIN.LOGIT_ADJUSTMENT 1.0; "
    f"{FINETUNE_ON_CELLS} --tag cells_half_$seed --opts SEED $seed TRAIN.LOGIT_ADJUSTMENT 0.5; "
    "python main.py --cfg configs/finetune/fat_tiny_solar_cells.yaml --tag cells_scratch_$seed --opts SEED $seed; done"
)
CLASSIFICATION = "python scripts/reproduce.py classification --data-path /path/to/imagenet"
CHECKPOINTS = ("it takes FAT-B0 itself and ImageNet's 50,000 images", "test_a_checkpoint_is_evaluated")
NOT_RUN = {  # command: (why, the test that has what it does)
    "bash scripts/test.sh": ("it is this suite", "test_the_command_runs"),
    "bash scripts/test.sh --all": ("it is this suite and more", "test_the_command_runs"),
    "bash scripts/test.sh --seconds": ("it is this suite, measured", "test_the_command_runs"),
    "bash scripts/test.sh -k fasa": ("it is a part of this suite", "test_the_command_runs"),
    "bash scripts/quickstart.sh emoji": ("npm fetches 75 MB; the digits' quickstart is run", "test_the_command_runs"),
    "bash scripts/quickstart.sh detection": (
        "Debian's mirror sends 161 MB, and it takes minutes",
        "test_shapes_make_a_whole_set_in_coco_s_layout",
    ),
    "bash scripts/quickstart.sh segmentation": (
        "Debian's mirror sends 161 MB, and it takes minutes",
        "test_stand_ins_make_a_whole_data_set",
    ),
    "python scripts/make_solar_cell_data.py datasets/solar_cells": (
        "pip fetches 91 MB",
        "test_the_set_is_the_package_s",
    ),
    LOOP_OF_SEEDS: ("half an hour; two of its settings are run in small", "test_runs_of_a_setting_are_one_line"),
    (
        "python scripts/compare_runs.py output/fat_tiny/cells_{plain,weights,sampled,adjusted,half,scratch}_{0,1,2} "
        "--recall functional probably_functional probably_defective defective --output results/unbalanced"
    ): ("it takes what the loop makes", "test_runs_of_a_setting_are_one_line"),
    ". .venv/bin/activate": ("it changes the shell", "test_error_is_one_line_without_traceback"),
    "python scripts/reproduce.py coco": ("a minute; a row of it is made", "test_the_table_of_coco"),
    "python scripts/reproduce.py --all": ("minutes; its targets are run", "test_all_makes_every_target"),
    f"{CLASSIFICATION} --checkpoints fat_b0=best.pth": CHECKPOINTS,
    f"{CLASSIFICATION} --checkpoints fat_b0=output/fat_b0/default/best.pth": CHECKPOINTS,
    "python scripts/reproduce.py speed --quick": (
        "minutes; --csv is run",
        "test_the_speed_table_has_the_fastest_forms",
    ),
    "python main.py --cfg configs/fat_b0.yaml --throughput --batch-size 1 --fused --engine cudagraphs": (
        "it is for GPUs",
        "test_logits_are_the_model_s_in_any_order_of_sizes",
    ),
    "python scripts/benchmark.py --engines onnxruntime openvino": (
        "its exports take long; its candidates are tried",
        "test_other_engines_take_turns_with_torch",
    ),
    "python scripts/gpu_check.py": ("it needs a GPU", "test_every_stage_passes_on_the_cpu"),
    "python scripts/gpu_check.py --stage norm values": ("it needs a GPU", "test_every_stage_passes_on_the_cpu"),
    "python scripts/gpu_check.py --dry-run": ("a minute, in a test of its own", "test_every_stage_passes_on_the_cpu"),
    "python -m pip download --no-deps --dest wheels yacs termcolor webdataset braceexpand": (
        "it needs a network",
        "test_the_packages_to_bring_are_those_that_are_missing",
    ),
    "python -m pip install --no-index --no-deps --target site wheels/*.whl": (
        "it takes what the one before brings",
        "test_the_packages_to_bring_are_those_that_are_missing",
    ),
    "PYTHONPATH=site python scripts/gpu_check.py": ("it needs a GPU", "test_every_stage_passes_on_the_cpu"),
    "python scripts/reproduce.py ablations --proxy": ("an hour, and npm", "test_all_variants_with_all_seeds"),
    "python scripts/reproduce.py ablations --proxy configs/proxy/tiny.yaml --seeds 2": (
        "minutes",
        "test_all_variants_with_all_seeds",
    ),
    (
        "python scripts/compare_formats.py --cfg configs/fat_quickstart.yaml --checkpoint output/fat_tiny/digits/best.pth "
        "--data-path datasets/digits --speed-data datasets/photos"
    ): ("it starts Python ten times, for a minute", "test_the_comparison_of_formats"),
    "python main.py --cfg configs/fat_b0.yaml --data-path /path/to/imagenet --eval --pretrained vit_tiny.pth "
    "--opts MODEL.TYPE timm MODEL.NAME vit_tiny_patch16_224 DATA.FROM_MODEL True": (
        "the weights need a network",
        "test_eval_of_timm_s_weights",
    ),
    (
        "python -c \"import timm, torch; torch.save(timm.create_model('vit_tiny_patch16_224', pretrained=True).state_dict(), 'vit_tiny.pth')\""
    ): ("it needs a network", "test_eval_of_timm_s_weights"),
    "python scripts/export.py aoti --checkpoint output/fat_tiny/digits/best.pth --output exported": (
        "a minute of C++",
        "test_a_compiled_package",
    ),
    "python scripts/fault_test.py --kills 50": ("minutes", "test_killed_and_started_again"),
    "torchrun --nproc_per_node 8 --max_restarts 3 main.py --cfg configs/fat_b0.yaml --data-path /path/to/imagenet": (
        "the launcher itself, and faults",
        "test_restarts_go_on_to_the_same_bits",
    ),
    "torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint node1:29500 main.py --cfg configs/fat_b0.yaml "
    "--data-path /path/to/imagenet": ("two machines", "test_nodes_come_and_go"),
    "bash scripts/train_nodes.sh configs/fat_b0.yaml 8 2 node1:29500 --data-path /path/to/imagenet": (
        "it waits for node1",
        "test_two_hosts_train",
    ),
    "bash scripts/train_nodes.sh configs/fat_b0.yaml 8 2:4 node1:29500 --data-path /path/to/imagenet": (
        "it waits for node1",
        "test_two_hosts_train",
    ),
    "sbatch scripts/slurm/train.sbatch --cfg configs/fat_b0.yaml --data-path /path/to/imagenet": (
        "it needs Slurm",
        "test_a_job_saves_at_a_signal_and_is_put_back_into_the_queue",
    ),
    "sbatch scripts/slurm/train_elastic.sbatch configs/fat_b0.yaml 8 --data-path /path/to/imagenet": (
        "it needs Slurm",
        "test_a_job_saves_at_a_signal_and_is_put_back_into_the_queue",
    ),
    "python scripts/submit.py --nodes 2 --gpus-per-node 8 --minutes 720 -- --cfg configs/fat_b0.yaml --data-path /path/to/imagenet": (
        "it needs Slurm; here it is run on this machine",
        "test_a_job_saves_at_submitit_s_signal_and_goes_on",
    ),
    "srun --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 python main.py --cfg configs/fat_b0.yaml --data-path /path/to/imagenet": (
        "two machines",
        "test_srun_over_two_nodes",
    ),
    "mpirun -n 16 --host node1:8,node2:8 -x MASTER_ADDR=node1 -x MASTER_PORT=29500 python main.py --cfg configs/fat_b0.yaml "
    "--data-path /path/to/imagenet": ("two machines", "test_mpirun"),
}

ONLY_ALL = {  # a pattern in commands that take long and run with --all only: the test that has what they do in the usual suite
    r"--eval .*--engine openvino": "test_logits_are_the_model_s",
    r"predict\.py .*--engine openvino": "test_predictions_are_torch_s",
    r"--throughput .*--engine openvino": "test_throughput_says_what_ran",
    r"reproduce\.py ade20k": "test_the_table_of_ade20k",
    r"export\.py onnx program hub int8": "test_one_format_that_fails_leaves_the_others",
    r"export\.py onnx --checkpoint output/fat_b0/semantic_fpn": "test_export_to_onnx",
}


# Running


def made_small(command: str) -> str:
    for pattern, stand_in in SUBSTITUTED:
        command = re.sub(pattern, stand_in, command)
    return command


def appended(command: str) -> list[str]:
    return [word for pattern, words in APPENDED if re.search(pattern, command) for word in shlex.split(words)]


WRITTEN_OVER = ["docs", "results"]  # folders whose files commands write anew; all other files are links


class Sandboxes:
    """Runs commands, each once, in a copy of the repository of its own.

    Args:
        folder: where these lie.
        stand_ins: what stands in for data.
        template: the copy that all begin with.
    """

    def __init__(self, folder: Path, stand_ins: Path, template: Path):
        self.folder, self.stand_ins, self.template = folder, stand_ins, template
        self.done: dict[str, Path] = {}
        self.run: list[list[str]] = []
        self.later = {made_small(earlier) for earlier in EARLIER.values()}
        self.numbers = itertools.count()

    def ran(self, command: str) -> Path:
        """The sandbox in which the command of a page ended well."""
        small = made_small(command)
        if small not in self.done:
            place = self.new(small)
            self._run(small.replace("{stand_ins}", str(self.stand_ins)), place)
            self.done[small] = place
        return self.done[small]

    def discard(self, command: str) -> None:
        """Frees the disk of a command that no other command needs."""
        small = made_small(command)
        if small not in self.later:
            shutil.rmtree(self.done.pop(small))

    def new(self, text: str) -> Path:
        """A copy of the repository with what the text names, made by earlier commands."""
        place = self.folder / str(next(self.numbers))
        shutil.copytree(self.template, place, symlinks=True, copy_function=os.link)  # a tenth of a copy's seconds
        for folder in WRITTEN_OVER:
            shutil.rmtree(place / folder)
            shutil.copytree(self.template / folder, place / folder)
        for path, command in EARLIER.items():
            made = path.strip()
            if path in text and made_small(command) != text:
                source = self.ran(command) / made
                if source.is_dir():
                    shutil.copytree(source, place / made, copy_function=copy_or_link)
                else:
                    shutil.copyfile(source, place / made)
        return place

    def _run(self, command: str, place: Path) -> None:
        words = words_of(command, place)
        lines = recorded(words, place) if words[0] == "bash" else [words]
        if len(lines) == 1 and lines[0] in self.run:
            return  # a script that starts what another command has run
        self.run += lines
        for line in lines:
            line = line + appended(" ".join(line).replace(str(self.stand_ins), "stand_ins"))
            started, text = time.time(), " ".join(line)
            finish([start(argv, environment, place) for argv, environment in processes(line)], text)
            for pattern, globs in MADE:
                for glob in [match.expand(glob) for match in re.finditer(pattern, text) for glob in globs]:
                    # Clocks of file systems lag behind by some milliseconds.
                    assert any(path.stat().st_mtime > started - 0.1 for path in place.glob(glob)), (
                        f"{text}: has not written {glob}"
                    )


def copy_or_link(source: str, target: str) -> None:
    """Checkpoints, up to 235 MB, are linked: they are replaced as a whole, never written into."""
    (os.link if source.endswith(".pth") else shutil.copy2)(source, target)


def recorded(words: list[str], place: Path) -> list[list[str]]:
    """The Python commands that a shell script would run; `python` is a stand-in that notes them."""
    record, environment = place / "recorded", {**os.environ, "PATH": f"{place}/stand_in_bin:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=place, env={**environment, "RECORD": str(record)}, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return [line.split("\0")[:-1] for line in record.read_text().split("\n\0")[:-1]]


def processes(words: list[str]) -> list[tuple[list[str], dict[str, str]]]:
    """Script and arguments of each process that a command starts, and its environment."""
    assert words[0] == "python", f"{words[0]}: is no command that this test knows; see its first lines"
    words = words[1:]
    if words[:2] != ["-m", "torch.distributed.launch"]:
        assert words[0].endswith(".py"), words
        return [(words, {})]
    assert words[2] == "--nproc_per_node" and words[4].endswith(".py"), f"{words[2]}: unknown to this test"
    world = {"WORLD_SIZE": words[3], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [(words[4:], {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(int(words[3]))]


def start(argv: list[str], environment: dict[str, str], place: Path) -> tuple[int, Path]:
    """A Python script in a forked process, which saves the seconds that imports take."""

    def script() -> None:
        sys.argv = argv
        sys.path.insert(0, str((place / argv[0]).parent))
        runpy.run_path(str(place / argv[0]), run_name="__main__")

    return fork(script, environment, place)


def fork(work: Callable[[], None], environment: dict[str, str], place: Path) -> tuple[int, Path]:
    """Calls it in a new process in a sandbox, as if Python had been started there; returns its id and its output's file."""
    output = place / f"said_{time.monotonic_ns()}"
    pid = os.fork()
    if pid:
        return pid, output
    status = 1
    try:
        os.setsid()
        speak_into(output)
        os.chdir(place)
        os.environ.update(environment)
        forget_the_checkout()
        work()
        status = 0
    except SystemExit as ended:
        status = (
            ended.code
            if isinstance(ended.code, int)
            else 0
            if ended.code is None
            else print(ended.code, file=sys.stderr) or 1
        )
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def forget_the_checkout() -> None:
    """The repository's modules are imported anew, from the sandbox."""
    parts = {path.name.removesuffix(".py") for path in ROOT.iterdir()} | {
        path.stem for path in (ROOT / "scripts").iterdir()
    }
    for name in [name for name in sys.modules if name.partition(".")[0] in parts - {"tests"}]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "scripts", ROOT / "tests")]


def finish(started: list[tuple[int, Path]], what: str) -> None:
    """Waits for the processes; all must end with 0 in time."""
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + SECONDS
    while len(statuses) < len(started) and time.monotonic() < deadline:
        for pid, _ in started:
            if pid not in statuses and (found := os.waitpid(pid, os.WNOHANG))[0]:
                statuses[pid] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.005)
    late = [pid for pid, _ in started if pid not in statuses]
    for pid in late:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    said = "".join(output.read_text() for _, output in started)
    assert not late, f"{what}: still running after {SECONDS} s\n{said}"
    assert not any(statuses.values()), f"{what}: exit statuses {list(statuses.values())}\n{said}"


# Stand-ins


def pictures(folder: Path, names, suffix: str = ".png", size: tuple[int, int] = (16, 16)) -> None:
    for number, name in enumerate(names):
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number % 256, number * 7 % 256, number * 31 % 256)).save(path)


def write_thousand(root: Path) -> None:
    """ImageNet's 1000 classes with an image each, and its evaluation sets with a few."""
    names = sorted(ImageNetInfo("imagenet-1k").label_names())
    pictures(root / "train", [f"{name}/{name}_1" for name in names], ".JPEG")
    pictures(root / "val", [f"{name}/ILSVRC2012_val_{number:08d}" for number, name in enumerate(names, 1)], ".JPEG")
    pictures(root / "imagenetv2-matched-frequency-format-val", ["0/a", "10/b", "999/c"], ".jpeg")
    pictures(root / "imagenet-a", ["n01498041/a", "n01531178/b"], ".jpg")
    pictures(root / "imagenet-r", ["n01443537/a", "n01484850/b"], ".jpg")
    pictures(root / "sketch", ["n01440764/a", "n01443537/b"], ".JPEG")
    pictures(root / "imagenet-c", [f"noise/gaussian_noise/{severity}/n01440764/a" for severity in range(1, 6)], ".JPEG")


def all_but_eight(folder: str, names: list[str]) -> list[str]:
    """For `shutil.copytree`: of a class' images those that are left out."""
    return sorted(name for name in names if name.endswith(".png"))[8:]


def write_labels(root: Path) -> None:
    """A list of the images in a folder, and one with several labels."""
    paths = [path.relative_to(root) for path in sorted(root.glob("*/*/*"))]
    rows = [f"{path},{path.parent.name},{path.parts[0]}\n" for path in paths]
    (root / "labels.csv").write_text("path,label,split\n" + "".join(rows))
    several = [
        f"{path},{path.parent.name}|{'thing' if number % 2 else ''},{path.parts[0]}\n"
        for number, path in enumerate(paths)
    ]
    (root / "several.csv").write_text("path,labels,split\n" + "".join(several))


def write_datasets(root: Path) -> None:
    """What the repository's folder datasets/ holds once the quickstart's sets have been made: a few images of each."""
    wanted = {(split, str(label)): number for split, number in (("train", 8), ("val", 3)) for label in range(10)}
    for split, label, name, image in all_digits():
        if wanted[split, label]:
            wanted[split, label] -= 1
            path = root / "digits" / split / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    shutil.copytree(root / "digits", root / "mnist")  # tests/engine/test_finetune.py has MNIST's
    for label in range(5):
        shutil.copytree(root / f"digits/val/{label}", root / f"digits/low/{label}")
    pictures(root / "photos/train", ["a/1", "b/2"], ".jpg", (200, 150))
    pictures(root / "photos/val", ["a/3", "b/4"], ".jpg", (200, 150))
    pictures(root / "c/fog/1", ["0/a", "7/b"], size=(8, 8))
    write_list_of_digits(root / "solar_cells", root / "digits/train")


def write_list_of_digits(root: Path, digits: Path) -> None:
    """Grey pictures and a list without splits, as the solar cells are."""
    shutil.copytree(digits, root / "images")
    paths = [path.relative_to(root) for path in sorted(root.glob("images/*/*"))]
    rows = [f"{path},{path.parent.name}\n" for path in paths]
    (root / "labels.csv").write_text("path,label\n" + "".join(rows))


def write_template(template: Path, stand_ins: Path) -> None:
    """The repository without its runs, data and tests, and the files that pages name."""
    left_out = shutil.ignore_patterns(".*", "output", "datasets", "tests")
    shutil.copytree(ROOT, template, ignore=left_out)
    for name, pattern, stand_in in SHORTENED:
        text, found = re.subn(pattern, stand_in, (template / name).read_text())
        assert found, f"SHORTENED: {name} has no {pattern}"
        (template / name).write_text(text)
    compileall.compile_dir(template, quiet=1)  # once, instead of in each command's process
    (template / "scripts/environment.sh").write_text("use_environment() { :; }  # it would install packages\n")
    python = template / "stand_in_bin/python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nprintf \'%s\\0\' python "$@" >> "$RECORD"\nprintf \'\\n\\0\' >> "$RECORD"\n')
    python.chmod(0o755)
    pictures(template, ["photo", "images/a"], ".jpg", (200, 150))
    (template / "datasets").mkdir()
    for folder in (stand_ins / "datasets").iterdir():
        (template / "datasets" / folder.name).symlink_to(folder)
    (template / "released.pth").symlink_to(stand_ins / "released.pth")
    corruptions = {"corruptions": {"fog": 0.8}, "severities": [1]}
    sets = {
        "seen": {"path": "train"},
        "low": {"path": "low", "only": [str(n) for n in range(5)]},
        "c": {"path": "../c", **corruptions},
    }
    (template / "digits_sets.yaml").write_text(yaml.safe_dump(sets))


@pytest.fixture(scope="module")
def sandboxes(digits, tmp_path_factory):
    import timm

    from imagenet_downloads import write_downloads
    from prepare_data import main as prepare_data

    stand_ins = tmp_path_factory.mktemp("docs") / "stand_ins"
    write_thousand(stand_ins / "thousand")
    for name in ("imagenet", "yours"):
        shutil.copytree(digits, stand_ins / name, ignore=all_but_eight)
    write_labels(stand_ins / "yours")
    write_masked_images(stand_ins / "ade20k", ("training", "validation"), first=1)
    write_coco(stand_ins / "coco", train=6, val=2)
    write_downloads(stand_ins / "downloads", digits)
    assert prepare_data(["shards", str(stand_ins / "imagenet"), "--output", str(stand_ins / "shards")]) == 0
    torch.save(timm.create_model("fat_b0").state_dict(), stand_ins / "released.pth")
    write_datasets(stand_ins / "datasets")
    template = stand_ins.parent / "repository"
    write_template(template, stand_ins)
    places = stand_ins.parent / "places"
    places.mkdir()
    kept = [ROOT / "results", template]
    before = times_of_files(*kept)
    yield Sandboxes(places, stand_ins, template)
    after = times_of_files(*kept)
    changed = [str(path) for path in {**before, **after} if before.get(path) != after.get(path)]
    assert not changed, f"a command has written into the repository, or over what all sandboxes share: {changed}"


def times_of_files(*folders: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


# Tests

COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands_of(page)))
RUN = {made_small(command): command for command in reversed(COMMANDS) if command not in NOT_RUN}
BLOCKS = [block for page in PAGES for block in blocks(page) if block.language == "python"]


def is_only_all(command: str) -> bool:
    return any(re.search(pattern, command) for pattern in ONLY_ALL)


@pytest.mark.parametrize(
    "command",
    [rest(command) if is_only_all(command) else command for command in sorted(RUN.values(), key=COMMANDS.index)],
)
def test_the_command_runs(sandboxes, command):
    require_packages(command)
    sandboxes.ran(command)
    sandboxes.discard(command)


def require_packages(text: str) -> None:
    """Leaves a command or block out where a package that it is about is not installed."""
    if "openvino" in text:
        pytest.importorskip("openvino")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_the_python_block_runs(sandboxes, block):
    if "bfloat16" in block.text and not is_native_on_cpu(torch.bfloat16):
        pytest.skip("this CPU only emulates bfloat16")
    require_packages(block.text)
    place = sandboxes.new(block.text)

    def work() -> None:
        sys.path.insert(0, str(place))
        text = block.text.replace("/path/to/this/repository", str(place))
        exec(compile("\n" * (block.line - 1) + text, block.page, "exec"), {"__name__": "__main__"})

    finish([fork(work, {}, place)], f"{block.page}:{block.line}")
    shutil.rmtree(place)


def test_what_is_not_run_has_a_test_and_known_flags():
    """What stands in for running them: each is still in a page, its test exists, its script knows its flags."""
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for pattern, test in ONLY_ALL.items():
        assert any(re.search(pattern, command) for command in RUN.values()), f"ONLY_ALL: {pattern}"
        assert f"def {test}(" in tests, f"{pattern}: {test}: is no test"
        with_all = re.search(rf"@pytest\.mark\.only_all\n(?:@.*\n)*def {test}\(", tests)
        assert not with_all, f"{pattern}: {test}: runs with --all only, too"
    for command, (why, test) in NOT_RUN.items():
        assert command in COMMANDS, f"{command}: is in no page any more"
        assert why and f"def {test}(" in tests, f"{command}: {test}: is no test"
        scripts = re.findall(r"scripts/(\w+)\.py", command)
        sources = "".join(
            path.read_text()
            for name in [*scripts, "parts/reproduce/*", "parts/export/*"]
            for path in (ROOT / "scripts").glob(f"{name}.py")
        )
        for flag in re.findall(r"--[\w-]+", command.split(" -- ")[0]) if scripts else []:  # main.py's stand after it
            assert f'"{flag}"' in sources, f"{command}: {flag}: is unknown to its script"


def test_no_line_of_the_tables_is_left_over():
    small = [made_small(command) for command in RUN.values()]
    for pattern, _ in SUBSTITUTED:
        assert any(re.search(pattern, command) for command in COMMANDS + small), f"SUBSTITUTED: {pattern}"
    run = [command.replace("{stand_ins}", "stand_ins") for command in [*small, *map(made_small, EARLIER.values())]]
    for pattern, _ in APPENDED + MADE:
        assert any(re.search(pattern, command) for command in run), pattern
    for path in EARLIER:
        assert any(path in text for text in [*small, *(block.text for block in BLOCKS)]), f"EARLIER: {path}"


@pytest.mark.parametrize("page", markdown_files(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for link in links_of(page):
        if not re.match(r"https?://", link):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists() and target.is_relative_to(ROOT), f"{page.name}: {link}: is not there"
            assert not anchor or anchor in anchors_of(target), f"{page.name}: {link}: there is no such heading"


@pytest.mark.parametrize("page", markdown_files(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_the_text_names_is_there(page):
    """Files of the repository in code spans, of which no link is made."""
    folders = "configs|data|docs|engine|models|scripts|tests|utils"
    named = re.findall(rf"`((?:{folders})/[\w./-]+\.(?:py|sh|yaml))`", prose(page))
    missing = [name for name in named if not (ROOT / name).is_file()]
    assert not missing


def test_the_first_screen_of_the_readme():
    """What it is, two commands, a picture, then how to train, evaluate and resume."""
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:50])
    places = [
        screen.find(text)
        for text in (
            "Lightweight Vision Transformer with Bidirectional Interaction",
            "\nbash scripts/quickstart.sh ",
            "\nbash scripts/test.sh ",
            "![",
            "\n# Train ",
            "\n# Evaluate",
            "\n# Resume",
        )
    ]
    assert -1 not in places and places == sorted(places)


def test_limits_are_one_list_and_pictures_are_small():
    readme = (ROOT / "README.md").read_text()
    limits = readme.split("## Not built or not measured here\n")[1].split("\n## ")[0].strip().splitlines()
    assert 0 < len(limits) <= 10 and all(line.startswith("- ") and len(line) < 160 for line in limits)
    pictures = [ROOT / link for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme)]
    assert pictures and all(picture.stat().st_size < 150_000 for picture in pictures)


@pytest.mark.parametrize("name", ["fat_quickstart", "fat_quickstart_emoji"])
def test_the_readme_says_how_long_the_quickstart_trains(name):
    [epochs] = re.findall(r"Quickstart, (\d+) epochs", (ROOT / "README.md").read_text())
    assert load_config(ROOT / f"configs/{name}.yaml").TRAIN.EPOCHS == int(epochs)


def test_the_page_has_the_rooms_of_engine_from_the_ground_up():
    page = (ROOT / "docs/architecture.md").read_text().split("## Floors of engine\n")[1]
    rooms = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", page, re.MULTILINE)
    assert set(rooms) == set(FLOORS)
    for number, room in enumerate(rooms):
        assert FLOORS[room] <= set(rooms[:number]), f"{room}: imports a room that the page has below it"
