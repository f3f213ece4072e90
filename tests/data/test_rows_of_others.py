"""Rows as other tools write them: read as what they plainly are, or refused with what would read them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import write_lines

from bge_cocktail.core.errors import DataError
from bge_cocktail.data.beir import read_beir
from bge_cocktail.data.readers import read_lines
from bge_cocktail.data.record_files import open_records, read_records
from bge_cocktail.data.retrieval import retrieval_from_records

Cli = Callable[..., Result]
ALL_TRAIN = ("--ratio", "1:0:0", "--duplicates", "none")


@pytest.mark.parametrize("grade", [0.0, 1, "1.0", True])
@pytest.mark.parametrize("name", ["label", "score"])
def test_a_number_beside_an_answer_is_asked_about(cli: Cli, tmp_path: Path, grade: Any, name: str) -> None:
    rows = [
        {"query": "how", "response": "so", name: 1.0},
        {"query": "how", "response": "not so", name: grade},
    ]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    result = cli("prepare", path, *ALL_TRAIN, "-o", tmp_path / "out", code=1)
    assert f"the values of '{name}' may say which answers are wrong" in result.stderr
    assert f"--columns query=query,pos=response,rating={name}, or without them: --columns query=query" in result.stderr
    cli("prepare", path, *ALL_TRAIN, "--columns", f"query=query,pos=response,rating={name}", "-o", tmp_path / "out")
    (record,) = read_records(tmp_path / "out")
    wrong = not float(grade)
    assert (record.pos, record.neg) == ((("so",), ("not so",)) if wrong else (("so", "not so"), ()))


def test_a_class_beside_an_answer_is_no_grade(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"query": "how", "answer": "so", "category": "billing"}])
    assert read_records(path)[0].pos == ("so",)


def test_a_record_whose_label_is_0_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"query": "how", "pos": ["not so"], "neg": [], "label": 0}])
    with pytest.raises(DataError, match="d.jsonl:1: 'label' is 0, which says that 'pos' is no positive"):
        read_records(path)


@pytest.mark.parametrize("shown", [str, lambda texts: json.dumps(texts).replace('"', '""')])
def test_lists_in_the_cells_of_a_table(tmp_path: Path, shown: Callable[[list[str]], str]) -> None:
    pos, neg = ["so"], ["not so", "nor so, either"]
    (tmp_path / "d.csv").write_text(f'query,pos,neg\nhow,"{shown(pos)}","{shown(neg)}"\nwhat,[sic] a text [1],\n')
    first, second = read_records(tmp_path / "d.csv")
    assert (first.pos, first.neg) == (tuple(pos), tuple(neg))
    assert (second.pos, second.neg) == (("[sic] a text [1]",), ())


@pytest.mark.parametrize(
    "name",
    ["rejected_response", "negs", "hard_negatives", "negative_passages", "negative_documents", "hard_negative_ctxs"],
)
@pytest.mark.parametrize("pos", ["so", ["so"]])
def test_negatives_under_other_names(tmp_path: Path, name: str, pos: Any) -> None:
    rows = [{"query": "how", "pos": pos, name: ["not so", {"title": "No", "text": "nor so"}]}]
    (record,) = read_records(write_lines(tmp_path / "d.jsonl", rows))
    assert (record.pos, record.neg) == (("so",), ("not so", "No nor so"))


@pytest.mark.parametrize("pos", ["so", ["so"]])
def test_blank_negatives_are_counted_in_every_form(cli: Cli, tmp_path: Path, pos: Any) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"query": "how", "pos": pos, "neg": ["", "not so", "  "]}])
    cli("prepare", path, *ALL_TRAIN, "-o", tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["negatives_that_went"] == {"blank": 2}
    assert report["rejected"] == {}
    assert read_records(tmp_path / "out")[0].neg == ("not so",)


def test_the_score_of_a_blank_negative_goes_too(tmp_path: Path) -> None:
    row = {"query": "how", "pos": ["so"], "neg": ["", "not so"], "pos_scores": [1.0], "neg_scores": [0.1, 0.2]}
    (record,) = read_records(write_lines(tmp_path / "d.jsonl", [row]))
    assert record.neg_scores == (0.2,)


@pytest.mark.parametrize(
    ("line", "twice"),
    [
        ('{"query": "a", "pos": ["b"], "neg": ["c"], "neg": []}', "neg"),
        ('{"query" : "a", "pos": ["b"], "query":"c"}', "query"),
        ('{"query": "a", "pos": ["b"], "meta": {"x": 1, "x": 2}}', "x"),
        ('{"query": "a", "pos": ["b"], "meta": [{"x": 1, "x": 2}]}', "x"),
    ],
)
def test_a_key_twice_in_a_line(tmp_path: Path, line: str, twice: str) -> None:
    (tmp_path / "d.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=rf"d.jsonl:1: broken JSON: the key '{twice}' stands twice in an object"):
        list(read_lines(tmp_path / "d.jsonl"))


def test_texts_that_look_like_keys(tmp_path: Path) -> None:
    row = {"query": 'a "b": c', "pos": ['{"x": 1, "x": 2}'], "meta": {"list": [1, {"y": 'z":'}]}}
    write_lines(tmp_path / "d.jsonl", [row])
    assert [value for _, value in read_lines(tmp_path / "d.jsonl")] == [row]


def test_messages_with_their_cure(tmp_path: Path) -> None:
    (tmp_path / "llama.json").write_text(json.dumps({"queries": {"a": "b"}}, indent=2))
    with pytest.raises(DataError, match="llama.json:1: one JSON object over several lines; expected JSON Lines"):
        read_records(tmp_path / "llama.json")
    (tmp_path / "gb.jsonl").write_bytes('{"query": "问题", "pos": ["回答"]}\n'.encode("gb18030"))
    with pytest.raises(DataError, match=r"gb.jsonl:1: not UTF-8 at byte \d+ of the line; save it as UTF-8"):
        read_records(tmp_path / "gb.jsonl")


def test_full_width_twins_are_the_same_text(cli: Cli, tmp_path: Path) -> None:
    wide = "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in "fit the seal of PX7")
    rows = [{"query": "seal", "pos": ["fit the seal of PX7"]}, {"query": "gasket", "pos": [wide]}]
    path = write_lines(tmp_path / "d.jsonl", rows)
    for number in range(40):
        rows += [{"query": f"query {number}", "pos": [f"answer {number}"]}]
    cli("prepare", write_lines(path, rows), "--duplicates", "exact", "-o", tmp_path / "out")
    splits = [
        {record.query for record in read_records(tmp_path / f"out/{split}.jsonl")} & {"seal", "gasket"}
        for split in ("train", "dev", "test")
    ]
    assert {"seal", "gasket"} in splits


def beir_folder(path: Path, corpus: list[Any], qrels: str, name: str = "test.tsv") -> Path:
    (path / "qrels").mkdir(parents=True)
    write_lines(path / "corpus.jsonl", corpus)
    write_lines(path / "queries.jsonl", [{"_id": "0", "text": "cats"}, {"_id": "q1", "text": "dogs"}])
    (path / "qrels" / name).write_text(qrels)
    return path


PLAIN = [{"_id": "0", "title": "Cats", "text": "purr"}, {"_id": "d1", "text": "bark"}]
HEADED = "query-id\tcorpus-id\tscore\n0\t0\t1\nq1\td1\t0\n"


@pytest.mark.parametrize(
    ("corpus", "qrels", "name"),
    [
        (PLAIN, HEADED, "test.tsv"),
        (PLAIN, HEADED.replace("\t1\n", "\t1.0\n"), "test.tsv"),
        (PLAIN, HEADED.replace("\t", " "), "test.tsv"),
        (PLAIN, HEADED.replace("query-id\tcorpus-id\tscore", "Query-ID\tCorpus-ID\tScore"), "test.tsv"),
        (PLAIN, HEADED.replace("\t", ","), "test.csv"),
        (PLAIN, "0\t0\t0\t1\nq1\t0\td1\t0\n", "test.tsv"),
        (PLAIN, "0 0 0 1\nq1 0 d1 0\n", "test.txt"),
        (PLAIN, HEADED.replace("\n", "\t\n"), "test.tsv"),
        (
            [{"_id": 0, "title": "Cats", "text": "purr"}, {"_id": "d1", "title": None, "text": "bark"}],
            HEADED,
            "test.tsv",
        ),
    ],
)
def test_forms_of_beir_folders(tmp_path: Path, corpus: list[Any], qrels: str, name: str) -> None:
    judged = read_beir(beir_folder(tmp_path / "task", corpus, qrels, name))
    assert judged.corpus == {"0": "Cats purr", "d1": "bark"}
    assert judged.qrels == {"0": {"0": 1}, "q1": {"d1": 0}}


def test_judged_documents_that_are_missing_count_as_not_found(
    cli: Cli, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in trec_eval: recall of one found of two judged relevant is a half."""
    folder = beir_folder(tmp_path / "task", [*PLAIN, {"_id": "d2", "text": ""}], "0\t0\t1\n0\tgone\t1\n")
    assert read_beir(folder).qrels == {"0": {"0": 1, "gone": 1}}
    assert "1 judged documents are not in the corpus; they count as not found" in caplog.text
    assert "1 documents are empty" in caplog.text
    cli("evaluate", tiny, "--target", folder, "--metrics", "Recall@3", "--save-runs", "-o", tmp_path / "out")
    (score,) = json.loads((tmp_path / "out/scores.json").read_text())["models"][0]["scores"]
    assert score["value"] == 0.5
    with pytest.raises(DataError, match="none of the 1 judged documents is in corpus.jsonl; are the ids others?"):
        read_beir(beir_folder(tmp_path / "other", PLAIN, "0\tx\t1\n"))


