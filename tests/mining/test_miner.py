"""Mining: laws that hold for any embeddings, and a slow reference."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.data.record import Record, normalise, positives_by_query
from bge_cocktail.mining.miner import mine
from bge_cocktail.options import MineOptions


class HashEncoder:
    """Embeddings that depend on nothing but the text."""

    def encode_query(self, texts: Sequence[str]) -> np.ndarray:
        rows = [np.random.default_rng(list(text.encode())).standard_normal(6) for text in texts]
        array = np.asarray(rows, np.float32).reshape(len(texts), 6)
        return array / np.linalg.norm(array, axis=1, keepdims=True)

    encode_document = encode_text = encode_query


names = st.integers(0, 25).map(lambda number: f"Text {number}")
spaced = st.tuples(names, st.sampled_from(["{}", " {} ", "{}\t"]), st.booleans()).map(
    lambda parts: parts[1].format(parts[0].upper() if parts[2] else parts[0])
)


@st.composite
def data(draw: st.DrawFn) -> tuple[list[Record], list[str] | None]:
    records = []
    for _ in range(draw(st.integers(1, 6))):
        pos = draw(st.lists(spaced, min_size=1, max_size=3))
        positives = {normalise(text) for text in pos}
        neg = [text for text in draw(st.lists(spaced, max_size=3)) if normalise(text) not in positives]
        records.append(Record(draw(spaced), tuple(pos), tuple(neg)))
    corpus = draw(st.none() | st.lists(spaced, min_size=1, max_size=20))
    return records, corpus


options = st.builds(
    MineOptions,
    negatives=st.integers(1, 5),
    skip=st.integers(0, 3),
    depth=st.integers(4, 30),
    relative_margin=st.none() | st.floats(0, 0.9),
    absolute_margin=st.none() | st.floats(0, 0.5),
    max_similarity=st.none() | st.floats(-1, 1),
    margin_from=st.sampled_from(["lowest", "mean", "highest"]),
    choice=st.sampled_from(["top", "random"]),
    keep_negatives=st.booleans(),
)


def kept_negatives(record: Record, positives: set[str]) -> tuple[str, ...]:
    """Those that are no positive and not the query, each once."""
    seen = {*positives, normalise(record.query)}
    kept = []
    for text in record.neg:
        if normalise(text) not in seen:
            seen.add(normalise(text))
            kept.append(text)
    return tuple(kept)


@settings(deadline=None, max_examples=150)
@given(data(), options)
def test_laws(data: tuple[list[Record], list[str] | None], options: MineOptions) -> None:
    records, corpus = data
    mined = mine(records, HashEncoder(), options, corpus=corpus)
    assert len(mined.records) == len(records)
    positives = positives_by_query(records)
    offered = 0
    for before, after in zip(records, mined.records, strict=True):
        kept = kept_negatives(before, positives[normalise(before.query)]) if options.keep_negatives else ()
        assert after.neg[: len(kept)] == kept
        new = [normalise(text) for text in after.neg[len(kept) :]]
        assert len(new) <= options.negatives
        assert len(set(new)) == len(new)
        assert not set(new) & {normalise(text) for text in kept}
        assert not set(new) & positives[normalise(before.query)]
        assert normalise(before.query) not in new
        assert (after.query, after.pos, after.id) == (before.query, before.pos, before.id)
        offered += len(new)
    # nothing is lost: every candidate is mined or counted under a reason
    documents = (
        {normalise(t) for r in records for t in (*r.pos, *r.neg)} if corpus is None else set(map(normalise, corpus))
    )
    candidates = min(options.depth, len(documents)) * len(records)
    about_records = (
        "replaced negative of the record",
        "negative of the record, but a positive elsewhere",
        "negative of the record, but the query itself",
        "negative of the record a second time",
        "teacher score of a negative (scores no longer match)",
    )
    assert offered + sum(n for reason, n in mined.dropped.items() if reason not in about_records) == candidates
    assert mine(records, HashEncoder(), options, corpus=corpus) == mined


@settings(deadline=None, max_examples=60)
@given(data(), options)
def test_equals_a_slow_reference(data: tuple[list[Record], list[str] | None], options: MineOptions) -> None:
    records, corpus = data
    options = options.model_copy(update={"choice": "top"})
    encoder = HashEncoder()
    texts = [text for record in records for text in (*record.pos, *record.neg)] if corpus is None else corpus
    distinct = {normalise(text): text for text in reversed(texts)}
    documents = list(dict.fromkeys(distinct[normalise(text)] for text in texts))
    expected = []
    for record in records:
        query = encoder.encode_query([record.query])[0]
        ranked = sorted(
            enumerate(documents),
            key=lambda pair: (-float(np.dot(query, encoder.encode_document([pair[1]])[0])), pair[0]),
        )[: options.depth]
        known = {
            normalise(t) for other in records if normalise(other.query) == normalise(record.query) for t in other.pos
        }
        known_texts = {t for other in records if normalise(other.query) == normalise(record.query) for t in other.pos}
        of_several = {"lowest": min, "mean": fmean, "highest": max}[options.margin_from]
        start = of_several([float(np.dot(query, encoder.encode_document([text])[0])) for text in sorted(known_texts)])
        kept = kept_negatives(record, known) if options.keep_negatives else ()
        taken: list[str] = []
        for rank, (_, text) in enumerate(ranked, 1):
            similarity = float(np.dot(query, encoder.encode_document([text])[0]))
            key = normalise(text)
            allowed = (
                key not in known
                and key != normalise(record.query)
                and key not in {normalise(t) for t in kept}
                and rank > options.skip
                and (options.relative_margin is None or similarity <= start - options.relative_margin * abs(start))
                and (options.absolute_margin is None or similarity <= start - options.absolute_margin)
                and (options.max_similarity is None or similarity <= options.max_similarity)
            )
            if allowed and len(taken) < options.negatives:
                taken.append(text)
        expected.append((*kept, *taken))
    found = mine(records, encoder, options, corpus=corpus)
    # float32 sums in another order may swap near-equal ranks; the sets must agree
    for one, two in zip(found.records, expected, strict=True):
        assert {normalise(text) for text in one.neg} == {normalise(text) for text in two}


def test_a_positive_of_the_same_query_in_another_row_is_no_negative() -> None:
    records = [Record("q", ("a",)), Record(" Q ", ("b",)), Record("other", ("c",))]
    mined = mine(records, HashEncoder(), MineOptions(relative_margin=None))
    assert set(mined.records[0].neg) == set(mined.records[1].neg) == {"c"}
    assert mined.dropped["known positive of the query"] == 5
    assert mined.short == 3


def test_a_negative_that_is_a_positive_elsewhere_goes_and_is_counted() -> None:
    records = [Record("q", ("a",), ("b",)), Record("q", ("b",))]
    mined = mine(records, HashEncoder(), MineOptions(relative_margin=None), corpus=["a", "b", "c"])
    assert [record.neg for record in mined.records] == [("c",), ("c",)]
    assert mined.dropped["negative of the record, but a positive elsewhere"] == 1
    others = [Record("Q", ("c",))]
    mined = mine(
        records, HashEncoder(), MineOptions(relative_margin=None), corpus=["a", "b", "c"], known_positives=others
    )
    assert [record.neg for record in mined.records] == [(), ()]


def test_no_text_is_embedded_twice_even_without_a_cache() -> None:
    seen: list[str] = []

    class Counting(HashEncoder):
        def encode_document(self, texts: Sequence[str]) -> np.ndarray:
            seen.extend(texts)
            return HashEncoder.encode_query(self, texts)

    records = [Record("q", ("a", "B")), Record("r", ("a",)), Record("s", ("not in the corpus",))]
    mine(records, Counting(), MineOptions(), corpus=["a", "b", "c"])
    assert sorted(seen) == ["B", "a", "b", "c", "not in the corpus"]


def test_the_prompt_of_a_record_counts() -> None:
    class Prompted(HashEncoder):
        def encode_query(self, texts: Sequence[str], prompt: str = "") -> np.ndarray:
            return super().encode_query([prompt + text for text in texts])

        encode_document = HashEncoder.encode_query

    plain, prompted = (Record("q", ("a",), prompt=prompt) for prompt in (None, "find: "))
    corpus = [f"d{number}" for number in range(40)]
    options = MineOptions(relative_margin=None)
    one, two = (mine([r], Prompted(), options, corpus=corpus).records[0].neg for r in (plain, prompted))
    both = mine([plain, prompted], Prompted(), options, corpus=corpus).records
    assert one != two
    assert [record.neg for record in both] == [one, two]


def test_stale_teacher_scores_go_and_are_counted() -> None:
    record = Record("q", ("a",), ("b",), (1.0,), (0.5,))
    mined = mine([record], HashEncoder(), MineOptions(), corpus=["a", "b", "c"])
    assert mined.records[0].neg_scores == ()
    assert mined.records[0].pos_scores == (1.0,)
    assert mined.dropped["teacher score of a negative (scores no longer match)"] == 1


def test_another_seed_draws_others() -> None:
    records = [Record("q", ("p",))]
    corpus = [f"d{number}" for number in range(60)]
    drawn = {
        tuple(
            mine(
                records,
                HashEncoder(),
                MineOptions(choice="random", seed=seed, relative_margin=None),
                corpus=corpus,
            )
            .records[0]
            .neg
        )
        for seed in range(5)
    }
    assert len(drawn) == 5


def test_nothing_left_below_skip() -> None:
    with pytest.raises(UsageError, match="skip=10 leaves no rank up to depth=10"):
        mine([Record("q", ("p",))], HashEncoder(), MineOptions(skip=10, depth=10))


def test_an_empty_corpus() -> None:
    with pytest.raises(DataError, match="no documents to mine from"):
        mine([Record("q", ("p",))], HashEncoder(), corpus=[])
