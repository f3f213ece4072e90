"""Reading data of every form, and every way in which it can be broken."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from click.testing import Result
from conftest import write_lines

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.data.columns import PRESETS, parse_columns
from bge_cocktail.data.examples import (
    LabelledText,
    RecordExample,
    TextPair,
    example_from_json,
    records_from_labels,
    records_from_pairs,
)
from bge_cocktail.data.readers import BadRows
from bge_cocktail.data.record import Record
from bge_cocktail.data.record_files import read_records
from bge_cocktail.data.sources import read_examples

Cli = Callable[..., Result]
ROWS = [
    {"query": "what is red", "pos": ["an apple"], "neg": ["a plum", "a pear"]},
    {"query": "猫は？", "pos": ["はい"], "neg": []},
]


def examples(path: object, **how: Any) -> list[Any]:
    return list(read_examples(str(path), **how))


def records(path: object, **how: Any) -> list[Record]:
    return [example.record for example in examples(path, **how)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress], ids=["plain", "gz", "zst"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "bom"])
def test_json_lines_plain_and_compressed(tmp_path: Path, pack: Callable[[bytes], bytes], mark: bytes) -> None:
    # what compresses a file is told from its bytes, not from its name
    path = tmp_path / "data.jsonl"
    path.write_bytes(pack(mark + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()))
    assert [(one.query, list(one.pos), list(one.neg)) for one in records(path)] == [
        (row["query"], row["pos"], row["neg"]) for row in ROWS
    ]


def test_two_zstd_frames_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.zst"
    pack = zstd.compress
    path.write_bytes(b"".join(pack(json.dumps(row).encode() + b"\n") for row in ROWS))
    assert len(records(path)) == 2


def test_csv_tsv_and_parquet_give_the_same(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"q": 'says "hi", twice', "a": "line one\nline two", "n": "", "clicks": "3"},
        {"q": "b", "a": "c", "n": "d", "clicks": "1"},
    ]
    with (tmp_path / "d.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    columns = "query=q,pos=a,neg=n,weight=clicks"
    one, two = (records(tmp_path / name, columns=columns) for name in ("d.csv", "d.parquet"))
    assert one == two
    assert one[0] == Record('says "hi", twice', ("line one\nline two",), weight=3.0)
    assert one[1].neg == ("d",)
    flat = [{name: value.replace("\n", " ") for name, value in row.items()} for row in rows]
    lines = ["\t".join(row) for row in [list(flat[0]), *(list(row.values()) for row in flat)]]
    (tmp_path / "d.tsv").write_text("\n".join(lines) + "\n")
    assert records(tmp_path / "d.tsv", columns=columns)[0].query == 'says "hi", twice'


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"anchor": "a", "positive": "b"}, Record("a", ("b",))),
        ({"anchor": "a", "positive": "b", "negative": "c"}, Record("a", ("b",), ("c",))),
        ({"anchor": "a", "positive": "b", "negative_1": "c", "negative_2": "d"}, Record("a", ("b",), ("c", "d"))),
        ({"question": "a", "answer": "b", "user": 7}, Record("a", ("b",), extra={"user": 7})),
        ({"query": "a", "positive": ["b", "c"], "id": 5}, Record("a", ("b", "c"), id="5")),
        ({"query": "a", "pos": ["b"], "neg": ["c"], "type": "x"}, Record("a", ("b",), ("c",), extra={"type": "x"})),
    ],
)
def test_forms_of_records(tmp_path: Path, row: dict[str, Any], expected: Record) -> None:
    assert records(write_lines(tmp_path / "d.jsonl", [row])) == [expected]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "t", "label": 1}, LabelledText("t", "1")),
        ({"sentence": "t", "label": "x", "idx": 3}, LabelledText("t", "x", extra={"idx": 3})),
        ({"premise": "p", "hypothesis": "h", "label": "neutral"}, TextPair("p", "h", "neutral")),
        ({"sentence1": "p", "sentence2": "h", "score": 0.5}, TextPair("p", "h", score=0.5)),
    ],
)
def test_other_forms(tmp_path: Path, row: dict[str, Any], expected: object) -> None:
    assert examples(write_lines(tmp_path / "d.jsonl", [row])) == [expected]
    assert example_from_json(expected.to_json(), "here") == expected


def test_flagembedding_marks(tmp_path: Path) -> None:
    """FlagEmbedding says by a folder's name that a batch's other documents are no negatives."""
    path = write_lines(tmp_path / "classification-no_in_batch_neg" / "d.jsonl", ROWS)
    assert [one.in_batch_negatives for one in records(path)] == [False, False]
    assert records(path)[0].to_json()["in_batch_negatives"] is False
    assert RecordExample(records(path)[0]).changed(lambda text, role: text).record == records(path)[0]


def test_a_string_as_positive_is_one_text_not_characters(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"query": "q", "pos": "positive", "neg": "negative"}])
    assert records(path) == [Record("q", ("positive",), ("negative",))]


def test_labels_by_number_and_by_name(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": "good"}])
    names = {"0": "bad", "1": "good"}
    assert [one.label for one in examples(path, labels=names)] == ["bad", "good"]
    write_lines(path, [{"text": "a", "label": 0}, {"text": "b", "label": "god"}])
    with pytest.raises(DataError, match=r"d.jsonl:2: unknown label 'god' in 'label'. Did you mean 'good'\?"):
        examples(path, labels=names)


def test_ratings_become_pairs_with_scores(tmp_path: Path) -> None:
    rows = [
        {"q": "shoes", "d": "red shoes", "stars": "5", "n": 2},
        {"q": "Shoes", "d": "hats", "stars": "1", "n": 9},
        {"q": "shoes", "d": "boots", "stars": 3, "n": 1},
    ]
    path = write_lines(tmp_path / "d.jsonl", rows)
    pairs = examples(path, columns="query=q,pos=d,rating=stars,weight=n", scale=5)
    assert pairs[0] == TextPair("shoes", "red shoes", score=1.0, extra={"weight": 2.0})
    from collections import Counter

    dropped: Counter[str] = Counter()
    (record,) = records_from_pairs(pairs, positive_from=0.8, negative_below=0.4, dropped=dropped)
    assert record == Record("shoes", ("red shoes",), ("hats",), (1.0,), (0.2,), weight=2.0)
    assert dropped["neither a positive nor a negative, by label or score"] == 1


def test_inference_becomes_records() -> None:
    from collections import Counter

    dropped: Counter[str] = Counter()
    pairs = [
        TextPair("p", "yes", "entailment"),
        TextPair("P ", "no", "contradiction"),
        TextPair("p", "maybe", "neutral"),
        TextPair("other", "no", "contradiction"),
        TextPair("both", "x", "entailment"),
        TextPair("both", "X", "contradiction"),
    ]
    made = records_from_pairs(pairs, positive_from=0.8, negative_below=0.4, dropped=dropped)
    assert made == [Record("p", ("yes",), ("no",)), Record("both", ("x",))]
    assert sum(dropped.values()) == 4  # six pairs are two records and these


def test_labels_become_records() -> None:
    from collections import Counter

    dropped: Counter[str] = Counter()
    texts = [LabelledText(f"{label} {number}", label) for label in "abc" for number in range(4)]
    texts.append(LabelledText("single", "d"))
    made = records_from_labels(texts, negatives=5, seed=3, dropped=dropped)
    assert made == records_from_labels(texts, negatives=5, seed=3, dropped=Counter())
    assert len(made) == 12
    assert sum(dropped.values()) == 1
    for record in made:
        label = record.query[0]
        assert record.pos[0] != record.query
        assert record.pos[0].startswith(label)
        assert len(set(record.neg)) == 5
        assert not any(text.startswith(label) for text in record.neg)
        # evenly over the other labels, of which there are three
        counts = Counter(text[0] for text in record.neg if text != "single")
        assert max(counts.values()) - min(counts.values()) <= 1
        assert not record.in_batch_negatives


BROKEN = [
    (b'{"query": "a", "pos": ["b"]}\n{"query": "a", "po', r"d.jsonl:2: broken JSON .*the file ends in the middle"),
    (b'{"query": "a", "pos": ["b\xff"]}\n', r"d.jsonl:1: not UTF-8 at byte"),
    (b'{"query": "a", "pos": ["b"]}\n\x00\x00\n', r"d.jsonl:2: broken JSON"),
    (b'{"query": "a\x00", "pos": ["b"]}\n', r"d.jsonl:1: broken JSON .*control character"),
    (b'{"query": "", "pos": ["b"]}\n', r"d.jsonl:1: 'query' is empty"),
    (b'{"query": "a", "pos": []}\n', r"d.jsonl:1: 'pos' is empty"),
    (b'{"query": "a", "pos": ["b"], "weight": NaN}\n', r"d.jsonl:1: broken JSON: NaN is not allowed"),
    (b'{"query": "a", "pos": ["b"], "neg": ["B"]}\n', r"d.jsonl:1: a negative equals a positive"),
    (b'{"query": "\\ud800", "pos": ["b"]}\n', r"d.jsonl:1: .*lone surrogate"),
    (b'["query"]\n', r"d.jsonl:1: can't tell what the columns are"),
    (b"\xff\xfe{\x00", r"UTF-16; save it as UTF-8"),
    (b"", r"holds no rows"),
    (b"[" * 100_000, r"d.jsonl:1: broken JSON: nested too deep"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN, ids=[str(number) for number in range(len(BROKEN))])
def test_broken_json_lines_say_where(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        examples(path)


TABLES = [
    ("", "is empty: expected a first line with the names of the columns"),
    ("query,query\na,b\n", r"d.csv:1: the column 'query' is named twice"),
    ("query,,pos\na,b,c\n", r"d.csv:1: column 2 has no name"),
    ("query,pos\na,b,c\n", r"d.csv:2: expected 2 cells \(query, pos\), got 3"),
    ('query,pos\n"a,b\nc,d\n', r"d.csv:2: broken quoting: .*\(the row ends at line 3\)"),
    ("query,pos\na,\n", r"d.csv:2: 'pos' is empty"),
    ("q,p\na,b\n", r"can't tell what the columns are: found q, p; say which is what: `columns=query="),
]


@pytest.mark.parametrize(("content", "message"), TABLES, ids=[str(number) for number in range(len(TABLES))])
def test_broken_tables_say_where(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "d.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        examples(tmp_path / "d.csv")


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.jsonl.zst"])
def test_a_cut_off_compressed_file(tmp_path: Path, name: str) -> None:
    lines = b"".join(
        json.dumps({"query": f"q{number}", "pos": [f"p{number}"]}).encode() + b"\n" for number in range(5000)
    )
    packed = gzip.compress(lines) if name.endswith("gz") else zstd.compress(lines)
    (tmp_path / name).write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="damaged or cut off|ends in the middle"):
        examples(tmp_path / name)
    (tmp_path / name).write_bytes(packed[:100] + bytes(100) + packed[200:])
    with pytest.raises(DataError, match="damaged|broken JSON|not UTF-8"):
        examples(tmp_path / name)


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match="not a Parquet file, or a damaged one"):
        examples(tmp_path / "d.parquet")


def test_a_line_of_ten_megabytes_is_a_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"query": "q", "pos": ["long " * 2_000_000]}])
    assert len(records(path)[0].pos[0]) == 10_000_000


def test_a_long_number_stays_what_it_is(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"query": "q", "pos": ["p"], "user": 123456789012345678901234567890}])
    assert records(path)[0].extra == {"user": 123456789012345678901234567890}


def test_columns_are_checked(tmp_path: Path) -> None:
    assert parse_columns("query=q, pos=a+b") == {"query": ("q",), "pos": ("a", "b")}
    for text, message in (
        ("quary=q", r"unknown role 'quary' in columns. Did you mean 'query'\?"),
        ("query", "columns are said as role=column"),
        ("query=a+b", "'query' is one column"),
    ):
        with pytest.raises(UsageError, match=message):
            parse_columns(text)
    path = write_lines(tmp_path / "d.jsonl", [{"question": "a", "answer": "b"}])
    with pytest.raises(DataError, match=r"d.jsonl:1: no column 'anser' \(pos\). Did you mean 'answer'\?"):
        examples(path, columns="query=question,pos=anser")


def test_bad_rows_are_counted_kept_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    good = b'{"query": "a", "pos": ["b"]}\n'
    path.write_bytes(good + b'{"query": 5, "pos": ["b"]}\n' + b"nonsense\n" + good + b'{"query": "\xff"}\n')
    with (tmp_path / "rejected").open("w") as file:
        rejects = BadRows(True, file)
        assert len(examples(path, rejects=rejects)) == 2
    assert sum(rejects.reasons.values()) == 3
    kept = [json.loads(line) for line in (tmp_path / "rejected").read_text().splitlines()]
    rows = {line["where"].rsplit(":")[-1]: line["row"] for line in kept}
    assert sorted(rows) == ["2", "3", "5"]
    assert rows["3"] == "nonsense\n"


def test_bad_lines_of_a_beir_folder(beir: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(beir, tmp_path / "copy")
    with (folder / "qrels/train.tsv").open("a") as file:
        file.write("q0\tnowhere\t1\nq0\td0\tbig\n")
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d0", "text": "again"}\n')
    with pytest.raises(DataError, match="the id 'd0' stands here a second time"):
        examples(folder)
    rejects = BadRows(True)
    assert len(examples(folder, rejects=rejects)) == 50
    assert sorted(rejects.reasons) == [
        "the id stands here a second time",
        "the score must be a whole number",
    ]


def test_folders_by_split(tmp_path: Path) -> None:
    write_lines(tmp_path / "d/train.jsonl", ROWS)
    (tmp_path / "d/test.csv").write_text("query,pos\na,b\n")
    (tmp_path / "d/notes.txt").write_text("nothing")
    assert len(records(tmp_path / "d")) == 2
    assert len(records(tmp_path / "d", split="test")) == 1
    with pytest.raises(DataError, match=r"holds no file of the split 'tast'. Did you mean 'test'\?"):
        records(tmp_path / "d", split="tast")
    write_lines(tmp_path / "d/train.csv", ROWS)
    with pytest.raises(DataError, match=r"several files of the split 'train': train.csv, train.jsonl"):
        records(tmp_path / "d")
    with pytest.raises(DataError, match=r"notes.txt: unknown kind of file; allowed: .jsonl, "):
        records(tmp_path / "d/notes.txt")


def test_read_records_says_what_to_do_with_other_forms(labelled: Path) -> None:
    with pytest.raises(DataError, match="holds labelled texts, no records; make records .*: bge-cocktail prepare"):
        read_records(labelled)


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows come through `datasets`, streamed, with the preset's configuration, split, columns and labels."""
    import datasets

    asked: list[object] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Any:
        asked.append((name, config, split, streaming))
        rows = [{"sentence": "fine", "label": 1, "idx": 0}, {"sentence": "poor", "label": 0, "idx": 1}]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("bge_cocktail.data.sources.hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert examples("sst2", split="dev") == [
        LabelledText("fine", "positive", extra={"idx": 0}),
        LabelledText("poor", "negative", extra={"idx": 1}),
    ]
    assert examples("someone/data", columns="text=sentence,label=label")[0].label == "1"
    assert asked == [("stanfordnlp/sst2", None, "validation", True), ("someone/data", None, "train", True)]


def test_presets_are_well_formed() -> None:
    for preset in PRESETS.values():
        assert parse_columns(preset.columns)
        assert preset.name.count("/") == 1


def test_no_network_is_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DataError, match="no file or folder 'stanfordnlp/sst2' here, and .* HF_HUB_OFFLINE must be unset"
    ):
        examples("sst2")
    with pytest.raises(
        DataError, match=r"sst3: no such file or folder, and no name of a data set.* Did you mean 'sst2'\?"
    ):
        examples("sst3")
    with pytest.raises(DataError, match=r"nowhere/d.csv: no such file or folder"):
        examples("nowhere/d.csv")
