"""Sources in; clean, split, leak-free records and a report on them out."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bge_cocktail.encoding import CachedEncoder, Encoder
from bge_cocktail.errors import DataError, UsageError
from bge_cocktail.options import Encoding, Preparing
from bge_cocktail.preparing.census import Census
from bge_cocktail.preparing.cleaning import Cleaner
from bge_cocktail.preparing.corpus import write_corpus
from bge_cocktail.preparing.duplicates import text_key
from bge_cocktail.preparing.leaks import find_leaks, summarise
from bge_cocktail.preparing.splitting import SPLITS, assign_splits
from bge_cocktail.preparing.staging import Staged, alike, drop_near_repeats, group, remembers, stage
from bge_cocktail.preparing.tokens import TokenCounter
from bge_cocktail.preparing.writing import write_splits
from bge_cocktail.provenance import RUN_FILE, describe_run, hash_path, new_folder, refuse_to_replace, write_json
from bge_cocktail.records.beir import is_beir
from bge_cocktail.records.examples import Example, RecordExample
from bge_cocktail.records.opening import Rejects
from bge_cocktail.records.sources import file_of_split, read_examples, splits_of

log = logging.getLogger(__name__)
REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
REJECTED_FILE = "rejected.jsonl"
LARGE_GROUP = 0.2


@dataclass(frozen=True)
class Source:
    """What is read.

    Attributes:
        name: A file, a folder, or a data set of the hub.
        split: Which part of it.
        config: Which configuration of a data set of the hub.
        columns: Which column is what; told from the names without it.
        labels: Names for labels.
        scale: What scores are divided by.
    """

    name: str
    split: str = "train"
    config: str | None = None
    columns: str = ""
    labels: dict[str, str] | None = None
    scale: float | None = None

    def examples(self, rejects: Rejects) -> Iterator[Example]:
        """Its examples."""
        return read_examples(
            self.name,
            split=self.split,
            config=self.config,
            columns=self.columns,
            labels=self.labels,
            scale=self.scale,
            rejects=rejects,
        )


def prepare(
    sources: Sequence[Source],
    output: Path,
    options: Preparing | None = None,
    *,
    against: Sequence[Source] = (),
    model: str | None = None,
    encoding: Encoding | None = None,
    overwrite: bool = False,
    page: Callable[[dict[str, Any]], str] | None = None,
) -> dict[str, Any]:
    """Clean, de-duplicate, split and check data, and write them as records.

    Writes train.jsonl, dev.jsonl and test.jsonl (those that get anything), corpus.jsonl if a source is a BEIR folder,
    rejected.jsonl if rows were bad, report.json and run.json.

    Args:
        sources: What is read; records of several sources get their source as task, unless they have one.
        output: The folder to write.
        options: All options.
        against: Test sets that must not stand in train.
        model: An encoder, for what needs one: tokens, semantic duplicates, weighing by difficulty.
        encoding: How it embeds.
        overwrite: Whether an older output may be replaced.
        page: Makes report.html of the report.

    Returns:
        The report, as in report.json.

    Raises:
        DataError: Bad data, or a test set that leaks into train.
        UsageError: Options that don't go together.
    """
    options = options or Preparing()
    _check(sources, options, model)
    started = time.monotonic()
    paths = [Path(source.name) for source in (*sources, *against) if Path(source.name).exists()]
    refuse_to_replace(output, overwrite, paths)
    encoder = CachedEncoder(model, encoding or Encoding()) if model else None
    counter = TokenCounter(encoder.folder) if encoder else None
    with new_folder(output, overwrite=overwrite) as new:
        with (new / REJECTED_FILE).open("w", encoding="utf-8") as rejected:
            rejects = Rejects(options.skip_bad, rejected)
            cleaner = Cleaner(options, counter)
            # where nothing is asked for that needs another look, one pass does
            plain = not (remembers(options) or against or options.weigh or options.augment)
            census = Census(counter, counter.limit if counter else None) if plain else None
            staged = stage(_opened(sources, options, rejects), new / "staged", cleaner, options, census)
            held_out = {f"{one.name} ({one.split})": _held_out(one, cleaner, rejects) for one in against}
        if not rejects.reasons:
            (new / REJECTED_FILE).unlink()
        report: dict[str, Any] = {"read": staged.read, "rejected": dict(rejects.reasons)}
        if census is not None and (staged.only_records or options.form != "records"):
            staged.path.rename(new / "train.jsonl")
            report["splits"] = {"train": census.summary()}
        else:
            splits = _split(staged, options, encoder, report)
            leaking = _check_leaks(staged, splits, held_out, options, encoder, report)
            report["splits"] = write_splits(staged, splits, leaking, new, options, encoder, counter, report)
        report["cleaned_texts"] = dict(cleaner.changed)
        report["dropped"] = {reason: count for reason, count in staged.dropped.most_common() if count}
        report["texts_that_went"] = dict(cleaner.dropped)
        report["samples"] = {**cleaner.samples, **staged.samples}
        corpus = next((path for path in paths if path.is_dir() and is_beir(path)), None)
        if corpus is not None:
            report["corpus"] = write_corpus(corpus, new, cleaner, rejects)
        staged.path.unlink(missing_ok=True)
        write_json(new / REPORT_FILE, report)
        if page is not None:
            (new / PAGE_FILE).write_text(page(report), encoding="utf-8")
        inputs = {source.name: hash_path(_file(source)) for source in (*sources, *against) if _file(source).exists()}
        if encoder is not None:
            inputs[encoder.name] = encoder.hash
        chosen = {
            "prepare": options.model_dump(mode="json"),
            "sources": [vars(source) for source in sources],
            "against": [vars(source) for source in against],
            "encode": (encoding or Encoding()).what_counts(),
        }
        seconds = time.monotonic() - started
        write_json(new / RUN_FILE, describe_run("prepare", options=chosen, inputs=inputs, seconds=seconds))
    return report


def _check(sources: Sequence[Source], options: Preparing, model: str | None) -> None:
    if not sources:
        raise UsageError("nothing to prepare: name a file, a folder or a data set")
    if model is None:
        needs = {
            "--duplicates semantic": "semantic" in options.duplicates,
            "--weigh difficulty": "difficulty" in options.weigh,
            "--max-tokens and --min-tokens": options.max_tokens is not None or options.min_tokens > 0,
        }
        if missing := [name for name, needed in needs.items() if needed]:
            raise UsageError(f"{' and '.join(missing)} need a model: -m MODEL")
    if options.form != "records":
        chosen = [name for name in ("augment", "weigh") if getattr(options, name)]
        if chosen:
            raise UsageError(f"--{chosen[0]} works on records, not with --form {options.form}")


def _file(source: Source) -> Path:
    path = Path(source.name)
    return file_of_split(path, source.split) if path.is_dir() and not is_beir(path) else path


def _opened(sources: Sequence[Source], options: Preparing, rejects: Rejects) -> Iterator[tuple[int, Iterable[Example]]]:
    for source in sources:
        task = Path(source.name).name.split(".")[0] if len(sources) > 1 else None
        if not options.keep_splits:
            yield -1, _named(source.examples(rejects), task)
            continue
        there = splits_of(source.name, source.config)
        if not set(there) & set(SPLITS):
            raise DataError(f"{source.name} has none of the splits {', '.join(SPLITS)}; it has {', '.join(there)}")
        for number, split in enumerate(SPLITS):
            if split in there:
                yield number, _named(replace(source, split=split).examples(rejects), task)


def _named(examples: Iterator[Example], task: str | None) -> Iterator[Example]:
    for example in examples:
        if task and isinstance(example, RecordExample) and example.record.task is None:
            example = RecordExample(replace(example.record, task=task))
        yield example


def _held_out(source: Source, cleaner: Cleaner, rejects: Rejects) -> list[tuple[str, ...]]:
    cleaned = (example.changed(cleaner) for example in source.examples(rejects))
    return [example.own_texts() for example in cleaned if example is not None]


def _split(staged: Staged, options: Preparing, encoder: Encoder | None, report: dict[str, Any]) -> Sequence[int]:
    if not staged.keys:  # nothing asked for that needs to know the texts
        return [max(0, split) for split in staged.fixed]
    pairs = alike(staged, options, encoder)
    drop_near_repeats(staged, pairs)
    if options.keep_splits:
        return staged.fixed
    groups = group(staged, pairs)
    sizes = Counter(groups.find(row) for row in range(len(staged.keys)))
    largest = max(sizes.values())
    report["groups"] = {"groups": len(sizes), "largest": largest}
    splits: list[int] = assign_splits(
        groups,
        [
            text_key("\x1f".join(columns)) if columns else keys[0]
            for columns, keys in zip(staged.columns, staged.keys, strict=True)
        ],
        staged.labels,
        ratio=options.ratio,
        stratify=options.stratify,
        seed=options.seed,
    ).tolist()
    if largest > LARGE_GROUP * len(splits) and any(options.ratio[1:]):
        log.warning(
            "%d of %d examples hang together (shared or near-duplicate texts, or the columns to group by) and stay in "
            "one split; the sizes of the splits follow",
            largest,
            len(splits),
        )
    for number, split in enumerate(SPLITS):
        if options.ratio[number] and number not in splits:
            log.warning("the split %s is empty: %d groups are too few for the ratio", split, len(sizes))
    return splits


def _check_leaks(
    staged: Staged,
    splits: Sequence[int],
    held_out: dict[str, list[tuple[str, ...]]],
    options: Preparing,
    encoder: Encoder | None,
    report: dict[str, Any],
) -> set[bytes]:
    """The keys of train queries that stand in a test set and have to go."""
    if not held_out and not options.keep_splits:
        return set()  # the splits were made so that none leaks
    own: list[list[tuple[str, ...]]] = [[], [], []]
    for split, example in zip(splits, staged.examples(), strict=True):
        own[split].append(example.own_texts())
    if options.keep_splits:
        held_out = {**{name: texts for name, texts in zip(SPLITS[1:], own[1:], strict=True) if texts}, **held_out}
    leaks = find_leaks(own[0], held_out, options, encoder)
    report["leaks"] = summarise(leaks)
    queries = [leak for leak in leaks if leak.role == "query"]
    if not queries:
        return set()
    counts = Counter(leak.held_out for leak in queries)
    said = "; ".join(f"{count} queries or texts of {name}" for name, count in counts.items())
    if options.on_leak == "refuse":
        shown = "\n".join(
            f"  {one.held_out}: {one.other[:60]!r} ({one.finder}) {one.train[:60]!r}" for one in queries[:5]
        )
        raise DataError(
            f"test data leak into train: {said}. For example (held out, how found, in train):\n{shown}\n"
            "Take them out of train with --on-leak drop, or go on with --on-leak warn"
        )
    log.warning("test data leak into train: %s%s", said, "; dropped from train" if options.on_leak == "drop" else "")
    return {text_key(leak.train) for leak in queries} if options.on_leak == "drop" else set()
