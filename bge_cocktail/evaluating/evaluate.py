"""Models judged on tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import UsageError
from bge_cocktail.core.outputs import new_folder, refuse_to_replace, write_json
from bge_cocktail.core.pictures import draw_indexes
from bge_cocktail.core.progress import progress
from bge_cocktail.core.registry import refuse_unknown_options
from bge_cocktail.core.runs import RUN_FILE, begin_findings, describe_run, hash_path
from bge_cocktail.data.retrieval import read_retrieval
from bge_cocktail.evaluating.compare import resampled_score
from bge_cocktail.evaluating.measures import measure_run, parse_measure
from bge_cocktail.evaluating.scores import ModelScores, Role, Score
from bge_cocktail.evaluating.tasks.task import Task, embed_sample, open_task, task_path, tasks
from bge_cocktail.models.card import CardScore, add_scores
from bge_cocktail.models.encoder import CachedEncoder, Encoder
from bge_cocktail.options import EncodeOptions, EvaluateOptions
from bge_cocktail.search.exact import unit_rows

if TYPE_CHECKING:
    from bge_cocktail.evaluating.mteb import Submission


def evaluate(encoder: Encoder, task_list: Sequence[Task], options: EvaluateOptions | None = None) -> list[Score]:
    """Judge an encoder on tasks.

    Args:
        encoder: Embeds queries, documents and texts.
        task_list: From `open_task`.
        options: Depth, split, intervals.

    Returns:
        The scores of each task, its main metric first.
    """
    options = options or EvaluateOptions()
    _check_judging(task_list, options)
    return [score for task in task_list for score in task.judge(encoder, options)]


def _check_judging(task_list: Sequence[Task], options: EvaluateOptions) -> None:
    """Raise where options name no measure, or nothing that a task brings along, before anything is embedded."""
    for name in options.metrics:
        parse_measure(name)
    refuse_unknown_options([tasks[task.kind].judge for task in task_list], (), options.plugin_options)


TaskPath = str | Path | Task
"""A task's folder, or the task, opened already."""


def open_tasks(
    target: Sequence[TaskPath], general: Sequence[TaskPath], others: bool = False, limit: int | None = None
) -> list[Task]:
    """Recognise the tasks, the target's first.

    Args:
        target: Folders of target tasks.
        general: Folders of general tasks.
        others: Whether there are other tasks beside these.
        limit: How many queries, texts or pairs of each are judged; None for all.

    Raises:
        UsageError: None, or two of the same name.
    """
    given: list[tuple[TaskPath, Role]] = [
        *((path, "target") for path in target),
        *((path, "general") for path in general),
    ]
    task_list = [_with_role(path, role) if isinstance(path, Task) else open_task(path, role) for path, role in given]
    task_list = [
        task if limit in (None, task.limit) else replace(task, limit=limit, _data={}, _counted={}) for task in task_list
    ]
    if not task_list and not others:
        raise UsageError("nothing to evaluate on: name at least one target or general task, or one of mteb")
    names = [task.name for task in task_list]
    twice = next((name for row, name in enumerate(names) if name in names[:row]), None)
    if twice:
        raise UsageError(f"two tasks are called '{twice}'; tables and results need different folder names")
    return task_list


def _with_role(task: Task, role: Role) -> Task:
    return task if task.role == role else replace(task, role=role)


def evaluate_models(
    models: Mapping[str, str | Path], task_list: Sequence[Task], encoding: EncodeOptions, options: EvaluateOptions
) -> list[ModelScores]:
    """Judge several models on the same tasks.

    Args:
        models: What tables call each model, and its folder or hub name.
        task_list: From `open_tasks`.
        encoding: Prompts, precision, cache.
        options: Depth, split, intervals.
    """
    drawn = {task.name: task.map_texts(options.split, options.map_texts, options.seed) for task in task_list}
    _check_judging(task_list, options)
    results = []
    with progress("evaluating", len(models) * len(task_list)) as advance:
        for name, path in models.items():
            encoder = CachedEncoder(path, encoding)
            scores: list[Score] = []
            for task in task_list:
                advance(0, f"{name} on {task.name}" if name else task.name)
                encoder.about = task.name
                scores += task.judge(encoder, options)
                advance(1)
            encoder.tells = False
            embeddings = {task: embed_sample(encoder, sample) for task, sample in drawn.items() if sample}
            results.append(ModelScores(name, str(path), scores, embeddings, _about(encoder)))
    return results


