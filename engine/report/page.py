"""A run's report.html: one page, without any other file, made of what lies in the run's folder."""

import base64
import functools
import shlex
from pathlib import Path
from statistics import median
from typing import Any, Mapping, Optional, Sequence, TypeGuard

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from yacs.config import CfgNode

from utils.config import load_config, to_dict, value_of
from utils.errors import DataError
from utils.files import write_text
from utils.image_size import size_text
from utils.metrics import Metric
from utils.pictures import encode_jpeg
from utils.run_files import CONFIG, MISTAKES, RECORDS, REPORT, RESULT, Record, read_config, read_object, read_records
from utils.run_log import RunLog
from utils.schema import CONFIGS, DEFAULTS, KEYS, is_cell

from ..tasks import TASKS
from ..tasks.base import choose_metric
from ..training.waits import SHARE
from .charts import Chart, Points, chart

TEMPLATES = Path(__file__).parent / "templates"
UNREADABLE = Metric("unreadable", "images not read", digits=0)  # of any task
LISTED = 20  # images that could not be read, changed settings


def write_report(run: Path) -> Path:
    """Writes the report of a run, finished or not, into its folder; returns its path.

    Raises:
        DataError: the folder is not a run's.
        ConfigError: its config.yaml cannot be read.
        OutputError: the page cannot be written.
    """
    write_text(run / REPORT, _template(TEMPLATES).render(describe_run(run)))
    return run / REPORT


@functools.cache
def _template(folder: Path) -> Template:
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(REPORT)


def write_if_possible(run: Path, log: RunLog) -> None:
    """Writes the report of a run that is done; whatever fails is a warning."""
    try:
        log.info(f"wrote {write_report(run)}")
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning(f"{run / REPORT}: not written ({reason[:300]}); `python scripts/report.py {run}` writes it")


def describe_run(run: Path) -> dict[str, Any]:
    """What the page says; all texts are plain, the template escapes them. Raises as `write_report`."""
    records, others = read_records(run, is_record)
    if not any(records.values()):
        raise DataError(f"{run / RECORDS}: holds no records; give the folder of a run that has begun")
    cfg = read_config(run)
    start = records["start"][-1] if records["start"] else {}
    train, epochs = records["train"], records["epoch"]
    task = TASKS[cfg.TASK]
    metric = choose_metric(task, cfg.TRAIN.BEST_METRIC)
    best = best_of(epochs, metric)
    result = result_of(run, epochs)
    facts = {**start, **result}
    done = epochs[-1]["epoch"] + 1 if epochs else 0
    finished = bool(result) and (done >= cfg.TRAIN.EPOCHS or bool(result.get("ended")))
    waited = wait_share(train)
    mistakes, said = mistakes_of(run, epochs)
    return {
        "title": f"{cfg.MODEL.NAME} / {cfg.TAG}",
        "finished": finished,
        "state": state_of(result, done, cfg.TRAIN.EPOCHS) if finished else unfinished(train, epochs, cfg.TRAIN.EPOCHS),
        "headline": headline(best, epochs, metric, start, train, waited),
        "warnings": warnings_of(run, facts, train, epochs, waited, len(others)),
        "charts": charts(train, epochs, metric),
        "metrics": metrics_table(epochs, best, task.figures),
        "mistakes": mistakes,
        "better": best[1] if best else "",
        "mistakes_said": said,
        "train_batch": picture_of(run / "train_batch.png"),
        "commands": commands(run, cfg, processes if counts(processes := facts.get("processes")) else 1),
        "environment": environment_of(facts),
        "config": config_rows(cfg),
    }


# What the run has written


def is_record(record: Any) -> bool:
    """Whether a line of a run's record says when it was and, if it has metrics, has them by name."""
    whole = counts(record["update"]) and (record["kind"] == "start" or counts(record["epoch"]))
    return whole and all(isinstance(record.get(name, {}), dict) for name in ("raw", "ema"))


def counts(value: Any) -> TypeGuard[int]:
    return type(value) is int and abs(value) < 10**15


def result_of(run: Path, epochs: Sequence[Record]) -> dict[str, Any]:
    """result.json, if it is that of the last epoch there is: a run that got more epochs has an older one for a while."""
    found = read_object(run / RESULT)
    return found if epochs and found.get("updates") == epochs[-1]["update"] else {}


