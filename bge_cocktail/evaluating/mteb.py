"""MTEB's tasks, and local data as tasks of MTEB, through the mteb library; its result files as one table."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.devices import hub_answers
from bge_cocktail.core.errors import CocktailError, DataError, UsageError, near_path, nearest
from bge_cocktail.core.outputs import json_of, write_json
from bge_cocktail.core.runs import files_under, hash_value
from bge_cocktail.evaluating.compare import holm, permutation_test
from bge_cocktail.evaluating.scores import ModelScores, Role, Score, bootstrap_interval
from bge_cocktail.evaluating.store import SCORES_FILE, read_evaluation
from bge_cocktail.evaluating.tasks.task import Task, open_task, tasks
from bge_cocktail.models.cache import default_cache_dir
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.models.layout import declared_length
from bge_cocktail.models.profile import model_profile
from bge_cocktail.models.prompts import declared_prompts
from bge_cocktail.options import EncodeOptions


def as_mteb_task(task: Task, split: str = "test") -> Any:
    """Return a task of mteb that holds the data of one of ours.

    Its revision is the hash of the data, so that results of other data are never taken for it.

    Args:
        task: From `open_task`.
        split: Which split is judged.

    Returns:
        An mteb task whose data are loaded.

    Raises:
        UsageError: Pairs with labels, which mteb has no task for, or a kind of task that it hasn't.
        DataError: Broken data.
    """
    kind = tasks[task.kind]
    if not kind.mteb:
        raise UsageError(f"{task.name}: mteb has no tasks like our '{task.kind}'; judge it with `target` or `general`")
    mteb_type, main_score = kind.mteb
    made = _class_of(mteb_type)(_metadata(task, mteb_type, main_score, split))
    kind.to_mteb(task, split, made)
    made.data_loaded = True
    return made


def _class_of(kind: str) -> Any:
    from mteb import abstasks

    # reranking is a retrieval among what each query brings with it
    parent = getattr(abstasks, f"AbsTask{'Retrieval' if kind == 'Reranking' else kind}")

    # mteb reads a task's metadata from its class, so each gets a class of its own
    return lambda metadata: type(f"Local{kind}", (parent,), {"metadata": metadata, "load_data": _loaded})()


def _loaded(self: Any, **_: Any) -> None:
    self.data_loaded = True


def _metadata(task: Task, kind: str, main_score: str, split: str) -> Any:
    from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=re.sub(r"[^A-Za-z0-9._-]", "-", task.name),
        dataset={"path": f"local/{task.name}", "revision": task.hash},
        description=f"Local data: {task.name}",
        type=kind,
        category="t2t",
        eval_splits=[split],
        eval_langs=["eng-Latn"],
        main_score=main_score,
    )


OWNER = "local"


class MtebModel:
    """An encoder for mteb: its `EncoderProtocol`.

    A local folder has no identity in mteb, whose result cache would then give one model's scores to another; here name
    and revision are made of the weights, the prompts and the precision.

    Args:
        name: What results call it.
        encoder: Embeds, and caches what it embedded.
    """

    def __init__(self, name: str, encoder: CachedEncoder) -> None:
        self._name, self._encoder = name, encoder

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: Any,
    ) -> NDArray[np.float32]:
        """Embed the texts of all batches.

        Args:
            inputs: Batches with ``text``.
            task_metadata: Of the task, for a prompt that the model declares for it.
            hf_split: Not looked at.
            hf_subset: Not looked at.
            prompt_type: Query, document, or neither.

        Returns:
            Shape (texts, dimensions).
        """
        texts = [text for batch in inputs for text in batch["text"]]
        prompt = self.prompt(task_metadata, prompt_type)
        if str(getattr(prompt_type, "value", prompt_type)) == "document":
            return self._encoder.encode_document(texts, prompt)
        return self._encoder.encode_query(texts, prompt)

    def prompt(self, task_metadata: Any, prompt_type: Any) -> str:
        """Return the prompt of a task's texts.

        What the user chose for queries and documents goes before what the model declares: for the task, for its type,
        for the role, in mteb's order.
        """
        from mteb.models.abs_encoder import get_prompt_name

        role = getattr(prompt_type, "value", prompt_type)
        options = self._encoder.options
        chosen = {"query": options.query_prompt, "document": options.document_prompt}.get(role)
        if chosen is not None:
            return chosen
        declared = {name: text for name, text in declared_prompts(self._encoder.folder).items() if text}
        special = {name: text for name, text in declared.items() if name not in ("query", "document")}
        found = get_prompt_name(special, task_metadata, prompt_type)
        if found is not None:
            return special[found]
        return self._encoder.prompts.of(role if role in ("query", "document") else "text")

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines, shape (first, second)."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of pairs, shape (pairs,)."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    @cached_property
    def mteb_model_meta(self) -> Any:
        """Who it is: a name, and a revision for its content."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        encoder = self._encoder
        identity = hash_value([encoder.hash, {**encoder.options.what_counts(), "precision": encoder.precision}])
        return ModelMeta.create_empty(
            {
                "name": _name_of(self._name),
                "revision": identity,
                "max_tokens": encoder.options.max_length or declared_length(encoder.folder),
                "similarity_fn_name": ScoringFunction.COSINE,
                "framework": ["Sentence Transformers", "PyTorch"],
                "modalities": ["text"],
            }
        )


