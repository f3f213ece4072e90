"""The report: what it is built of, as files of every kind, of runs that are whole, going on, or broken."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from conftest import WORDS, perturb, write_alike, write_lines

from bge_cocktail.report.blocks import Plot, Queries, Table, report_sections
from bge_cocktail.report.build import build_report
from bge_cocktail.report.collect import collect
from bge_cocktail.report.sections.maps import project

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored") / "alike"
    write_alike(folder, 60)
    return folder


@pytest.fixture(scope="module")
def run(tiny: Path, beir: Path, labelled: Path, scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models on three tasks, a training and a merge."""
    from click.testing import CliRunner

    from bge_cocktail.cli import main

    folder = tmp_path_factory.mktemp("report") / "run"
    other = perturb(tiny, folder.parent / "other", 3, scale=0.06)
    environment = {"BGE_COCKTAIL_CACHE": str(folder.parent / "cache")}

    def cli(*arguments: object) -> None:
        result = CliRunner().invoke(main, [str(one) for one in arguments], env=environment)
        assert result.exit_code == 0, result.output + result.stderr

    where = ("--target", beir, "--general", labelled, "--general", scored)
    cli("evaluate", f"base={tiny}", f"<b>other</b>={other}", *where, "-o", folder / "scores")
    cli("train", beir, "-m", tiny, "-o", folder / "tuned", "--epochs", 1, "--batch-size", 8, "--dev", beir)
    cli("merge", folder / "tuned", tiny, "-o", folder / "merged")
    cli("inspect", folder / "tuned", "--base", tiny, "-o", folder / "inspected")
    return folder


def test_the_page_holds_everything_and_asks_for_nothing(cli: Cli, run: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = cli("report", run, "-o", page)
    assert "<b>other</b> against base: " in result.stdout
    text = page.read_text()
    assert page.stat().st_size < 8e6
    for title in ("Scores", "Target and general", "Where it changed", "Maps", "Training", "Merging", "Provenance"):
        assert f"<h2>{title}</h2>" in text
    marks = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r'(?:src|href)="(?!#|data:)', marks)
    # names and texts are texts, wherever they stand
    assert "<b>other</b>" not in text
    assert "&lt;b&gt;other&lt;/b&gt;" in text
    assert "\\u003cb>other" in text
    assert "bge-cocktail evaluate " in text  # the command that repeats the numbers
    assert "animals: 25 documents, 0.0 MB, " in text


def test_all_figures_are_plotlys(run: Path) -> None:
    from plotly.graph_objects import Figure

    report = build_report(collect([run]), "all")
    plots = [block for section in report.sections for block in section.blocks if isinstance(block, Plot)]
    assert len(plots) >= 6
    for plot in plots:
        for figure in plot.figures.values():
            traces = [
                {key: plot.shared[value[1:]] if isinstance(value, str) and value[0] == "@" else value
                 for key, value in trace.items()}
                for trace in figure["data"]
            ]  # fmt: skip
            Figure(data=traces, layout=figure["layout"])  # raises where a name or value is none of Plotly's
            for trace in traces:
                lengths = {len(trace[key]) for key in ("x", "y", "text") if isinstance(trace.get(key), list)}
                assert len(lengths) == 1 or trace["type"] == "heatmap"


def test_what_the_report_says_is_what_was_found(run: Path) -> None:
    collected = collect([run])
    (group,) = collected.evaluated
    report = build_report(collected, "all")
    main = next(section for section in report.sections if section.title == "Scores").blocks[0]
    assert isinstance(main, Table)
    shown = {row[0].text: [cell.text for cell in row[1:]] for row in main.cells()}
    for place, model in enumerate(group.models):
        for score in model.main():
            assert shown[score.task][place] == f"{score.value:.4f}"
    (browser,) = [block for section in report.sections for block in section.blocks if isinstance(block, Queries)]
    values = {(score.task): score.per_query for score in group.models[1].main()}
    before = {(score.task): score.per_query for score in group.models[0].main()}
    assert browser.rows
    for row in browser.rows:
        assert row["after"] == pytest.approx(values[row["task"]][row["id"]], abs=1e-4)
        assert row["before"] == pytest.approx(before[row["task"]][row["id"]], abs=1e-4)
        if isinstance(row["wanted"], list):
            for document, _, rank in row["wanted"]:
                assert document in browser.documents[row["task"]]
                assert row["after"] == pytest.approx(1 / np.log2(1 + rank) if rank and rank <= 10 else 0, abs=1e-4)
    # correlations are tested by swapping what the models said
    assert {one.task for one in group.changes["<b>other</b>"]} == {"animals", "kinds", "alike"}


