"""Design rules."""

import ast
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from conftest import ROOT

LAYERS = {  # what each part may import of the project
    "utils": {"utils"},
    "models": {"models"},
    "data": {"data", "utils"},
    "engine": {"engine", "models", "data", "utils"},
    "scripts": {"engine", "models", "data", "utils"},
    "main.py": {"engine", "models", "data", "utils"},
}
FLOORS = {  # what each room of engine/ may import of the others
    "arguments": set(),
    "checkpoints": set(),
    "evaluation": set(),
    "setup": {"checkpoints"},
    "observer": set(),
    "session": {"observer", "setup"},
    "tasks": {"checkpoints", "evaluation", "setup"},
    "inference": {"checkpoints", "evaluation", "setup", "tasks"},
    "training": {"checkpoints", "evaluation", "observer", "session", "setup", "tasks"},
    "report": {"tasks", "training"},
    "commands": {
        "checkpoints",
        "evaluation",
        "inference",
        "observer",
        "report",
        "session",
        "setup",
        "tasks",
        "training",
    },
    "api": {"checkpoints", "commands", "inference", "observer"},
}
PARTS = {name.removesuffix(".py") for name in LAYERS} | {"tests", "configs"}


def imports(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def files(part):
    return [ROOT / part] if part.endswith(".py") else sorted((ROOT / part).rglob("*.py"))


@pytest.mark.parametrize("part", LAYERS)
def test_imports_run_one_way(part):
    assert files(part)
    for path in files(part):
        assert imports(path) & PARTS <= LAYERS[part], path


def for_types_alone(tree: ast.AST) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING:`, which no program runs."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {inner for block in blocks for line in block.body for inner in ast.walk(line)}


def rooms_imported(path) -> set[str]:
    """The rooms of engine/ that one of its files imports, by a relative or an absolute name."""
    package, rooms = list(path.relative_to(ROOT).parts[:-1]), set()
    tree = ast.parse(path.read_text())
    for node in set(ast.walk(tree)) - for_types_alone(tree):
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            place = start + (node.module.split(".") if node.module else [])
            names = place[1:2] or [alias.name for alias in node.names]
            rooms |= set(names) if place[:1] == ["engine"] else set()
    return rooms


@pytest.mark.parametrize("room", FLOORS)
def test_the_rooms_of_engine_import_one_way(room):
    place = ROOT / "engine" / room
    paths = sorted(place.rglob("*.py")) or [place.with_suffix(".py")]
    for path in paths:
        assert rooms_imported(path) - {room} <= FLOORS[room], path


def test_every_file_of_engine_is_in_a_room():
    names = {path.stem for path in (ROOT / "engine").iterdir() if path.name not in ("__init__.py", "__pycache__")}
    assert names == set(FLOORS)


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]])
def test_ruff_finds_nothing(arguments):
    ended = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


def test_mypy_finds_nothing():
    """In what pyproject.toml names, keeping_to.py too; what it has read is kept from one run of the tests to the next."""
    # what it kept can be wrong of classes that have changed: then it reads all anew
    for cache in (ROOT / ".mypy_cache", os.devnull):
        command = [sys.executable, "-m", "mypy", "--cache-dir", str(cache)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if ended.returncode == 0:
            break
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert int(re.search(r"in (\d+) source files", ended.stdout)[1]) > 150


def nodes_of_code():
    for part in LAYERS:
        for path in files(part):
            for node in ast.walk(ast.parse(path.read_text())):
                yield path.relative_to(ROOT), node


LONG = {("models/fat.py", "__init__")}  # a model's constructor, which has its architecture as arguments


def test_functions_fit_on_a_screen():
    """At most 60 lines; ruff counts their branches and parameters, see pyproject.toml."""
    long = {
        (str(path), node.name)
        for path, node in nodes_of_code()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 60
    }
    assert long == LONG


def fields_of(node: ast.ClassDef) -> set[str]:
    """What an object has: the fields that its class declares, and what its methods assign to self."""
    declared = {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
    assigned = {
        item.attr
        for item in ast.walk(node)
        if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store) and ast.unparse(item.value) == "self"
    }
    return declared | assigned


MANY = {("models/fat.py", "FAT")}  # a model keeps its parts and what it was made of


def test_classes_have_few_fields():
    many = {
        (str(path), node.name)
        for path, node in nodes_of_code()
        if isinstance(node, ast.ClassDef) and len(fields_of(node)) > 12
    }
    assert many == MANY


def test_one_file_reads_what_torch_has_saved():
    """Into which no code can come; see `engine.checkpoints.file`."""
    readers = {
        str(path)
        for path, node in nodes_of_code()
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load"
    }
    assert readers == {"engine/checkpoints/unpickle.py"}


ENDS = {  # where a process ends itself
    "utils/ending.py",
    "utils/signals.py",  # a loading process whose parent is gone
    "utils/processes/group.py",  # one whose launcher is gone while it waits for the others
    "data/workers.py",  # a loading process that cannot say its error
    "scripts/parts/predict/predicting.py",  # with a signal's status, after what it has done is said
}


def test_a_program_ends_in_one_place():
    ends = {
        str(path)
        for path, node in nodes_of_code()
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "os._exit", "exit")
    }
    assert ends == ENDS


def test_models_need_only_torch_and_timm():
    """Detectors are torchvision's own classes besides; nothing else of models imports them."""
    for path in files("models"):
        optional = {
            *({"torchvision"} if path.is_relative_to(ROOT / "models" / "detection") else ()),
            *({"triton"} if path.name == "norm_triton.py" else ()),  # which only a function imports
        }
        allowed = {"torch", "timm", "models"} | optional
        assert not imports(path) - allowed - set(sys.stdlib_module_names), path


def test_every_requirement_is_imported():
    names = {"opencv-python-headless": "cv2", "pillow": "PIL", "pyyaml": "yaml"}
    listed = {line.split("#")[0].split(">")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()}
    listed = {names.get(package, package) for package in listed if package}
    used = set().union(*(imports(path) for part in LAYERS for path in files(part)))
    # NVIDIA apex and nvImageCodec; ImageNet-C's images made here; the benchmark's, the quickstart's and prepare_data.py's own;
    # pyarrow comes with datasets, huggingface_hub and safetensors with timm; LOGGERS wandb; scripts/submit.py; engines and export: onnx, onnxscript, onnxruntime, openvino;
    # triton comes with torch for GPUs; tifffile is for TIFFs of several bands
    optional = {
        "apex",
        "nvidia",
        "imagecorruptions",
        "openvino",
        "sklearn",
        "mlxtend",
        "scipy",
        "pyarrow",
        "huggingface_hub",
        "safetensors",
        "wandb",
        "submitit",
        "faster_coco_eval",
        "tifffile",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "triton",
    }
    siblings = {path.relative_to(ROOT / "scripts").parts[0].removesuffix(".py") for path in files("scripts")}
    assert used - set(sys.stdlib_module_names) - PARTS - siblings - optional == listed - {"tensorboard"}
    assert "torch.utils.tensorboard" in (ROOT / "utils/loggers/tensorboard_files.py").read_text()


def test_apex_is_optional():
    assert "apex" not in (ROOT / "requirements.txt").read_text()
    for part in LAYERS:
        for path in files(part):
            top_level = [n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
            assert not any("apex" in ast.unparse(node) for node in top_level), path


def test_the_pages_name_tests_that_exist():
    text = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    named = set().union(*(re.findall(r"`(test_\w+)`", page.read_text()) for page in pages))
    missing = {name for name in named if f"def {name}(" not in text}
    assert len(named) > 50 and not missing


@pytest.mark.parametrize("text, home", [
    ('" | ".join', "utils/markdown.py"), ('"| ---', "utils/markdown.py"),
    *((f'"{name}"', "utils/run_files.py") for name in ("metrics.jsonl", "config.yaml", "result.json", "eval.json", "mistakes.json")),
])  # fmt: skip
def test_one_place_writes_tables_and_one_names_the_files_of_a_run(text, home):
    outside = {path for part in LAYERS for path in files(part) if text in path.read_text()} - {ROOT / home}
    assert not outside


def test_no_two_files_have_the_same_name():
    paths = [path for part in [*LAYERS, "hubconf.py"] for path in files(part) if path.name != "__init__.py"]
    names = Counter(path.name for path in paths)
    assert len(paths) > 150 and not [path for path in paths if names[path.name] > 1]


def test_tests_are_in_folders_named_after_what_they_are_of():
    """A part of the code, or `pages` and `faults`, which are of all of it; this file is of the folders themselves."""
    folders = {path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").rglob("test_*.py")}
    assert folders - {"pages", "faults", "test_structure.py"} <= LAYERS.keys()


def test_one_file_of_the_scripts_finds_the_repository():
    """The others import it, and the parts of a script one another by relative names."""
    paths = files("scripts")
    assert [path.name for path in paths if "sys.path" in path.read_text()] == ["command_line.py"]
    siblings = {path.stem for path in (ROOT / "scripts").iterdir()}
    assert not [path for path in paths if "parts" in path.parts and imports(path) & siblings]


def test_every_script_ends_in_one_way():
    """Its errors are one line, and those of its flags too."""
    for path in (ROOT / "scripts").glob("*.py"):
        text = path.read_text()
        assert "__main__" not in text or "    run_script(" in text, path
        assert "ArgumentParser(description" not in text, path


def test_errors_keep_their_cause():
    """Whoever looks for it with FAT_TRACEBACK=1 finds the line that failed first."""
    hiding = {
        str(path)
        for path, node in nodes_of_code()
        if isinstance(node, ast.Raise) and isinstance(node.cause, ast.Constant) and node.cause.value is None
    }
    assert not hiding


CUTS = ("split", "rsplit", "partition", "rpartition", "replace", "removeprefix", "removesuffix")


def cuts_of_messages(tree: ast.AST) -> list[str]:
    """Calls that take an error's line apart, or change words in it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CUTS:
            words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            of_text = ast.unparse(node.func.value).startswith("str(error")
            if any(word.startswith("; ") for word in words) or (of_text and node.func.attr == "replace"):
                found.append(ast.unparse(node))
    return found


def test_no_message_is_cut():
    """An error has parts for that: `reason`, `remedy`, `problem`, `with_remedy`."""
    assert cuts_of_messages(ast.parse("str(error).rsplit('; ', 1)[0]"))
    assert cuts_of_messages(ast.parse("str(error).replace('--tag', '--output')"))
    for part in LAYERS:
        for path in files(part):
            assert not cuts_of_messages(ast.parse(path.read_text())), path


SMALL = ("data",)  # parts whose functions are held to this
LIMITS = ["--select", "C901,PLR0913", "--config", "lint.mccabe.max-complexity=10", "--config", "lint.pylint.max-args=8"]
MOST_LINES = 60


@pytest.mark.parametrize("part", SMALL)
def test_functions_are_small(part):
    ended = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *LIMITS, part], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout
    for path in files(part):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < MOST_LINES, (path, node.name)