log = logging.getLogger(__name__)


def _name_of(model: str) -> str:
    """Return a name as mteb takes it."""
    return f"{OWNER}/{re.sub(r'[^A-Za-z0-9._-]', '-', model)}"


def open_mteb_tasks(names: Sequence[str], split: str = "test") -> list[Any]:
    """Return the tasks that names of tasks and benchmarks, and folders of local data, stand for.

    Args:
        names: Such as ``STSBenchmark``, ``MTEB(eng, v2)`` or ``data/handbook``.
        split: Which split of local data is judged.

    Raises:
        UsageError: There is no such task or benchmark; with the nearest names.
        DataError: Broken local data.
    """
    import mteb

    known = {task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)}
    benchmarks = {get_benchmark.name: get_benchmark for get_benchmark in mteb.get_benchmarks()}
    tasks: dict[str, Any] = {}
    for name in names:
        if Path(name).is_dir():
            task = as_mteb_task(open_task(name, "general"), split)
            tasks[task.metadata.name] = task
        elif name in benchmarks:
            tasks |= {task.metadata.name: task for task in benchmarks[name].tasks}
        elif name in known:
            tasks[name] = mteb.get_task(name)
        elif "/" in name or Path(name).exists():
            problem = "is a file; mteb judges folders" if Path(name).exists() else "no such folder"
            raise DataError(f"{name}: {problem} (and mteb has no task of that name).{near_path(name)}")
        else:
            raise UsageError(f"mteb has no task or benchmark '{name}'.{nearest(name, [*known, *benchmarks])}")
    return list(tasks.values())


def run_mteb(
    name: str, encoder: CachedEncoder, tasks: Sequence[Any], role: Role, *, cache_dir: Path | None = None
) -> list[Score]:
    """Judge an encoder on tasks of mteb; what was judged before is read from mteb's result cache.

    Args:
        name: What results call the model.
        encoder: The model.
        tasks: From `open_mteb_tasks` or `as_mteb_task`.
        role: Of the tasks.
        cache_dir: Where results are kept; default: beside the embeddings.

    Returns:
        The main score of each task.

    Raises:
        DataError: A task's data are neither in the cache nor within reach.
        CocktailError: A task failed.
    """
    import mteb
    from mteb.cache import ResultCache

    model = MtebModel(name, encoder)
    cache = ResultCache(results_folder(cache_dir))
    _without_network([task for task in tasks if not task.data_loaded])
    scores = []
    for task in tasks:
        log.info("%s: %s", name, task.metadata.name)
        encoder.about = f"mteb/{task.metadata.name}"
        try:
            result = mteb.evaluate(model, task, cache=cache, show_progress_bar=False, co2_tracker=False)
        except (ConnectionError, OSError) as error:
            raise DataError(
                f"mteb's task {task.metadata.name} needs its data ({task.metadata.dataset['path']}), which are neither "
                f"in the cache nor within reach: {str(error).splitlines()[0]}"
            ) from None
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise CocktailError(f"mteb's task {task.metadata.name} failed: {error}") from error
        scores += [_score(task_result, task, role) for task_result in result.task_results]
    return scores