def test_documents_are_the_same_to_the_letter(cli: Cli, tmp_path: Path) -> None:
    """A corpus keeps `hostname -i` beside `hostname -I`, and each judged answer is its own document."""
    corpus = [
        {"_id": "a", "text": "hostname -i"},
        {"_id": "b", "text": "hostname -I"},
        {"_id": "c", "text": "hostname -i"},
    ]
    folder = beir_folder(tmp_path / "task", corpus, "0\ta\t1\nq1\tb\t1\n", "train.tsv")
    cli("prepare", folder, "--ratio", "1:0:0", "-o", tmp_path / "out")
    assert [value["text"] for _, value in read_lines(tmp_path / "out/corpus.jsonl")] == ["hostname -i", "hostname -I"]
    assert [record.pos for record in read_records(tmp_path / "out")] == [("hostname -i",), ("hostname -I",)]
    records = read_records(tmp_path / "out")
    judged = retrieval_from_records(records, {"a": "hostname -i", "b": "hostname -I"})
    assert [list(grades) for grades in judged.qrels.values()] == [["a"], ["b"]]


def test_pairs_that_differ_in_case_are_two(cli: Cli, tmp_path: Path) -> None:
    rows = [
        {"query": "tree", "pos": ["tree -d"]},
        {"query": "Tree", "pos": ["tree -D"]},
        {"query": "TREE", "pos": ["tree -d"]},
    ]
    cli("prepare", write_lines(tmp_path / "d.jsonl", rows), "--ratio", "1:0:0", "-o", tmp_path / "out")
    assert [record.pos for record in read_records(tmp_path / "out")] == [("tree -d",), ("tree -D",)]


