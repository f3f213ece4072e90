"""What is prepared, and what it is called."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import DataError, UsageError, near_path
from bge_cocktail.core.outputs import new_folder, refuse_to_replace, write_json
from bge_cocktail.core.runs import RUN_FILE, describe_run, hash_path, step_key
from bge_cocktail.data.beir import is_beir
from bge_cocktail.data.examples import Example, LabelledText, TextPair, with_task
from bge_cocktail.data.readers import BadRows
from bge_cocktail.data.record import text_key
from bge_cocktail.data.sources import SPLITS, Source, files_of_split, splits_of
from bge_cocktail.models.embed import TokenCounter
from bge_cocktail.models.encoder import CachedEncoder, Encoder
from bge_cocktail.options import EncodeOptions, PrepareOptions
from bge_cocktail.preparing.clean import Cleaner
from bge_cocktail.preparing.duplicates import assign_splits
from bge_cocktail.preparing.leaks import check_leaks
from bge_cocktail.preparing.store import (
    PrepareReport,
    SplitStatistics,
    Store,
    alike,
    drop_near_repeats,
    group,
    remembers,
    store_examples,
)
from bge_cocktail.preparing.write import write_corpus, write_splits


def opened(
    sources: Sequence[Source], options: PrepareOptions, rejects: BadRows
) -> Iterator[tuple[int, Iterable[Example]]]:
    """Yield the examples of each source, with the split that they stay in (-1: none yet)."""
    tasks = task_names([source.name for source in sources])
    for source in sources:
        task = tasks[source.name]
        if not options.keep_splits:
            yield -1, _named(islice(source.examples(rejects), options.limit), task)
            continue
        there = splits_of(source.name, source.config)
        if not set(there) & set(SPLITS):
            raise DataError(f"{source.name} has none of the splits {', '.join(SPLITS)}; it has {', '.join(there)}")
        for number, split in enumerate(SPLITS):
            if split in there:
                yield number, _named(islice(replace(source, split=split).examples(rejects), options.limit), task)


def task_names(names: Sequence[str]) -> dict[str, str | None]:
    """A task for each of several sources: the end of its path that tells it from the others; None for a single one."""
    if len(names) < 2:
        return dict.fromkeys(names)
    parts = {name: Path(name).with_name(Path(name).name.split(".")[0]).parts for name in names}
    for count in range(1, max(map(len, parts.values())) + 1):
        names_of: dict[str, str | None] = {name: "/".join(own[-count:]) for name, own in parts.items()}
        if len(set(names_of.values())) == len(names_of):
            break
    return names_of


def _named(examples: Iterable[Example], task: str | None) -> Iterator[Example]:
    for example in examples:
        yield with_task(example, task) if task else example


def held_out_texts(source: Source, cleaner: Cleaner, rejects: BadRows) -> list[tuple[str, ...]]:
    """Return the own texts of each example of a test set, cleaned as train is."""
    cleaned = (example.changed(cleaner) for example in source.examples(rejects))
    return [example.own_texts() for example in cleaned if example is not None]


def files_of(source: Source, options: PrepareOptions) -> list[Path]:
    """Return the files that a source is read from, to be hashed."""
    if source.path.is_dir() and not is_beir(source.path) and not options.keep_splits:
        return files_of_split(source.path, source.split)
    return [source.path]


log = logging.getLogger(__name__)
REPORT_FILE = "report.json"
PAGE_FILE = "report.html"
REJECTED_FILE = "rejected.jsonl"
LARGE_GROUP = 0.2


def prepare(
    sources: Sequence[Source],
    output: Path,
    options: PrepareOptions | None = None,
    *,
    against: Sequence[Source] = (),
    model: str | None = None,
    encoding: EncodeOptions | None = None,
    overwrite: bool = False,
    page: Callable[[PrepareReport], str] | None = None,
) -> PrepareReport:
    """Clean, de-duplicate, split and check data, and write them as records.

    Writes train.jsonl, dev.jsonl and test.jsonl (those that get anything), corpus.jsonl if a source is a BEIR folder
    or `corpus` is given, rejected.jsonl if rows were bad, report.json and run.json.

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
    asked = options or PrepareOptions()
    options = _settle_splits(sources, asked)
    if options.keep_splits and asked.keep_splits is None:
        for source in sources:
            names = [name for name in SPLITS if name in splits_of(source.name)]
            log.info("%s: its own splits are kept: %s (`ratio` splits anew)", source.name, ", ".join(names))
    _check(sources, options, model)
    started = time.monotonic()
    refuse_to_replace(output, overwrite, [source.path for source in (*sources, *against) if source.path.exists()])
    encoder = CachedEncoder(model, encoding or EncodeOptions()) if model else None
    counter = TokenCounter(encoder.folder) if encoder else None
    with new_folder(output, overwrite=overwrite) as new:
        with (new / REJECTED_FILE).open("w", encoding="utf-8") as rejected:
            rejects = BadRows(options.skip_bad, rejected)
            cleaner = Cleaner(options, counter)
            # where nothing is asked for that needs another look, one pass does
            plain = not (remembers(options) or against or options.weigh or options.augment)
            statistics = SplitStatistics(counter, counter.limit if counter else None) if plain else None
            staged = store_examples(opened(sources, options, rejects), new / "staged", cleaner, options, statistics)
            cleaned = Cleaner(options, counter)  # what it drops is none of train's
            held_out = {
                f"{source.name} ({source.split})": held_out_texts(source, cleaned, rejects) for source in against
            }
        if not (new / REJECTED_FILE).stat().st_size:
            (new / REJECTED_FILE).unlink()
        _check_form(staged, options)
        report: PrepareReport = {"read": staged.read, "rejected": dict(rejects.reasons)}
        if options.keep_splits:
            numbers = sorted(set(staged.fixed))
            report["kept_splits"] = [SPLITS[number] for number in numbers]
        if statistics is not None and (staged.only_records or options.form != "records"):
            staged.path.rename(new / "train.jsonl")
            report["splits"] = {"train": statistics.summary()}
        else:
            splits = _split(staged, options, encoder, report)
            leaking = check_leaks(staged, splits, held_out, options, encoder, report)
            tests = [own for texts in held_out.values() for own in texts]
            report["splits"] = write_splits(staged, splits, leaking, tests, new, options, encoder, counter, report)
        if rejects.parts:
            gone = Counter(report.get("negatives_that_went", {}))
            report["negatives_that_went"] = dict(gone + rejects.parts)
        report["cleaned_texts"] = dict(cleaner.changed)
        report["dropped"] = {reason: count for reason, count in staged.dropped.most_common() if count}
        report["texts_that_went"] = dict(cleaner.dropped)
        report["samples"] = {**cleaner.samples, **staged.samples}
        corpora = _corpora(sources, options)
        if corpora:
            report["corpus"], report["corpus_changes"] = write_corpus(corpora, new, cleaner)
        staged.path.unlink(missing_ok=True)
        write_json(new / REPORT_FILE, report)
        if page is not None:
            (new / PAGE_FILE).write_text(page(report), encoding="utf-8")
        chosen, inputs = _described(sources, against, options, encoding, encoder)
        seconds = time.monotonic() - started
        write_json(new / RUN_FILE, describe_run("prepare", options=chosen, inputs=inputs, seconds=seconds))
    return report


