"""A run's report.html: what it says, and how it looks in a browser."""

import importlib.util
import json
import math
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from test_mistakes import ALONE, collected

import report as command
from conftest import SMALL, Stop, launch, run, stop_at_update
from engine.evaluation.findings import frequent_confusions, worst_mistakes
from engine.report import page as report
from engine.report.charts import chart, scale, thinned
from utils.config import load_config, to_dict
from utils.errors import ConfigError, DataError
from utils.metrics import ACC1

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
BOLD, LONG = '<b>0</b>&"'.replace("/", "\u2215"), "1" * 200


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits) -> Path:
    """A run of two epochs over classes with unfriendly names, by two processes."""
    import yaml

    root = tmp_path_factory.mktemp("report")
    for split in ("train", "val"):
        (root / "set" / split).mkdir(parents=True)
        for label, name in (("0", BOLD), ("1", LONG), ("2", "2")):
            shutil.copytree(digits / split / label, root / "set" / split / name)
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALL.items()}
    config["DATA"] |= {"DATA_PATH": str(root / "set"), "BATCH_SIZE": 4}
    config |= {"OUTPUT": str(root / "output"), "TAG": "<i>run</i>".replace("/", "\u2215"), "REPRODUCES": "fat_b0"}
    (root / "small.yaml").write_text(yaml.safe_dump(config))
    launch(2, "--cfg", root / "small.yaml")
    return root / "output/fat_tiny" / config["TAG"]


def records(folder, kind):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in found if record["kind"] == kind]


def test_a_run_ends_with_its_report(finished):
    text = (finished / "report.html").read_text()
    result = json.loads((finished / "result.json").read_text())
    assert "finished after 2 epochs" in text and f'<dd class="value">{result["best"]["acc1"]:.2f}</dd>' in text
    for value in (result["machine"], result["versions"], result["commit"], result["date"]):
        assert value.replace("+", "&#43;") in text or value in text
    assert "--nproc_per_node 2" in text and "scripts/reproduce.py classification" in text
    assert (
        "<i>" not in text and BOLD.rstrip('&"') not in text and "&lt;b&gt;0" in text
    )  # names of the run and of classes
    for key in ("TRAIN.", "DATA."):
        assert f"{key}<wbr>" in text
    outside = [
        found for found in re.findall(r'(?:src|href)="([^"#]*)', text) if not found.startswith("data:") and found
    ]
    assert outside == [] and "url(" not in text and "@import" not in text and "<script" not in text


def test_mistakes_are_those_of_the_last_evaluation_and_cost_no_accuracy(finished):
    found = json.loads((finished / "mistakes.json").read_text())
    last = records(finished, "epoch")[-1]
    assert (found["epoch"], found["update"]) == (1, last["update"])
    assert list(found["weights"]) == ["raw", "ema"]
    for name, (worst, confusions, each) in found["weights"].items():
        assert sorted(int(row[1]) for row in each["rows"]) == [9, 10, 10] and all(len(row) == 6 for row in each["rows"])
        wrong = round(29 * (1 - last[name]["acc1"] / 100))
        assert (
            confusions["text"].startswith(f"{wrong} of 29 images")
            and sum(int(row[2]) for row in confusions["rows"]) == wrong
        )
        assert len(worst["pictures"]) == min(wrong, 24)
        assert all(len(picture["title"]) <= 83 for picture in worst["pictures"])  # of a class with 200 letters
        assert worst["pictures"] == [] or {"size", "jpeg", "key", "title", "notes"} == set(worst["pictures"][0])


def test_the_mistakes_of_the_best_weights_are_open(finished, tmp_path):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for better, worse in (("raw", "ema"), ("ema", "raw")):
        folder = tmp_path / better
        shutil.copytree(finished, folder)
        for record in lines:
            if record["kind"] == "epoch":
                record[better]["acc1"], record[worse]["acc1"] = 90.0, 80.0
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
        text = report.write_report(folder).read_text()
        assert f"<details open><summary>{better} weights" in text and f"<details><summary>{worse} weights" in text