def mistakes_of(run: Path, epochs: Sequence[Record]) -> tuple[list[tuple[str, list[dict[str, Any]]]], str]:
    """By weights, the sections that the task made of its last evaluation; and what to say of them."""
    found = read_object(run / MISTAKES)
    if not found:
        return [], f"{MISTAKES} is not there: it is written with the evaluation after the last epoch."
    weights, epoch = found.get("weights"), found.get("epoch")
    if not (isinstance(weights, dict) and counts(epoch) and all(map(are_sections, weights.values()))):
        return [], f"{MISTAKES} is damaged; the evaluation after the last epoch writes it."
    said = f"From the evaluation after epoch {epoch + 1}."
    if not epochs or epochs[-1]["update"] != found.get("update"):
        said += " The run has gone on since."
    return list(weights.items()), said


def are_sections(value: Any) -> bool:
    """Whether it is what a task says of mistakes."""

    def has(item: Any, **kinds: type) -> bool:
        return isinstance(item, dict) and all(isinstance(item.get(key), kind) for key, kind in kinds.items())

    def is_section(section: Any) -> bool:
        if not has(section, title=str, text=str):
            return False
        if "pictures" not in section:
            return has(section, columns=list, rows=list) and all(isinstance(row, list) for row in section["rows"])
        pictures = section["pictures"]
        return isinstance(pictures, list) and all(
            has(picture, jpeg=str, key=str, title=str, notes=list, size=list)
            and len(picture["size"]) == 2
            and all(map(counts, picture["size"]))
            for picture in pictures
        )

    return isinstance(value, list) and all(map(is_section, value))


