"""Preparing: nothing lost, no text in two splits, the same seed the same bytes; and every part against a reference."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from conftest import leftovers, write_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.data.record import Record, normalise
from bge_cocktail.data.record_files import read_records
from bge_cocktail.data.sources import Source
from bge_cocktail.evaluating.evaluate import evaluate
from bge_cocktail.evaluating.tasks.task import open_task
from bge_cocktail.options import PrepareOptions
from bge_cocktail.preparing.duplicates import Groups, find_duplicates, jaccard, shingles
from bge_cocktail.preparing.leaks import find_leaks
from bge_cocktail.preparing.prepare import prepare
from bge_cocktail.preparing.record_weights import record_weightings, weigh

Cli = Callable[..., Result]
SPLITS = ("train", "dev", "test")


def rows_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        for split in SPLITS
        if (folder / f"{split}.jsonl").exists()
    }


def own(row: dict[str, Any]) -> set[str]:
    texts = [row["query"], *row["pos"]] if "query" in row else [row["text"]]
    return {normalise(text) for text in texts}


words = st.integers(0, 40).map(lambda number: f"word {number}")
spelled = st.tuples(words, st.sampled_from(["{}", " {}", "{}\u200b", "<b>{}</b>", "{}  "]), st.booleans()).map(
    lambda parts: parts[1].format(parts[0].upper() if parts[2] else parts[0])
)
raw_records = st.lists(
    st.fixed_dictionaries(
        {
            "query": spelled | st.just("\u200b"),
            "pos": st.lists(spelled, min_size=1, max_size=2),
            "neg": st.lists(words.map(lambda text: "not " + text) | words, max_size=2),
            "doc": st.integers(0, 9),
        }
    ),
    min_size=1,
    max_size=40,
)


def consistent(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without negatives that equal a positive, which are bad rows of their own."""
    for row in rows:
        positives = {normalise(text) for text in row["pos"]}
        row["neg"] = [text for text in row["neg"] if normalise(text) not in positives]
    return rows


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw_records.map(consistent), st.integers(0, 3), st.booleans(), st.booleans(), st.sampled_from([[], ["doc"]]))
def test_laws(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    seed: int,
    stratify: bool,
    near: bool,
    group_by: list[str],
) -> None:
    folder = tmp_path_factory.mktemp("laws")
    path = write_lines(folder / "d.jsonl", rows)
    finders = ["exact", "near"] if near else ["exact"]
    options = PrepareOptions(seed=seed, stratify=stratify, duplicates=finders, group_by=group_by)
    try:
        report = prepare([Source(str(path))], folder / "out", options)
    except DataError as error:
        assert "nothing is left" in str(error)  # noqa: PT017
        return
    out = rows_of(folder / "out")
    # nothing lost
    assert report["read"] == len(rows)
    assert sum(map(len, out.values())) + sum(report["dropped"].values()) == len(rows)
    assert {name: one["examples"] for name, one in report["splits"].items()} == {n: len(r) for n, r in out.items()}
    # no query or positive in two splits, in any role, and grouped keys together
    home: dict[str, str] = {}
    groups: dict[int, str] = {}
    for split, found in out.items():
        for row in found:
            for text in own(row):
                assert home.setdefault(text, split) == split
            if group_by:
                assert groups.setdefault(row["doc"], split) == split
    for split, found in out.items():
        for row in found:
            assert all(home.get(normalise(text), split) == split for text in row["neg"])
            assert not own(row) & {"\u200b"}
    # no exact repeat: queries in whatever case, documents to the letter
    seen = Counter(
        (split, normalise(row["query"]), *(frozenset(row[role]) for role in ("pos", "neg")))
        for split, found in out.items()
        for row in found
    )
    assert max(seen.values(), default=1) == 1
    # the same bytes again
    prepare([Source(str(path))], folder / "again", options)
    for split in out:
        assert (folder / "again" / f"{split}.jsonl").read_bytes() == (folder / "out" / f"{split}.jsonl").read_bytes()
    assert leftovers(folder) == []
    assert not (folder / "out/staged").exists()


