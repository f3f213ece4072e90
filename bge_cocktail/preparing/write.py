"""The last pass: every split in its final form, and the corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import DataError
from bge_cocktail.data.beir import CORPUS_FILE, documents_in, read_documents
from bge_cocktail.data.examples import (
    NEITHER,
    Example,
    LabelledText,
    RecordExample,
    TextPair,
    records_from_labels,
    records_from_pairs,
)
from bge_cocktail.data.readers import BadRows
from bge_cocktail.data.record import exact_key, text_key
from bge_cocktail.data.record_files import json_line
from bge_cocktail.data.sources import SPLITS
from bge_cocktail.models.embed import TokenCounter
from bge_cocktail.models.encoder import Encoder
from bge_cocktail.options import PrepareOptions
from bge_cocktail.preparing.augment import augment
from bge_cocktail.preparing.clean import Cleaner
from bge_cocktail.preparing.record_weights import weigh
from bge_cocktail.preparing.store import PrepareReport, SplitStatistics, Store, parse


def write_splits(
    staged: Store,
    splits: Sequence[int],
    leaking: set[bytes],
    held_out: Iterable[tuple[str, ...]],
    folder: Path,
    options: PrepareOptions,
    encoder: Encoder | None,
    counter: TokenCounter | None,
    report: PrepareReport,
) -> dict[str, Any]:
    """Write train.jsonl, dev.jsonl and test.jsonl, those that get anything.

    Args:
        staged: What is written.
        splits: The split of each example.
        leaking: Keys of train queries that have to go.
        held_out: Texts of test sets, which no varied copy may repeat.
        folder: Where to write.
        options: Form, augmentation, weights.
        encoder: For weighing by difficulty.
        counter: Counts tokens for the report.
        report: Gets what was augmented and which negatives went.

    Returns:
        What each split consists of.

    Raises:
        DataError: Train gets nothing.
    """
    home: dict[bytes, int] = {}
    if len(set(splits)) > 1 and staged.keys:
        for split, keys in zip(splits, staged.keys, strict=True):
            home.update(dict.fromkeys(keys, split))
    summaries = {}
    gone: Counter[str] = Counter()
    for number, name in enumerate(SPLITS):
        if number not in splits:
            continue
        examples = _of_split(staged, splits, number, home, leaking if number == 0 else set(), options, gone)
        if number == 0 and (options.weigh or options.augment):
            records = [example.record for example in examples if isinstance(example, RecordExample)]
            counted: Counter[str] = Counter()
            elsewhere = {key for key, split in home.items() if split} if options.augment else set()
            elsewhere |= {text_key(text) for own in held_out for text in own} if options.augment else set()
            varied = augment(weigh(records, options, encoder), options, counted, elsewhere)
            examples = (RecordExample(record) for record in varied)
            report["augmented"] = counted
        census = SplitStatistics(counter, counter.limit if counter else None)
        with (folder / f"{name}.jsonl").open("wb") as file:
            for example in examples:
                census.add(example)
                file.write(json_line(example.to_json()))
        if census.examples:
            summaries[name] = census.summary()
        else:
            (folder / f"{name}.jsonl").unlink()
    if "train" not in summaries:
        why = "; ".join(f"{count} {reason}" for reason, count in staged.dropped.most_common())
        cure = ""
        if staged.dropped[NEITHER]:
            cure = (
                "; where the labels are grades (0 and 1), read them as such: "
                "`columns=first=sentence1,second=sentence2,score=label`, with the names of your columns"
            )
        raise DataError(f"nothing is left to train on ({why or 'train is empty'}){cure}")
    report["negatives_that_went"] = {reason: count for reason, count in gone.items() if count}
    return summaries


def _of_split(
    staged: Store,
    splits: Sequence[int],
    number: int,
    home: dict[bytes, int],
    leaking: set[bytes],
    options: PrepareOptions,
    gone: Counter[str],
) -> Iterator[Example]:
    """Yield the examples of one split in their final form."""
    labelled: list[LabelledText] = []
    pairs: list[TextPair] = []
    for line, split in zip(staged.lines(), splits, strict=True):
        if split != number:
            continue
        example = parse(line)
        if leaking and not leaking.isdisjoint(_keys(example)):
            staged.drop("leaks: stands in a test set", example)
        elif options.form == "records" and isinstance(example, LabelledText):
            labelled.append(example)
        elif options.form == "records" and isinstance(example, TextPair):
            pairs.append(example)
        elif isinstance(example, RecordExample) and home and example.record.neg:
            yield _without_texts_of_others(example, number, home, gone)
        else:
            yield example
    records = records_from_labels(labelled, negatives=options.negatives, seed=options.seed, dropped=staged.dropped)
    records += records_from_pairs(
        pairs, positive_from=options.positive_from, negative_below=options.negative_below, dropped=staged.dropped
    )
    yield from map(RecordExample, records)


def _keys(example: Example) -> set[bytes]:
    return {text_key(text) for text in example.own_texts()}


def _without_texts_of_others(
    example: RecordExample, number: int, home: dict[bytes, int], gone: Counter[str]
) -> RecordExample:
    """Without negatives that are a query or a positive of another split."""
    record = example.record
    kept = [home.get(text_key(text), number) == number for text in record.neg]
    if all(kept):
        return example
    gone["negative that is a query or positive of another split"] += kept.count(False)
    neg = tuple(text for text, here in zip(record.neg, kept, strict=True) if here)
    scores = tuple(score for score, here in zip(record.neg_scores, kept, strict=False) if here)
    return RecordExample(replace(record, neg=neg, neg_scores=scores))


CHANGES_SHOWN = 3


Changes = list[tuple[str, str]]


def write_corpus(corpora: Sequence[Path], output: Path, cleaner: Cleaner) -> tuple[dict[str, int], Changes]:
    """Write the cleaned documents of BEIR folders and files, each text and each id once, to mine from.

    Bad lines of folders are passed over: they were met, and refused or counted, when the records were read.

    Returns:
        How many were read, kept, changed and left out, by reason; and the first that were changed, before and after.
    """
    seen: set[bytes] = set()
    names: set[str] = set()
    counts = {"read": 0, "kept": 0, "changed by cleaning": 0, "exact duplicate": 0, "left out by cleaning": 0}
    changes: Changes = []
    with (output / CORPUS_FILE).open("wb") as file:
        for number, place in enumerate(corpora):
            read = read_documents(place / CORPUS_FILE, BadRows(skip=True)) if place.is_dir() else documents_in(place)
            for name, text in read:
                # ids of several corpora may be the same, of one they are no two documents'
                name = f"{number}-{name}" if len(corpora) > 1 else name
                if name in names:
                    continue
                names.add(name)
                counts["read"] += 1
                cleaned = cleaner(text, "document")
                if cleaned is not None and cleaned != text:
                    counts["changed by cleaning"] += 1
                    if len(changes) < CHANGES_SHOWN:
                        changes.append((text, cleaned))
                if cleaned is None:
                    counts["left out by cleaning"] += 1
                    continue
                key = exact_key(cleaned)
                if key in seen:
                    counts["exact duplicate"] += 1
                    continue
                seen.add(key)
                counts["kept"] += 1
                file.write(json_line({"_id": name, "text": cleaned}))
    return counts, changes
