"""The last pass: every split in its final form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bge_cocktail.encoding import Encoder
from bge_cocktail.errors import DataError
from bge_cocktail.options import Preparing
from bge_cocktail.preparing.augmenting import augment
from bge_cocktail.preparing.census import Census
from bge_cocktail.preparing.duplicates import text_key
from bge_cocktail.preparing.splitting import SPLITS
from bge_cocktail.preparing.staging import Staged, parse
from bge_cocktail.preparing.tokens import TokenCounter
from bge_cocktail.preparing.weighing import weigh
from bge_cocktail.records.examples import Example, LabelledText, RecordExample, TextPair
from bge_cocktail.records.files import json_line
from bge_cocktail.records.forming import records_from_labels, records_from_pairs


def write_splits(
    staged: Staged,
    splits: Sequence[int],
    leaking: set[bytes],
    held_out: Iterable[tuple[str, ...]],
    folder: Path,
    options: Preparing,
    encoder: Encoder | None,
    counter: TokenCounter | None,
    report: dict[str, Any],
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
    found = {}
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
        census = Census(counter, counter.limit if counter else None)
        with (folder / f"{name}.jsonl").open("wb") as file:
            for example in examples:
                census.add(example)
                file.write(json_line(example.to_json()))
        if census.examples:
            found[name] = census.summary()
        else:
            (folder / f"{name}.jsonl").unlink()
    if "train" not in found:
        why = "; ".join(f"{count} {reason}" for reason, count in staged.dropped.most_common())
        raise DataError(f"nothing is left to train on ({why or 'train is empty'})")
    report["negatives_that_went"] = {reason: count for reason, count in gone.items() if count}
    return found


def _of_split(
    staged: Staged,
    splits: Sequence[int],
    number: int,
    home: dict[bytes, int],
    leaking: set[bytes],
    options: Preparing,
    gone: Counter[str],
) -> Iterator[Example]:
    """The examples of one split in their final form."""
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
