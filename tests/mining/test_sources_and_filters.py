"""Mining beyond the nearest documents: sources, indexes, filters, choices, a teacher, padding, the audit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from conftest import build_reranker, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from test_miner import HashEncoder

from bge_cocktail.core.errors import CocktailError, DataError, UsageError
from bge_cocktail.data.beir import RetrievalData, read_corpus, read_judgements
from bge_cocktail.data.record import Record, normalise
from bge_cocktail.data.record_files import read_records
from bge_cocktail.mining.candidates import candidate_sources, false_negatives
from bge_cocktail.mining.filters import choices, negative_filters, teacher_limit
from bge_cocktail.mining.miner import mine
from bge_cocktail.models.encoder import CachedEncoder, load_encoder
from bge_cocktail.models.reranker import load_reranker
from bge_cocktail.options import MineOptions
from bge_cocktail.search import exact as search_module
from bge_cocktail.search.approximate import search
from bge_cocktail.search.bm25 import search_words
from bge_cocktail.search.exact import StoredEmbeddings, embedded, top_k

Cli = Callable[..., Result]
ALL = MineOptions(relative_margin=None, duplicate_similarity=None)
CORPUS = [f"document {number}" for number in range(80)]


def vectors(count: int, dimensions: int = 8, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 50))
def test_blocks_and_files_find_what_one_search_finds(count: int, k: int, rows_at_once: int) -> None:
    documents, queries = np.round(vectors(count), 1), np.round(vectors(17, seed=1), 1)  # rounded: many ties
    expected = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :k]
    similarities, _ = top_k(queries, documents, k)
    assert np.allclose(similarities, np.take_along_axis(queries @ documents.T, expected, 1), atol=1e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "BLOCK_BYTES", rows_at_once * documents.shape[1] * 4)
        in_blocks = top_k(queries, documents, k)
    assert np.allclose(in_blocks[0], similarities, atol=1e-6)
    assert np.take_along_axis(queries @ documents.T, in_blocks[1], 1) == pytest.approx(in_blocks[0], abs=1e-6)


def test_embeddings_that_do_not_fit_are_kept_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {number}" for number in range(50)]
    encoder = HashEncoder()
    monkeypatch.setattr(search_module, "MEMORY_BYTES", 100)
    monkeypatch.setattr(search_module, "TEXTS_AT_ONCE", 7)
    with embedded(encoder.encode_document, texts) as stored:
        assert isinstance(stored, StoredEmbeddings)
        path = stored.path
        assert np.array_equal(stored.rows(0, 50), encoder.encode_document(texts))
        some = np.array([3, 49, 3])
        assert np.array_equal(stored.take(some), encoder.encode_document([texts[row] for row in some]))
    assert not path.exists()
    records = [Record(f"q{number}", (f"document {number}",)) for number in range(20)]
    from_file = mine(records, encoder, MineOptions(), corpus=CORPUS)
    monkeypatch.undo()
    assert from_file == mine(records, encoder, MineOptions(), corpus=CORPUS)


def test_many_embeddings_are_kept_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {number}" for number in range(50)]
    encoder = HashEncoder()
    exact = encoder.encode_document(texts)
    monkeypatch.setattr(search_module, "MEMORY_BYTES", 100)
    monkeypatch.setattr(search_module, "EXACT_BYTES", 1000)
    with embedded(encoder.encode_document, texts) as stored:
        assert isinstance(stored, StoredEmbeddings)
        assert stored.path.stat().st_size == 2 * exact.size
        assert len(stored) == 50
        rows = stored.rows(3, 50)
        assert rows.dtype == np.float32
        assert np.abs(rows - exact[3:]).max() < 5e-4
        assert np.array_equal(search_module.take(search_module.first_rows(stored, 9), np.array([4, 8])), rows[[1, 5]])
        assert np.abs(top_k(exact, stored, 5)[0] - top_k(exact, exact, 5)[0]).max() < 1e-3


@pytest.mark.parametrize("at_once", [1, 100, 1 << 28])
def test_a_search_by_torch_finds_what_faiss_finds(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """It runs on a card where there is one; here the same code runs on the processor."""
    documents, queries = vectors(300), vectors(17, seed=1)
    monkeypatch.setattr(search_module, "_ON_CARD", at_once)
    similarities, rows = search_module.nearest_by_torch(queries, documents, 9, "cpu")
    expected = top_k(queries, documents, 9)
    assert np.allclose(similarities, expected[0], atol=1e-6)
    assert np.array_equal(rows, expected[1])


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_an_index_has_the_recall_that_is_asked(index: str) -> None:
    documents, queries = vectors(4000, 16), vectors(300, 16, seed=1)
    found = search(queries, documents, 10, index=index, min_recall=0.9)  # type: ignore[arg-type]
    exact = top_k(queries, documents, 10)[1]
    pairs = zip(found.rows.tolist(), exact.tolist(), strict=True)
    recall = np.mean([len(set(one) & set(other)) / 10 for one, other in pairs])
    assert recall > 0.85
    assert found.recall >= 0.9
    assert search(queries, documents, 10).recall == 1


def test_bm25_is_the_formula() -> None:
    """Against BM25 with Lucene's idf, written out."""
    documents = ["red apple", "green apple pear", "the red red dog", "nothing of it"]
    queries = ["red dog", "apple"]
    sought = [Record(query, ("positive",)) for query in queries]
    mined = mine(sought, HashEncoder(), ALL.model_copy(update={"candidates": ["bm25"]}), corpus=documents)
    split = [document.split() for document in documents]
    mean = np.mean([len(words) for words in split])

    def score(query: str, words: list[str]) -> float:
        total = 0.0
        for word in query.split():
            holding = sum(word in other for other in split)
            idf = np.log(1 + (len(split) - holding + 0.5) / (holding + 0.5))
            count = words.count(word)
            total += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
        return total

    for record in mined.records:
        ranked = sorted(range(4), key=lambda row: -score(record.query, split[row]))
        expected = [documents[row] for row in ranked if score(record.query, split[row]) > 0]
        assert list(record.neg) == expected