def test_sections_of_mistakes():
    errors = collected(8, 3).gather(ALONE)
    names = ["a", "b", "c", "d"]
    worst, confusions = worst_mistakes(errors, names), frequent_confusions(errors, names)
    first = errors.worst[0]
    assert (
        worst["pictures"][0]["title"] == f"{names[first.target]} \u2192 {names[first.predicted]}"
        and len(worst["pictures"]) == 3
    )
    assert worst["pictures"][0]["notes"][0] == f"predicted with {first.probability:.1%}"
    counts = [int(row[2]) for row in confusions["rows"]]
    assert counts == sorted(counts, reverse=True)
    target, predicted, count, share = confusions["rows"][0]
    matrix = errors.confusion(4)
    i, j = names.index(target), names.index(predicted)
    assert int(count) == matrix[i, j] and share == f"{matrix[i, j] / matrix[i].sum():.1%}"


def test_the_same_figures_as_without_gathering(write_config, tmp_path, monkeypatch):
    """And the same bits of everything that is saved."""
    from conftest import assert_same, load
    from engine.tasks.classification import Classification

    path = write_config()
    run("--cfg", path, "--tag", "gathered")
    plain = Classification.evaluator
    monkeypatch.setattr(Classification, "evaluator", lambda self, purpose, device: plain(self, "figures", device))
    run("--cfg", path, "--tag", "plain")
    folders = [tmp_path / "output/fat_tiny" / tag for tag in ("gathered", "plain")]
    assert records(folders[0], "epoch") == records(folders[1], "epoch")
    assert_same(*(load(folder / "last.pth")["model"] for folder in folders))
    assert (
        not (folders[1] / "mistakes.json").exists()
        and "mistakes.json is not there" in (folders[1] / "report.html").read_text()
    )


def test_what_cannot_be_shown_besides_figures_ends_no_run(write_config, tmp_path, monkeypatch):
    def fail(self, classes):
        raise ValueError("no picture")

    monkeypatch.setattr("engine.evaluation.evaluators.ClosingClassEvaluator.sections", fail)
    run("--cfg", write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0}))
    folder = tmp_path / "output/fat_tiny/default"
    assert "mistakes.json is not written (ValueError: no picture)" in (folder / "log.txt").read_text()
    assert (folder / "result.json").exists() and not (folder / "mistakes.json").exists()


def test_a_report_that_fails_is_a_warning_and_can_be_made_later(write_config, tmp_path, monkeypatch, capsys):
    path = write_config(TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0})
    folder = tmp_path / "output/fat_tiny/default"
    templates = report.TEMPLATES
    monkeypatch.setattr(report, "TEMPLATES", tmp_path)
    run("--cfg", path)
    out = capsys.readouterr().out
    assert out.count("warning: ") == 1 and f"scripts/report.py {folder}" in out
    assert (folder / "result.json").is_file() and not (folder / "report.html").exists()
    monkeypatch.setattr(report, "TEMPLATES", templates)
    assert command.main([str(folder)]) == 0
    assert "finished after 1 epoch<" in (folder / "report.html").read_text()
    # more epochs: the settings that changed are named
    run("--cfg", path, "--opts", "TRAIN.EPOCHS", 2, "TRAIN.BASE_LR", 0.01)
    text = (folder / "report.html").read_text()
    assert (
        "finished after 2 epochs" in text
        and "TRAIN.EPOCHS changed from 1 to 2" in text
        and "From the evaluation after epoch 2." in text
    )


def test_of_a_run_that_is_under_way(write_config, tmp_path, monkeypatch):
    path = write_config(TRAIN={"SAVE_EVERY_STEPS": 1})
    folder = tmp_path / "output/fat_tiny/default"
    go_on = stop_at_update(monkeypatch, 3)
    with pytest.raises(Stop):
        run("--cfg", path)
    command.main([str(folder)])
    text = (folder / "report.html").read_text()
    assert "not finished: 0 of 2 epochs, 3 updates so far" in text and "No epoch has been evaluated yet" in text
    assert text.count("<path") == 4  # loss, LR, images/s, waiting
    assert "mistakes.json is not there" in text and '<th scope="row">machine</th>' in text
    go_on()
    run("--cfg", path)
    assert "finished after 2 epochs" in (folder / "report.html").read_text()
    run("--cfg", path, "--opts", "TRAIN.AUTO_RESUME", False)
    away = next(folder.glob("replaced_*"))
    assert (
        (away / "report.html").is_file() and (away / "mistakes.json").is_file() and (folder / "report.html").is_file()
    )


