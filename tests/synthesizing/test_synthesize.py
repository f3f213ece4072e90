"""Queries from documents alone: what each writer writes, what each filter leaves out, and that nothing leaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from conftest import ROOT, leftovers, write_lines
from hypothesis import given
from hypothesis import strategies as st

from bge_cocktail.core.errors import CocktailError, DataError
from bge_cocktail.data.beir import read_beir
from bge_cocktail.data.record_files import read_records
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import SynthesizeOptions
from bge_cocktail.synthesizing.filters import Corpus, _longest_run, query_filters
from bge_cocktail.synthesizing.passages import Passage, cover, read_passages, sentences
from bge_cocktail.synthesizing.synthesize import split_of_documents, synthesize
from bge_cocktail.synthesizing.writers import WordStatistics, WrittenQuery, query_writers, write_queries

Cli = Callable[..., Result]
HANDBOOK = ROOT / "data/handbook"


def written_by(name: str, text: str, title: str = "") -> list[str]:
    passage = Passage("d1", "d1", title, text)
    words = WordStatistics([passage.whole, "the boat waits", "a train stops in the town"])
    return [one if isinstance(one, str) else one[0] for one in query_writers[name](passage, words)]


def queries(*texts: str, passages: tuple[int, ...] = ()) -> list[WrittenQuery]:
    return [WrittenQuery(text, row, "question") for text, row in zip(texts, passages or range(len(texts)), strict=True)]


@pytest.mark.parametrize(
    ("writer", "text", "expected"),
    [
        ("definition", "A brell is a kiln of brick. It stands in hall 3.", ["what is brell"]),
        ("definition", "Hookworms are the cause of much harm. They are a pest.", ["what are hookworms"]),
        ("definition", "It is a kiln. This is the end.", []),
        ("definition", "观星台是山顶的一座建筑。它是圆的。", ["什么是观星台"]),
        ("question", "To light the kiln, open the red valve.", ["how do I light the kiln"]),
        ("question", "If the belt stops, press the button.", ["what to do if the belt stops"]),
        ("question", "Ambrine is used for polishing.", ["what is ambrine used for"]),
        ("question", "The jennow consists of four drums.", ["what does the jennow consist of"]),
        ("question", "Firing takes about nine hours.", ["how long does firing take"]),
        ("question", "The office is in Leeds.", ["where is the office"]),
        ("question", "Nobody enters the hall because the floor is hot.", ["why nobody enters the hall"]),
        ("question", "如果停电，请留在原地。", ["停电怎么办"]),
        ("question", "要借望远镜，先到服务台登记。", ["怎么借望远镜"]),
        (
            "heading",
            "# Lighting the kiln\n\nOpen the valve.\n\n## Safety ##\nMind the belt.",
            ["Lighting the kiln", "Safety"],
        ),
        ("heading", "Opening hours\nWe open at nine.", ["Opening hours"]),
        ("heading", "We open at nine.\nWe close at ten.", []),
    ],
)
def test_what_writers_write(writer: str, text: str, expected: list[str]) -> None:
    assert written_by(writer, text) == expected


def test_keywords_are_the_rarest_phrases_of_a_passage() -> None:
    first, *_ = written_by("keywords", "The boat waits in the quarrel shed, where the ambrine barrels are.")
    assert first == "ambrine barrels quarrel shed"
    assert all(
        2 <= len(part) <= 8 for part in written_by("keywords", "观星台的开放时间是晚上，雨天不开放。")[0].split()
    )


def test_a_crop_is_answered_by_the_rest() -> None:
    text = "The boat waits. Ambrine barrels are polished daily. The train stops."
    passage = Passage("d1", "d1", "Shed", text)
    query, rest = next(iter(query_writers["crop"](passage, WordStatistics([text]))))
    assert query in text
    assert query not in rest
    assert rest.startswith("Shed ")
    assert written_by("crop", "One sentence. Another sentence.") == []


def test_queries_are_taken_from_writers_in_turn_and_each_once() -> None:
    text = "A brell is a kiln. To light the kiln, open the red valve. The office is in Leeds. Mind the quarrel belt."
    names = ["title", "definition", "question", "keywords", "crop"]
    passages = [Passage("d1", "d1", "The brell", text)]
    words = WordStatistics([text])
    found = list(write_queries(passages, [0], names, 6, words))
    assert [query.writer for query in found] == [*names, "question"]
    assert len({query.text for query in found}) == 6
    assert list(write_queries(passages, [0], names, 2, words)) == found[:2]


@given(st.lists(st.text("abc .!?\n。", min_size=1, max_size=40), min_size=1, max_size=8).map("".join))
def test_sentences_hold_all_letters_in_order(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_long_documents_are_cut_at_sentences(tmp_path: Path) -> None:
    text = " ".join(f"Sentence number {number} of the document says little." for number in range(40))
    path = write_lines(
        tmp_path / "corpus.jsonl", [{"_id": "a", "title": "T", "text": text}, {"_id": "b", "text": "Short."}]
    )
    passages, counts = read_passages(path, 300)
    assert counts["cut into passages"] == 1
    assert [one.id for one in passages][-2:] == [f"a#{len(passages) - 1}", "b"]
    assert all(len(one.text) <= 300 and one.text.endswith(".") for one in passages)
    assert " ".join(one.text for one in passages if one.document == "a") == text
    (whole, _), _ = read_passages(path, 10_000)
    assert whole == Passage("a", "a", "T", text)


def test_what_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.md").write_text("# A\nText of a.")
    (folder / "deep/b.TXT").write_text("Text of b.")
    (folder / "c.pdf").write_bytes(b"%PDF")
    passages, counts = read_passages(folder, 500)
    assert [one.id for one in passages] == ["a.md", "deep/b.TXT"]
    assert counts["documents"] == 2
    rows = [{"text": "One."}, {"text": " "}, {"text": "One."}, {"text": "Two."}]
    passages, counts = read_passages(write_lines(tmp_path / "rows.jsonl", rows), 500)
    assert [one.text for one in passages] == ["One.", "Two."]
    assert (counts["empty"], counts["the same text again"]) == (1, 1)
    (tmp_path / "rows.csv").write_text("id,title,text\nx7,A,One.\n,,Two.\n")
    passages, _ = read_passages(tmp_path / "rows.csv", 500)
    assert passages == [Passage("x7", "x7", "A", "One."), Passage("d2", "d2", "", "Two.")]
    (folder / "a.md").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"a\.md: not UTF-8 at byte 0"):
        read_passages(folder, 500)
    with pytest.raises(DataError, match="holds neither corpus"):
        read_passages(tmp_path / "deep", 500) if (tmp_path / "deep").mkdir() is None else None
    with pytest.raises(DataError, match="no document with a text"):
        read_passages(write_lines(tmp_path / "empty.jsonl", [{"text": ""}]), 500)
    twice = [{"_id": "a", "text": "One."}, {"_id": "a", "text": "Two."}]
    with pytest.raises(DataError, match=r"twice\.jsonl:2: the id 'a' stands here a second time"):
        read_passages(write_lines(tmp_path / "twice.jsonl", twice), 500)


def test_chosen_passages_cover_the_corpus() -> None:
    """Of three heaps of vectors, one passage each, wherever most passages lie."""
    heaps = np.eye(3, 8, dtype=np.float32)
    rows = [0] * 50 + [1] * 5 + [2] * 5

    class Encoder:
        def encode_document(self, texts: list[str]) -> np.ndarray:
            noise = np.random.default_rng(1).normal(0, 0.01, (len(texts), 8))
            return (heaps[rows] + noise).astype(np.float32)

    passages = [Passage(str(row), str(row), "", f"text {row}") for row in range(len(rows))]
    chosen = cover(passages, Encoder(), 3, seed=1)  # type: ignore[arg-type]
    assert sorted(rows[row] for row in chosen) == [0, 1, 2]
    assert cover(passages, Encoder(), 60, seed=1) == list(range(60))  # type: ignore[arg-type]
    assert len(set(cover(passages, Encoder(), 20, seed=1))) == 20  # type: ignore[arg-type]


class Reading:
    """Scores a pair by the words that both have."""

    def __call__(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        return np.array([len(set(one.split()) & set(other.split())) for one, other in pairs], float)


def stays(name: str, asked: list[WrittenQuery], texts: list[str], tiny: Path, **options: object) -> list[bool]:
    passages = [Passage(str(row), str(row), "", text) for row, text in enumerate(texts)]
    corpus = Corpus(passages, CachedEncoder(tiny), Reading() if name == "answered" else None)  # type: ignore[arg-type]
    mask = query_filters[name](asked, corpus, SynthesizeOptions(**options))  # type: ignore[arg-type]
    assert mask is not None
    return mask.tolist()


def test_what_filters_leave_out(tiny: Path) -> None:
    texts = ["the boat waits in the town", "a train stops beside the car", "观星台的开放时间是晚上七点"]
    assert stays("short", queries("boat", "train stops", "开放"), texts, tiny) == [False, True, False]
    asked = queries("the boat", "a train", "The  Boat", "a train", passages=(0, 1, 1, 1))
    assert stays("repeated", asked, texts, tiny) == [False, True, False, False]
    asked = queries(
        "where does the long boat wait", "where does the long boat waits", "which train", passages=(0, 0, 1)
    )
    assert stays("near", asked, texts, tiny) == [True, False, True]
    asked = queries("which boat", "哪班火车", "开放时间")
    assert stays("language", asked, texts, tiny) == [True, False, True]
    asked = queries("boat waits in the town", "train beside car stops there now", passages=(0, 1))
    assert stays("copied", asked, texts, tiny) == [False, True]
    cropped = [WrittenQuery("boat waits in the town", 0, "crop", positive="the rest")]
    assert stays("copied", cropped, texts, tiny) == [True]
    asked = queries("the boat waits", "the boat waits", passages=(0, 1))
    assert stays("answered", asked, texts, tiny) == [True, False]


def test_the_round_trip_joins_embeddings_and_words(tiny: Path) -> None:
    """By hand: each list's ranks, joined as 1 / (60 + rank)."""
    generator = np.random.default_rng(0)
    from conftest import WORDS

    texts = [" ".join(generator.choice(WORDS, 8)) for _ in range(40)]
    asked = [" ".join(generator.choice(WORDS, 3)) for _ in range(30)]
    encoder = CachedEncoder(tiny)
    passages = [Passage(str(row), str(row), "", text) for row, text in enumerate(texts)]
    found = Corpus(passages, encoder).find(asked, 5)
    from bge_cocktail.search.bm25 import top_by_words

    near = np.argsort(-(encoder.encode_query(asked) @ encoder.encode_document(texts).T), axis=1, kind="stable")
    by_words = top_by_words(asked, texts, 40).rows
    for place, rows in enumerate(found):
        scores = np.zeros(40)
        for ranking in (near[place], [row for row in by_words[place] if row >= 0]):
            for rank, row in enumerate(ranking, start=1):
                scores[row] += 1 / (60 + rank)
        best = sorted(range(40), key=lambda row: -scores[row])
        assert scores[rows[0]] == pytest.approx(scores[best[0]])
        assert sorted(scores[rows]) == pytest.approx(sorted(scores[best[:5]]))
    row = found[0][0]
    kept = query_filters["found"](queries(asked[0], passages=(row,)), Corpus(passages, encoder), SynthesizeOptions())
    assert kept is not None
    assert kept.tolist() == [True]
    farthest = min(range(40), key=lambda one: found[0].index(one) if one in found[0] else -1)
    lost = query_filters["found"](
        queries(asked[0], passages=(farthest,)), Corpus(passages, encoder), SynthesizeOptions(found_in=5)
    )
    assert lost is not None
    assert lost.tolist() == [False]


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_the_longest_run(words: list[str], text: list[str]) -> None:
    runs = [
        stop - start
        for start in range(len(words))
        for stop in range(start + 1, len(words) + 1)
        if any(text[at : at + stop - start] == words[start:stop] for at in range(len(text)))
    ]
    assert _longest_run(words, text) == max(runs, default=0)


