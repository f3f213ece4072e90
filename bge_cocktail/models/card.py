"""Model cards (README.md): what a model was made of and how, how it is used, and what it scores.

Rendered by the hub: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from bge_cocktail.core.errors import DataError
from bge_cocktail.core.outputs import new_file
from bge_cocktail.models.folder import declared_labels, is_classifier
from bge_cocktail.models.plug import plugs
from bge_cocktail.models.profile import ModelProfile, model_profile

CARD_FILE = "README.md"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.S)
_SHOWN_PLUGS = ("sentence-transformers", "langchain", "llama-index", "haystack", "tei")
_BEGIN, _END = "<!-- scores -->", "<!-- end of scores -->"
# the hub's name of a task by our kind of it
_HUB_TASKS = {
    "retrieval": ("information-retrieval", "Information Retrieval"),
    "classification": ("text-classification", "Text Classification"),
    "similarity": ("semantic-similarity", "Semantic Similarity"),
}


@dataclass(frozen=True, slots=True)
class Parent:
    """A model that another was made of.

    Attributes:
        name: As the user named it.
        folder: Where it lies, for its own card.
    """

    name: str
    folder: Path

    @property
    def hub_name(self) -> str | None:
        """Its name on the hub, if that is how it was named."""
        return self.name if HUB_NAME.fullmatch(self.name) and not Path(self.name).exists() else None


@dataclass(frozen=True, slots=True)
class CardScore:
    """What a card says of one task.

    Attributes:
        task: Its name.
        kind: ``retrieval``, ``classification``, ...
        role: ``target`` or ``general``.
        metric: Such as ``nDCG@10``.
        value: From 0 to 1.
        interval: 95 % bootstrap interval.
        count: Queries or texts judged.
        base: The base's value on the same; None where it was not judged beside it.
    """

    task: str
    kind: str
    role: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    count: int
    base: float | None = None


def write_card(
    folder: Path,
    name: str,
    made: Sequence[str],
    *,
    parents: Sequence[Parent],
    relation: Literal["finetune", "merge", "quantized"],
    datasets: Sequence[str] = (),
) -> None:
    """Write the card of a model that is otherwise whole.

    Args:
        folder: The model.
        name: Its title.
        made: How it was made: lines of Markdown.
        parents: What it was made of.
        relation: How it stands to those.
        datasets: What it was tuned on: hub names become links, of files and folders only the name is kept.
    """
    classifies = is_classifier(folder)
    profile = model_profile(folder) if (folder / "modules.json").is_file() and not classifies else None
    fronts = [read_front(parent.folder) for parent in parents]
    licence, conflict = _licence(parents, fronts)
    named = list(dict.fromkeys(parent.hub_name for parent in parents if parent.hub_name))
    languages = [front["language"] for front in fronts if front.get("language")]
    tags = [] if profile is None else ["sentence-transformers", "feature-extraction", "sentence-similarity"]
    front = {
        "base_model": named,
        "base_model_relation": relation if named else None,
        "license": licence,
        "language": languages[0] if languages and all(one == languages[0] for one in languages) else None,
        "library_name": "transformers" if profile is None else "sentence-transformers",
        "pipeline_tag": "text-classification" if classifies else "sentence-similarity" if profile else None,
        "datasets": [name for name in datasets if HUB_NAME.fullmatch(name) and not Path(name).exists()],
        "tags": [*tags, *(["merge"] if relation == "merge" else []), "bge-cocktail"],
    }
    lines = [f"# {name}", "", *made]
    if conflict:
        lines += ["", conflict]
    if profile is not None:
        lines += ["", *_use(replace(profile, name=name))]
    elif classifies:
        lines += ["", *_use_of_classifier(name, folder)]
    _write(folder, {key: value for key, value in front.items() if value}, "\n".join(lines) + "\n")


def add_scores(folder: Path, name: str, scores: Sequence[CardScore]) -> None:
    """Put scores into the card of a model, in place of those that it had: a table, and the hub's model-index.

    Args:
        folder: The model; it gets a card of scores alone if it has none.
        name: What the model-index calls it.
        scores: One of each task.
    """
    path = folder / CARD_FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else f"# {name}\n"
    front = read_front(folder)
    body = FRONT.sub("", text, count=1).lstrip("\n")
    table = "\n".join([_BEGIN, "## Scores", "", *_table(scores), _END])
    if _BEGIN in body and _END in body:
        before, _, rest = body.partition(_BEGIN)
        body = before + table + rest.partition(_END)[2]
    else:
        # before how it is used, behind how it was made
        before, use, rest = body.partition("\n## Use\n")
        body = f"{before.rstrip()}\n\n{table}\n{use}{rest}"
    front["model-index"] = [{"name": name, "results": [_result(score) for score in scores]}]
    _write(folder, front, body)


def read_front(folder: Path) -> dict[str, Any]:
    """Return the YAML of a model's card; empty where there is none, or none that can be read."""
    path = folder / CARD_FILE
    match = FRONT.match(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    try:
        front = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return front if isinstance(front, dict) else {}


def _write(folder: Path, front: Mapping[str, Any], body: str) -> None:
    described = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True, default_flow_style=False)
    path = folder / CARD_FILE
    text = f"---\n{described}---\n\n{body}"
    if path.is_file() and path.read_bytes() == text.encode("utf-8", "replace"):
        return
    with new_file(path) as working:
        working.write_bytes(text.encode("utf-8", "replace"))