def results_folder(cache_dir: Path | None = None) -> Path:
    """Return where mteb's results are kept."""
    return (cache_dir or default_cache_dir()) / "mteb"


@dataclass(frozen=True, slots=True)
class Submission:
    """What results that are handed in to mteb's leaderboard say of their model.

    Attributes:
        name: On the hub: owner/name.
        revision: The commit there.
        languages: Codes of language and script: eng-Latn.
        license: By its short name: mit, apache-2.0.
    """

    name: str
    revision: str
    languages: Sequence[str] = ()
    license: str | None = None

    def meta(self, encoder: CachedEncoder, local: Any) -> Any:
        """Return mteb's description of the model.

        Args:
            encoder: The model.
            local: The description under which it was judged.

        Raises:
            UsageError: mteb doesn't take one of the values.
        """
        from mteb.models.model_meta import ModelMeta
        from pydantic import ValidationError

        folder = encoder.folder
        weights = sorted(folder.rglob("*.safetensors"))
        values = {
            **dict(local),
            "name": self.name,
            "revision": self.revision,
            "languages": list(self.languages) or None,
            "license": self.license,
            "n_parameters": _parameters(weights),
            "embed_dim": model_profile(folder).dimensions,
            "memory_usage_mb": round(sum(path.stat().st_size for path in weights) / 2**20),
            "open_weights": True,
            "reference": f"https://huggingface.co/{self.name}",
            "use_instructions": any(declared_prompts(folder).values()),
        }
        try:
            return ModelMeta(**values)
        except (ValidationError, ValueError) as error:
            problems = error.errors() if isinstance(error, ValidationError) else [{"loc": (), "msg": str(error)}]
            said = "; ".join(f"{'.'.join(map(str, one['loc'][:1]))}: {one['msg']}" for one in problems[:1])
            raise UsageError(f"mteb doesn't take this of a model: {said}") from None


def _parameters(weights: Sequence[Path]) -> int | None:
    """Return how many numbers the files hold, by their headers; None without files."""
    from safetensors import safe_open

    count = 0
    for path in weights:
        with safe_open(path, "np") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  (it is no dict)
    return count or None


def copy_results(
    names: Sequence[tuple[str, CachedEncoder]],
    tasks: Sequence[str],
    output: Path,
    cache_dir: Path | None = None,
    submission: Submission | None = None,
) -> None:
    """Copy the models' results, in mteb's own layout, into a folder.

    Args:
        names: The models.
        tasks: Whose results; the cache holds those of all that a model was ever judged on.
        output: The folder.
        cache_dir: Where results are kept.
        submission: Under which name they are handed in; without it, under that of the weights.
    """
    from mteb.cache import ResultCache

    for name, encoder in names:
        meta = MtebModel(name, encoder).mteb_model_meta
        source = ResultCache(results_folder(cache_dir)).get_task_result_path("x", meta).parent
        if submission is not None:
            meta = submission.meta(encoder, meta)
        target = ResultCache(output).get_task_result_path("x", meta).parent
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            for name_of_file in (META_FILE, *(f"{task}.json" for task in tasks)):
                if (source / name_of_file).is_file():
                    shutil.copy2(source / name_of_file, target)
            if submission is not None:
                write_json(target / META_FILE, json.loads(json.dumps(meta.to_dict(), default=str)))


def _score(result: Any, task: Any, role: Role) -> Score:
    value = float(result.get_score())
    if math.isnan(value):
        raise DataError(f"mteb gives no number for {result.task_name}: does the model give all pairs one similarity?")
    count = sum(len(subsets) for subsets in result.scores.values())
    return Score(
        task=f"mteb/{result.task_name}",
        kind="mteb",
        role=role,
        metric=str(task.metadata.main_score),
        value=value,
        interval=None,
        count=count,  # subsets: mteb keeps no number of texts
        main=True,
    )


