"""Records: round trips, and what is wrong is said with its place."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from conftest import write_lines
from hypothesis import given
from hypothesis import strategies as st

from bge_cocktail.core.errors import DataError
from bge_cocktail.data.beir import read_beir, read_corpus
from bge_cocktail.data.labelled import DataFolder, read_labelled
from bge_cocktail.data.record import Record, normalise, parse_record
from bge_cocktail.data.record_files import read_records, write_records
from bge_cocktail.data.retrieval import retrieval_from_records, sample_retrieval

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
finite = st.floats(-1e6, 1e6)


@st.composite
def some_records(draw: st.DrawFn) -> Record:
    pos = draw(st.lists(texts, min_size=1, max_size=3))
    positives = {normalise(text) for text in pos}
    neg = draw(st.lists(texts.filter(lambda text: normalise(text) not in positives), max_size=3))
    scored = draw(st.booleans())
    return Record(
        query=draw(texts),
        pos=tuple(pos),
        neg=tuple(neg),
        pos_scores=tuple(draw(st.lists(finite, min_size=len(pos), max_size=len(pos)))) if scored else (),
        neg_scores=tuple(draw(st.lists(finite, min_size=len(neg), max_size=len(neg)))) if scored else (),
        prompt=draw(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=10)),
        weight=draw(st.floats(0, 100)),
        task=draw(st.none() | texts),
        id=draw(st.none() | texts),
        extra=draw(st.dictionaries(st.sampled_from(["type", "category"]), texts)),
    )


@given(st.lists(some_records(), min_size=1, max_size=5))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> None:
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    write_records(records, path)
    assert read_records(path) == records


@given(texts)
def test_normalise_is_idempotent_and_blind_to_spaces_and_case(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
    assert normalise(f"  {text}\t") == normalise(text)


def test_line_separators_inside_texts_survive(tmp_path: Path) -> None:
    record = Record("a\u2028b\u0085c", ("x\u2029y",))
    write_records([record], tmp_path / "r.jsonl")
    assert read_records(tmp_path / "r.jsonl") == [record]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query": "q", "pos": ["p"]', "r.jsonl:2: broken JSON at column"),
        ('{"query": "q", "pos": []}', "r.jsonl:2: 'pos' is empty; every record needs a positive"),
        ('{"query": "q"}', "r.jsonl:2: 'pos' is missing"),
        ('{"querry": "q", "pos": ["p"]}', "r.jsonl:2: 'query' is missing (is it 'querry'?)"),
        ('{"query": "  ", "pos": ["p"]}', "r.jsonl:2: 'query' is empty"),
        ('{"query": "q", "pos": ["p", ""]}', r"r.jsonl:2: 'pos\[1\]' is empty"),
        ('{"query": "q", "pos": "p"}', "r.jsonl:2: 'pos' must be a list of texts, got 'p'"),
        ('{"query": 3, "pos": ["p"]}', "r.jsonl:2: 'query' must be a text, got 3"),
        ('{"query": "q", "pos": ["P  x"], "neg": ["p x"]}', "r.jsonl:2: a negative equals a positive"),
        ('{"query": "q", "pos": ["p"], "pos_scores": [1, 2]}', "r.jsonl:2: 'pos_scores' has 2 numbers for 1"),
        ('{"query": "q", "pos": ["p"], "weight": -1}', "r.jsonl:2: 'weight' must be a number of at least 0"),
        ('{"query": "q", "pos": ["p"], "weight": NaN}', "r.jsonl:2: broken JSON: NaN is not allowed"),
        (r'{"query": "q \ud83d", "pos": ["p"]}', "r.jsonl:2: 'query' holds half of a character"),
        ('["q", "p"]', "r.jsonl:2: expected a JSON object"),
    ],
)
def test_bad_lines_say_where(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"query": "fine", "pos": ["p"]}\n' + line + "\n")
    with pytest.raises(DataError, match=message.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?")):
        read_records(path)


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"query": "q", "pos": ["p"]}\n{"query": "\xff", "pos": ["p"]}\n')
    with pytest.raises(DataError, match="r.jsonl:2: not UTF-8 at byte 11"):
        read_records(path)


def test_byte_order_mark_and_blank_lines_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"query": "q", "pos": ["p"]}\r\n\r\n')
    assert read_records(path) == [Record("q", ("p",))]


def test_null_neg_is_no_neg() -> None:
    assert parse_record({"query": "q", "pos": ["p"], "neg": None}, "x:1").neg == ()


def test_beir_becomes_records_and_records_become_judged(beir: Path) -> None:
    judged = read_beir(beir, "train")
    records = read_records(beir)
    assert len(records) == len(judged.queries) == 50
    again = retrieval_from_records(records)
    assert {again.corpus[d] for grades in again.qrels.values() for d in grades} == set(judged.corpus.values())


def test_not_relevant_judgements_become_negatives(tmp_path: Path) -> None:
    write_lines(tmp_path / "corpus.jsonl", [{"_id": "1", "text": "one"}, {"_id": "2", "title": "T", "text": "two"}])
    write_lines(tmp_path / "queries.jsonl", [{"_id": "a", "text": "which"}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/train.tsv").write_text("a\t1\t2\na\t2\t0\n")
    assert read_records(tmp_path) == [Record("which", ("one",), ("T two",), id="a")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q0\td0", "test.tsv:1: expected query-id, corpus-id and score"),
        ("q0\tnone\t1", "none of the 1 judged documents is in corpus.jsonl"),
        ("none\td0\t1", "test.tsv:1: unknown query id 'none'"),
        ("q0\td0\thigh", "test.tsv:1: the score must be a whole number, got 'high'"),
        ("", "holds no judgements"),
    ],
)
def test_bad_qrels(beir: Path, tmp_path: Path, content: str, message: str) -> None:
    import shutil

    folder = shutil.copytree(beir, tmp_path / "copy")
    (folder / "qrels/test.tsv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_beir(folder)


def test_qrels_in_another_encoding(beir: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(beir, tmp_path / "copy")
    content = (folder / "qrels/test.tsv").read_bytes()
    (folder / "qrels/test.tsv").write_bytes(b"\xef\xbb\xbf" + content)
    assert read_beir(folder) == read_beir(beir)
    (folder / "qrels/test.tsv").write_bytes(content + "q0\tdé\t1\n".encode("latin-1"))
    with pytest.raises(DataError, match="test.tsv:27: not UTF-8 at byte 4 of the line"):
        read_beir(folder)


def test_missing_split_names_the_nearest(beir: Path) -> None:
    with pytest.raises(DataError, match="no such split. Did you mean 'train'"):
        read_beir(beir, "trian")


def test_duplicate_document_ids(tmp_path: Path) -> None:
    write_lines(tmp_path / "corpus.jsonl", [{"_id": "1", "text": "x"}, {"_id": "1", "text": "y"}])
    with pytest.raises(DataError, match=r"corpus.jsonl:2: the id '1' stands here a second time"):
        read_corpus(tmp_path)


def test_sample_keeps_the_relevant(beir: Path) -> None:
    judged = read_beir(beir, "test")
    small = sample_retrieval(judged, queries=5, documents=10, seed=1)
    assert len(small.queries) == 5
    assert len(small.corpus) == 10
    assert all(document in small.corpus for grades in small.qrels.values() for document in grades)
    assert small == sample_retrieval(judged, queries=5, documents=10, seed=1)
    assert sample_retrieval(judged, queries=500, documents=500, seed=1) == judged


@pytest.mark.parametrize("label", [None, "", 1.5, True])
def test_bad_labels(tmp_path: Path, label: object) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "x", "label": label}) + "\n")
    with pytest.raises(DataError, match=r"train.jsonl:1: 'label' must be"):
        read_labelled(DataFolder(tmp_path), "train")


@given(st.text(st.sampled_from("aB \t\n\x1c\x85éÉ  İß"), max_size=12) | st.text(max_size=8))
def test_normalise_is_the_plain_formula(text: str) -> None:
    folded = unicodedata.normalize("NFKC", text).casefold()
    assert normalise(text) == " ".join(unicodedata.normalize("NFKC", folded).split())


def test_normalise_is_idempotent_where_letters_fold_to_several() -> None:
    for text in ("ß\u0301", "\u03aa\u0301", "\u1f82\u0301", "\ufb03", "\u0130"):
        assert normalise(normalise(text)) == normalise(text)
    assert normalise("Ｆｕｌｌ　ＷＩＤＴＨ") == "full width"
