"""What an honest user should know is said with its number, kept in run.json, and shown by the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from conftest import write_lines
from safetensors.numpy import load_file, save_file

from bge_cocktail.core.outputs import read_json
from bge_cocktail.core.runs import FINDINGS, begin_findings, describe_run, note_finding
from bge_cocktail.data.beir import read_beir
from bge_cocktail.models.prompts import set_prompts

Cli = Callable[..., Result]


def said(folder: Path) -> dict[str, str]:
    return {one["kind"]: one["said"] for one in read_json(folder / "run.json").get("findings", [])}


def test_a_finding_is_said_once_in_a_step(caplog: pytest.LogCaptureFixture) -> None:
    begin_findings()
    for _ in range(3):
        note_finding("few queries", "task", 1234)
    assert caplog.text.count("task: 1,234 queries are few") == 1
    assert len(describe_run("x", options={}, inputs={}, seconds=0)["findings"]) == 1
    begin_findings()
    assert "findings" not in describe_run("x", options={}, inputs={}, seconds=0)
    for kind in FINDINGS:
        note_finding(kind, "s", 1, 2, "w")


def test_what_a_retrieval_should_be_known_by(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(beir, tmp_path / "task")
    judged = read_beir(folder)
    query, grades = next(iter(judged.qrels.items()))
    relevant = next(document for document, grade in grades.items() if grade > 0)
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    rows += [{"_id": "asked", "text": judged.queries[query]}, {"_id": "twin", "text": judged.corpus[relevant].upper()}]
    write_lines(folder / "corpus.jsonl", rows)
    result = cli("evaluate", tiny, "--target", folder, "-o", tmp_path / "out")
    lines = said(tmp_path / "out")
    alike = sum(text == judged.queries[query] for text in judged.queries.values())
    assert lines["query is a document"].startswith(f"task: the text of {alike} of {len(judged.queries)} queries stands")
    same = sum(
        judged.corpus[name] == judged.corpus[relevant] for name in {d for own in judged.qrels.values() for d in own}
    )
    assert lines["unjudged duplicate"].startswith(f"task: {same} relevant documents stand in the corpus a second time")
    for line in lines.values():
        assert f"warning: {line}" in result.stderr
    cli("report", tmp_path / "out", "-o", tmp_path / "r.md")
    page = (tmp_path / "r.md").read_text()
    assert page.index("## Scores") < page.index("## To know")
    for line in lines.values():
        assert line.replace("_", "\\_")[:60] in page


def test_few_queries_are_said(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"query": f"the red fox {n}", "pos": [f"a blue car {n}"]} for n in range(29)]
    (tmp_path / "few").mkdir()
    write_lines(tmp_path / "few/test.jsonl", rows)
    cli("evaluate", tiny, "--target", tmp_path / "few", "-o", tmp_path / "out")
    assert "29 queries are few" in said(tmp_path / "out")["few queries"]
    (tmp_path / "enough").mkdir()
    write_lines(tmp_path / "enough/test.jsonl", [*rows, {"query": "what", "pos": ["that"]}])
    cli("evaluate", tiny, "--target", tmp_path / "enough", "-o", tmp_path / "more")
    assert "few queries" not in said(tmp_path / "more")


def test_a_probe_whose_test_repeats_train(cli: Cli, tiny: Path, labelled: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(labelled, tmp_path / "kinds")
    train = (folder / "train.jsonl").read_text().splitlines()
    (folder / "test.jsonl").write_text("\n".join([*train[:7], '{"text": "quite another", "label": "animal"}']) + "\n")
    cli("evaluate", tiny, "--target", folder, "-o", tmp_path / "out")
    assert said(tmp_path / "out")["test repeats train"].startswith("kinds: 7 of 8 judged texts stand in train too")


def test_models_that_tell_nothing_apart(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "flat")
    tensors = {name: np.zeros_like(value) for name, value in load_file(model / "model.safetensors").items()}
    for name, value in tensors.items():
        if "bias" in name:
            value += 0.1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    cli("evaluate", model, "--target", beir, "-o", tmp_path / "out")
    assert "texts have the same embedding" in said(tmp_path / "out")["equal embeddings"]


def test_texts_of_another_language(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    rows = [{"query": f"猫在哪里 {number}", "pos": [f"在桌子上面 {number}"]} for number in range(30)]
    (tmp_path / "zh").mkdir()
    write_lines(tmp_path / "zh/test.jsonl", rows)
    for name in ("out", "again"):  # the second time, embeddings come out of the cache
        cli("evaluate", tiny, "--target", tmp_path / "zh", "-o", tmp_path / name)
        assert "tokens are unknown to the tokenizer" in said(tmp_path / name)["unknown tokens"]


def test_a_declared_prompt_that_is_left_out(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "prompted")
    set_prompts(model, {"query": "what is "})
    cli("evaluate", model, "--target", beir, "--query-prompt", "none", "-o", tmp_path / "out")
    assert "it declares a prompt for queries, and an empty one was chosen" in said(tmp_path / "out")["prompt left out"]
    cli("evaluate", model, "--target", beir, "-o", tmp_path / "with")
    assert "prompt left out" not in said(tmp_path / "with")


def test_dev_that_repeats_train_and_queries_that_are_their_positives(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"query": f"the red fox {n}", "pos": [f"a blue car {n}"]} for n in range(40)]
    rows[0]["pos"] = [rows[0]["query"].upper()]
    write_lines(tmp_path / "train.jsonl", rows)
    write_lines(tmp_path / "dev.jsonl", [rows[1], rows[2], {"query": "what", "pos": ["that"]}])
    quick = ("--epochs", 1, "--batch-size", 8, "--negatives", 0)
    cli("train", tmp_path / "train.jsonl", "-m", tiny, "--dev", tmp_path / "dev.jsonl", *quick, "-o", tmp_path / "out")
    lines = said(tmp_path / "out")
    assert lines["dev repeats train"].startswith("dev: 2 of 3 queries stand in train too")
    assert lines["query is its positive"].startswith("train: 1 of 40 queries equal a positive of theirs")


def test_texts_that_are_cut(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    """Most documents are longer than what is read of them: known after `evaluate` and after `train`."""
    long = "a blue car and the red fox " * 20
    rows: list[dict[str, Any]] = [{"query": f"the fox {n}", "pos": [f"{long} {n}"]} for n in range(40)]
    (tmp_path / "task").mkdir()
    write_lines(tmp_path / "task/test.jsonl", rows)
    for name in ("out", "again"):  # the second time, embeddings come out of the cache
        cli("evaluate", tiny, "--target", tmp_path / "task", "-o", tmp_path / name)
        assert "40 of 40 documents are longer than 48 tokens and were cut there" in said(tmp_path / name)["texts cut"]
    # of a task, once for all models that read as far, and not again of the draw for the map
    cli(
        "evaluate",
        tiny,
        f"other={tiny}",
        "--target",
        tmp_path / "task",
        "--mteb",
        tmp_path / "task",
        "-o",
        tmp_path / "both",
    )
    found = [one["said"] for one in json.loads((tmp_path / "both/run.json").read_text())["findings"]]
    cut = [line for line in found if "were cut there" in line]
    assert [line.split(":")[0] for line in cut] == ["task", "mteb/task"]
    quick = ("--epochs", 0.2, "--batch-size", 8, "--negatives", 0)
    cli("train", tmp_path / "task/test.jsonl", "-m", tiny, *quick, "-o", tmp_path / "tuned")
    line = said(tmp_path / "tuned")["texts cut"]
    assert line == "train: 40 of 40 documents (a sample) are longer than 48 tokens and are cut there"


def test_a_classifier_no_better_than_chance(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [{"text": f"the red fox {n}", "label": str(generator.choice(["a", "b"]))} for n in range(120)]
    folder = tmp_path / "data"
    folder.mkdir()
    for split, part in {"train": rows[:60], "dev": rows[60:80], "test": rows[80:]}.items():
        write_lines(folder / f"{split}.jsonl", part)
    cli("classify", "train", folder, "-m", tiny, "--epochs", 1, "-o", tmp_path / "model")
    cli("classify", "evaluate", tmp_path / "model", folder, "-o", tmp_path / "out")
    assert "the interval of the accuracy reaches down to" in said(tmp_path / "out")["no better than chance"]
