"""Whether one model is better than another, or only luckier: paired tests over the same queries and texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import DataError, UsageError, nearest
from bge_cocktail.core.outputs import as_written
from bge_cocktail.evaluating.query_changes import QueryChange, query_changes
from bge_cocktail.evaluating.scores import ModelScores, Role, Score, bootstrap_interval
from bge_cocktail.evaluating.store import Evaluation, EvaluationDetails, join_details, join_scores, open_evaluation
from bge_cocktail.evaluating.tasks.pairs import average_precision, rank_correlations
from bge_cocktail.options import RESAMPLES

Verdict = Literal["better", "worse", "no measurable change"]
# signs drawn at once: scipy holds some 50 bytes for each
_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class TaskChange:
    """The main score of one task under two models.

    Attributes:
        task: Its name.
        role: Target or general.
        metric: The task's main metric.
        before: Score of the first model.
        after: Score of the second.
        difference: Second minus first.
        interval: Bootstrap interval of the difference, over the same queries.
        p: Of the paired permutation test, two-sided.
        p_corrected: Corrected for the number of tasks (Holm).
        effect: The mean difference in standard deviations of the single differences (Cohen's d of paired values); None
            where the metric is no mean, such as a correlation.
        gained: Queries or texts that are better; None as above.
        lost: Those that are worse.
        count: All of them.
        verdict: Better or worse where the corrected p lies below 1 - confidence.
    """

    task: str
    role: Role
    metric: str
    before: float
    after: float
    difference: float
    interval: tuple[float, float]
    p: float
    p_corrected: float
    effect: float | None
    gained: int | None
    lost: int | None
    count: int
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Models judged on the same data, each compared with the first.

    Attributes:
        models: All of them, the baseline first.
        details: What their evaluations keep for reading.
        changes: From the baseline to each other model, by its name.
        untested: The tasks that can't be compared, each with the reason, by model.
        confidence: Of intervals and tests.
    """

    models: Sequence[ModelScores]
    details: EvaluationDetails
    changes: Mapping[str, Sequence[TaskChange]]
    untested: Mapping[str, Sequence[str]]
    confidence: float

    @property
    def baseline(self) -> ModelScores:
        """What the others are compared with."""
        return self.models[0]

    def mean(self, model: ModelScores, role: Role) -> float | None:
        """Return the mean main score over the tasks of a role that all models were judged on."""
        judged = [{score.task for score in each.main()} for each in self.models]
        shared = set.intersection(*judged)
        values = [score.value for score in model.main() if score.role == role and score.task in shared]
        return sum(values) / len(values) if values else None

    def words(self) -> dict[str, str]:
        """Return a sentence for each model."""
        return {
            model: f"{model} against {self.baseline.model}: {in_words(changes, self.confidence)}."
            for model, changes in self.changes.items()
        }

    def worse(self, role: Role | Literal["any"]) -> list[str]:
        """Return where a model is measurably worse: ``MODEL on TASK``."""
        return [
            f"{model} on {change.task}"
            for model, changes in self.changes.items()
            for change in changes
            if change.verdict == "worse" and role in (change.role, "any")
        ]

    def advice(self) -> str:
        """Return in a sentence which model to use, and why; empty where no target task was compared.

        It is the one of the best mean target score among those that are measurably better than the baseline on a
        target task and measurably worse on none, or else the baseline.
        """
        on_target = {
            model: [change for change in changes if change.role == "target"] for model, changes in self.changes.items()
        }
        if not any(on_target.values()):
            return ""
        better = {
            model: gained
            for model, changes in on_target.items()
            if (gained := [change for change in changes if change.verdict == "better"])
        }
        harmed = {
            model: [change.task for change in self.changes[model] if change.verdict == "worse"] for model in better
        }
        harmless = [model for model in better if not harmed[model]]
        first = self.baseline.model
        if harmless:
            by_name = {model.model: self.mean(model, "target") or 0.0 for model in self.models}
            best = max(harmless, key=lambda model: by_name[model])
            others = len(self.changes[best]) - len(better[best])
            where = "the other task" if others == 1 else f"any of the other {others} tasks"
            kept = f", and not measurably worse than {first} on {where}" if others else ""
            return f"Use {best}: {in_words(better[best], self.confidence)}{kept}."
        if better:
            costs = "; ".join(f"{model} is worse on {', '.join(harmed[model])}" for model in better)
            return f"Stay with {first}: what is better on the target costs elsewhere ({costs})."
        return f"Stay with {first}: no other model is measurably better on a target task."

    def query_changes(self, model: str, count: int) -> list[QueryChange]:
        """Return the queries and texts that gained and lost most under a model.

        Args:
            model: Which one, against the baseline.
            count: Of each task, at most so many that gained, then so many that lost.
        """
        known = {score.task: score for each in self.models if each.model == model for score in each.main()}
        most = []
        for score in self.baseline.main():
            if score.task in known:
                changed = query_changes((self.baseline.model, score), (model, known[score.task]), self.details)
                gained = [change for change in changed if change.difference > 0][:count]
                lost = [change for change in reversed(changed) if change.difference < 0][:count]
                most += [*gained, *lost]
        return most

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "baseline": self.baseline.model,
            "advice": self.advice(),
            "models": {
                model: {
                    "words": in_words(changes, self.confidence),
                    "tasks": [change.to_json() for change in changes],
                    "untested": list(self.untested[model]),
                }
                for model, changes in self.changes.items()
            },
        }