def scorer(
    target: Sequence[TaskPath],
    general: Sequence[TaskPath],
    options: EvaluateOptions,
    general_split: str | None = None,
) -> Callable[[Encoder], tuple[float, float | None, Callable[[Role], NDArray[np.float64]]]]:
    """A function that judges an encoder: mean main score on the target tasks, and on the general ones if there are any.

    The third that it returns gives the mean of a role on resamples of the queries, the same for all encoders.

    Args:
        target: Folders of target tasks.
        general: Folders of general tasks.
        options: Depth, split.
        general_split: The split of the general tasks, if it is another one.

    Raises:
        UsageError: No target task, or two tasks of one name.
    """
    if not target:
        raise UsageError("a search needs at least one `target` task")
    task_list = open_tasks(target, general, limit=options.limit)
    for_general = options.model_copy(update={"split": general_split or options.split})
    parts = [(task, for_general if task.role == "general" else options) for task in task_list]
    _check_judging(task_list, options)  # what is wrong is said now
    for task, judging in parts:
        task.data(judging.split)

    def score(encoder: Encoder) -> tuple[float, float | None, Callable[[Role], NDArray[np.float64]]]:
        scores = [score for task, judging in parts for score in task.judge(encoder, judging)]
        result = ModelScores("", "", scores)

        def resampled(role: Role) -> NDArray[np.float64]:
            by_name = {task.name: task for task in task_list}
            kept = [score for score in result.main() if score.role == role]
            judging = for_general if role == "general" else options
            drawn = [resampled_score(score, _wanted(by_name[score.task], score, judging)) for score in kept]
            return np.mean(drawn, axis=0) if drawn else np.empty(0)

        return result.mean("target") or 0.0, result.mean("general"), resampled

    return score


def _wanted(task: Task, score: Score, options: EvaluateOptions) -> dict[str, float]:
    """Return what pairs are labelled with, by id, where a score is no mean over queries."""
    if score.per_query or not score.answers:
        return {}
    asked = task.texts(options.split, [score.answers])["asked"]
    return {name: float(one["wanted"]) for name, one in asked.items()}


def evaluation_inputs(
    models: Mapping[str, str | Path], task_list: Sequence[Task], options: EvaluateOptions
) -> dict[str, str]:
    """Names and hashes of models (a reranker, too) and tasks."""
    from bge_cocktail.models.folder import model_folder

    inputs = {name: hash_path(model_folder(path)) for name, path in models.items()}
    if options.reranker is not None:
        inputs[f"reranker {options.reranker}"] = hash_path(model_folder(options.reranker))
    return {**inputs, **{f"{task.role} {task.name}": task.hash for task in task_list}}


def _about(encoder: CachedEncoder) -> dict[str, Any]:
    return {
        "prompts": {"query": encoder.prompts.query, "document": encoder.prompts.document},
        "precision": encoder.precision,
        "texts_embedded": encoder.embedded,
        "texts_a_second": round(encoder.embedded / encoder.seconds, 1) if encoder.seconds else None,
    }


def named_models(models: Sequence[str]) -> dict[str, str]:
    """Return the models by what tables call them: ``NAME=FOLDER`` gives one a name, else it is its folder's.

    Raises:
        UsageError: Two of one name.
        DataError: A folder that isn't there.
    """
    from bge_cocktail.models.folder import model_folder

    named: dict[str, str] = {}
    for model in models:
        name, equals, path = model.partition("=")
        if not equals or Path(model).is_dir():
            name, path = model.rstrip("/").rsplit("/", 1)[-1], model
        if not name.strip() or not name.isprintable():
            raise UsageError(f"{model!r}: the name of a model is printable and not empty (NAME=FOLDER)")
        if name in named:
            raise UsageError(f"two models are called '{name}'; give them names: NAME=FOLDER")
        model_folder(path)
        named[name] = path
    return named


def run_evaluate(
    models: Mapping[str, str] | Sequence[str],
    output: Path,
    options: EvaluateOptions | None = None,
    encoding: EncodeOptions | None = None,
    *,
    target: Sequence[TaskPath] = (),
    general: Sequence[TaskPath] = (),
    mteb: Sequence[str] = (),
    submission: Submission | None = None,
    card: bool = False,
    overwrite: bool = False,
) -> list[ModelScores]:
    """Judge models on tasks, and keep scores, answers and what made them in a folder.

    Args:
        models: Folders or hub names by what tables call them, or a list of them; see `named_models`.
        output: The folder to write.
        options: Depth, split, intervals.
        encoding: Prompts, precision, cache.
        target: Folders of tasks that are tuned for.
        general: Folders of tasks that must not get worse.
        mteb: Tasks and benchmarks of mteb, or folders that are judged by mteb's own code.
        submission: Under which name mteb's results are written, to be handed in to its leaderboard.
        card: Put the scores into the model cards of those that are folders here, beside the first one's.
        overwrite: Replace an older output of this tool.

    Raises:
        UsageError: No task, names that come twice, or an output that exists.
        DataError: Data or a model that can't be read.
    """
    from bge_cocktail.evaluating.store import check_ids, write_evaluation

    begin_findings()
    options, encoding = options or EvaluateOptions(), encoding or EncodeOptions()
    named = dict(models) if isinstance(models, Mapping) else named_models(models)
    folders = [task.path if isinstance(task, Task) else task_path(task)[1] for task in (*target, *general)]
    refuse_to_replace(output, overwrite, [*named.values(), *folders])
    task_list = open_tasks(target, general, bool(mteb), options.limit)
    if options.save_runs:
        for task in task_list:
            check_ids(task, options.split)
    theirs = None
    if mteb and options.limit:
        raise UsageError(
            "`limit` takes a part of our own tasks; mteb judges its own whole, so leave out one of the two"
        )
    if mteb:
        from bge_cocktail.evaluating.mteb import MtebTasks

        theirs = MtebTasks(mteb, named, encoding, options.split, submission)
    elif submission is not None:
        raise UsageError("a name for mteb's leaderboard does nothing without tasks of mteb (`mteb`)")

    def judge() -> list[ModelScores]:
        scores = evaluate_models(named, task_list, encoding, options)
        return scores if theirs is None else theirs.added(scores)

    used: dict[str, Any] = {"evaluate": options.model_dump(mode="json"), "encode": encoding.model_dump(mode="json")}
    results = write_evaluation(
        output,
        judge,
        {**used, **({"mteb": list(mteb)} if mteb else {})},
        {**evaluation_inputs(named, task_list, options), **(theirs.inputs() if theirs else {})},
        task_list,
        theirs.copy_results if theirs else lambda _: None,
        overwrite=overwrite,
    )
    if card:
        put_into_cards(results)
    return results


