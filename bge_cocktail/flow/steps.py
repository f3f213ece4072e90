"""What a run's steps need: its folder, its data, its checks, mining, the trade-off."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.core.devices import choose_device
from bge_cocktail.core.errors import DataError, UsageError, near_path
from bge_cocktail.core.outputs import json_of, new_folder, read_object, refuse_nested, write_json
from bge_cocktail.core.pictures import draw_tradeoff
from bge_cocktail.core.progress import progress
from bge_cocktail.core.runs import RUN_FILE, describe_run, hash_path, hash_value, step_key
from bge_cocktail.data.beir import RetrievalData, corpus_of, read_corpus
from bge_cocktail.data.readers import kind_of
from bge_cocktail.data.record import Record
from bge_cocktail.data.record_files import read_records, write_records
from bge_cocktail.data.retrieval import read_retrieval
from bge_cocktail.data.sources import Source
from bge_cocktail.evaluating.evaluate import evaluate_models
from bge_cocktail.evaluating.measures import parse_measure
from bge_cocktail.evaluating.tasks.task import Task
from bge_cocktail.merging.merge import merge
from bge_cocktail.mining.miner import mine
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.models.folder import model_folder
from bge_cocktail.models.layout import check_length
from bge_cocktail.models.reranker import load_reranker
from bge_cocktail.options import (
    DataOptions,
    EncodeOptions,
    EvaluateOptions,
    MergeOptions,
    PrepareOptions,
    RunOptions,
)
from bge_cocktail.preparing.prepare import prepare, prepare_key, what_needs_a_model
from bge_cocktail.report.build import data_page

COMMAND = "run"


def refuse_other_folder(path: Path, inputs: Iterable[Path]) -> None:
    """Raise unless a run may be written to a folder: a new one, one with nothing but run files, or one of a run.

    Args:
        path: The folder.
        inputs: What the run reads.

    Raises:
        UsageError: It is something else, or an input or in one.
    """
    if path.resolve() == Path.cwd():
        raise UsageError("the output can't be the folder that the command is started in; name another folder")
    refuse_nested(path, [file for file in inputs if file.exists()])
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"{path} is a file; the output is a folder, choose another name")
    known = read_object(path / RUN_FILE).get("command") if (path / RUN_FILE).is_file() else None
    others = [file for file in path.iterdir() if file.suffix != ".toml" and not file.name.startswith(".")]
    if others and known != COMMAND:
        raise UsageError(f"{path} holds other things than a run of bge-cocktail; choose another output")


def begin_run(path: Path) -> None:
    """Make the folder, and have it say what it is before the first step is done."""
    path.mkdir(parents=True, exist_ok=True)
    if not (path / RUN_FILE).is_file():
        write_json(path / RUN_FILE, {"command": COMMAND, "unfinished": True})


class Preparation:
    """The step that the section ``[prepare]`` of a run file asks for."""

    def __init__(self, options: RunOptions) -> None:
        section = options.prepare
        self._encoding = options.encode
        self._sources = [
            Source(name, columns=section.columns, labels=section.labels or None) for name in section.sources
        ]
        own = section.model_dump(include=section.model_fields_set & set(PrepareOptions.model_fields))
        self._options = PrepareOptions(**own)
        self._model = options.base if what_needs_a_model(self._options) else None

    def check(self) -> None:
        """Raise where a source isn't there, as far as that can be told without a network.

        Raises:
            DataError: A file or folder that doesn't exist.
        """
        for source in self._sources:
            if not source.path.exists() and kind_of(source.path):
                raise DataError(f"{source.name}: no such file.{near_path(source.name)}")

    @cached_property
    def key(self) -> str:
        """Names the step by what it does, to what."""
        return prepare_key(self._sources, self._options, model=self._model, encoding=self._encoding)

    def do(self, output: Path) -> None:
        """Prepare the sources into a folder."""
        names = ", ".join(source.name for source in self._sources)
        log.info("prepare: %s", names)
        report = prepare(
            self._sources,
            output,
            self._options,
            model=self._model,
            encoding=self._encoding,
            overwrite=True,
            page=lambda content: data_page(content, f"Data of {names}"),
        )
        log.info("prepare: %s", ", ".join(f"{name} {part['examples']}" for name, part in report["splits"].items()))


class RunData:
    """What the section ``[data]`` of a run file names."""

    def __init__(self, options: DataOptions) -> None:
        self._options = options

    @cached_property
    def records(self) -> list[Record]:
        """The records to tune on."""
        return read_records(self._options.train)

    @cached_property
    def corpus(self) -> list[str] | None:
        """The documents to mine from, if `train` is a folder that holds a corpus."""
        corpus = corpus_of(self._options.train)
        return read_corpus(corpus) if corpus else None

    @cached_property
    def dev_records(self) -> list[Record]:
        """The dev records; none without dev."""
        return read_records(self._options.dev, split="dev") if self._options.dev else []

    @cached_property
    def dev(self) -> RetrievalData | None:
        """Dev as a retrieval task."""
        path = self._options.dev
        if path is None:
            return None
        return read_retrieval(path, "dev")

    @cached_property
    def hash(self) -> str:
        """Hash of all of it."""
        return hash_value([hash_path(path) for path in (self._options.train, self._options.dev) if path])


def check_judging(base: Path, encoding: EncodeOptions, judging: EvaluateOptions) -> None:
    """Raise for what the evaluation, hours later, would raise for.

    Args:
        base: Folder of the base model.
        encoding: How texts are embedded.
        judging: How models are judged.

    Raises:
        UsageError: No such device or measure, or a length beyond the model's positions.
        DataError: No such reranker.
    """
    check_length(base, encoding.max_length)
    choose_device(encoding.device)
    for name in judging.metrics:
        parse_measure(name)
    if judging.reranker is not None:
        model_folder(judging.reranker)


log = logging.getLogger(__name__)


def mining_key(options: RunOptions, data: RunData, model: Path) -> str:
    """Names the step by what it does, with what, to what."""
    what: dict[str, Any] = {
        "mine": options.mine.model_dump(mode="json"),
        "encode": options.encode.what_counts(),
        "examples": options.merge.examples,
    }
    return step_key("mine", what, {"base": hash_path(model), "data": data.hash, **_others(options)})


def _others(options: RunOptions) -> dict[str, str]:
    """Return the hashes of further encoders and of the teacher."""
    hashes = {f"also {name}": hash_path(model_folder(name)) for name in options.mine.also}
    if options.mine.teacher:
        hashes["teacher"] = hash_path(model_folder(options.mine.teacher))
    return hashes


def mine_step(options: RunOptions, data: RunData, model: str | Path, output: Path) -> None:
    """Mine with a model and write records.jsonl and examples.jsonl.

    Args:
        options: Of the run.
        data: Of the run.
        model: The encoder that ranks the documents: the base, or the model tuned in the round before.
        output: The folder to write.
    """
    started = time.monotonic()
    log.info("mine: %d records", len(data.records))
    encoder = CachedEncoder(model, options.encode)
    also = {name: CachedEncoder(name, options.encode) for name in options.mine.also}
    teacher = load_reranker(options.mine.teacher, device=options.encode.device) if options.mine.teacher else None
    known = [*data.records, *data.dev_records]
    mined = mine(
        data.records, encoder, options.mine, corpus=data.corpus, known_positives=known, also=also, teacher=teacher
    )
    examples: list[Record] = []
    if data.dev_records:
        every = data.dev_records
        drawn = np.random.default_rng(options.mine.seed).permutation(len(every))
        chosen = [every[row] for row in sorted(drawn[: options.merge.examples].tolist())]
        corpus = data.corpus or [text for record in data.records for text in (*record.pos, *record.neg)]
        examples = mine(
            chosen, encoder, options.mine, corpus=corpus, known_positives=known, also=also, teacher=teacher
        ).records
    key = mining_key(options, data, encoder.folder)
    with new_folder(output, overwrite=True) as new:
        write_records(mined.records, new / "records.jsonl")
        write_records(examples, new / "examples.jsonl")
        description = describe_run(
            "mine",
            options={
                "mine": options.mine.model_dump(mode="json"),
                "encode": options.encode.what_counts(),
                "examples": options.merge.examples,
            },
            inputs={str(model): encoder.hash, "data": data.hash, **_others(options)},
            seconds=time.monotonic() - started,
            dropped=mined.dropped,
            records_short_of_negatives=mined.short,
            random_negatives=mined.padded,
            recalls=dict(mined.recalls),
        )
        write_json(new / RUN_FILE, {**description, "key": key})
    dropped = ", ".join(f"{count} {reason}" for reason, count in mined.dropped.items()) or "nothing"
    log.info("mine: dropped %s; %d records short of negatives", dropped, mined.short)


TRADEOFF_FILE = "tradeoff.json"
PICTURE_FILE = "tradeoff.png"
# a tuned model may declare prompts, or a length, that its base doesn't
AS_TUNED = MergeOptions(prompts_from=1, length_from=1)


Point = tuple[float, float, float]
"""Share of the tuned model, mean target score, mean general score."""


def measure_tradeoff(
    options: RunOptions,
    task_list: Sequence[Task],
    shares: Sequence[float],
    base: Path,
    tuned: Path,
    cocktail: Path,
    folder: Path,
    known: Mapping[float, Point] | None = None,
) -> list[Point]:
    """Merge at each share, judge, and draw.

    Args:
        options: Of the run.
        task_list: Target and general tasks.
        shares: In rising order, from 0 to 1.
        base: The base.
        tuned: The tuned model.
        cocktail: Their merge at the run's own share, which is there already.
        folder: Where numbers and picture are written.
        known: Points that were measured before, by their share.

    Returns:
        A point for each share.
    """
    known = known or {}
    there = {options.merge.share: cocktail, 0.0: base, 1.0: tuned}
    scratch = folder / "model"
    points: list[Point] = []
    with progress("trade-off", len(shares)) as advance:
        for share in shares:
            advance(0, f"share {share:g}")
            if share in known:
                points.append(known[share])
                advance(1)
                continue
            model, encode = there.get(share, scratch), options.encode
            if model == scratch:
                merge([tuned, base], scratch, AS_TUNED.model_copy(update={"share": share}), overwrite=True)
                # a model that is thrown away leaves nothing in the user's cache
                encode = encode.model_copy(update={"cache": False})
            judging = options.evaluate.model_copy(update={"map_texts": 0})
            result = evaluate_models({"": model}, task_list, encode, judging)[0]
            points.append((share, result.mean("target") or 0.0, result.mean("general") or 0.0))
            advance(1)
    shutil.rmtree(scratch, ignore_errors=True)
    write_json(folder / TRADEOFF_FILE, {"columns": ["share", "target", "general"], "points": points})
    draw_tradeoff(
        points,
        folder / PICTURE_FILE,
        chosen=options.merge.share,
        target=_axis(task_list, "target"),
        general=_axis(task_list, "general"),
        title="Target and general score by share of the tuned model",
    )
    return points


def read_tradeoff(folder: Path) -> list[Point]:
    """Return the points that `measure_tradeoff` wrote."""
    points: list[Point] = [
        (share, target, general) for share, target, general in json_of(folder / TRADEOFF_FILE)["points"]
    ]
    return points


def _axis(task_list: Sequence[Task], role: str) -> str:
    names = [task.name for task in task_list if task.role == role]
    return f"{role}: {names[0]}" if len(names) == 1 else f"{role}: mean of {', '.join(names)}"