def test_what_is_no_run_is_one_line(tmp_path, finished, capsys):
    for make, error, words in [
        (lambda folder: None, DataError, "metrics.jsonl: cannot be read"),
        (lambda folder: (folder / "metrics.jsonl").write_text("{}\n[1]\nnull\n"), DataError, "holds no records"),
        (lambda folder: shutil.copy(finished / "metrics.jsonl", folder), DataError, "config.yaml: no such file"),
        (lambda folder: (folder / "config.yaml").write_text("NO_KEY: 1"), ConfigError, "NO_KEY"),
    ]:
        make(tmp_path)
        with pytest.raises(error) as caught:
            report.write_report(tmp_path)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()
    shutil.copytree(finished, tmp_path / "good")
    (tmp_path / "good/report.html").unlink()
    assert command.main([str(tmp_path), str(tmp_path / "none"), str(tmp_path / "good")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "NO_KEY" in said[0] and "none/metrics.jsonl: cannot be read" in said[1]
    assert (tmp_path / "good/report.html").is_file()  # the others are made
    with pytest.raises(ConfigError):
        command.main([])


def test_strange_records_are_shown_as_far_as_they_go(tmp_path, finished):
    """NaN, nulls, values of other types, and a line that was cut short."""
    shutil.copy(finished / "config.yaml", tmp_path)
    train = {"kind": "train", "epoch": 0, "lr": math.nan, "images_per_second": None, "data_wait": "much", "left_out": 2}
    lines = [{**train, "update": n, "loss": None if n == 2 else 1e30 if n == 3 else n} for n in range(1, 6)]
    lines.append(
        {
            "kind": "epoch",
            "update": 5,
            "epoch": 0,
            "train_loss": math.inf,
            "raw": {"acc1": math.nan, "loss": None, "unreadable": 3},
        }
    )
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"kind": "tra')
    (tmp_path / "unreadable.txt").write_text("".join(f"<u>{n}</u>.png: broken\n" for n in range(30)))
    for name in ("result.json", "mistakes.json", "train_batch.png"):
        (tmp_path / name).write_text("[no")
    report.write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert (
        "2 updates left out" in text
        and "30 images could not be read" in text
        and "... and 10 more" in text
        and "<u>" not in text
    )
    assert "1 line of metrics.jsonl left out" in text and "nan" not in re.sub(
        "<style.*?</style>", "", text, flags=re.S
    ).lower().replace("nano", "")
    assert "Learning rate" not in text  # nothing to draw


def test_the_result_of_another_length_of_the_run_does_not_count(tmp_path):
    """A finished run that got more epochs, killed before their end, still has the result of the first ones."""
    (tmp_path / "result.json").write_text('{"updates": 7, "machine": "x"}')
    assert report.result_of(tmp_path, [{"epoch": 0, "update": 7}])["machine"] == "x"
    assert (
        report.result_of(tmp_path, [{"epoch": 0, "update": 7}, {"epoch": 1, "update": 14}])
        == {}
        == report.result_of(tmp_path, [])
    )
    (tmp_path / "mistakes.json").write_text('{"epoch": 0, "update": 7, "weights": {"raw": []}}')
    assert "gone on since" not in report.mistakes_of(tmp_path, [{"epoch": 0, "update": 7}])[1]
    assert "gone on since" in report.mistakes_of(tmp_path, [{"epoch": 1, "update": 14}])[1]


def test_the_best_is_the_highest_and_of_several_the_first():
    epochs = [
        {"epoch": n, "raw": {"acc1": raw}, "ema": {"acc1": ema}}
        for n, (raw, ema) in enumerate([(1.0, 2.0), (9.0, 9.0), (9.0, 3.0), (math.nan, None)])
    ]
    assert report.best_of(epochs, ACC1) == (9.0, "raw", epochs[1]) and report.best_of(epochs[3:], ACC1) is None
    assert report.best_of(epochs, replace(ACC1, higher_is_better=False))[0] == 1.0


def test_a_cell_whose_recipe_is_gone_has_no_command(tmp_path, finished):
    cfg = load_config(finished / "config.yaml").clone()
    cfg.defrost()
    titles = []
    for cell in ("fat_b0", "gone"):
        cfg.REPRODUCES = cell
        titles.append([title for title, _ in report.commands(tmp_path, cfg, 1)])
    assert (
        "Put it into the tables" in titles[0]
        and "Put it into the tables" not in titles[1]
        and len(titles[1]) == len(titles[0]) - 2
    )


def test_the_time_in_training():
    """100 updates of 32 images at 64 images/s, then 10 at 1 image/s."""
    train = [{"update": 100, "images_per_second": 64.0}, {"update": 110, "images_per_second": 1.0}]
    rows = report.headline(None, [], ACC1, {"total_batch_size": 32}, train, None)
    assert {name: value for name, value, _ in rows}["Time in training"] == "6 min 10 s"


@pytest.mark.parametrize("value", ["1e299", "-1e299", "1e999", "9" * 400, "true", '{"a": 1}'])
def test_figures_beyond_all_charts(tmp_path, finished, value):
    """Only the last log line and the last epoch have them."""
    shutil.copy(finished / "config.yaml", tmp_path)
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    for kind in ("train", "epoch"):
        place = max(i for i, line in enumerate(lines) if f'"kind": "{kind}"' in line)
        lines[place] = re.sub(r"(?<=: )-?\d+\.[\de-]+", value, lines[place])
    huge = re.sub(r'"(epoch|update)": \d+', rf'"\1": {"9" * 400}', lines[-1])
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, huge]))
    report.write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "1 line of metrics.jsonl left out" in text and "Learning rate" in text


