"""Labelled texts and pairs, ready to train a classifier on: cleaned, split, varied, their labels numbered."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bge_cocktail.core.errors import DataError
from bge_cocktail.core.runs import hash_value
from bge_cocktail.data.labelled import LabelledRow, LabelledTexts, label_names, labelled_rows, number_labels
from bge_cocktail.data.readers import BadRows
from bge_cocktail.data.record import Text, normalise, pair_key
from bge_cocktail.data.record_files import spread
from bge_cocktail.data.sources import SPLITS, Source, splits_of
from bge_cocktail.options import ClassifyOptions, PrepareOptions
from bge_cocktail.preparing.augment import with_copies
from bge_cocktail.preparing.clean import Cleaner
from bge_cocktail.preparing.duplicates import Groups, assign_splits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClassifierData:
    """What a classifier is trained on and judged by.

    Attributes:
        train: Learned from.
        dev: Early stopping, temperature.
        test: Held out where the data came in one file; None where they have a test of their own.
        names: Of the labels, in the order of their numbers.
        pairs: Whether texts come in pairs.
        hash: Of all of it.
        held: What the texts of a test of their own have in common with equal ones: none of them may be learned.
    """

    train: LabelledTexts
    dev: LabelledTexts
    test: LabelledTexts | None
    names: list[str]
    pairs: bool
    hash: str
    held: frozenset[str] = frozenset()


def read_class_data(source: Source, options: ClassifyOptions, names: Sequence[str] = ()) -> ClassifierData:
    """Read, clean and split labelled texts.

    A folder or data set gives train and dev; where it has no dev, a part of train becomes it. One file is split into
    train, dev and test. Splits are stratified, texts that are the same stay together, and texts of train that are
    also in dev or test are left out of train.

    Args:
        source: What to read.
        options: Cleaning, ratio, seed, whether a text may have several labels.
        names: The labels, where they are known already; else those of train.

    Raises:
        DataError: No labels, one class only, single texts among pairs, a label of dev that train doesn't have.
    """
    splits = ["train"] if source.path.is_file() else splits_of(source.name, source.config)
    train = read_split(replace(source, split="train"), options.clean)
    names = list(names) or label_names([row[1] for row in train], options.multi_label)
    if len(names) < 2:
        raise DataError(f"{source.name}: all texts have the label '{''.join(names)}'; a classifier needs two or more")
    numbered = number_labels(train, names, options.multi_label, f"{source.name} (train)")
    held = _keys_of_test(source, options) if "test" in splits else frozenset()
    numbered = _without(numbered, held, "test")
    test = None
    if source.path.is_file():
        numbered, dev, test = _split(numbered, options.ratio, options.seed)
    elif "dev" in splits:
        rows = read_split(replace(source, split="dev"), options.clean)
        dev = number_labels(rows, names, options.multi_label, f"{source.name} (dev)")
        numbered = _without(numbered, {pair_key(text) for text in dev.texts}, "dev")
    else:
        log.info("%s has no dev: a part of train becomes it (%s)", source.name, ":".join(map(str, options.ratio[:2])))
        numbered, dev, _ = _split(numbered, [*options.ratio[:2], 0], options.seed)
    pairs = {isinstance(text, tuple) for text in (*numbered.texts, *dev.texts)}
    if len(pairs) > 1:
        raise DataError(f"{source.name} holds single texts and pairs; a classifier takes one or the other")
    for what, part in (("train", numbered), ("dev", dev)):
        if not len(part):
            raise DataError(f"{source.name}: no texts are left for {what}")
    if gone := sorted(set(range(len(names))) - {number for own in numbered.labels for number in own}):
        log.warning("no text is left in train for %s", ", ".join(f"'{names[number]}'" for number in gone[:5]))
    _warn_of_contradictions(numbered)
    content = [(part.texts, part.labels, part.weights) for part in (numbered, dev)]
    return ClassifierData(numbered, dev, test, names, pairs.pop(), hash_value([content, names]), held)


def read_test(source: Source, options: ClassifyOptions, known: ClassifierData) -> LabelledTexts | None:
    """Return the test split of a folder or data set; None where it has none.

    Args:
        source: What to read.
        options: Cleaning, whether a text may have several labels.
        known: Its train and dev.

    Raises:
        DataError: A label that they don't have, or pairs where they have single texts.
    """
    if source.path.is_file() or "test" not in splits_of(source.name, source.config):
        return None
    where = f"{source.name} (test)"
    rows = read_split(replace(source, split="test"), options.clean)
    test = number_labels(rows, known.names, options.multi_label, where)
    check_form(test.texts, known.pairs, where)
    return test


def check_form(texts: Iterable[Text], pairs: bool | None, where: str) -> None:
    """Raise unless texts come as a classifier takes them.

    Args:
        texts: Texts or pairs.
        pairs: Whether it takes pairs; None where nothing says it.
        where: They stand.

    Raises:
        DataError: They don't.
    """
    for number, text in enumerate(texts, start=1):
        if pairs is not None and isinstance(text, tuple) is not pairs:
            wanted, got = ("pairs of texts", "a single text") if pairs else ("single texts", "a pair")
            raise DataError(f"{where}: the classifier takes {wanted}, text {number} is {got}")


def read_split(source: Source, clean: Sequence[str]) -> list[LabelledRow]:
    """Text, label and weight of each example of a split, cleaned.

    Raises:
        DataError: Something else than labelled texts or pairs.
    """
    cleaner = Cleaner(PrepareOptions(clean=list(clean)))
    where = f"{source.name} ({source.split})"
    rows = labelled_rows(source.examples(BadRows()), where, cleaner)
    for reason, count in cleaner.dropped.items():
        log.warning("%s: %d are left out: %s", where, count, reason)
    return rows


def _split(data: LabelledTexts, ratio: Sequence[float], seed: int) -> list[LabelledTexts]:
    """Train, dev and test; the same text is never in two of them."""
    keys = [pair_key(text) for text in data.texts]
    first: dict[str, int] = {}
    groups = Groups(len(keys))
    for row, key in enumerate(keys):
        groups.join(first.setdefault(key, row), row)
    strata = [",".join(map(str, labels)) for labels in data.labels]
    encoded = [key.encode() for key in keys]
    parts = assign_splits(groups, encoded, strata, ratio=ratio, stratify=True, seed=seed)
    return [data.at(np.flatnonzero(parts == number).tolist()) for number in range(len(SPLITS))]


def _without(train: LabelledTexts, held: Collection[str], where: str) -> LabelledTexts:
    kept = [row for row, text in enumerate(train.texts) if pair_key(text) not in held]
    if len(kept) < len(train):
        log.warning("%d texts of train are also in %s and are left out of train", len(train) - len(kept), where)
    return train.at(kept)


def _keys_of_test(source: Source, options: ClassifyOptions) -> frozenset[str]:
    try:
        rows = read_split(replace(source, split="test"), options.clean)
    except DataError as error:  # such as one whose labels are kept back
        log.warning("test can't be read, so none of its texts is looked for in train: %s", error)
        return frozenset()
    return frozenset(pair_key(row[0]) for row in rows)


def sample_per_class(data: ClassifierData, options: ClassifyOptions) -> ClassifierData:
    """The data with so many texts in train, or so many of each class (of several labels: of each set of them)."""
    if options.limit:
        data = replace(data, train=data.train.at(spread(range(len(data.train)), options.limit)))
    if not options.per_class:
        return data
    order = np.random.default_rng(options.seed).permutation(len(data.train)).tolist()
    taken: Counter[tuple[int, ...]] = Counter()
    kept = []
    for row in order:
        labels = data.train.labels[row]
        if taken[labels] < options.per_class:
            taken[labels] += 1
            kept.append(row)
    return replace(data, train=data.train.at(sorted(kept)))


def _warn_of_contradictions(train: LabelledTexts) -> None:
    labels_of: dict[str, set[tuple[int, ...]]] = {}
    for text, labels in zip(train.texts, train.labels, strict=True):
        labels_of.setdefault(pair_key(text), set()).add(labels)
    counts = Counter(len(labels) > 1 for labels in labels_of.values())
    if counts[True]:
        log.warning("%d texts of train come with different labels", counts[True])


_Row = tuple[Text, tuple[int, ...], float]


def with_augmented(data: ClassifierData, options: ClassifyOptions) -> ClassifierData:
    """The data with a varied copy, of the same labels, after some texts of train; of pairs, the first text is varied.

    Args:
        data: Train is varied; no copy repeats a text of dev or test.
        options: Which variations, for which share, of how many words; the seed.
    """
    if not options.augment:
        return data
    held = {pair_key(text) for part in (data.dev, data.test) if part for text in part.texts} | data.held
    counted: Counter[str] = Counter()
    rows = zip(data.train.texts, data.train.labels, data.train.weights, strict=True)
    varied = with_copies(rows, options, options.seed, _copy, lambda row: pair_key(row[0]) in held, counted)
    train = LabelledTexts(*(list(column) for column in zip(*varied, strict=True)))
    log.info("%s", ", ".join(f"{count} {what}" for what, count in sorted(counted.items())) or "no copies")
    return replace(data, train=train)


def _copy(row: _Row, _name: str, varied: Callable[[str], str]) -> _Row | None:
    text, labels, weight = row
    first = text if isinstance(text, str) else text[0]
    changed = varied(first)
    if normalise(changed) == normalise(first):
        return None
    return (changed if isinstance(text, str) else (changed, text[1])), labels, weight