def test_sizes_follow_the_ratio_and_the_seed_moves_records(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"query": f"query {n}", "pos": [f"answer {n}"]} for n in range(3000)])
    sizes = []
    for seed in (1, 2):
        prepare([Source(str(path))], tmp_path / f"o{seed}", PrepareOptions(seed=seed, duplicates=["exact"]))
        sizes.append({name: len(rows) for name, rows in rows_of(tmp_path / f"o{seed}").items()})
    for one in sizes:
        assert one["train"] == pytest.approx(2100, abs=90)
        assert one["dev"] == pytest.approx(600, abs=80)
        assert one["test"] == pytest.approx(300, abs=60)
    first, second = ({row["query"] for row in rows_of(tmp_path / f"o{seed}")["test"]} for seed in (1, 2))
    assert len(first & second) < 100


def test_groups_of_any_size_follow_the_ratio(tmp_path: Path) -> None:
    rows = [{"query": f"q {doc} {n}", "pos": [f"document {doc}"]} for doc in range(900) for n in range(1 + doc % 5)]
    path = write_lines(tmp_path / "d.jsonl", rows)
    report = prepare([Source(str(path))], tmp_path / "o", PrepareOptions(duplicates=["exact"]))
    assert report["groups"]["groups"] == 900
    assert report["splits"]["train"]["examples"] / len(rows) == pytest.approx(0.7, abs=0.05)


def test_new_data_move_no_old_record(tmp_path: Path) -> None:
    rows = [{"query": f"query {n}", "pos": [f"answer {n}"]} for n in range(400)]
    options = PrepareOptions(duplicates=["exact"])
    prepare([Source(str(write_lines(tmp_path / "a.jsonl", rows[:200])))], tmp_path / "a", options)
    prepare([Source(str(write_lines(tmp_path / "b.jsonl", rows[::-1])))], tmp_path / "b", options)
    after = {row["query"]: split for split, found in rows_of(tmp_path / "b").items() for row in found}
    for split, found in rows_of(tmp_path / "a").items():
        assert {after[row["query"]] for row in found} == {split}


