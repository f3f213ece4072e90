"""What ``bge-cocktail merge`` does with classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_cocktail.errors import UsageError

if TYPE_CHECKING:
    from bge_cocktail.merging import Merged, Recipe


def first_classifier(recipe: Recipe) -> Path | None:
    """The folder of a recipe's first model, if that is a classifier."""
    from bge_cocktail.hub import model_folder
    from bge_cocktail.labels import is_classifier

    first = recipe.models[0]
    if not isinstance(first, str):
        return first_classifier(first)
    folder = model_folder(first)
    return folder if is_classifier(folder) else None


def merge_with_heads(
    recipe: Recipe,
    classifier: Path,
    output: Path,
    examples: Path | None,
    split: str,
    encoding: dict[str, Any],
    overwrite: bool,
) -> Merged:
    """Merge classifiers.

    Args:
        recipe: How.
        classifier: The folder of the first model.
        output: The folder to write.
        examples: Labelled texts: a file, or a folder with splits.
        split: Which of those.
        encoding: The flags that were given of how texts are embedded.
        overwrite: Replace an older output.

    Raises:
        UsageError: Flags that do nothing for classifiers.
        DataError: Labels that the classifier doesn't have.
    """
    from bge_cocktail.classifying import number_labels, read_settings, read_split
    from bge_cocktail.classifying.merging import merge_classifiers
    from bge_cocktail.preparing import Source
    from bge_cocktail.provenance import hash_path

    idle = next((name for name in encoding if name != "device"), None)
    if idle is not None:
        raise UsageError(f"--{idle.replace('_', '-')} does nothing here: classifiers have no prompts and no embeddings")
    texts = None
    if examples is not None:
        settings = read_settings(classifier)
        rows = read_split(Source(str(examples), split=split), settings.clean)
        texts = number_labels(rows, settings.labels, settings.multi_label, str(examples))
    return merge_classifiers(
        recipe,
        output,
        examples=texts,
        device=encoding.get("device", "auto"),
        more_inputs={} if examples is None else {f"{examples} ({split})": hash_path(examples)},
        overwrite=overwrite,
    )
