"""Data as they come: columns with odd names, several sources, joined pairs, templates, test sets that leak sideways."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import leftovers, slowness, write_lines
from test_prepare import rows_of

from bge_cocktail.core.errors import DataError
from bge_cocktail.data.record_files import read_records
from bge_cocktail.data.sources import Source
from bge_cocktail.options import PrepareOptions
from bge_cocktail.preparing.clean import Cleaner
from bge_cocktail.preparing.duplicates import find_duplicates, jaccard
from bge_cocktail.preparing.prepare import prepare, task_names

Cli = Callable[..., Result]
ALL_TRAIN = ["--ratio", "1:0:0"]


def report_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


def test_a_column_of_a_known_name_does_not_replace_what_was_said(cli: Cli, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "d.jsonl", [{"body": "real", "stars": "good", "text": "title", "label": "spam", "query": 5}]
    )
    cli("prepare", path, "--columns", "text=body,label=stars", "--form", "labelled", *ALL_TRAIN, "-o", tmp_path / "o")
    (row,) = rows_of(tmp_path / "o")["train"]
    assert row == {"text": "real", "label": "good", "source_text": "title", "source_label": "spam", "source_query": 5}


def test_labels_of_two_sources_are_two_kinds(cli: Cli, tmp_path: Path) -> None:
    one = write_lines(tmp_path / "film.jsonl", [{"text": f"film {n}", "label": n % 2} for n in range(12)])
    two = write_lines(tmp_path / "bank.jsonl", [{"text": f"bank {n}", "label": n % 2} for n in range(12)])
    cli("prepare", one, two, *ALL_TRAIN, "--duplicates", "exact", "-o", tmp_path / "o")
    for record in read_records(tmp_path / "o"):
        kind = record.query.split()[0]
        assert record.task == kind
        assert all(text.startswith(kind) for text in (*record.pos, *record.neg))


def test_sources_of_one_name_are_told_apart() -> None:
    assert task_names(["a/x/train.jsonl", "a/y/train.jsonl.gz"]) == {
        "a/x/train.jsonl": "x/train",
        "a/y/train.jsonl.gz": "y/train",
    }
    assert task_names(["a/faq.csv", "b/log.csv"]) == {"a/faq.csv": "faq", "b/log.csv": "log"}
    assert task_names(["only.csv"]) == {"only.csv": None}


def test_scores_beyond_one_say_what_to_do(cli: Cli, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 4.2}])
    result = cli("prepare", path, "-o", tmp_path / "o", code=1)
    assert "d.jsonl:1: 'score' divided by 1 is 4.2, but scores lie between 0 and 1; say what" in result.stderr
    cli("prepare", path, "-o", tmp_path / "o", "--scale", "5", *ALL_TRAIN)
    assert "--scale" in cli("prepare", path, "-o", tmp_path / "p", "--scale", "0", code=2).stderr


def test_triplets_of_one_pair_are_not_one(cli: Cli, tmp_path: Path) -> None:
    rows = [{"anchor": "a b c", "positive": "d e f", "negative": f"wrong {n}"} for n in range(5)]
    path = write_lines(tmp_path / "d.jsonl", [*rows, rows[0]])
    cli("prepare", path, "-o", tmp_path / "o", *ALL_TRAIN)
    assert report_of(tmp_path / "o")["dropped"] == {"exact duplicate": 1}
    assert [row["neg"] for row in rows_of(tmp_path / "o")["train"]] == [[f"wrong {n}"] for n in range(5)]


@pytest.mark.parametrize(
    "text",
    [
        "How do I use the <script> tag in HTML?",
        "List<Object> xs = new ArrayList<Object>(); then call foo",
        "Use <iframe> or <object> here please",
        "if p<s and q>r then",
        "the <b> element",
    ],
)
def test_text_about_tags_is_text(text: str) -> None:
    assert Cleaner(PrepareOptions())(text, "text") == text


def test_entities_nested_deep_are_one_cleaning() -> None:
    text = "x &" + "amp;" * 30 + "lt;b&gt; y"
    assert Cleaner(PrepareOptions())(text, "text") == "x <b> y"
    assert Cleaner(PrepareOptions())("x <b> y", "text") == "x <b> y"


def test_no_copy_repeats_what_is_held_out(cli: Cli, tmp_path: Path) -> None:
    rows = [{"query": f"{a} {b}", "pos": [f"about {a}{b}"]} for a in "abcdef" for b in ("x", "x y", "x y z")]
    path = write_lines(tmp_path / "d.jsonl", rows)
    options = ["--augment", "delete", "--augment-share", "1", "--duplicates", "exact", "--ratio", "1:1:1"]
    held: set[str] = set()
    for seed in range(4):
        cli("prepare", path, "-o", tmp_path / str(seed), *options, "--seed", seed)
        out = rows_of(tmp_path / str(seed))
        held = {row["query"] for split in ("dev", "test") for row in out.get(split, [])}
        assert not held & {row["query"] for row in out["train"]}


def test_what_came_in_is_what_went_and_what_came_out(cli: Cli, tmp_path: Path) -> None:
    rows = [
        {
            "premise": f"p{n // 4}",
            "hypothesis": f"h{n}",
            "label": ("entailment", "contradiction", "neutral", "entailment")[n % 4],
        }
        for n in range(40)
    ]
    path = write_lines(tmp_path / "d.jsonl", rows)
    cli("prepare", path, "-o", tmp_path / "o", *ALL_TRAIN, "--duplicates", "exact")
    report = report_of(tmp_path / "o")
    assert report["splits"]["train"]["examples"] == 10
    assert sum(report["dropped"].values()) == 30
    assert report["dropped"]["joined into the record of the same text"] == 20


def test_columns_of_negatives_are_found_in_any_row(cli: Cli, tmp_path: Path) -> None:
    rows = [{"anchor": "a", "positive": "b"}, {"anchor": "c", "positive": "d", "negative": "e"}]
    path = write_lines(tmp_path / "d.jsonl", rows)
    cli("prepare", path, "-o", tmp_path / "o", *ALL_TRAIN)
    assert [row["neg"] for row in rows_of(tmp_path / "o")["train"]] == [[], ["e"]]
    result = cli("prepare", path, "--columns", "query=anchor,pos=positive,neg=negativ", "-o", tmp_path / "p", code=1)
    assert "no column 'negativ' (neg). Did you mean 'negative'?" in result.stderr
    write_lines(path, [{"query": "a", "pos": ["b"], "neg_ids": ["c"]}])
    assert (
        "the column 'neg_ids' is kept as it is; did you mean 'neg'?"
        in cli("prepare", path, "-o", tmp_path / "q", *ALL_TRAIN).stderr
    )


def test_what_is_said_about_a_row_stays_with_it(cli: Cli, tmp_path: Path) -> None:
    rows = [
        {"q": "shoes", "d": "hats", "stars": 0, "clicks": 1000, "id": 7},
        {"q": "shoes", "d": "red shoes", "stars": 1, "clicks": 5, "id": 8},
        {"q": "coats", "d": "a coat", "stars": 1, "clicks": 15, "id": 9},
    ]
    path = write_lines(tmp_path / "d.jsonl", rows)
    options = ["--columns", "query=q,pos=d,rating=stars", "--weigh", "column", "--weight-column", "clicks"]
    cli("prepare", path, *options, *ALL_TRAIN, "--duplicates", "exact", "-o", tmp_path / "o")
    shoes, coats = read_records(tmp_path / "o")
    assert (shoes.weight, coats.weight) == (0.5, 1.5)
    assert shoes.id == "8"
    assert (
        "the role 'score' doesn't go with query, pos"
        in cli("prepare", path, "--columns", "query=q,pos=d,score=stars", "-o", tmp_path / "p", code=2).stderr
    )


def test_validation_is_dev_and_shards_are_one_split(cli: Cli, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    for number in range(2):
        table = pyarrow.Table.from_pylist(
            [{"query": f"q{number}{n}", "pos": f"p{number}{n}", "weight": None} for n in range(5)]
        )
        (tmp_path / "d").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, tmp_path / f"d/train-0000{number}-of-00002.parquet")
    write_lines(tmp_path / "d/validation.jsonl", [{"query": "v", "pos": ["w"], "id": 3}])
    cli("prepare", tmp_path / "d", "--keep-splits", "--duplicates", "exact", "-o", tmp_path / "o")
    out = rows_of(tmp_path / "o")
    assert {split: len(rows) for split, rows in out.items()} == {"train": 10, "dev": 1}
    assert out["dev"][0]["id"] == "3"


def test_an_open_quote_is_no_single_bad_row(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text(
        "query,pos\n"
        + "".join(f"q{n},p{n}\n" for n in range(5))
        + 'x,"open\n'
        + "".join(f"r{n},s{n}\n" for n in range(50))
    )
    result = cli("prepare", path, "--skip-bad", "-o", tmp_path / "o", code=1)
    assert "d.csv:7: broken quoting" in result.stderr


def test_nothing_left_is_an_error(cli: Cli, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "d.jsonl", [{"sentence1": f"a{n}", "sentence2": f"b{n}", "score": 0.5} for n in range(5)]
    )
    assert "nothing is left to train on" in cli("prepare", path, "-o", tmp_path / "o", *ALL_TRAIN, code=1).stderr
    assert not (tmp_path / "o").exists()
    assert leftovers(tmp_path) == []


def test_test_texts_in_any_role(cli: Cli, tmp_path: Path) -> None:
    """A test query that is a positive in train leaks, whatever counts as a duplicate."""
    train = write_lines(tmp_path / "train.jsonl", [{"query": f"q{n}", "pos": [f"the text {n}"]} for n in range(9)])
    test = write_lines(tmp_path / "test.jsonl", [{"query": "The text 3", "pos": ["x"]}])
    for finders in ("none", "exact", "near"):
        result = cli(
            "prepare", train, "--against", test, *ALL_TRAIN, "--duplicates", finders, "-o", tmp_path / "o", code=1
        )
        assert "'The text 3' (exact) 'the text 3'" in result.stderr
    cli(
        "prepare",
        train,
        "--against",
        test,
        *ALL_TRAIN,
        "--duplicates",
        "exact",
        "--on-leak",
        "drop",
        "-o",
        tmp_path / "o",
    )
    assert len(rows_of(tmp_path / "o")["train"]) == 8
    # of the kept splits, dev and test are compared too
    for name, rows in (("train", [("a", "b")]), ("dev", [("same", "c")]), ("test", [("Same", "d")])):
        write_lines(tmp_path / f"s/{name}.jsonl", [{"query": query, "pos": [pos]} for query, pos in rows])
    assert (
        "1 queries or texts of test stand in dev"
        in cli("prepare", tmp_path / "s", "--keep-splits", "-o", tmp_path / "k").stderr
    )


def test_near_repeats_need_all_their_positives(tmp_path: Path) -> None:
    long = "a rather long question about the delivery of parcels in winter"
    rows = [
        {"query": "find alpha and beta", "pos": ["the first long answer to it"]},
        {"query": "find alpha and beta", "pos": ["the first long answer to it", "another thing entirely"]},
    ]
    for more in ([], [{"query": long, "pos": ["yes"]}, {"query": long + "?", "pos": ["no"]}]):
        path = write_lines(tmp_path / "d.jsonl", [*rows, *more])
        report = prepare([Source(str(path))], tmp_path / "o", PrepareOptions(ratio=[1, 0, 0]), overwrite=bool(more))
        assert report["dropped"] == {}


def test_templates_are_quick() -> None:
    """A thousand texts that are all alike are one group, found without comparing each with each."""
    texts = [
        f"Your order number {n:05} has been shipped and will arrive within three working days" for n in range(1000)
    ]
    start = time.process_time()
    matches = list(find_duplicates(texts, ["near"], PrepareOptions(), None))
    assert len(matches) == 999
    assert time.process_time() - start < 8 * slowness()


def test_vowel_signs_tell_words_apart() -> None:
    assert jaccard("कि", "का") == 0
    assert jaccard("हिन्दी भाषा", "हिन्दी, भाषा!") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep-splits", "--group-by", "user"], "group_by does nothing without splits of its own"),
        (["--weight-column", "clicks"], "weight_column does nothing without weigh=column"),
        (["--weigh", "column", "--weight-column", "weight"], "the column 'weight' counts already"),
        (["--languages", "english"], "languages are codes (en, zh), got 'english'"),
        (["--min-tokens", "9", "--max-tokens", "5"], "the shortest text allowed (9) is longer than the longest (5)"),
        (["--near-threshold", "1"], "near_threshold"),
        (["--form", "labelled"], "--form labelled: the data are records"),
    ],
)
def test_options_that_would_do_nothing(cli: Cli, tmp_path: Path, options: list[str], message: str) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"query": "a", "pos": ["b"], "user": 1}])
    stderr = cli("prepare", path, "-o", tmp_path / "o", *ALL_TRAIN, *options, code=2).stderr
    assert message.replace("_", "-") in stderr.replace("_", "-")


def test_ratio_with_commas(cli: Cli, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"query": f"a{n}", "pos": [f"b{n}"]} for n in range(9)])
    cli("prepare", path, "-o", tmp_path / "o", "--ratio", "1,0,0")
    assert {name: len(rows) for name, rows in rows_of(tmp_path / "o").items() if rows} == {"train": 9}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "a", "label": "\\ud800"}', "lone surrogate"),
        ('{"query": "a", "pos": ["b"], "weight": 1' + "0" * 400 + "}", "'weight' must be a number"),
        ('[{"query": "a"}]', "a JSON array; expected JSON Lines"),
    ],
)
def test_odd_values_are_errors_and_no_tracebacks(cli: Cli, tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "d.jsonl").write_text(row + "\n")
    assert message in cli("prepare", tmp_path / "d.jsonl", "-o", tmp_path / "o", code=1).stderr


def test_half_a_character_in_another_column_is_kept(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"query": "a", "pos": ["b"], "user": "\\ud800"}\n')
    cli("prepare", tmp_path / "d.jsonl", "-o", tmp_path / "o", *ALL_TRAIN)
    assert rows_of(tmp_path / "o")["train"][0]["user"] == "\ud800"


def test_a_bad_corpus_line_and_a_test_set_with_a_corpus(cli: Cli, beir: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(beir, tmp_path / "copy")
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "d0", "text": "again"}\n{"_id": "d99"}\n')
    cli("prepare", folder, "--skip-bad", "--keep-splits", "--duplicates", "exact", "-o", tmp_path / "o")
    report = report_of(tmp_path / "o")
    assert report["rejected"]["the id stands here a second time"] == 3  # once for each split that is read
    assert report["corpus"]["kept"] == len((tmp_path / "o/corpus.jsonl").read_text().splitlines()) == 25
    path = write_lines(tmp_path / "d.jsonl", [{"query": "a", "pos": ["b"]}])
    cli("prepare", path, "--against", beir, *ALL_TRAIN, "-o", tmp_path / "p")
    assert not (tmp_path / "p/corpus.jsonl").exists()


def test_a_query_without_a_relevant_document_is_counted(beir: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(beir, tmp_path / "copy")
    path = folder / "qrels/train.tsv"
    path.write_text(path.read_text().replace("q0\td0\t1", "q0\td0\t0"))
    report = prepare([Source(str(folder))], tmp_path / "o", PrepareOptions(ratio=[1, 0, 0], duplicates=["exact"]))
    assert report["rejected"] == {"query without a relevant document": 1}
    assert report["read"] == 49
    path.write_text("query-id\tcorpus-id\tscore\nq0\td0\t0\n")
    with pytest.raises(DataError, match="no query has a relevant document"):
        prepare([Source(str(folder))], tmp_path / "p")


def test_all_that_is_like_a_test_text_is_dropped(cli: Cli, tmp_path: Path) -> None:
    long = "how long does the delivery of a parcel to the northern islands take in winter"
    texts = [long, long + "?", "so: " + long, "is there a fee"]
    train = write_lines(tmp_path / "d/train.jsonl", [{"query": text, "pos": [f"p{n}"]} for n, text in enumerate(texts)])
    write_lines(tmp_path / "d/test.jsonl", [{"query": long + "!", "pos": ["other"]}])
    result = cli("prepare", tmp_path / "d", "--keep-splits", "-o", tmp_path / "o", code=1)
    assert "leak into train: 1 queries or texts of test" in result.stderr
    cli("prepare", train, "--against", tmp_path / "d", *ALL_TRAIN, "--on-leak", "drop", "-o", tmp_path / "o")
    assert [row["query"] for row in rows_of(tmp_path / "o")["train"]] == ["is there a fee"]