def put_into_cards(results: Sequence[ModelScores], under: Path | None = None) -> None:
    """Put the main scores of models into their cards, those of the first model beside those of the others.

    Args:
        results: The models; those that are no folders here are passed over.
        under: Only those in this folder get them.
    """
    base = {(score.task, score.metric): score.value for score in results[0].main()}
    for result in results:
        folder = Path(result.path)
        if not folder.is_dir() or (under is not None and under.resolve() not in folder.resolve().parents):
            continue
        scores = [
            CardScore(
                task=score.task,
                kind=score.kind,
                role=score.role,
                metric=score.metric,
                value=score.value,
                interval=score.interval,
                count=score.count,
                base=None if result is results[0] else base.get((score.task, score.metric)),
            )
            for score in result.main()
        ]
        add_scores(folder, folder.resolve().name, scores)


@dataclass(frozen=True)
class IndexRun:
    """What `run_indexes` gave.

    Attributes:
        folder: With indexes.png and run.json.
        indexes: Of each its name, recall, nDCG, megabytes, queries a second, seconds to build, and whether full
            embeddings order its candidates.
    """

    folder: Path
    indexes: Sequence[Mapping[str, Any]]


def run_indexes(
    model: str | Path,
    data: Path,
    output: Path,
    names: Sequence[str],
    encoding: EncodeOptions | None = None,
    *,
    k: int = 10,
    split: str = "test",
    overwrite: bool = False,
) -> IndexRun:
    """Judge indexes by what they find of the exact search's documents, and keep it in a folder.

    Args:
        model: Folder or hub name of the encoder.
        data: A BEIR folder or what `prepare` wrote.
        output: The folder to write.
        names: Of `search.approximate.indexes`.
        encoding: How texts are embedded.
        k: Documents wanted of each query.
        split: Whose queries are asked.
        overwrite: Replace an older output of this tool.

    Raises:
        UsageError: An unknown index, more documents wanted than there are, or an output that exists.
        DataError: Data or a model that can't be read.
    """
    from bge_cocktail.models.folder import model_folder
    from bge_cocktail.search.approximate import check_indexes, judge_indexes

    encoding = encoding or EncodeOptions()
    refuse_to_replace(output, overwrite, [model, data])
    started = time.monotonic()
    judged = read_retrieval(data, split)
    check_indexes(names, k, len(judged.corpus))
    encoder = CachedEncoder(model, encoding)
    documents = unit_rows(encoder.encode_document(list(judged.corpus.values())))
    queries = unit_rows(encoder.encode_query(list(judged.queries.values())))
    scores, rows = judge_indexes(queries, documents, names, k)
    ids, metric = list(judged.corpus), f"nDCG@{k}"
    described = []
    for score in scores:
        ranked = zip(judged.queries, rows[score.index].tolist(), strict=True)
        run = {query: [ids[row] for row in line if row >= 0] for query, line in ranked}
        quality = float(np.mean(list(measure_run(run, judged.qrels, [metric])[metric].values())))
        described.append({**score.to_json(), metric: quality})
    with new_folder(output, overwrite=overwrite) as new:
        draw_indexes(described, new / "indexes.png", k=k, title=f"{len(ids):,} documents of {data.resolve().name}")
        run_of = describe_run(
            "indexes",
            options={"index": list(names), "k": k, "split": split, "encode": encoding.model_dump(mode="json")},
            inputs={str(model): hash_path(model_folder(model)), str(data): hash_path(data)},
            seconds=time.monotonic() - started,
            indexes=described,
        )
        write_json(new / RUN_FILE, run_of)
    return IndexRun(output, described)