def picture_of(path: Path) -> Optional[dict[str, Any]]:
    """A PNG as a JPEG for the page."""
    # cv2.imread dies of a path that is no UTF-8
    data = np.frombuffer(path.read_bytes() if path.is_file() else b"", np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        return None
    jpeg = encode_jpeg(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    return {"jpeg": base64.b64encode(jpeg).decode(), "size": [picture.shape[1], picture.shape[0]]}


# Figures


def number(value: Any) -> Optional[float]:
    """None for what is no finite number, or one that no chart can show."""
    return float(value) if type(value) in (int, float) and abs(value) < 1e300 else None


def weights_of(record: Record) -> list[str]:
    return [name for name in ("raw", "ema") if name in record]


def best_of(epochs: Sequence[Record], metric: Metric) -> Optional[tuple[float, str, Record]]:
    """The best value of the metric, its weights and its epoch's record; the earliest of several."""
    found = [
        (value, name, record)
        for record in epochs
        for name in weights_of(record)
        if (value := number(record[name].get(metric.key))) is not None
    ]
    return max(found, key=lambda item: metric.rank(item[0]), default=None)


def spans(train: Sequence[Record]) -> list[tuple[Record, float]]:
    """Each log line with the time that it covers, in seconds per image of an update: updates since the one before, by images/s."""
    before = [0, *(record["update"] for record in train)]
    speeds = [number(record.get("images_per_second")) for record in train]
    return [
        (record, (record["update"] - first) / speed)
        for record, first, speed in zip(train, before, speeds)
        if speed and record["update"] > first
    ]


def wait_share(train: Sequence[Record]) -> Optional[float]:
    """The share of the training's time that went by waiting for images; a line of the log counts by the time it covers."""
    known = [
        (share, seconds) for record, seconds in spans(train) if (share := number(record.get("data_wait"))) is not None
    ]
    return sum(share * seconds for share, seconds in known) / sum(seconds for _, seconds in known) if known else None


def headline(best, epochs, metric: Metric, start, train, waited) -> list[tuple[str, str, str]]:
    """Name, figure, note."""
    rows = []
    if best:
        value, weights, record = best
        last = best_of(epochs[-1:], metric)
        rows += [
            (
                f"Best {metric.title}",
                figure(value, metric.digits),
                f"{weights} weights, epoch {record['epoch'] + 1}",
            ),
            (
                f"Last {metric.title}",
                figure(last and last[0], metric.digits),
                f"epoch {epochs[-1]['epoch'] + 1}",
            ),
        ]
    if number(start.get("params")):
        macs = number(start.get("macs"))
        rows.append(
            (
                "Parameters",
                f"{start['params'] / 1e6:.2f} M",
                f"{macs / 1e9:.3f} GMACs at {size_text(start.get('img_size'))} px" if macs else "",
            )
        )
    speeds = [speed for record in train if (speed := number(record.get("images_per_second"))) is not None]
    if speeds:
        rows.append(
            (
                "Images per second",
                f"{median(speeds):,.0f}",
                f"in training, median; {start.get('device', 'all processes')}",
            )
        )
    batch = number(start.get("total_batch_size"))
    if batch and spans(train):
        rows.append(
            (
                "Time in training",
                long_time(batch * sum(seconds for _, seconds in spans(train))),
                "without evaluation and saving",
            )
        )
    if waited is not None:
        rows.append(("Waited for images", f"{waited:.1%}", "of the time in training"))
    return rows


def figure(value: Optional[float], digits: int) -> str:
    return "\u2013" if value is None else f"{value:.{digits}f}"


def long_time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return (
        f"{hours:,} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"
    )


def count(value: int, what: str) -> str:
    return f"{value:,} {what}{'' if value == 1 else 's'}"


def state_of(result: Mapping[str, Any], done: int, planned: int) -> str:
    """Of a finished run."""
    early = f": {result.get('ended')}" if done < planned else ""
    return f"finished after {count(done, 'epoch')}{early}"


def unfinished(train: Sequence[Record], epochs: Sequence[Record], planned: int) -> str:
    done = epochs[-1]["epoch"] + 1 if epochs else 0
    if done >= planned:
        return f"{count(done, 'epoch')} done, but there is no {RESULT} of them"
    return f"not finished: {done} of {count(planned, 'epoch')}, {count(train[-1]['update'] if train else 0, 'update')} so far"


def metrics_table(epochs: Sequence[Record], best, figures: Sequence[Metric]) -> dict[str, Any]:
    """Columns are weights at the best and at the last epoch, rows are metrics."""
    if not best:
        return {"columns": [], "rows": []}
    last = epochs[-1]
    moments = [("best", best[2])] + ([("last", last)] if last is not best[2] else [])
    columns = [(moment, record, weights) for moment, record in moments for weights in weights_of(record)]
    keys = list(dict.fromkeys(key for _, record, weights in columns for key in record[weights]))
    described = {metric.key: metric for metric in [*figures, UNREADABLE]}
    rows = []
    for key in keys:
        metric = described.get(key, Metric(key, key))
        values = [number(record[weights].get(key)) for _, record, weights in columns]
        rows.append((metric.title, [figure(value, metric.digits) for value in values]))
    rows.append(("training loss", [figure(number(record.get("train_loss")), 4) for _, record, _ in columns]))
    heads = [
        (f"{moment} epoch, {record['epoch'] + 1}", weights, record is best[2] and weights == best[1])
        for moment, record, weights in columns
    ]
    return {"columns": heads, "rows": rows}


def charts(train: Sequence[Record], epochs: Sequence[Record], metric: Metric) -> list[Chart]:
    """Loss, the metric, LR, images/s and waiting, over epochs."""
    place, x_label = places(epochs)

    def logged(key: str, factor: float = 1.0) -> Points:
        return [
            (place(record), None if (value := number(record.get(key))) is None else factor * value) for record in train
        ]

    def evaluated(key: str) -> dict[str, Points]:
        return {
            weights: [(record["epoch"] + 1, number(record.get(weights, {}).get(key))) for record in epochs]
            for weights in ("raw", "ema")
        }

    losses = {f"validation, {name}": points for name, points in evaluated("loss").items()}
    styles = {"raw": 1, "ema": 2, "validation, raw": 1, "validation, ema": 2}
    drawn = [
        chart("Loss", x_label, {"training": logged("loss"), **losses}, styles),
        chart(f"Validation {metric.title}", "epoch", evaluated(metric.key), styles),
        chart("Learning rate", x_label, {"learning rate": logged("lr")}, styles),
        chart("Images per second", x_label, {"all processes": logged("images_per_second")}, styles),
        chart("Waiting for images, %", x_label, {"share of the time": logged("data_wait", 100)}, styles),
    ]
    return [one for one in drawn if one]


def places(epochs: Sequence[Record]):
    """Where on the axis of epochs a log line stands, and the axis' name; that of updates before the first epoch has ended."""
    if not epochs:
        return (lambda record: record["update"]), "update"
    ends = {record["epoch"]: record["update"] for record in epochs}
    usual = median([end - ends.get(epoch - 1, 0) for epoch, end in ends.items()]) or 1

    def place(record: Record) -> float:
        epoch = record["epoch"]
        begin = ends.get(epoch - 1, 0)
        length = ends[epoch] - begin if epoch in ends else usual
        return epoch + min(max((record["update"] - begin) / max(length, 1), 0), 1)

    return place, "epoch"


def warnings_of(
    run: Path, facts: Mapping[str, Any], train, epochs, waited: Optional[float], others: int
) -> list[tuple[str, list[str]]]:
    """What a reader of the figures has to know: a line, and details."""
    problems: list[tuple[str, list[str]]] = []
    left_out = max((record["left_out"] for record in train if type(record.get("left_out")) is int), default=0)
    if left_out:
        problems.append((f"{count(left_out, 'update')} left out, as the loss or gradient was not finite", []))
    unreadable = run / "unreadable.txt"
    if unreadable.is_file():
        lines = unreadable.read_text(errors="replace").splitlines()
        problems.append((f"{count(len(lines), 'image')} could not be read and left out", shortened(lines)))
    missing = {
        count(record[w]["unreadable"], "image")
        for record in epochs[-1:]
        for w in weights_of(record)
        if record[w].get("unreadable")
    }
    problems += [
        (f"the validation figures are not of the full set: {text} could not be read", []) for text in sorted(missing)
    ]
    changes = facts.get("changes")
    if isinstance(changes, list) and changes:
        problems.append(
            (f"{count(len(changes), 'setting')} changed on the way", shortened([str(change) for change in changes]))
        )
    if waited is not None and waited > SHARE:
        problems.append(
            (
                f"{waited:.0%} of the training's time was spent waiting for images; --benchmark-data says where it goes",
                [],
            )
        )
    if others:
        problems.append((f"{count(others, 'line')} of {RECORDS} left out, no records", []))
    return problems


def shortened(lines: Sequence[str]) -> list[str]:
    return [*lines[:LISTED], *([f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else [])]


# What it was made with


def environment_of(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {
        "date": "written, UTC", "commit": "commit of the code", "machine": "machine", "versions": "versions", "processes": "processes",
        "device": "devices", "precision": "number format", "total_batch_size": "images per update", "seed": "seed",
        "train_images": "training images", "val_images": "validation images", "classes": "classes", "data_path": "data",
    }  # fmt: skip
    return [(name, str(facts[key])) for key, name in names.items() if facts.get(key) not in (None, "")]


def config_rows(cfg: CfgNode) -> list[tuple[str, str, str]]:
    """Key, value, and the default where that is another."""
    values, defaults = to_dict(cfg), to_dict(DEFAULTS)
    rows = []
    for key in KEYS:
        if key != "BASE":
            value, default = value_of(values, key), value_of(defaults, key)
            rows.append((key, written(value), written(default) if value != default else ""))
    return rows


def written(value: Any) -> str:
    """As `--opts` takes it."""
    return value or "''" if isinstance(value, str) else str(value)


def commands(run: Path, cfg: CfgNode, processes: int) -> list[tuple[str, str]]:
    """What they do, and the lines for a shell."""
    launcher = [
        "python",
        *(["-m", "torch.distributed.launch", "--nproc_per_node", str(processes)] if processes > 1 else []),
    ]
    command = [*launcher, "main.py", "--cfg", str(run / CONFIG)]
    commands = [("Train it again, beside this run", shlex.join([*command, "--tag", f"{cfg.TAG}_again"]))]
    if cfg.REPRODUCES and is_cell(cfg.REPRODUCES):
        recipe = ["--cfg", f"configs/{cfg.REPRODUCES}.yaml", *opts_over(CONFIGS / f"{cfg.REPRODUCES}.yaml", cfg)]
        target = cfg.REPRODUCES.rpartition("/")[0] or "classification"
        commands += [
            (
                "The same from its recipe; goes on with this run if it is not finished",
                shlex.join([*launcher, "main.py", *recipe]),
            ),
            ("Put it into the tables", shlex.join(["python", "scripts/reproduce.py", target, "--runs", str(run)])),
        ]
    return commands + [
        ("Evaluate its best checkpoint", shlex.join([*command, "--eval", "--resume", str(run / "best.pth")])),
        ("Print its figures, draw its curves", shlex.join(["python", "scripts/summarize_run.py", str(run)])),
        ("Make this page anew", shlex.join(["python", "scripts/report.py", str(run)])),
    ]


def opts_over(recipe: Path, cfg: CfgNode) -> list[str]:
    """--opts that make a recipe this config."""
    values, given = to_dict(cfg), to_dict(load_config(recipe))
    changed = [key for key in KEYS if key != "BASE" and value_of(values, key) != value_of(given, key)]
    return ["--opts", *(word for key in changed for word in (key, str(value_of(values, key))))] if changed else []