@pytest.mark.parametrize("mistakes", [
    {"weights": 5}, {"weights": {"raw": 5}}, {"weights": {"raw": [5]}}, {"weights": {"raw": [{"title": "x"}]}}, {"weights": {"raw": []}, "epoch": "x"},
    {"weights": {"raw": [{"title": "x", "text": "", "pictures": [{"jpeg": "", "key": "", "title": "", "notes": [], "size": ["x", 1]}]}]}, "epoch": 0},
    {"weights": {"raw": [{"title": "x", "text": "", "columns": [], "rows": [5]}]}, "epoch": 0},
])  # fmt: skip
def test_damaged_mistakes_and_results_cost_their_part_alone(tmp_path, finished, mistakes):
    folder = tmp_path / os.fsdecode(b"caf\xe9")  # with no UTF-8 in its name
    shutil.copytree(finished, folder)
    (folder / "mistakes.json").write_text(json.dumps(mistakes))
    (folder / "result.json").write_text(
        json.dumps({**json.loads((finished / "result.json").read_text()), "processes": "x"})
    )
    text = report.write_report(folder).read_text()
    # the training batch
    assert "mistakes.json is damaged" in text and "python main.py" in text and "data:image/jpeg" in text


def test_the_share_of_waiting_counts_time():
    """100 updates at 100 images/s without waiting, then 10 at 1 image/s that waited half the time."""
    train = [
        {"update": 100, "images_per_second": 100.0, "data_wait": 0.0},
        {"update": 110, "images_per_second": 1.0, "data_wait": 0.5},
        {"update": 120, "images_per_second": None, "data_wait": 1.0},
    ]
    assert report.wait_share(train) == pytest.approx(5 / 11)
    assert report.wait_share([]) is None


def test_where_log_lines_stand_between_epochs():
    # another batch size in the second
    place, label = report.places([{"epoch": 0, "update": 10}, {"epoch": 1, "update": 30}])
    found = [
        place({"epoch": epoch, "update": update}) for epoch, update in [(0, 5), (0, 10), (1, 15), (1, 30), (2, 33)]
    ]
    assert label == "epoch" and found == [0.5, 1, 1.25, 2, 2.2]


def test_the_commands_repeat_the_run(finished):
    cfg = load_config(finished / "config.yaml")
    lines = dict(report.commands(finished, cfg, 2))
    recipe = next(line for what, line in lines.items() if "recipe" in what)
    words = shlex.split(recipe)
    assert words[:5] == ["python", "-m", "torch.distributed.launch", "--nproc_per_node", "2"] and words[6:8] == [
        "--cfg",
        "configs/fat_b0.yaml",
    ]
    assert to_dict(load_config(words[7], words[words.index("--opts") + 1 :])) == to_dict(cfg)
    again = shlex.split(lines["Train it again, beside this run"])
    assert again[again.index("--cfg") + 1] == str(finished / "config.yaml") and again[-1] != cfg.TAG