@as_written("an evaluation that is compared")
def compare(
    evaluations: Sequence[str | Path | Evaluation],
    *,
    baseline: str | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 13,
    partial: bool = False,
) -> Comparison:
    """Compare the models of evaluations with one of them.

    Args:
        evaluations: Folders that `evaluate` wrote, or what `open_evaluation` read of them.
        baseline: The model that the others are compared with; the first without it.
        confidence: Of the intervals; a change counts from a corrected p below 1 minus this.
        resamples: Draws of the test and of the bootstrap.
        seed: Of those.
        partial: Whether a single model, a baseline that isn't there (the first takes its place), and models that can't
            be compared are no errors; resamples are then more where there are many tasks.

    Raises:
        DataError: A folder holds no evaluation, or they were made with other options or on other data.
        UsageError: There is one model only, or none of the baseline's name; too few resamples to find anything.
    """
    opened = [each if isinstance(each, Evaluation) else open_evaluation(Path(each)) for each in evaluations]
    models, details = join_scores(opened), join_details(opened)
    names = [model.model for model in models]
    if not partial and len(models) < 2:
        folders = ", ".join(str(each.folder) for each in opened)
        raise UsageError(f"only one model was evaluated in {folders}; comparing needs two")
    if not partial and baseline is not None and baseline not in names:
        raise UsageError(f"`baseline`: no model '{baseline}'.{nearest(baseline, names)}")
    first, *others = sorted(models, key=lambda model: model.model != baseline)
    if partial:
        # of many tasks, fewer could not tell any difference once they are corrected
        resamples = max(resamples, int(4 * len(first.main()) / (1 - confidence)) + 1)
    changes: dict[str, list[TaskChange]] = {}
    left: dict[str, list[str]] = {}
    for model in others:
        left[model.model] = untested(first, model, details)
        try:
            changes[model.model] = compare_models(
                first, model, details, confidence=confidence, resamples=resamples, seed=seed
            )
        except DataError as error:
            if not partial:
                raise
            left[model.model] = [str(error)]
    return Comparison([first, *others], details, changes, left, confidence)


def compare_models(
    before: ModelScores,
    after: ModelScores,
    details: EvaluationDetails | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 13,
) -> list[TaskChange]:
    """Return the changes from one model to another, on the main score of every task that both were judged on.

    Args:
        before: Scores of the first model.
        after: Of the second.
        details: What they said of pairs, without which correlations aren't compared.
        confidence: Of the intervals; a change counts from a corrected p below 1 minus this.
        resamples: Draws of the test and of the bootstrap.
        seed: Of those.

    Raises:
        DataError: They share no task, or were judged on other queries.
        UsageError: Too few resamples to find anything.
    """
    known = {score.task: score for score in after.main()}
    pairs = [
        (score, known[score.task])
        for score in before.main()
        if score.task in known and (score.per_query or _pairs_said(score, before, after, details))
    ]
    if not pairs:
        raise DataError(f"{before.model} and {after.model} have no task in common that has a value for each query")
    least = 2 / (resamples + 1)
    if len(pairs) * least >= 1 - confidence:
        raise UsageError(
            f"with {resamples} resamples and {len(pairs)} tasks, no corrected p can lie below {1 - confidence:.4g}; "
            f"take {int(2 * len(pairs) / (1 - confidence)) + 1} or more"
        )
    tested = [_test(one, other, before, after, details, confidence, resamples, seed) for one, other in pairs]
    return [
        _change(one, other, found, corrected, confidence)
        for (one, other), found, corrected in zip(pairs, tested, holm([found.p for found in tested]), strict=True)
    ]