def _licence(parents: Sequence[Parent], fronts: Sequence[Mapping[str, Any]]) -> tuple[str | None, str]:
    """Return the licence that all parents share, or a sentence on which of them differ."""
    licences = [str(front["license"]) if front.get("license") else None for front in fronts]
    if len(set(licences)) <= 1:
        return (licences[0] if licences else None), ""
    shown = ", ".join(
        f"{shown_name(parent.name)}: {licence or 'none declared'}"
        for parent, licence in zip(parents, licences, strict=True)
    )
    return None, f"**Licences differ** between what it was made of ({shown}); this card declares none."


def shown_name(name: str) -> str:
    """Return a hub name as it is; of a folder only its own name, because where it lay means nothing elsewhere."""
    return Path(name).resolve().name if Path(name).exists() else name


def _use(profile: ModelProfile) -> list[str]:
    prompts = profile.prompts
    described = [
        f"{profile.dimensions} dimensions" if profile.dimensions else "",
        f"texts of up to {profile.max_length} tokens" if profile.max_length else "",
        f"pooling {' + '.join(profile.poolings)}" if profile.poolings else "",
    ]
    lines = ["## Use", "", f"{', '.join(part for part in described if part)}."]
    if prompts.query or prompts.document:
        lines[-1] += f" Prompt of queries: {_code(prompts.query)}; of documents: {_code(prompts.document)}."
    else:
        lines[-1] += " No prompts."
    for number, name in enumerate(_SHOWN_PLUGS):
        language = "bash" if plugs.trait(name, "shell") else "python"
        block = [f"```{language}", plugs[name](profile).rstrip(), "```"]
        if number:
            summary = (plugs[name].__doc__ or name).strip().rstrip(".")
            block = [f"<details><summary>{summary}</summary>", "", *block, "", "</details>"]
        lines += ["", *block]
    return [*lines, "", "For others: `bge-cocktail plug`."]


def _code(text: str) -> str:
    return f"`{text}`" if text and "`" not in text else repr(text) if text else "none"


def _use_of_classifier(name: str, folder: Path) -> list[str]:
    return [
        "## Use",
        "",
        f"Predicts: {', '.join(declared_labels(folder))}.",
        "",
        "```bash",
        f"bge-cocktail classify predict texts.jsonl -m {name} -o predicted.jsonl",
        "```",
    ]


def _table(scores: Sequence[CardScore]) -> list[str]:
    with_base = any(score.base is not None for score in scores)
    columns = ["task", "role", "metric", *(["base"] if with_base else []), "this model", "95 % interval", "judged"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for score in scores:
        low, high = score.interval or (None, None)
        interval = f"{low:.4f} to {high:.4f}" if low is not None and high is not None else ""
        base = ["" if score.base is None else f"{score.base:.4f}"] if with_base else []
        cells = [score.task, score.role, score.metric, *base, f"{score.value:.4f}", interval, f"{score.count:,}"]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return lines


def _result(score: CardScore) -> dict[str, Any]:
    kind, words = _HUB_TASKS.get(score.kind, ("feature-extraction", "Feature Extraction"))
    interval = ""
    if score.interval is not None:
        interval = f" (95 % interval {score.interval[0]:.4f} to {score.interval[1]:.4f}, {score.count:,} judged)"
    metric = {
        "type": re.sub(r"\W+", "_", score.metric.lower()).strip("_"),
        "value": round(score.value, 6),
        "name": f"{score.metric}{interval}",
    }
    return {
        "task": {"type": kind, "name": words},
        "dataset": {"type": score.task, "name": f"{score.task} ({score.role})"},
        "metrics": [metric],
    }


def check_card(folder: Path) -> None:
    """Raise if the hub would not take a model's card.

    Raises:
        DataError: It has none, or its YAML can't be read.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        raise DataError(f"{folder} has no model card (README.md)")
    if FRONT.match(path.read_text(encoding="utf-8", errors="replace")) and not read_front(folder):
        raise DataError(f"{path}: the YAML between the --- lines can't be read")