def prepare_key(
    sources: Sequence[Source],
    options: PrepareOptions,
    *,
    against: Sequence[Source] = (),
    model: str | None = None,
    encoding: EncodeOptions | None = None,
) -> str:
    """Name the step by what it does, to what; arguments are those of `prepare`."""
    settled = _settle_splits(sources, options)
    encoder = CachedEncoder(model, encoding or EncodeOptions()) if model else None
    return step_key("prepare", *_described(sources, against, settled, encoding, encoder))


def _described(
    sources: Sequence[Source],
    against: Sequence[Source],
    options: PrepareOptions,
    encoding: EncodeOptions | None,
    encoder: CachedEncoder | None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what is done, and the hashes of what it is done to."""
    chosen = {
        "prepare": options.model_dump(mode="json"),
        "sources": [vars(source) for source in sources],
        "against": [vars(source) for source in against],
        "encode": (encoding or EncodeOptions()).what_counts(),
    }
    return chosen, _hashes((*sources, *against), options, encoder)


def _settle_splits(sources: Sequence[Source], options: PrepareOptions) -> PrepareOptions:
    """Return the options with what becomes of splits: official ones are kept, unless others were asked for."""
    if options.keep_splits is not None:
        return options
    folders = [source for source in sources if source.path.is_dir()]
    official = {source.name: [name for name in SPLITS if name in splits_of(source.name)] for source in folders}
    own = "ratio" in options.model_fields_set or options.stratify or options.group_by
    kept = (
        bool(folders)
        and len(folders) == len(sources)
        and all("train" in names and len(names) > 1 for names in official.values())
        and all(source.split == "train" for source in sources)
        and not own
    )
    return options.model_copy(update={"keep_splits": kept})


def _hashes(sources: Sequence[Source], options: PrepareOptions, encoder: CachedEncoder | None) -> dict[str, str]:
    files = [path for source in sources if source.path.exists() for path in files_of(source, options)]
    hashes = {str(path): hash_path(path) for path in files}
    hashes |= {str(options.corpus): hash_path(options.corpus)} if options.corpus is not None else {}
    return hashes if encoder is None else {**hashes, encoder.name: encoder.hash}


def _corpora(sources: Sequence[Source], options: PrepareOptions) -> list[Path]:
    """Return where documents come from that no record may have."""
    folders = [source.path for source in sources if source.path.is_dir() and is_beir(source.path)]
    return [*folders, *([options.corpus] if options.corpus is not None else [])]


def what_needs_a_model(options: PrepareOptions) -> list[str]:
    """Return the options that can't be kept without an encoder."""
    needs = {
        "`duplicates=semantic`": "semantic" in options.duplicates,
        "`weigh=difficulty`": "difficulty" in options.weigh,
        "`max_tokens` and `min_tokens`": options.max_tokens is not None or options.min_tokens > 0,
    }
    return [name for name, needed in needs.items() if needed]


def _check(sources: Sequence[Source], options: PrepareOptions, model: str | None) -> None:
    if not sources:
        raise UsageError("nothing to prepare: name a file, a folder or a data set")
    if options.corpus is not None and not options.corpus.exists():
        raise DataError(f"{options.corpus}: no such file or folder.{near_path(str(options.corpus))}")
    if model is None and (missing := what_needs_a_model(options)):
        raise UsageError(f"{' and '.join(missing)} need `model`")
    if options.form != "records":
        chosen = [name for name in ("augment", "weigh") if getattr(options, name)]
        if chosen:
            raise UsageError(f"`{chosen[0]}` works on records, not with `form={options.form}`")


def _check_form(staged: Store, options: PrepareOptions) -> None:
    """Refuse to call texts pairs, or the other way."""
    wanted = {"labelled": LabelledText, "pairs": TextPair}.get(options.form)
    first = next(staged.examples())
    if wanted is not None and not isinstance(first, wanted):
        kind = {"LabelledText": "labelled texts", "TextPair": "pairs"}.get(type(first).__name__, "records")
        raise UsageError(f"`form={options.form}`: the data are {kind}")


def _split(staged: Store, options: PrepareOptions, encoder: Encoder | None, report: PrepareReport) -> Sequence[int]:
    if not staged.keys:  # nothing asked for that needs to know the texts
        return [max(0, split) for split in staged.fixed]
    pairs = alike(staged, options, encoder)
    if options.duplicates[1:]:
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
    if largest > 1 and largest > LARGE_GROUP * len(splits) and any(options.ratio[1:]):
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