def test_many_points_are_thinned_and_peaks_stay():
    points = [(float(n), math.sin(n / 500)) for n in range(20_000)]
    points[7_777] = (7_777.0, 9.0)
    points[9_999] = (9_999.0, -9.0)
    few = thinned(points)
    assert len(few) <= 600 and points[7_777] in few and points[9_999] in few and few == sorted(few)
    drawn = chart("Loss", "epoch", {"training": points}, {})
    assert len(re.findall("[ML]", drawn.lines[0].path)) == len(few)
    assert thinned([(float(n), None) for n in range(5_000)])[0] == (0.0, None)


def test_gaps_single_points_and_constants():
    drawn = chart(
        "Loss",
        "epoch",
        {"a": [(0, 1.0), (1, None), (2, 2.0), (3, 2.5)], "b": [(1, 2.0)], "none": [(0, None)]},
        {"b": 2},
    )
    first, second = drawn.lines
    assert (first.style, second.style) == (0, 2)
    assert len(first.dots) == 1 and first.path.count("M") == 1 and first.path.count("L") == 1
    assert second.path == "" and len(second.dots) == 1
    assert chart("Loss", "epoch", {"none": [(0, None)]}, {}) is None
    for value in (0.0, 5e-324, 1e300, -3.0):
        low, high, ticks = scale([value, value], 5)
        assert low < high and len(ticks) >= 2
    flat = chart("LR", "epoch", {"a": [(0, 1e-300), (1, 1e-300)]}, {})
    assert all(math.isfinite(y) for y, _ in flat.y_ticks)


# In a browser


def luminance(colour):
    parts = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(a, b):
    """Of WCAG 2: 1 to 21."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


TEXTS = """() => [...document.querySelectorAll("main *")].filter(e => e.checkVisibility() &&
  [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim())).map(e => {
    const style = getComputedStyle(e);
    let under = e;
    while (under && ["rgba(0, 0, 0, 0)", "transparent"].includes(getComputedStyle(under).backgroundColor)) under = under.parentElement;
    return [e.textContent.trim().slice(0, 40), e.namespaceURI.endsWith("svg") ? style.fill : style.color, getComputedStyle(under).backgroundColor];
  })"""
LINES = """() => [...document.querySelectorAll(".chart > svg path")].map(e => [e.getTotalLength(), getComputedStyle(e).stroke,
    getComputedStyle(e.closest(".chart")).backgroundColor, (e.getAttribute("d").match(/[ML]/g) || []).length, e.getBoundingClientRect().width])"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000)
        yield browser
        browser.close()


@pytest.mark.skipif(not CHROMIUM or not importlib.util.find_spec("playwright"), reason="no Chromium, or no playwright")
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_page_in_a_browser(finished, browser, width, colours):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=colours)
    page.set_default_timeout(120_000)
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((finished / "report.html").as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [(finished / "report.html").as_uri()] and said == []
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(
        "[...document.querySelectorAll('main > *, .card')].every(e => e.getBoundingClientRect().right <= innerWidth)"
    )

    pictures = page.evaluate("[...document.images].map(i => [i.complete && i.naturalWidth, i.alt])")
    shown = json.loads((finished / "mistakes.json").read_text())["weights"]
    assert len(pictures) == 1 + sum(len(sections[0]["pictures"]) for sections in shown.values()) > 1
    assert all(natural > 0 and alt for natural, alt in pictures)

    lines = page.evaluate(LINES)
    # loss: training, raw, ema; top-1: raw, ema; LR; images/s; waiting
    assert [line[3] for line in lines] == [
        len(records(finished, "train")),
        2,
        2,
        2,
        2,
        *[len(records(finished, "train"))] * 3,
    ]
    for length, stroke, under, _, wide in lines:
        assert length > 20 and wide > 50 and contrast(stroke, under) >= 3

    texts = page.evaluate(TEXTS)
    assert len(texts) > 100 and [found for found in texts if contrast(*found[1:]) < 4.5] == []
    assert (luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.5) == (colours == "light")
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    assert page.evaluate("[document.documentElement.lang, document.title]") == [
        "en",
        f"fat_tiny / {finished.name} \u2013 training report",
    ]
    page.close()
