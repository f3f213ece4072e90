"""Runs in: the steps that folders hold, finished or not, and their evaluations side by side."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import DataError, UsageError, nearest
from bge_cocktail.core.outputs import as_written, json_of
from bge_cocktail.core.runs import RUN_FILE
from bge_cocktail.evaluating.compare import Comparison, compare
from bge_cocktail.evaluating.store import Evaluation, join_scores, open_evaluation
from bge_cocktail.options import RESAMPLES

log = logging.getLogger(__name__)
UNFINISHED = (".unfinished", ".search")


@dataclass(frozen=True, slots=True)
class Step:
    """A folder that a command made, or began to make.

    Attributes:
        folder: Where it is.
        name: What the report calls it.
        described: Its run.json.
    """

    folder: Path
    name: str
    described: Mapping[str, Any]

    @property
    def command(self) -> str:
        """What made it, or what is being made."""
        return str(self.described.get("command", "?"))

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return not self.described.get("unfinished")


@dataclass(frozen=True, slots=True)
class ComparedEvaluations(Comparison):
    """Evaluations of the same data, side by side.

    Attributes:
        steps: The evaluations.
    """

    steps: Sequence[Step] = ()

    @property
    def names(self) -> list[str]:
        """What the evaluations are called."""
        return [step.name for step in self.steps]


@dataclass(frozen=True, slots=True)
class ReportInput:
    """All that a report tells of.

    Attributes:
        steps: In the order of their folders, those of one command after the other.
        evaluated: Groups of evaluations that can be compared.
        reduce: How embeddings come onto a map: ``pca`` or ``umap``.
        seed: Of what is drawn.
    """

    steps: Sequence[Step]
    evaluated: Sequence[ComparedEvaluations]
    reduce: str
    seed: int

    def of(self, *commands: str) -> list[Step]:
        """Return the finished steps of some commands."""
        return [step for step in self.steps if step.command in commands and step.finished]

    def model_names(self) -> dict[str, str]:
        """Return what evaluations call models, by the hash of their content."""
        models = {model.model for group in self.evaluated for model in group.models}
        return {
            str(value): name
            for step in self.of("evaluate")
            for name, value in (step.described.get("inputs") or {}).items()
            if name in models
        }


@as_written("a folder of the report")
def collect(
    folders: Sequence[Path],
    *,
    baseline: str | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 13,
    reduce: str = "pca",
) -> ReportInput:
    """Read what folders hold.

    Args:
        folders: Runs: outputs of single commands, or folders that hold such.
        baseline: The model that others are compared with; the first of an evaluation without it.
        confidence: Of intervals and tests.
        resamples: Draws of the tests.
        seed: Of those.
        reduce: How embeddings come onto a map.

    Raises:
        DataError: A folder holds no run.
        UsageError: No model has the name of the baseline.
    """
    steps = find_steps(folders)
    groups = _groups([step for step in steps if step.command == "evaluate" and step.finished])
    names = {model.model for group in groups for _, evaluation in group for model in evaluation.models}
    if baseline is not None and baseline not in names:
        raise UsageError(f"`baseline`: no model '{baseline}' was evaluated.{nearest(baseline, names)}")
    evaluated = []
    for group in groups:
        compared = compare(
            [evaluation for _, evaluation in group],
            baseline=baseline,
            confidence=confidence,
            resamples=resamples,
            seed=seed,
            partial=True,
        )
        values = {each.name: getattr(compared, each.name) for each in fields(compared)}
        evaluated.append(ComparedEvaluations(**values, steps=[step for step, _ in group]))
    return ReportInput(steps, evaluated, reduce, seed)


def find_steps(folders: Sequence[Path]) -> list[Step]:
    """Return the steps in folders and the folders in them; also those that are not finished.

    Raises:
        DataError: A folder isn't there, or nothing in it was made by bge-cocktail.
    """
    steps: dict[Path, Step] = {}
    for given in folders:
        folder = given.resolve()
        if not folder.is_dir() and not any(folder.with_name(folder.name + end).is_dir() for end in UNFINISHED):
            raise DataError(f"{given}: no such folder")
        beside = [folder.with_name(folder.name + end) for end in UNFINISHED]
        here = [step for root in (folder, *beside) for step in _steps_below(root)]
        if not here:
            raise DataError(f"{given} holds no run of bge-cocktail (no {RUN_FILE})")
        for step in here:
            steps.setdefault(step.folder, step)
    return _told_apart(list(steps.values()))


def _told_apart(steps: Sequence[Step]) -> list[Step]:
    """Steps of one name with as much of their path in front as tells them apart."""
    names = [step.name for step in steps]
    count = 1
    while len(set(names)) < len(names) and count < 64:
        count += 1
        names = [
            "/".join(step.folder.parts[-count:]) if names.count(name) > 1 else name
            for step, name in zip(steps, names, strict=True)
        ]
    return [replace(step, name=name) for step, name in zip(steps, names, strict=True)]


MOST_FOLDERS = 20_000


def _steps_below(root: Path) -> list[Step]:
    steps = []
    for number, (place, inner, files) in enumerate(os.walk(root)):
        if number > MOST_FOLDERS:
            raise UsageError(f"{root} holds more than {MOST_FOLDERS:,} folders; name the runs in it")
        inner[:] = sorted(name for name in inner if not name.startswith((".", "checkpoint-")))
        if RUN_FILE not in files:
            continue
        folder = Path(place)
        try:
            described = json_of(folder / RUN_FILE)
        except (OSError, ValueError, RecursionError) as error:
            log.warning("%s can't be read and is left out: %s", folder / RUN_FILE, error)
            continue
        if isinstance(described, dict) and isinstance(described.get("command"), str):
            inside = folder.relative_to(root).as_posix()
            steps.append(Step(folder, root.name if inside == "." else f"{root.name}/{inside}", described))
    return steps


def _groups(steps: Sequence[Step]) -> list[list[tuple[Step, Evaluation]]]:
    """Evaluations that can stand side by side; others get a table of their own."""
    groups: list[list[tuple[Step, Evaluation]]] = []
    for step in steps:
        try:
            opened = (step, open_evaluation(step.folder))
        except DataError as error:
            log.warning("%s is left out: %s", step.name, error)
            continue
        for group in groups:
            try:
                join_scores([evaluation for _, evaluation in [*group, opened]])
            except DataError as error:
                log.info("%s stands apart: %s", step.name, error)
                continue
            group.append(opened)
            break
        else:
            groups.append([opened])
    return groups