@given(
    st.lists(st.text("abcdef", min_size=1, max_size=6), min_size=1, max_size=30, unique=True),
    st.text("xyz", min_size=1),
)
def test_a_new_document_moves_no_old_one(texts: list[str], new: str) -> None:
    passages = [Passage(text, text, "", text) for text in texts]
    before = split_of_documents(passages, SynthesizeOptions(), with_test=True)
    after = split_of_documents([*passages, Passage(new, new, "", new)], SynthesizeOptions(), with_test=True)
    assert {document: after[document] for document in before} == before
    assert "test" not in split_of_documents(passages, SynthesizeOptions(), with_test=False).values()


def test_a_corpus_becomes_records_and_a_task(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    result = cli("synthesize", HANDBOOK, "-m", tiny, "-o", tmp_path / "out", "--found-in", 60, "--format", "json")
    content = json.loads(result.stdout)
    run = json.loads((tmp_path / "out/run.json").read_text())
    for name in ("documents", "written", "left_out", "kept"):
        assert run[name] == content[name]
    # every query is kept or left out for one reason
    kept = {split: sum(counts.values()) for split, counts in content["kept"].items()}
    left = sum(sum(counts.values()) for counts in content["left_out"].values())
    assert sum(content["written"].values()) == sum(kept.values()) + left
    assert set(content["left_out"]) == {"short", "repeated", "near", "language", "copied", "found", "for train only"}
    assert min(kept.values()) > 5

    corpus = read_beir(HANDBOOK).corpus
    by_text = {text: name for name, text in corpus.items()}
    parts = {split: read_records(tmp_path / "out", split=split) for split in ("train", "dev", "test")}
    assert {split: len(records) for split, records in parts.items()} == kept
    judged = {split: read_beir(tmp_path / "out/beir", split) for split in ("dev", "test")}
    assert judged["test"].corpus == corpus
    documents = {
        split: {by_text[text] for record in records for text in record.pos if text in by_text}
        for split, records in parts.items()
    }
    for split, data in judged.items():
        assert sorted(data.queries.values()) == sorted(record.query for record in parts[split])
        assert {name for grades in data.qrels.values() for name in grades} == documents[split]
        assert not {record.extra["writer"] for record in parts[split]} & {"title", "crop"}
    for one, other in pairwise([*documents.values(), documents["train"]]):
        assert not one & other
    assert {record.extra["writer"] for record in parts["train"]} > {"crop", "keywords"}

    again = cli("synthesize", HANDBOOK, "-m", tiny, "-o", tmp_path / "again", "--found-in", 60)
    assert "next:    bge-cocktail mine" in again.stdout
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl", "corpus.jsonl", "beir/queries.jsonl", "beir/qrels/dev.tsv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert "exists" in cli("synthesize", HANDBOOK, "-m", tiny, "-o", tmp_path / "out", code=2).stderr
    # what was made can be mined, and is a task
    cli("mine", tmp_path / "out", "-m", tiny, "--negatives", 1, "--relative-margin", "none", "-o", tmp_path / "mined")
    cli("evaluate", tiny, "--target", tmp_path / "out", "--general", tmp_path / "out/beir", "-o", tmp_path / "scores")
    scores = json.loads((tmp_path / "scores/scores.json").read_text())["models"][0]["scores"]
    one, other = [score["value"] for score in scores if score["metric"] == "nDCG@10"]
    assert one == pytest.approx(other, abs=1e-6)


def test_real_queries_are_the_test_set_and_their_documents_are_not_trained_on(tiny: Path, tmp_path: Path) -> None:
    real = read_beir(HANDBOOK, "test")
    rows: list[dict[str, object]] = [
        {"query": text, "pos": [real.corpus[name] for name in real.qrels[query]], "neg": []}
        for query, text in list(real.queries.items())[:20]
    ]
    path = write_lines(tmp_path / "real.jsonl", rows)
    options = SynthesizeOptions(test_queries=path, filters=["repeated"])
    made = synthesize(HANDBOOK, tiny, tmp_path / "out", options)
    assert made.kept["test"] == {"real": 20}
    assert made.documents["with queries of their own in test"] > 5
    test = read_records(tmp_path / "out", split="test")
    assert [record.query for record in test] == [row["query"] for row in rows]
    assert [list(record.pos) for record in test] == [row["pos"] for row in rows]
    answers = {text for record in test for text in record.pos}
    for split in ("train", "dev"):
        for record in read_records(tmp_path / "out", split=split):
            assert not answers & set(record.pos)
            # a title and a sentence that were taken out of a document aren't those of an answer either
            if record.extra["writer"] in ("title", "crop"):
                assert not any(record.query in text for text in answers)
    assert list(read_beir(tmp_path / "out/beir").queries.values()) == [row["query"] for row in rows]
    write_lines(path, [*rows, {"query": "who?", "pos": ["a text of elsewhere"], "neg": []}])
    with pytest.raises(DataError, match=r"real\.jsonl: no document of 'who\?' is in the corpus"):
        synthesize(HANDBOOK, tiny, tmp_path / "other", options)
    assert leftovers(tmp_path) == []


def test_bad_input(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    alike = write_lines(tmp_path / "alike.jsonl", [{"text": f"The boat waits.{' ' * number}"} for number in range(9)])
    said = cli("synthesize", alike, "-m", tiny, "-o", tmp_path / "out", code=1).stderr
    assert "no query is left to train on" in said
    assert (
        "Did you mean 'question'?"
        in cli("synthesize", alike, "-m", tiny, "--writers", "questions", "-o", tmp_path / "out", code=2).stderr
    )
    assert (
        "Did you mean 'found'?"
        in cli("synthesize", alike, "-m", tiny, "--filters", "fond", "-o", tmp_path / "out", code=2).stderr
    )
    said = cli(
        "synthesize", alike, "-m", tiny, "--filters", "short", "--reranker", "r", "-o", tmp_path / "out", code=2
    ).stderr
    assert "--reranker does nothing without 'answered'" in said
    assert "nowhere" in cli("synthesize", tmp_path / "nowhere", "-m", tiny, "-o", tmp_path / "out", code=1).stderr
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "out").exists()
    with pytest.raises(CocktailError, match="no query is left"):
        synthesize(alike, tiny, tmp_path / "out")