def test_words_of_any_script() -> None:
    assert search_words("Red APPLE-pie 42") == ["red", "apple", "pie", "42"]
    assert search_words("北京大学 is") == ["北京", "京大", "大学", "is"]
    assert search_words("猫") == ["猫"]
    assert search_words("Python编程 2024年") == ["python", "编程", "2024", "年"]
    assert search_words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]  # vowel signs belong to their word


def test_sources_take_turns_and_nothing_comes_twice() -> None:
    records = [Record(f"document {number}", (f"document {number + 1}",)) for number in range(10)]
    other = HashEncoder()
    options = ALL.model_copy(update={"candidates": ["dense", "bm25"], "depth": 20, "negatives": 15})

    class Another(HashEncoder):
        def encode_query(self, texts: Sequence[str]) -> np.ndarray:
            return other.encode_query([text[::-1] for text in texts])

        encode_document = encode_text = encode_query

    mined = mine(records, HashEncoder(), options, corpus=CORPUS, also={"another": Another()}, audit=10)
    for audit in mined.audits:
        texts = [one.text for one in audit.candidates]
        assert len(texts) == len(set(texts))
        assert {one.source for one in audit.candidates} == {"dense", "bm25", "another"}
        assert [one.rank for one in audit.candidates] == sorted(one.rank for one in audit.candidates)
        similar = HashEncoder().encode_document(texts) @ HashEncoder().encode_query([audit.query])[0]
        assert [one.similarity for one in audit.candidates] == pytest.approx(similar, abs=1e-4)
    assert mined.recalls == {"dense": 1, "bm25": 1, "another": 1}


