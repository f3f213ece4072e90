"""The model card of a merged model, as the hub renders it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bge_cocktail.core.version import __version__
from bge_cocktail.merging.plan import Plan
from bge_cocktail.merging.recipe import Recipe, to_toml
from bge_cocktail.merging.weights import WeightsResult
from bge_cocktail.models.folder import declared_labels, is_classifier
from bge_cocktail.models.layout import declared_length
from bge_cocktail.models.prompts import declared_prompts

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def model_card(name: str, recipe: Recipe, plan: Plan, found: WeightsResult, folder: Path) -> str:
    """README.md of a merged model: what it was made of and how it is used.

    Args:
        name: Of the model.
        recipe: How it was merged.
        plan: The merge.
        found: The weights, and the losses that led to them.
        folder: The merged model, for what it declares.
    """
    embeds = (folder / "modules.json").is_file() and not is_classifier(folder)
    lines = ["---", *_front_matter(recipe, plan, embeds), "---", "", f"# {name}", ""]
    count = len(recipe.models)
    made = f"A merge of {count} models" if count > 1 else "A model"
    lines += [
        f"{made}, made with bge-cocktail {__version__} by the method `{recipe.options.method}`.",
        "",
        *_table(recipe, found),
    ]
    if recipe.options.base is not None:
        lines += ["", f"Task vectors are differences to `{_shown(recipe.options.base)}`."]
    if found.scale is not None:
        lines += ["", f"The merged task vector is multiplied by {found.scale:.4f}."]
    if found.note:
        lines += ["", f"Weights: {found.note}."]
    if embeds:
        lines += ["", "## Use", "", *_usage(name, folder)]
    if is_classifier(folder):
        lines += ["", f"Predicts: {', '.join(declared_labels(folder))}."]
    shown = to_toml(recipe)
    for model in _models(recipe):
        shown = shown.replace(json.dumps(model, ensure_ascii=False), json.dumps(_shown(model), ensure_ascii=False))
    lines += ["", "## Recipe", "", "```toml", shown.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _front_matter(recipe: Recipe, plan: Plan, embeds: bool) -> list[str]:
    named = [model for model in _models(recipe) if HUB_NAME.fullmatch(model) and not Path(model).exists()]
    lines = []
    if named:
        lines += ["base_model:", *(f"- {model}" for model in dict.fromkeys(named)), "base_model_relation: merge"]
    licences = {_front_of(one.folder).get("license") for one in plan.checkpoints}
    if len(licences) == 1 and (licence := licences.pop()):
        lines.append(f"license: {licence}")
    lines.append(f"library_name: {'sentence-transformers' if embeds else 'transformers'}")
    classifies = is_classifier(plan.checkpoints[0].folder)
    if embeds or classifies:
        lines.append(f"pipeline_tag: {'text-classification' if classifies else 'sentence-similarity'}")
    tags = ["merge", "bge-cocktail"]
    if embeds:
        tags = ["sentence-transformers", "feature-extraction", "sentence-similarity", *tags]
    return [*lines, "tags:", *(f"- {tag}" for tag in tags)]


def _table(recipe: Recipe, found: WeightsResult) -> list[str]:
    losses = [None] * (len(found.weights) - len(found.losses)) + list(found.losses)
    with_losses = bool(found.losses)
    lines = ["| model | weight |" + (" loss on examples |" if with_losses else "")]
    lines.append("|---|---|" + ("---|" if with_losses else ""))
    for name, weight, loss in zip(recipe.names(), found.weights, losses, strict=True):
        more = f" {'' if loss is None else f'{loss:.4f}'} |" if with_losses else ""
        escaped = _shown(name).replace("|", "\\|")
        lines.append(f"| {escaped} | {weight:.4f} |{more}")
    return lines


def _usage(name: str, folder: Path) -> list[str]:
    prompts = {role: text for role, text in declared_prompts(folder).items() if text}
    lines = [
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{name}")',
        'queries = model.encode_query(["how is a cocktail made?"])',
        'documents = model.encode_document(["Shake the parts with ice and strain."])',
        "print(model.similarity(queries, documents))",
        "```",
        "",
        f"Texts of up to {declared_length(folder)} tokens. "
        + ("Prompts, which `encode_query` and `encode_document` add:" if prompts else "No prompts."),
    ]
    if prompts:
        lines += ["", "```json", json.dumps(prompts, indent=2, ensure_ascii=False), "```"]
    return lines


def _models(recipe: Recipe) -> list[str]:
    """All models by name, those of inner recipes too."""
    found = [recipe.options.base] if recipe.options.base is not None else []
    for model in recipe.models:
        found += [model] if isinstance(model, str) else _models(model)
    return found


def _shown(model: str) -> str:
    """A hub name as it is; of a folder only its own name, because where it lay means nothing elsewhere."""
    return Path(model).resolve().name if Path(model).exists() else model


def _front_of(folder: Path) -> dict[str, Any]:
    """The plain entries of a model card's YAML."""
    path = folder / "README.md"
    match = FRONT.match(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    pairs = [line.partition(":") for line in match[1].splitlines() if ":" in line] if match else []
    return {key.strip(): value.strip() for key, _, value in pairs if value.strip() and not key.startswith((" ", "-"))}