def test_every_kind_of_file(cli: Cli, run: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    names = [tmp_path / f"report.{end}" for end in ("md", "json", "png", "pdf", "parquet")]
    cli("report", run, *(part for name in names for part in ("-o", name)))
    text = names[0].read_text()
    assert "## Scores" in text
    assert "| animals (target, nDCG@10) |" in text
    assert "&lt;b>other&lt;/b>" in text
    content = json.loads(names[1].read_text())
    assert {one["command"] for one in content["runs"]} == {"evaluate", "train", "merge", "inspect"}
    assert content["evaluations"][0]["baseline"] == "base"
    assert names[2].read_bytes().startswith(b"\x89PNG")
    assert names[3].read_bytes().startswith(b"%PDF")
    table = parquet.read_table(names[4])
    assert {"x", "y", "text", "model", "task", "group"} <= set(table.column_names)
    assert set(table.column("model").to_pylist()) == {"base", "<b>other</b>"}


def test_bad_words(cli: Cli, run: Path, tmp_path: Path) -> None:
    wrong = cli("report", run, "-o", tmp_path / "r.htm", code=2).stderr
    assert ".htm: the name of a report has another ending. Did you mean '.html'?" in wrong
    (tmp_path / "there.html").write_text("mine")
    assert "exists already" in cli("report", run, "-o", tmp_path / "there.html", code=2).stderr
    assert (tmp_path / "there.html").read_text() == "mine"
    result = cli("report", run, "-o", tmp_path / "r.html", "--baseline", "bas", code=2)
    assert "no model 'bas' was evaluated. Did you mean 'base'?" in result.stderr
    (tmp_path / "empty").mkdir()
    assert "holds no run of bge-cocktail" in cli("report", tmp_path / "empty", "-o", tmp_path / "r.html", code=1).stderr
    assert "no such folder" in cli("report", tmp_path / "none", "-o", tmp_path / "r.html", code=1).stderr
    assert list(tmp_path.glob("*r.html*")) == []


def test_what_is_going_on_is_shown_and_said(cli: Cli, tmp_path: Path) -> None:
    state = {"log_history": [{"step": 1, "loss": 2.0, "epoch": 0.1}, {"step": 2, "eval_dev_nDCG@10": 0.5}]}
    checkpoint = tmp_path / "tuned.unfinished/checkpoints/checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    time.sleep(0.01)
    broken = checkpoint.with_name("checkpoint-3")  # it is being written
    broken.mkdir()
    (broken / "trainer_state.json").write_text('{"log_hist')
    (tmp_path / "tuned.unfinished/run.json").write_text('{"command": "training", "key": "k", "unfinished": true}')
    result = cli("report", tmp_path / "tuned", "-o", tmp_path / "r.md")
    assert "1 of 1 runs is not finished." in result.stdout
    text = (tmp_path / "r.md").read_text()
    assert "| tuned.unfinished | training | step 2 |" in text
    (tmp_path / "tuned.unfinished/bad_batch.jsonl").write_text("{}\n")
    cli("report", tmp_path / "tuned", "-o", tmp_path / "r.html")
    assert "failed: its loss was no number" in (tmp_path / "r.html").read_text()
    plots = [block for one in build_report(collect([tmp_path / "tuned"]), "").sections for block in one.blocks]
    (curves,) = [block for block in plots if isinstance(block, Plot)]
    assert curves.figures["dev nDCG@10"]["data"][0]["y"] == [0.5]


def test_a_run_is_followed_until_it_ends(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going = tmp_path / "tuned.unfinished"
    (going / "checkpoints").mkdir(parents=True)
    (going / "run.json").write_text('{"command": "training", "key": "k", "unfinished": true}')
    page = tmp_path / "r.html"
    seen: list[str] = []

    def sleep(seconds: float) -> None:
        seen.append(page.read_text())
        assert seconds == 5
        if len(seen) == 2:
            going.rename(tmp_path / "tuned")
            (tmp_path / "tuned/run.json").write_text('{"command": "training", "key": "k"}')

    monkeypatch.setattr("bge_cocktail.cli.report.time.sleep", sleep)
    result = cli("report", tmp_path / "tuned", "-o", page, "--follow", 5)
    assert len(seen) == 2
    assert all('data-reload="5"' in text for text in seen)
    assert "data-reload=" not in page.read_text()
    assert result.stdout.count("not finished") == 1  # said once, not every five seconds


def test_evaluations_of_other_data_stand_apart(cli: Cli, tiny: Path, labelled: Path, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kinds"
    rows = [json.loads(line) for line in (labelled / "train.jsonl").read_text().splitlines()]
    write_lines(folder / "train.jsonl", rows)
    write_lines(folder / "test.jsonl", rows[::3])
    cli("evaluate", f"base={tiny}", "--general", folder, "-o", tmp_path / "other")
    assert len(collect([run, tmp_path / "other"]).evaluated) == 2
    assert len(collect([run, run / "scores"]).evaluated) == 1  # the same folder is one


def test_maps_are_principal_components_turned_alike() -> None:
    from sklearn.decomposition import PCA

    generator = np.random.default_rng(0)
    rows = (generator.standard_normal((40, 6)) * [5, 3, 1, 1, 1, 1]).astype(np.float32)
    plane = project(rows, "pca", 0)
    theirs = PCA(2).fit_transform(rows)
    theirs /= np.sqrt((theirs**2).sum(axis=1).mean())
    assert np.allclose(np.abs(plane), np.abs(theirs), atol=1e-4)
    turned = rows @ np.linalg.qr(generator.standard_normal((6, 6)))[0].astype(np.float32)
    assert np.allclose(project(turned, "pca", 0, plane), plane, atol=1e-3)
    assert project(rows[:1], "pca", 0).shape == (1, 2)
    assert np.isfinite(project(np.ones((4, 3), np.float32), "pca", 0)).all()


def test_twenty_runs_in_ten_seconds_and_eight_megabytes(run: Path, tmp_path: Path) -> None:
    from conftest import slowness
    from pyarrow import compute, parquet

    names = [f"model {number}" for number in range(20)]
    for number, name in enumerate(names):
        copy = tmp_path / f"run-{number}"
        copy.mkdir()
        for file in (run / "scores").iterdir():
            if file.suffix == ".parquet":
                table = parquet.read_table(file)
                other = compute.if_else(compute.equal(table["model"], "base"), f"base {number}", name)
                parquet.write_table(table.set_column(0, "model", other), copy / file.name)
                continue
            text = file.read_text().replace("<b>other</b>", name).replace('"base"', f'"base {number}"')
            (copy / file.name).write_text(text)
    started = time.process_time()
    from bge_cocktail.report.build import html_page

    collected = collect([tmp_path / f"run-{number}" for number in range(20)])
    page = html_page(build_report(collected, "twenty"))
    assert time.process_time() - started < 10 * slowness()
    assert len(page.encode()) < 8e6
    assert len(collected.evaluated[0].models) == 40


def test_sections_have_their_place() -> None:
    orders = [report_sections.trait(name, "order") for name in report_sections]
    assert all(isinstance(order, int) for order in orders)
    assert len(set(orders)) == len(orders)


def test_a_search_has_its_table_and_its_picture(tmp_path: Path) -> None:
    trials = [
        {"trial": number, "learning_rate": 1e-5 * number, "dev": None if number == 3 else 0.5 + number / 100,
         "state": "pruned" if number == 3 else "complete"}
        for number in (1, 2, 3)
    ]  # fmt: skip
    found = {"trials": trials, "importance": {"learning_rate": 1.0}, "best": 2}
    run = {"command": "train", "final_loss": 0.1, "steps": 3, "search": found}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "curves.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (training,) = [one for one in build_report(collect([tmp_path]), "").sections if one.title == "Training"]
    plot = next(block for block in training.blocks if isinstance(block, Plot) and "search" in block.title)
    assert plot.figures["trials"]["data"][1]["y"] == [0.51, 0.52]
    assert plot.figures["importance"]["data"][0]["x"] == [1.0]
    table = next(block for block in training.blocks if isinstance(block, Table) and block.title == "Trials")
    assert [row[0].text for row in table.cells()] == ["2", "1", "3"]


def test_a_folder_is_a_folder_however_it_is_named(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    cli("report", ".", "-o", tmp_path / "r.md")
    assert "| run/scores | evaluate |" in (tmp_path / "r.md").read_text()


def test_steps_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name / "tuned").mkdir(parents=True)
        (tmp_path / name / "tuned/run.json").write_text('{"command": "train", "final_loss": 0.1, "seconds": null}')
        (tmp_path / name / "tuned/curves.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.0}\n')
    collected = collect([tmp_path / "x/tuned", tmp_path / "y/tuned"])
    assert [step.name for step in collected.steps] == ["x/tuned", "y/tuned"]
    report = build_report(collected, "")
    (curves,) = [block for section in report.sections for block in section.blocks if isinstance(block, Plot)]
    assert len(curves.figures["loss"]["data"]) == 2
    from bge_cocktail.report.build import html_page

    data = re.search(r'id="report-data">(.*?)</script>', html_page(report), re.DOTALL)
    assert data is not None
    json.loads(data[1], parse_constant=pytest.fail)  # no NaN, which no browser reads


def test_means_are_over_what_all_were_judged_on(
    cli: Cli, tiny: Path, beir: Path, labelled: Path, scored: Path, tmp_path: Path
) -> None:
    cli("evaluate", f"one={tiny}", "--general", labelled, "--general", scored, "--map-texts", 3, "-o", tmp_path / "a")
    cli("evaluate", f"other={tiny}", "--general", labelled, "--map-texts", 4, "-o", tmp_path / "b")
    collected = collect([tmp_path / "a", tmp_path / "b"])
    (group,) = collected.evaluated
    kinds = next(score.value for score in group.models[0].main() if score.task == "kinds")
    assert [group.mean(model, "general") for model in group.models] == [kinds, kinds]
    report = build_report(collected, "")  # other texts were drawn for their maps: one has none
    said = [block.text for section in report.sections for block in section.blocks if hasattr(block, "text")]
    assert any("Without a map" in text and "kinds under other" in text for text in said)


def test_candidates_of_each_query_are_its_own(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(6)
    rows: list[dict[str, object]] = [
        {"query": " ".join(generator.choice(WORDS, 3)), "positive": [f"{WORDS[n]} {n}"],
         "negative": [" ".join(generator.choice(WORDS, 3)) for _ in range(4)]}
        for n in range(20)
    ]  # fmt: skip
    write_lines(tmp_path / "ranked/val.jsonl", rows)
    write_lines(tmp_path / "ranked/test.jsonl", rows[:1])
    other = perturb(tiny, tmp_path / "other", 3, scale=0.5)
    cli("evaluate", f"a={tiny}", f"b={other}", "--target", tmp_path / "ranked", "--split", "val", "-o", tmp_path / "e")
    report = build_report(collect([tmp_path / "e"]), "")
    (browser,) = [block for section in report.sections for block in section.blocks if isinstance(block, Queries)]
    for row in browser.rows:
        line = rows[int(row["id"].split(":")[1]) - 1]
        assert browser.documents["ranked"][row["wanted"][0][0]] == line["positive"][0]  # type: ignore[index]


def test_a_broken_evaluation_is_left_out_and_said(cli: Cli, run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run / "scores", tmp_path / "whole")
    shutil.copytree(run / "scores", tmp_path / "broken")
    (tmp_path / "broken/scores.json").write_text("{")
    result = cli("report", tmp_path, "-o", tmp_path / "r.md")
    assert "broken is left out" in result.stderr
    assert "## Scores" in (tmp_path / "r.md").read_text()