def test_the_window_is_over_ranks_of_any_source() -> None:
    """What any source ranks within the skipped ranks is left out, even if another finds it further down."""
    records = [Record("document 3", ("positive",))]
    options = ALL.model_copy(update={"candidates": ["dense", "bm25"], "skip": 2, "depth": 80, "negatives": 80})
    mined = mine(records, HashEncoder(), options, corpus=CORPUS)
    dense = mine(records, HashEncoder(), ALL.model_copy(update={"depth": 2}), corpus=CORPUS).records[0].neg
    words = mine(records, HashEncoder(), ALL.model_copy(update={"candidates": ["bm25"], "depth": 2}), corpus=CORPUS)
    assert not {*dense, *words.records[0].neg} & set(mined.records[0].neg)


def test_near_duplicates_of_positives_are_no_negatives() -> None:
    class Spelling(HashEncoder):
        """Punctuation hardly moves a text."""

        def encode_query(self, texts: Sequence[str]) -> np.ndarray:
            rows = HashEncoder.encode_query(self, [text.strip("!") for text in texts])
            rows = rows + 0.01 * np.array([[text.count("!")] * rows.shape[1] for text in texts], np.float32)
            return rows / np.linalg.norm(rows, axis=1, keepdims=True)

        encode_document = encode_text = encode_query

    records = [Record(f"q{number}", (f"document {number}", f"document {number + 1}")) for number in range(10)]
    corpus = [*CORPUS, *(text + "!" for text in CORPUS)]
    options = MineOptions(relative_margin=None, depth=160, negatives=160)
    for record in mine(records, Spelling(), options, corpus=corpus).records:
        positives = {normalise(text).strip("!") for text in record.pos}
        assert not positives & {text.strip("!") for text in record.neg}
        assert len(record.neg) == 160 - 4
    mined = mine(records, Spelling(), options.model_copy(update={"duplicate_similarity": None}), corpus=corpus)
    assert all(len(record.neg) == 160 - 2 for record in mined.records)


@pytest.mark.parametrize("choice", sorted(choices))
def test_choices(choice: str) -> None:
    similarities = np.linspace(0.9, 0.1, 40).astype(np.float32)
    for count in (1, 7, 40, 60):
        for seed in range(5):
            chosen = choices[choice](similarities, count, MineOptions(), np.random.default_rng(seed))
            again = choices[choice](similarities, count, MineOptions(), np.random.default_rng(seed))
            assert chosen.tolist() == again.tolist() == sorted(set(chosen.tolist()))
            assert len(chosen) == min(count, 40)
            assert chosen.max() < 40
            if choice == "top":
                assert chosen.tolist() == list(range(min(count, 40)))
            if choice == "stratified" and count == 7:
                assert [int(place * 7 / 40) for place in chosen] == pytest.approx(range(7), abs=1)


def test_softmax_draws_as_the_formula_says() -> None:
    similarities, options = np.array([0.5, 0.45, 0.4, 0.2], np.float32), MineOptions(choice_temperature=0.1)
    draws = [choices["softmax"](similarities, 1, options, np.random.default_rng(seed))[0] for seed in range(4000)]
    expected = np.exp(similarities / 0.1) / np.exp(similarities / 0.1).sum()
    assert np.bincount(draws, minlength=4) / 4000 == pytest.approx(expected, abs=0.03)


