"""Several evaluations read together, where they are of the same data and options."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bge_cocktail.errors import DataError
from bge_cocktail.evaluation.details import Details, read_details
from bge_cocktail.evaluation.folder import read_evaluation
from bge_cocktail.evaluation.judging import ModelScores
from bge_cocktail.layout import read_object
from bge_cocktail.provenance import RUN_FILE

# what may differ between models that are compared: each has prompts of its own
_ENCODING = ("precision", "max_length", "query_prompt", "document_prompt")
# what changes no score
_ASIDE = ("confidence", "seed", "save_runs", "map_texts")
log = logging.getLogger(__name__)


def gather_evaluations(folders: Sequence[Path]) -> list[ModelScores]:
    """The models of several evaluations, each with all its scores.

    Raises:
        DataError: A folder holds no evaluation; one was made with other options, or on other data of a task; two models
            have one name.
    """
    models: dict[str, tuple[str, ModelScores]] = {}
    data: dict[str, tuple[str, Path]] = {}
    options: tuple[dict[str, Any], Path] | None = None
    probe: tuple[str, Path] | None = None
    for folder in folders:
        found = read_evaluation(folder)
        described = read_object(folder / RUN_FILE)
        inputs = described.get("inputs", {})
        mine = _what_scores_depend_on(described.get("options", {}))
        way = str(mine.pop("probe", "that of an older version"))
        if any(score.kind == "classification" for one in found for score in one.scores):
            probe = probe or (way, folder)
            if probe[0] != way:
                raise DataError(
                    f"{folder} was evaluated with other options than {probe[1]}: probe {way} against {probe[0]}"
                )
        options = options or (mine, folder)
        changed = [name for name in mine.keys() | options[0].keys() if mine.get(name) != options[0].get(name)]
        words = ", ".join(f"{name} {mine.get(name)} against {options[0].get(name)}" for name in sorted(changed))
        if set(changed) - set(_ENCODING):
            raise DataError(f"{folder} was evaluated with other options than {options[1]}: {words}")
        if changed:
            log.warning("%s was embedded otherwise than %s: %s", folder, options[1], words)
        for name, value in inputs.items():
            role, _, task = name.partition(" ")
            if role not in ("target", "general"):
                continue
            known, where = data.setdefault(task, (value, folder))
            if known != value:
                raise DataError(f"task '{task}' has other data in {folder} than in {where}; evaluate on the same")
        for one in found:
            content = inputs.get(one.model, "")
            if one.model not in models:
                models[one.model] = (content, one)
                continue
            earlier, before = models[one.model]
            if earlier != content:
                raise DataError(f"two models are called '{one.model}'; evaluate them as NAME=FOLDER")
            seen = {score.task for score in before.scores}
            scores = [*before.scores, *(score for score in one.scores if score.task not in seen)]
            models[one.model] = (content, replace(before, scores=scores))
    return [one for _, one in models.values()]


def gather_details(folders: Sequence[Path]) -> Details:
    """What several evaluations kept for reading, which `gather_evaluations` has found to be of the same data."""
    # as with scores, what an earlier one says holds
    found = [read_details(folder) for folder in reversed(folders)]
    texts: dict[str, dict[str, Any]] = {}
    for one in found:
        for task, more in one.texts.items():
            known = texts.setdefault(task, {"asked": {}, "documents": {}})
            known["asked"] |= more.get("asked", {})
            known["documents"] |= more.get("documents", {})
    return Details(
        {key: value for one in found for key, value in one.answers.items()},
        texts,
        {key: value for one in found for key, value in one.points.items()},
    )


def _what_scores_depend_on(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of an evaluation's options, those that scores depend on."""
    judging, encoding = options.get("evaluate", {}), options.get("encode", {})
    return {
        **{name: value for name, value in judging.items() if name not in _ASIDE},
        **{name: encoding[name] for name in _ENCODING if name in encoding},
    }