def _without_network(tasks: Sequence[Any]) -> None:
    """Where the hub doesn't answer, have the libraries fail at once and not after minutes."""
    if not tasks or os.environ.get("HF_HUB_OFFLINE") or hub_answers():
        return
    import datasets
    from huggingface_hub import constants

    log.warning("the hub doesn't answer: mteb's tasks are taken from the cache, if they are there")
    constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True


class MtebTasks:
    """Tasks of mteb beside ours."""

    def __init__(
        self,
        names: Sequence[str],
        models: Mapping[str, str],
        encoding: EncodeOptions,
        split: str,
        submission: Submission | None = None,
    ) -> None:
        self._submission = submission
        self._tasks = open_mteb_tasks(names, split)
        self._local = {open_task(name, "general").name for name in names if Path(name).is_dir()}
        self._encoders = {name: CachedEncoder(path, encoding) for name, path in models.items()}
        self._cache = encoding.cache_dir
        if submission is not None:  # what mteb doesn't take is said before hours of judging
            if len(self._encoders) != 1:
                raise UsageError("results are handed in for one model; evaluate one at a time")
            ((name, encoder),) = self._encoders.items()
            submission.meta(encoder, MtebModel(name, encoder).mteb_model_meta)

    def added(self, found: list[ModelScores]) -> list[ModelScores]:
        """Return the models' scores with those on these tasks."""
        results = []
        for result in found:
            scores = run_mteb(result.model, self._encoders[result.model], self._tasks, "general", cache_dir=self._cache)
            results.append(replace(result, scores=[*result.scores, *scores]))
        return results

    def inputs(self) -> dict[str, str]:
        """Revisions of the tasks' data."""
        return {f"mteb {task.metadata.name}": str(task.metadata.dataset["revision"]) for task in self._tasks}

    def copy_results(self, folder: Path) -> None:
        """mteb's own files, in its layout."""
        names = [str(task.metadata.name) for task in self._tasks]
        own = [name for name in names if name in self._local]
        if self._submission is not None and own:
            log.warning("results on data of your own are no part of a submission: %s", ", ".join(own))
        copy_results(list(self._encoders.items()), names, folder / "mteb", self._cache, self._submission)


LOCAL = "Local"
META_FILE = "model_meta.json"


FEWEST_TASKS = 6


class MeanDifference(NamedTuple):
    """The difference of two means over tasks, its 95 % interval, and the p of the paired test."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Results of several models.

    Attributes:
        models: Their names, each with the start of its revision where a name comes twice.
        types: mteb's type of each task; ``Local`` for those that mteb doesn't know.
        scores: Main score by model, then by task.
        target: The tasks that are tuned for.
    """

    models: Sequence[str]
    types: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]]
    target: Collection[str] = ()

    @property
    def shared(self) -> list[str]:
        """The tasks that every model was judged on; averages are over these."""
        return [task for task in self.types if all(task in self.scores[model] for model in self.models)]

    def averages(self, model: str) -> dict[str, float | None]:
        """mteb's averages of a model: over tasks, over types, of each type; and of target and general tasks."""
        own, shared = self.scores[model], self.shared
        by_type = {
            kind: _mean([own[task] for task in shared if self.types[task] == kind])
            for kind in sorted(set(self.types.values()))
        }
        known = [value for value in by_type.values() if value is not None]
        means: dict[str, float | None] = {"mean (task)": _mean([own[task] for task in shared])}
        means["mean (type)"] = _mean(known)
        if self.target:
            means["target"] = _mean([own[task] for task in shared if task in self.target])
            means["general"] = _mean([own[task] for task in shared if task not in self.target])
        return {**means, **by_type}

    def differences(self) -> dict[str, MeanDifference]:
        """How far each model's mean over tasks is from the first one's; none where there are fewer than six tasks.

        Of five, all of which are better, the test can't say that it is more than luck (p 2 / 32).
        mteb keeps no values of single queries, so that the tasks are what is drawn: the interval (bootstrap) and p
        (paired permutation, corrected for the number of models) say what other tasks like these would show.
        """
        shared, (first, *others) = self.shared, self.models
        if len(shared) < FEWEST_TASKS:
            return {}
        changes = [
            np.array([self.scores[model][task] - self.scores[first][task] for task in shared]) for model in others
        ]
        corrected = holm([permutation_test(change) for change in changes])
        return {
            model: MeanDifference(float(change.mean()), *bootstrap_interval(change), p)
            for model, change, p in zip(others, changes, corrected, strict=True)
        }

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        differences = self.differences()
        return {
            "tasks": dict(self.types),
            "shared": self.shared,
            "models": [
                {
                    "model": model,
                    "averages": self.averages(model),
                    "scores": dict(self.scores[model]),
                    "against_first": differences[model]._asdict() if model in differences else None,
                }
                for model in self.models
            ],
        }