def by_number(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """A teacher that knows: documents with even numbers are relevant."""
    return np.array([0.9 if document[-1] in "02468" else 0.1 for _, document in pairs])


def test_a_teacher_filters_and_its_scores_are_written() -> None:
    records = [Record(f"q{number}", ("document 0",), ("document 1",)) for number in range(5)]
    options = ALL.model_copy(update={"teacher_margin": 0.1, "teacher_depth": 25, "negatives": 5})
    mined = mine(records, HashEncoder(), options, corpus=CORPUS, teacher=by_number)
    for record in mined.records:
        assert record.pos_scores == (0.9,)
        assert record.neg_scores == (0.1,) * 6
        assert all(int(text.split()[-1]) % 2 for text in record.neg)
    assert mined.dropped["above the teacher's limit"] > 0
    # without a margin it filters nothing, and its scores are there all the same
    free = mine(records, HashEncoder(), ALL, corpus=CORPUS, teacher=by_number)
    without = mine(records, HashEncoder(), ALL, corpus=CORPUS)
    assert [one.neg for one in free.records] == [one.neg for one in without.records]
    for record in free.records:
        assert record.neg_scores == tuple(by_number([(record.query, text) for text in record.neg]))
    with pytest.raises(UsageError, match="need a teacher"):
        mine(records, HashEncoder(), options, corpus=CORPUS)


def test_no_pair_is_judged_twice_for_a_record() -> None:
    seen: list[tuple[str, str]] = []

    def counting(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        seen.extend(pairs)
        return by_number(pairs)

    mine([Record("q", ("document 0",))], HashEncoder(), ALL, corpus=CORPUS, teacher=counting)
    assert len(seen) == len(set(seen))


def test_padding_only_on_request_and_marked() -> None:
    records = [Record("q", ("a",), id="x"), Record("Q", ("b",))]
    corpus = ["a", "b", "q", *CORPUS]
    options = MineOptions(max_similarity=-1.0, relative_margin=None, negatives=2, depth=60)
    short = mine(records, HashEncoder(), options, corpus=corpus)
    assert [record.neg for record in short.records] == [(), ()]
    assert short.short == 2
    assert short.padded == 0
    padded = mine(records, HashEncoder(), options.model_copy(update={"pad": True}), corpus=corpus, audit=2)
    for audit, record in zip(padded.audits, padded.records, strict=True):
        # what was left out for a reason doesn't come back by chance
        assert not {one.text for one in audit.candidates} & set(record.neg)
    assert padded.short == 2
    assert padded.padded == 4
    for record in padded.records:
        assert len(set(record.neg)) == 2
        assert set(record.neg) <= set(CORPUS)
        assert record.extra == {"random_negatives": list(record.neg)}


def test_the_audit_tells_the_reason_for_each() -> None:
    records = [Record(f"q{number}", (f"document {number}",)) for number in range(9)]
    mined = mine(records, HashEncoder(), MineOptions(skip=2, depth=30, negatives=3), corpus=CORPUS, audit=3)
    assert [audit.query for audit in mined.audits] == ["q0", "q4", "q8"]
    known = {*negative_filters, "chosen", "not needed"}
    for audit in mined.audits:
        assert len(audit.candidates) == 30
        assert {one.decision for one in audit.candidates} <= known
        (record,) = (one for one in mined.records if one.query == audit.query)
        assert [one.text for one in audit.candidates if one.decision == "chosen"] == list(record.neg)
        lowest = audit.positives[0][1]
        for one in audit.candidates:
            if one.decision == "above the relative margin":
                assert one.similarity > lowest - 0.05 * abs(lowest) - 1e-3


def test_false_negatives_are_those_judged_relevant() -> None:
    judged = RetrievalData({"1": "One", "2": "two", "3": "three"}, {"q": "Query"}, {"q": {"1": 1, "2": 2, "3": 0}})
    records = [Record("query", ("one",), ("TWO", "three", "x")), Record("other", ("y",), ("one",))]
    found = false_negatives(records, [judged])
    assert (found.negatives, found.relevant) == (3, 1)
    assert found.rate == pytest.approx(1 / 3)
    assert found.examples == (("query", "TWO"),)


def test_the_audit_of_the_command(cli: Cli, beir: Path, tiny: Path, tmp_path: Path) -> None:
    options = ["-m", tiny, "--relative-margin", "none"]
    result = cli("mine", beir, *options, "-o", tmp_path / "o", "--audit", "2")
    assert "0 of 350 negatives are judged relevant: 0.00%" in result.stdout
    assert result.stdout.count("query: ") == 2
    assert len(json.loads((tmp_path / "o/audit.json").read_text())) == 2
    # one positive of several is hidden from the miner, and the judgements find it among the negatives
    rows = [{"query": "which dog is red", "pos": ["green dog"], "neg": []}]
    path = write_lines(tmp_path / "d.jsonl", rows)
    options += ["--corpus", beir, "--qrels", beir, "--depth", "25", "--negatives", "25"]
    result = cli("mine", path, *options, "-o", tmp_path / "p")
    assert "1 of 25 negatives are judged relevant: 4.00%" in result.stdout
    with pytest.raises(DataError, match="holds no judgements"):
        read_judgements(tmp_path)


def test_unknown_names(cli: Cli, beir: Path, tiny: Path, tmp_path: Path) -> None:
    for option, value, message in (
        ("--choice", "tip", "no 'tip' among the choices. Did you mean 'top'?"),
        ("--candidates", "bm24", "no 'bm24' among the candidate-sources. Did you mean 'bm25'?"),
    ):
        assert message in cli("mine", beir, "-m", tiny, "-o", tmp_path / "o", option, value, code=2).stderr
    result = cli("mine", beir, "-m", tiny, "-o", tmp_path / "o", "--teacher-max", "0.5", code=2)
    assert "need a teacher" in result.stderr
    assert sorted(candidate_sources) == ["bm25", "dense"]


def test_a_reranker_as_teacher(cli: Cli, beir: Path, tiny: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    reranker = build_reranker(tmp_path / "reranker")
    cli("mine", beir, "-m", tiny, "-o", tmp_path / "o", "--teacher", reranker, "--teacher-margin", "0.0")
    model = CrossEncoder(str(reranker), device="cpu")
    records = read_records(tmp_path / "o")
    assert any(record.neg for record in records)
    for record in records[:5]:
        texts = [*record.pos, *record.neg]
        scores = model.predict([(record.query, text) for text in texts])
        assert [*record.pos_scores, *record.neg_scores] == pytest.approx(scores.tolist(), abs=1e-5)
        assert all(score <= min(record.pos_scores) + 1e-6 for score in record.neg_scores)
    run = json.loads((tmp_path / "o/run.json").read_text())
    assert str(reranker) in run["inputs"]
    with pytest.raises(CocktailError, match="not a model folder"):
        load_reranker(str(tmp_path))


def test_the_same_negatives_as_sentence_transformers(beir: Path, tiny: Path) -> None:
    """`mine_hard_negatives` with the same settings finds the same sets."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    records = read_records(beir)
    first_of: dict[str, str] = {}
    for text in read_corpus(beir):
        first_of.setdefault(normalise(text), text)
    corpus = list(first_of.values())
    pairs = Dataset.from_dict({"query": [one.query for one in records], "answer": [one.pos[0] for one in records]})
    theirs = mine_hard_negatives(
        pairs,
        load_encoder(tiny, device="cpu"),
        corpus=corpus,
        range_min=0,
        range_max=24,
        relative_margin=0.02,
        num_negatives=3,
        sampling_strategy="top",
        output_format="labeled-list",
        use_faiss=False,
        verbose=False,
    )
    # their ranks leave positives out, ours count all documents: the window is the whole corpus
    options = MineOptions(depth=25, relative_margin=0.02, negatives=3, duplicate_similarity=None, keep_negatives=False)
    ours = {one.query: set(one.neg) for one in mine(records, CachedEncoder(tiny), options, corpus=corpus).records}
    found = 0
    for query, answers, labels in zip(*(theirs[name] for name in theirs.column_names), strict=True):
        negatives = {text for text, label in zip(answers, labels, strict=True) if label == 0}
        assert ours[query] == negatives, query
        found += len(negatives)
    assert found > 60


def test_positives_of_the_query_in_other_records_count_for_the_margins() -> None:
    """One row for each pair is the usual file: margins are from the positives of the query, not of the row."""
    corpus = [*CORPUS, "one", "two"]
    apart = [Record("q", ("one",)), Record("q", ("two",))]
    together = [Record("q", ("one", "two"))]
    options = MineOptions(relative_margin=0.1, depth=80, negatives=80)
    for more in ((), [Record(" q", ("three",))]):
        one = mine(apart, HashEncoder(), options, corpus=corpus, known_positives=more)
        both = mine(together, HashEncoder(), options, corpus=corpus, known_positives=more)
        assert one.records[0].neg == one.records[1].neg == both.records[0].neg


def test_where_margins_are_measured_from() -> None:
    """Of several positives; the similarities' margins have a slow reference in test_miner.py."""
    for margin_from, limit in (("lowest", 0.18), ("mean", 0.36), ("highest", 0.63)):
        options = MineOptions(margin_from=margin_from, teacher_margin=0.1)  # type: ignore[arg-type]
        assert teacher_limit([0.3, 0.7, 0.2], options) == pytest.approx(limit)


def test_no_words_no_candidates() -> None:
    mined = mine([Record("???", ("!!!",))], HashEncoder(), ALL.model_copy(update={"candidates": ["bm25"]}))
    assert mined.records[0].neg == ()


def test_the_file_of_embeddings_goes_when_embedding_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "MEMORY_BYTES", 100)
    monkeypatch.setattr(search_module, "TEXTS_AT_ONCE", 7)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def breaks(texts: Sequence[str]) -> np.ndarray:
        if texts[0] != "text 0":
            raise KeyboardInterrupt
        return vectors(len(texts))

    with pytest.raises(KeyboardInterrupt), embedded(breaks, [f"text {number}" for number in range(50)]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_equally_near_documents_count_as_found() -> None:
    documents = np.repeat(vectors(20, 16), 50, axis=0)
    for index in ("ivf", "hnsw"):
        assert search(vectors(50, 16, seed=1), documents, 60, index=index, min_recall=0.9).recall >= 0.9  # type: ignore[arg-type]


def test_a_teacher_that_is_none(cli: Cli, beir: Path, tiny: Path, tmp_path: Path) -> None:
    """A model without a trained head would score at random."""
    result = cli("mine", beir, "-m", tiny, "-o", tmp_path / "o", "--teacher", tiny, code=1)
    assert "is no reranker" in result.stderr
    reranker = build_reranker(tmp_path / "broken")
    (reranker / "model.safetensors").write_bytes(b"junk")
    result = cli("mine", beir, "-m", tiny, "-o", tmp_path / "o", "--teacher", reranker, code=1)
    assert "the reranker can't be loaded" in result.stderr

    def nan(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        return np.full(len(pairs), np.nan)

    with pytest.raises(CocktailError, match="NaN or infinite scores, first for: 'q'"):
        mine(
            [Record("q", ("a",))], HashEncoder(), ALL, corpus=CORPUS, teacher=lambda pairs: np.full(len(pairs), np.nan)
        )


def test_options_that_would_do_nothing() -> None:
    records = [Record("q", ("a",))]
    for options, message in (
        (MineOptions(candidates=["bm25"], index="hnsw"), "index=hnsw is for embeddings, but candidates is bm25"),
        (MineOptions(teacher_max=0.5, teacher_depth=3), "teacher_depth=3 is less than negatives=7"),
        (MineOptions(also=["other"]), "the options name the encoder 'other', which isn't given"),
    ):
        with pytest.raises(UsageError, match=message):
            mine(records, HashEncoder(), options, corpus=CORPUS, teacher=by_number)
    with pytest.raises(UsageError, match="can't be named 'dense'"):
        mine(records, HashEncoder(), ALL, corpus=CORPUS, also={"dense": HashEncoder()})