def untested(before: ModelScores, after: ModelScores, details: EvaluationDetails | None = None) -> list[str]:
    """Return the tasks that can't be compared, each with the reason."""
    known = {score.task: score for score in after.main()}
    reasons = []
    for score in before.main():
        if score.task not in known:
            reasons.append(f"{score.task}: {after.model} was not judged on it")
        elif not score.per_query and not _pairs_said(score, before, after, details):
            is_mteb = score.task.startswith("mteb/")
            why = "mteb keeps no values of single queries" if is_mteb else "is no mean over queries or texts"
            reasons.append(f"{score.task}: {score.metric}: {why}" if is_mteb else f"{score.task}: {score.metric} {why}")
    missing = {score.task for score in after.main()} - {score.task for score in before.main()}
    return reasons + [f"{task}: {before.model} was not judged on it" for task in sorted(missing)]


def permutation_test(differences: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = 13) -> float:
    """Return the paired permutation test: how often the sum is as far from 0 if every sign is a coin's.

    All signs are tried where there are no more of them than resamples; else so many are drawn, and the observed one
    counts too (Phipson and Smyth 2010, doi:10.2202/1544-6115.1585), so that p is never 0.

    Args:
        differences: Of each query or text, shape (queries,).
        resamples: Draws at most.
        seed: Of the draws.

    Returns:
        The two-sided p.
    """
    from scipy.stats import permutation_test as test

    moved = differences[differences != 0]  # zeros change nothing, whatever their sign
    if len(moved) < 2:  # one alone is as far under either sign
        return 1.0
    drawn = test(
        (moved,),
        lambda values, axis: values.sum(axis=axis).round(9),  # sums that differ by rounding alone are as far
        permutation_type="samples",
        n_resamples=resamples,
        batch=max(1, _AT_ONCE // len(moved)),
        rng=np.random.default_rng(seed),
        vectorized=True,
    )
    return float(drawn.pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Corrected for the number of tests, so that one false alarm among all is as rare as said (Holm 1979)."""
    corrected = [0.0] * len(ps)
    highest = 0.0
    for rank, row in enumerate(sorted(range(len(ps)), key=lambda row: ps[row])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[row]))
        corrected[row] = highest
    return corrected


def in_words(changes: Sequence[TaskChange], confidence: float = 0.95) -> str:
    """Return one sentence: ``better on medquad (+6.1 nDCG@10, 95 % [4.8, 7.4]), no measurable change on 7 tasks``."""

    def named(verdict: Verdict) -> list[str]:
        return [
            f"{change.task} ({100 * change.difference:+.1f} {change.metric}, {100 * confidence:g} % "
            f"[{100 * change.interval[0]:+.1f}, {100 * change.interval[1]:+.1f}])"
            for change in changes
            if change.verdict == verdict
        ]

    better, worse = named("better"), named("worse")
    same = [change.task for change in changes if change.verdict == "no measurable change"]
    parts = [f"{word} on {', '.join(tasks)}" for word, tasks in (("better", better), ("worse", worse)) if tasks]
    if same:
        parts.append(f"no measurable change on {same[0] if len(same) == 1 else f'{len(same)} tasks'}")
    return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class _Tested:
    """A test of one task; without single differences where the metric is no mean."""

    p: float
    interval: tuple[float, float]
    differences: NDArray[np.float64] | None = None


def _test(
    one: Score,
    other: Score,
    before: ModelScores,
    after: ModelScores,
    details: EvaluationDetails | None,
    confidence: float,
    resamples: int,
    seed: int,
) -> _Tested:
    if one.metric != other.metric:
        raise DataError(f"{one.task}: {before.model} was judged by {one.metric}, {after.model} by {other.metric}")
    said = None if one.per_query else _pairs_said(one, before, after, details)
    if said is not None:
        return _Tested(*swap_test(*said, one.metric, confidence=confidence, resamples=resamples, seed=seed))
    if not one.per_query or one.per_query.keys() != other.per_query.keys():
        raise DataError(
            f"{one.task}: {before.model} and {after.model} were judged on other queries ({len(one.per_query)} and "
            f"{len(other.per_query)}); evaluate both on the same data"
        )
    first, second = (np.array([score.per_query[name] for name in one.per_query], float) for score in (one, other))
    differences = second - first
    return _Tested(
        permutation_test(differences, resamples=resamples, seed=seed),
        bootstrap_interval(differences, confidence=confidence, resamples=resamples, seed=seed),
        differences,
    )


def _pairs_said(
    score: Score, before: ModelScores, after: ModelScores, details: EvaluationDetails | None
) -> tuple[dict[str, float], dict[str, float], dict[str, float]] | None:
    """What both models said of a task's pairs, and what was wanted; None where that isn't kept or no metric fits."""
    if details is None or score.metric not in STATISTICS:
        return None
    said = [details.answers.get((model.model, score.task)) for model in (before, after)]
    asked = details.texts.get(score.task, {}).get("asked")
    if not asked or any(not answers or answers.keys() != asked.keys() for answers in said):
        return None
    return dict(said[0] or {}), dict(said[1] or {}), {name: float(one["wanted"]) for name, one in asked.items()}


def _change(one: Score, other: Score, tested: _Tested, corrected: float, confidence: float) -> TaskChange:
    differences = tested.differences
    effect = gained = lost = None
    if differences is not None:
        spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
        effect = float(differences.mean()) / spread if spread else 0.0
        gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    verdict: Verdict = "no measurable change"
    if corrected < 1 - confidence:
        verdict = "better" if other.value > one.value else "worse"
    return TaskChange(
        task=one.task,
        role=one.role,
        metric=one.metric,
        before=one.value,
        after=other.value,
        difference=other.value - one.value,
        interval=tested.interval,
        p=tested.p,
        p_corrected=corrected,
        effect=effect,
        gained=gained,
        lost=lost,
        count=one.count if differences is None else len(differences),
        verdict=verdict,
    )


Floats = NDArray[np.float64]
STATISTICS: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "Spearman": rank_correlations,
    "AP": average_precision,
}
# numbers held at once
_NUMBERS_AT_ONCE = 1 << 21


def swap_test(
    before: Mapping[str, float],
    after: Mapping[str, float],
    wanted: Mapping[str, float],
    metric: str,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, tuple[float, float]]:
    """How often the metric differs as much if for each pair it is a coin's which model said what; and an interval.

    Similarities of two models lie in other ranges, so each one's ranks are swapped.

    Args:
        before: Similarity of each pair of texts under the first model.
        after: Under the second.
        wanted: Score of each pair.
        metric: ``Spearman`` or ``AP``.
        confidence: Of the interval.
        resamples: Draws of the test and of the bootstrap.
        seed: Of those.

    Returns:
        The two-sided p, and the bootstrap interval of second minus first.
    """
    from scipy.stats import permutation_test as test
    from scipy.stats import rankdata

    of = STATISTICS[metric]
    ids = list(wanted)
    one, other = (rankdata([said[name] for name in ids]) for said in (before, after))
    scores = np.array([wanted[name] for name in ids], float)

    def difference(first: Floats, second: Floats, axis: int) -> Floats:
        rows, changed = (np.atleast_2d(np.moveaxis(values, axis, -1)) for values in (first, second))
        # differences that differ by rounding alone are as far
        drawn = _difference(of, rows, changed, np.broadcast_to(scores, rows.shape)).round(12)
        return drawn.reshape(np.shape(first)[:-1])

    tested = test(
        (one, other),
        difference,
        permutation_type="samples",
        n_resamples=resamples,
        batch=max(1, _NUMBERS_AT_ONCE // len(ids)),
        rng=np.random.default_rng(seed),
        vectorized=True,
    )
    interval = bootstrap_interval(
        np.stack([one, other, scores], axis=1),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        statistic=lambda drawn: _difference(of, drawn[..., 0], drawn[..., 1], drawn[..., 2]),
    )
    return float(tested.pvalue), interval


def resampled_score(
    score: Score, wanted: Mapping[str, float], *, resamples: int = 1000, seed: int = 13
) -> NDArray[np.float64]:
    """Return a score on resamples of its queries; those of two models on the same data belong together.

    Args:
        score: With its value for each query, or with what the model said of each pair.
        wanted: The score of each pair, where there are no values of queries.
        resamples: How many.
        seed: Of the draws.

    Returns:
        Shape (resamples,); the score itself where it can't be resampled.
    """
    generator = np.random.default_rng(seed)
    if score.per_query:
        values = np.array(list(score.per_query.values()))
        return np.asarray(values[generator.integers(len(values), size=(resamples, len(values)))].mean(axis=1))
    if score.metric not in STATISTICS or not wanted or wanted.keys() != score.answers.keys():
        return np.full(resamples, score.value)
    said, truth = np.array([(score.answers[name], wanted[name]) for name in wanted], float).T
    rows = generator.integers(len(truth), size=(resamples, len(truth)))
    return np.asarray(STATISTICS[score.metric](said[rows], truth[rows]))


def _difference(of: Callable[[Floats, Floats], Floats], one: Floats, other: Floats, wanted: Floats) -> Floats:
    return np.asarray(of(other, wanted) - of(one, wanted))
