"""`--limit` wherever data are read: a first try on a part of them, spread over all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from bge_cocktail.data.beir import read_beir
from bge_cocktail.data.record_files import read_records, spread
from bge_cocktail.evaluating.evaluate import open_tasks

Cli = Callable[..., Result]


@given(st.integers(0, 50), st.none() | st.integers(1, 60))
def test_a_part_is_spread_over_all(count: int, limit: int | None) -> None:
    items = list(range(count))
    part = list(spread(items, limit))
    assert part == sorted(set(part))
    assert len(part) == min(count, limit or count)
    assert not part or limit == 1 or (part[0], part[-1]) == (0, count - 1)


def test_each_command_takes_a_part(cli: Cli, tiny: Path, beir: Path, labelled: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> dict[str, object]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        cli(*arguments, "-o", folder)
        return {"folder": folder, **json.loads((folder / "run.json").read_text())}

    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"text {row}", "label": str(row % 2)}) + "\n" for row in range(100)))
    prepared = run("prepare", texts, "--limit", 30, "--form", "labelled")
    written = [tmp_path / str(prepared["folder"]) / f"{name}.jsonl" for name in ("train", "dev", "test")]
    assert sum(len(path.read_text().splitlines()) for path in written) == 30
    assert run("mine", beir, "-m", tiny, "--limit", 7)["records"] == 7
    quick = ("-m", tiny, "--epochs", 1, "--patience", 0, "--batch-size", 4)
    assert run("train", beir, *quick, "--limit", 9)["records"] == 9
    classified = run("classify", "train", labelled, *quick, "--limit", 20)
    assert classified["texts"]["train"] == 20  # type: ignore[index]


@pytest.mark.parametrize("kind", ["", "clustering:"])
def test_fewer_queries_and_texts_are_judged(
    cli: Cli, tiny: Path, beir: Path, labelled: Path, tmp_path: Path, kind: str
) -> None:
    given = ("--target", beir, "--general", f"{kind}{labelled}", "--limit", 6)
    cli("evaluate", tiny, *given, "-o", tmp_path / "few")
    found = json.loads((tmp_path / "few/scores.json").read_text())["models"][0]["scores"]
    assert {score["count"] for score in found} == {6}
    assert json.loads((tmp_path / "few/run.json").read_text())["options"]["evaluate"]["limit"] == 6


def test_the_judged_documents_stay_in_a_smaller_corpus(beir: Path) -> None:
    whole = read_beir(beir, "test")
    part = open_tasks([beir], [], limit=2)[0].data("test")
    assert len(part.queries) == len(part.qrels) == 2
    assert all(part.qrels[name] == whole.qrels[name] for name in part.qrels)
    judged = {document for name in part.qrels for document in part.qrels[name]}
    assert judged & whole.corpus.keys() <= part.corpus.keys()
    assert len(part.corpus) <= len(judged) + 20
    assert len(read_records(beir)) > 9


def test_mteb_judges_whole_tasks(cli: Cli, tiny: Path, labelled: Path, tmp_path: Path) -> None:
    said = cli("evaluate", tiny, "--mteb", labelled, "--limit", 6, "-o", tmp_path / "out", code=2).output
    assert "--limit takes a part of our own tasks" in said