def test_strata_have_the_ratio(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": "rare" if n % 20 == 0 else "common"} for n in range(400)]
    path = write_lines(tmp_path / "d.jsonl", rows)
    options = PrepareOptions(form="labelled", stratify=True, duplicates=["exact"])
    prepare([Source(str(path))], tmp_path / "o", options)
    counts = {split: Counter(row["label"] for row in found) for split, found in rows_of(tmp_path / "o").items()}
    assert [counts[split]["rare"] for split in SPLITS] == [14, 4, 2]
    assert [counts[split]["common"] for split in SPLITS] == [266, 76, 38]


def test_near_finds_what_the_slow_way_finds() -> None:
    generator = np.random.default_rng(0)
    base = [" ".join(generator.choice(list("abcdefghij"), 60)) for _ in range(30)]
    texts = base + [text[: 119 - 2 * n] + " x" * n for n, text in enumerate(base)]
    slow = {
        (one, other)
        for other in range(len(texts))
        for one in range(other)
        if jaccard(texts[one], texts[other]) >= 0.8 and normalise(texts[one]) != normalise(texts[other])
    }
    found = {(one, other) for _, (one, other, _) in find_duplicates(texts, ["near"], PrepareOptions(), None)}
    assert found <= slow
    groups = Groups(len(texts))
    for one, other in found:
        groups.join(one, other)
    # MinHash finds nearly all that lie above the threshold
    clear = {pair for pair in slow if jaccard(texts[pair[0]], texts[pair[1]]) >= 0.85}
    assert all(groups.find(one) == groups.find(other) for one, other in clear)
    assert len(clear) > 3
    # asked which of the later ones are like one of the first, it names one for each
    matches = list(find_duplicates(texts, ["near"], PrepareOptions(), None, known=30))
    assert {other for _, (one, other, _) in matches} >= {other for one, other in clear if one < 30 <= other}
    assert all(one < 30 <= other for _, (one, other, _) in matches)


def test_punctuation_and_case_do_not_count_for_near() -> None:
    assert shingles("Hello, World!") == shingles("hello world")
    assert shingles("！？")
    assert jaccard("中文的文本内容", "中文的文本内容。") == 1


def test_near_duplicates_go_if_their_positives_are_alike_too(tmp_path: Path) -> None:
    long = "how long does the delivery of a parcel to the northern islands take in winter"
    answer = "a parcel needs between six and nine working days in winter, as ships go once a week"
    rows = [
        {"query": long, "pos": [answer]},
        {"query": long + "?", "pos": [answer + "."]},  # a near-duplicate of both
        {"query": long + "!", "pos": ["something else entirely is said here about parcels"]},  # another answer
        {"query": "is there a fee", "pos": ["no"]},
    ]
    path = write_lines(tmp_path / "d.jsonl", rows)
    report = prepare([Source(str(path))], tmp_path / "o", PrepareOptions(ratio=[1, 0, 0]))
    assert report["dropped"] == {"near-duplicate of another": 1}
    assert [row["query"] for row in rows_of(tmp_path / "o")["train"]] == [long, long + "!", "is there a fee"]
    # alike queries stay in one split, whatever the seed
    for seed in range(6):
        prepare([Source(str(path))], tmp_path / "s", PrepareOptions(seed=seed, ratio=[1, 1, 1]), overwrite=seed > 0)
        homes = {
            split for split, found in rows_of(tmp_path / "s").items() for r in found if r["query"][:20] == long[:20]
        }
        assert len(homes) == 1


def test_the_same_text_with_two_labels(tmp_path: Path) -> None:
    rows = [{"text": "fine", "label": "good"}, {"text": "Fine", "label": "bad"}, {"text": "fine ", "label": "good"}]
    path = write_lines(tmp_path / "d.jsonl", rows)
    report = prepare([Source(str(path))], tmp_path / "o", PrepareOptions(form="labelled", ratio=[1, 0, 0]))
    assert report["dropped"] == {"the same text with another label or score": 1, "exact duplicate": 1}
    assert report["samples"]["the same text with another label or score"] == ["Fine"]


class Letters:
    """Embeds a text by how often each letter stands in it."""

    def encode_query(self, texts: Sequence[str], prompt: str | None = None) -> np.ndarray:
        rows = np.array([[text.lower().count(chr(97 + n)) + 0.01 for n in range(26)] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    encode_document = encode_text = encode_query


def test_leaks_by_every_finder() -> None:
    train = [("alpha beta gamma delta epsilon zeta", "one"), ("listen to the tale", "two"), ("Same  Query", "three")]
    test = [
        ("alpha beta gamma delta epsilon zeta!", "TWO"),
        ("silent to the late", "x"),
        ("same query", "y"),
        ("new", "z"),
    ]
    options = PrepareOptions(duplicates=["exact", "near", "semantic"], semantic_threshold=0.99)
    leaks = find_leaks(train, {"set": test}, options, Letters())
    assert {(leak.role, leak.finder, leak.train_row, leak.other) for leak in leaks} >= {
        ("query", "near", 0, "alpha beta gamma delta epsilon zeta!"),
        ("query", "semantic", 1, "silent to the late"),
        ("query", "exact", 2, "same query"),
        ("document", "exact", 1, "TWO"),
    }
    assert not [leak for leak in leaks if leak.other in ("new", "z")]


def test_a_leaking_test_set_is_refused_dropped_or_warned_of(cli: Cli, tmp_path: Path) -> None:
    rows = [{"query": f"query number {n}", "pos": [f"answer {n}"]} for n in range(20)]
    train = write_lines(tmp_path / "d/train.jsonl", [*rows[:10], rows[3]])
    test = write_lines(tmp_path / "d/test.jsonl", rows[9:])
    arguments = ["prepare", tmp_path / "d", "--keep-splits", "--duplicates", "exact"]
    result = cli(*arguments, "-o", tmp_path / "o", code=1)
    assert "test data leak into train: 1 queries or texts of test" in result.stderr
    assert "'query number 9' (exact) 'query number 9'" in result.stderr
    assert "--on-leak drop" in result.stderr
    assert not (tmp_path / "o").exists()
    assert leftovers(tmp_path) == []
    cli(*arguments, "-o", tmp_path / "o", "--on-leak", "drop")
    assert len(rows_of(tmp_path / "o")["train"]) == 9
    assert len(rows_of(tmp_path / "o")["test"]) == 11
    assert "warning: test data leak into train" in cli(*arguments, "-o", tmp_path / "w", "--on-leak", "warn").stderr
    assert len(rows_of(tmp_path / "w")["train"]) == 10
    # a benchmark that isn't among the sources
    result = cli("prepare", train, "--against", test, "--ratio", "1:0:0", "-o", tmp_path / "a", code=1)
    assert "queries or texts of" in result.stderr
    # what train holds of dev and test negatives goes, too
    write_lines(train, [{**rows[0], "neg": ["answer 12", "fine"]}])
    cli(*arguments, "-o", tmp_path / "n")
    assert rows_of(tmp_path / "n")["train"][0]["neg"] == ["fine"]
    report = json.loads((tmp_path / "n/report.json").read_text())
    assert report["negatives_that_went"] == {"negative that is a query or positive of another split": 1}


def test_what_needs_a_model_says_so(cli: Cli, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"query": "a", "pos": ["b"]}])
    result = cli("prepare", path, "-o", tmp_path / "o", "--duplicates", "semantic", "--weigh", "difficulty", code=2)
    assert "--duplicates semantic and --weigh difficulty need --model" in result.stderr
    result = cli("prepare", path, "-o", tmp_path / "o", "--ratio", "7:3", code=2)
    assert "ratio is three numbers" in result.stderr
    result = cli("prepare", path, "-o", tmp_path / "o", "--form", "labelled", "--augment", "swap", code=2)
    assert "--augment works on records" in result.stderr
    result = cli("prepare", path, "-o", tmp_path / "o", "--group-by", "user", code=1)
    assert "no 'user' to group by in 'a | b'" in result.stderr
    result = cli("prepare", path, "-o", path, code=2)
    assert "is or lies in an input" in result.stderr


def test_semantic_duplicates_with_a_model(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    rows = [{"query": "the red apple", "pos": ["a dog runs"]}, {"query": "the RED apple .", "pos": ["a dog runs ."]}]
    path = write_lines(tmp_path / "d.jsonl", rows)
    options = ["--duplicates", "exact,semantic", "--semantic-threshold", "0.8", "--ratio", "1:0:0"]
    cli("prepare", path, "-m", tiny, "-o", tmp_path / "o", *options)
    report = json.loads((tmp_path / "o/report.json").read_text())
    assert report["dropped"] == {"near-duplicate of another": 1}
    assert report["splits"]["train"]["query_tokens"]["most"] == 5
    assert report["splits"]["train"]["query_cut"] == {"limit": 48, "share": 0}


def test_weights() -> None:
    records = [
        Record("a", ("popular",), task="big", extra={"clicks": 4}),
        Record("b", ("popular",), task="big", extra={"clicks": 0}),
        Record("c", ("popular",), task="big", extra={"clicks": "2"}),
        Record("d", ("popular",), task="big", extra={"clicks": 1}),
        Record("e", ("rare",), task="small", weight=2.0, extra={"clicks": 1}),
    ]

    def weights(*names: str, **options: Any) -> list[float]:
        weighed = weigh(records, PrepareOptions(weigh=list(names), **options), Letters())
        return [record.weight for record in weighed]

    by_column = np.array([4, 0, 2, 1, 1 * 2]) / np.mean([4, 0, 2, 1, 1 * 2])
    assert weights("column", weight_column="clicks") == pytest.approx(by_column, abs=1e-5)
    by_frequency = np.array([0.5, 0.5, 0.5, 0.5, 2])
    assert weights("frequency") == pytest.approx(by_frequency / by_frequency.mean(), abs=1e-5)
    by_task = np.array([4 ** (1 / 2 - 1)] * 4 + [2])
    assert weights("task") == pytest.approx(by_task / by_task.mean(), abs=1e-5)
    assert weights() == [1, 1, 1, 1, 2]
    with pytest.raises(DataError, match=r"train record 1 \('a'\): column 'clocks' must be a number"):
        weights("column", weight_column="clocks")
    with pytest.raises(UsageError, match="needs its name: `weight_column`"):
        weights("column")
    assert sorted(record_weightings) == ["column", "difficulty", "frequency", "task"]


def test_hard_records_weigh_more() -> None:
    records = [Record("aaa", ("aaa",)), Record("bbb", ("aab",)), Record("ccc", ("zzz",), ("ccz",))]
    weighed = weigh(records, PrepareOptions(weigh=["difficulty"]), Letters())
    ranks = []
    encoder = Letters()
    documents = ["aaa", "aab", "zzz", "ccz"]
    for record in records:
        similarities = encoder.encode_document(documents) @ encoder.encode_query([record.query])[0]
        ranks.append(1 + int((similarities > similarities[documents.index(record.pos[0])]).sum()))
    expected = np.log2(1 + np.array(ranks))
    assert [record.weight for record in weighed] == pytest.approx(expected / expected.mean(), abs=1e-5)
    assert weighed[0].weight < weighed[2].weight


def test_bad_rows_do_not_stop_the_good_ones_if_asked(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"".join(json.dumps({"query": f"q{n}", "pos": [f"p{n}"]}).encode() + b"\n" for n in range(50)))
    with path.open("ab") as file:
        file.write(b'{"query": "x", "pos": ["\xff"]}\n{"query": "y"}\n{"query": "half')
    assert "d.jsonl:51: not UTF-8 at byte" in cli("prepare", path, "-o", tmp_path / "o", code=1).stderr
    result = cli("prepare", path, "-o", tmp_path / "o", "--skip-bad")
    assert "50 examples read (3 bad rows left out)" in result.stdout
    rejected = [json.loads(line) for line in (tmp_path / "o/rejected.jsonl").read_text().splitlines()]
    reasons = {one["where"].rsplit(":")[-1]: one["reason"] for one in rejected}
    assert sorted(reasons) == ["51", "52", "53"]
    assert "ends in the middle of the line" in reasons["53"]


def test_a_beir_folder_with_its_corpus(cli: Cli, beir: Path, tiny: Path, tmp_path: Path) -> None:
    cli("prepare", beir, "-o", tmp_path / "o", "--keep-splits", "--duplicates", "exact")
    out = rows_of(tmp_path / "o")
    assert {split: len(rows) for split, rows in out.items()} == {"train": 50, "dev": 25, "test": 25}
    assert len((tmp_path / "o/corpus.jsonl").read_text().splitlines()) == 25
    report = json.loads((tmp_path / "o/report.json").read_text())
    assert report["leaks"]["test"]["document, exact"]["count"] == 25  # one corpus for all splits; no query leaks
    run = json.loads((tmp_path / "o/run.json").read_text())
    assert run["command"] == "prepare"
    assert str(beir) in run["inputs"]
    # what was prepared is mined, trained on and judged by
    cli("mine", tmp_path / "o", "-m", tiny, "-o", tmp_path / "mined")
    assert len(read_records(tmp_path / "mined")) == 50
    assert read_records(tmp_path / "o", split="dev")[0].query.startswith("where is")


def test_several_sources_are_tasks(cli: Cli, tmp_path: Path) -> None:
    one = write_lines(tmp_path / "faq.jsonl", [{"query": f"f{n}", "pos": [f"answer {n}"]} for n in range(4)])
    two = write_lines(
        tmp_path / "log.jsonl", [{"query": f"l{n}", "pos": [f"page {n}"], "task": "own"} for n in range(4)]
    )
    cli("prepare", one, two, "-o", tmp_path / "o", "--ratio", "1:0:0", "--weigh", "task", "--duplicates", "exact")
    tasks = Counter(row["task"] for row in rows_of(tmp_path / "o")["train"])
    assert tasks == {"faq": 4, "own": 4}


def test_the_page_escapes_what_it_shows(cli: Cli, tmp_path: Path) -> None:
    rows = [
        {"text": "<script>alert(1)</script>", "label": "<b>x</b>"},
        {"text": "<i>fine</i> text", "label": "<b>x</b>"},
    ]
    path = write_lines(tmp_path / "d.jsonl", rows)
    cli("prepare", path, "-o", tmp_path / "o", "--form", "labelled", "--ratio", "1:0:0")
    page = (tmp_path / "o/report.html").read_text()
    assert not any(tag in page for tag in ("<script>alert", "<b>x</b>", "<i>fine"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page


def test_prepared_records_are_a_task(tiny: Path, cli: Cli, beir: Path, tmp_path: Path) -> None:
    from bge_cocktail.models.encoder import CachedEncoder

    cli("prepare", beir, "-o", tmp_path / "o", "--keep-splits", "--duplicates", "exact")
    task = open_task(tmp_path / "o", "target")
    task.data("test")
    (score, *_) = evaluate(CachedEncoder(tiny), [task])
    (before, *_) = evaluate(CachedEncoder(tiny), [open_task(beir, "target")])
    assert score.value == pytest.approx(before.value)


def test_plain_copying_is_quick_and_takes_no_memory(tmp_path: Path) -> None:
    """100,000 records a second on an idle machine, and no more memory for ten times the records."""
    import subprocess
    import sys

    from conftest import slowness

    path = tmp_path / "d.jsonl"
    code = (
        "import resource, sys; from bge_cocktail.cli import main\n"
        "try: main(['prepare', sys.argv[1], '-o', sys.argv[2], '--clean', 'none', '--duplicates', 'none', "
        "'--ratio', '1:0:0'])\n"
        "except SystemExit as error: assert not error.code\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(used.ru_utime + used.ru_stime, int(peak) / 1024)"
    )
    used = []
    for count in (10_000, 110_000):
        line = '{"query": "what is the red apple %d", "pos": ["the red apple is over the river %d"], "neg": ["no"]}\n'
        path.write_text("".join(line % (number, number) for number in range(count)))
        command = [sys.executable, "-c", code, str(path), str(tmp_path / f"o{count}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        used.append(tuple(map(float, done.stdout.split()[-2:])))
    seconds = used[1][0] - used[0][0]
    assert 100_000 / seconds > 100_000 / slowness() / 1.5
    assert used[1][1] - used[0][1] < 12


def test_the_same_data_prepared_twice_are_the_same(
    cli: Cli, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    from bge_cocktail.core.runs import hash_path

    cli("prepare", beir, "-o", tmp_path / "one")
    monkeypatch.setattr(time, "gmtime", lambda *_: time.struct_time((2030, 1, 1, 0, 0, 0, 1, 1, 0)))
    cli("prepare", beir, "-o", tmp_path / "two")
    assert hash_path(tmp_path / "one") == hash_path(tmp_path / "two")


def test_documents_without_questions_are_mined_and_searched(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    """A table of pairs, and a table of documents beside it, under whatever names ids have."""
    pairs = [f"what is thing {number},thing number {number} is over the river" for number in range(40)]
    (tmp_path / "pairs.csv").write_text("question,answer\n" + "\n".join(pairs) + "\n")
    documents = [f"x{number},the boat {number} waits" for number in range(30)]
    (tmp_path / "documents.csv").write_text(
        "id,text\n" + "\n".join([*documents, "x90,thing number 3 is over the river"]) + "\n"
    )
    asked = ("prepare", tmp_path / "pairs.csv", "--duplicates", "exact")
    alone = cli(*asked, "-o", tmp_path / "alone")
    assert alone.exit_code == 0
    assert not (tmp_path / "alone/corpus.jsonl").exists()
    cli(*asked, "--corpus", tmp_path / "documents.csv", "-o", tmp_path / "out")
    corpus = [json.loads(line) for line in (tmp_path / "out/corpus.jsonl").read_text().splitlines()]
    assert [row["_id"] for row in corpus][:2] == ["x0", "x1"]
    assert len(corpus) == 31
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert str(tmp_path / "documents.csv") in run["inputs"]
    said = cli("evaluate", tiny, "--target", tmp_path / "alone", "-o", tmp_path / "scores").stderr
    said = " ".join(said.split())
    assert "documents that are searched answers one of its queries" in said
    assert "(bge-cocktail prepare takes documents without questions by --corpus)" in said
    said = cli("compare", tmp_path / "alone", tmp_path / "scores", code=1).stderr
    assert "was made by bge-cocktail prepare; what can be compared is made by bge-cocktail evaluate" in said
    said = cli("evaluate", tiny, "--target", tmp_path / "out", "-o", tmp_path / "scores2").stderr
    assert "that are searched answers" not in " ".join(said.split())
    cli("mine", tmp_path / "out", "-m", tiny, "--relative-margin", "none", "--negatives", 2, "-o", tmp_path / "mined")
    negatives = {text for record in read_records(tmp_path / "mined") for text in record.neg}
    assert any(text.startswith("the boat") for text in negatives)
    cli("mine", tmp_path / "alone", "-m", tiny, "--corpus", tmp_path / "documents.csv", "-o", tmp_path / "mined2")
    assert "no such file" in cli(*asked, "--corpus", tmp_path / "document.csv", "-o", tmp_path / "x", code=1).stderr


@pytest.mark.parametrize(
    ("header", "columns", "said"),
    [
        ("question,answer", "query=question", "with query=question, pos is missing; found question, answer"),
        ("question;answer", "", "one column, 'question;answer'; is it separated by ';'?"),
    ],
)
def test_columns_that_are_half_said(cli: Cli, tmp_path: Path, header: str, columns: str, said: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{header}\n" + f"a{header[8]}b\n" * 3)
    more = ["--columns", columns] if columns else []
    assert said in cli("prepare", path, *more, "-o", tmp_path / "out", code=1).stderr