def test_official_splits_of_a_beir_folder_are_kept(cli: Cli, beir: Path, tmp_path: Path) -> None:
    """As judged by its publisher: every query in the split that its qrels put it in, unless others are asked for."""
    folder = shutil.copytree(beir, tmp_path / "task")
    result = cli("prepare", folder, "--duplicates", "exact", "--on-leak", "warn", "-o", tmp_path / "out")
    assert "its own splits are kept: train, dev, test (--ratio splits anew)" in result.stderr
    for split in ("train", "dev", "test"):
        official = set(read_beir(folder, split).queries.values())
        assert {record.query for record in read_records(tmp_path / f"out/{split}.jsonl")} <= official
    cli("prepare", folder, "--ratio", "1:0:0", "-o", tmp_path / "anew")
    assert not (tmp_path / "anew/test.jsonl").exists()


def test_pairs_with_0_and_1_as_labels_name_their_cure(cli: Cli, tmp_path: Path) -> None:
    rows = [{"sentence1": f"how {number}", "sentence2": f"so {number}", "label": number % 2} for number in range(20)]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    said = cli("prepare", path, "-o", tmp_path / "out", code=1).stderr
    assert "read them as such: --columns first=sentence1,second=sentence2,score=label" in said
    cli(
        "prepare", path, "--columns", "first=sentence1,second=sentence2,score=label", *ALL_TRAIN, "-o", tmp_path / "out"
    )
    assert len(read_records(tmp_path / "out")) == 10


def test_a_plain_folder_is_refused_with_its_cure_by_train_too(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    plain = shutil.copytree(tiny, tmp_path / "plain", ignore=shutil.ignore_patterns("modules.json", "*_Pooling"))
    for arguments in (["train", beir, "-m", plain], ["mine", beir, "-m", plain]):
        said = cli(*arguments, "-o", tmp_path / "out", code=1).stderr
        assert f"bge-cocktail merge {plain} --pooling cls -o FOLDER" in said


def test_blank_negatives_of_large_files_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"query": "how", "pos": ["so"], "neg": ["", "not so"]}] * 3
    records = open_records(write_lines(tmp_path / "d.jsonl", rows), large=0)
    assert [record.neg for record in records] == [("not so",)] * 3
    assert caplog.text.count("d.jsonl: negatives are left out: blank") == 1