def read_leaderboard(folders: Sequence[Path], target: Sequence[str] = ()) -> Leaderboard:
    """Return the results below folders.

    Args:
        folders: mteb's result folders, or evaluations that hold some (``mteb/``).
        target: Names of tasks that are tuned for.

    Raises:
        DataError: A folder holds no results, or a file can't be read.
        UsageError: No result is of a target task.
    """
    values: dict[tuple[str, str], dict[str, float]] = {}
    for folder in folders:
        files = [
            path
            for path in files_under(folder)
            if path.suffix == ".json" and path.name != META_FILE and _is_result(path)
        ]
        if not files:
            ours = (folder / SCORES_FILE).is_file()
            raise DataError(
                f"{folder} holds no results of mteb"
                + ("; it is an evaluation of ours, which bge-cocktail compare puts side by side" if ours else "")
            )
        for file in sorted(files, key=_order_in(folder)):
            model = _model_of(file)
            task, score = _score_of(file)
            if values.setdefault(model, {}).setdefault(task, score) != score:
                log.warning(
                    "%s: another result of %s on %s stands in %s; the first holds", file, *model[:1], task, folder
                )
    tasks = list(dict.fromkeys(task for scores in values.values() for task in scores))
    for name in target:
        if name not in tasks:
            raise UsageError(f"`target`: no result is of a task '{name}'.{nearest(name, tasks)}")
    names = _names(list(values))
    return Leaderboard(
        list(names.values()),
        _types(tasks),
        {names[model]: scores for model, scores in values.items()},
        frozenset(target),
    )


def _order_in(folder: Path) -> Callable[[Path], int]:
    """Return what sorts results as an evaluation of ours named its models, if the folder is one."""
    if not (folder / SCORES_FILE).is_file():
        return lambda _: 0
    names = [_name_of(result.model) for result in read_evaluation(folder)]
    return lambda file: names.index(name) if (name := _model_of(file)[0]) in names else len(names)


def _is_result(path: Path) -> bool:
    try:
        content = json_of(path)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} can't be read: {error}") from None
    return isinstance(content, dict) and {"task_name", "scores"} <= content.keys()


def _model_of(file: Path) -> tuple[str, str]:
    """Name and revision of the model that a result lies beside."""
    try:
        meta = json_of(file.parent / META_FILE)
        return str(meta["name"]), str(meta.get("revision"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return file.parent.parent.name.replace("__", "/"), file.parent.name


def _score_of(file: Path) -> tuple[str, float]:
    from mteb.results import TaskResult

    try:
        result = TaskResult.from_disk(file)
        return str(result.task_name), float(result.get_score())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{file} is no result of mteb: {reason}") from None


def _types(tasks: Sequence[str]) -> dict[str, str]:
    import mteb

    known = {task.metadata.name: str(task.metadata.type) for task in mteb.get_tasks(exclude_superseded=False)}
    return {task: known.get(task, LOCAL) for task in tasks}


def _names(models: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return what to call each; models of one name are told apart by the revision, which is that of their weights."""
    names = [name for name, _ in models]
    return {model: model[0] if names.count(model[0]) == 1 else f"{model[0]} @ {model[1][:8]}" for model in models}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
