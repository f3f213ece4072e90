"""Classifiers in a merge: encoders are merged, and the first model's head stands on all of them.

A model with the first one's labels may bring its own head into the merge. One with other labels, or an encoder without
a head, takes part as if it had the first one's.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bge_cocktail.core.errors import UsageError
from bge_cocktail.core.outputs import read_object
from bge_cocktail.merging.checkpoints import Checkpoint
from bge_cocktail.merging.compatible import (
    check_alike,
    config_differences,
    module_differences,
    refuse,
    tokenizer_differences,
)
from bge_cocktail.merging.plan import is_excluded, tensor_of
from bge_cocktail.merging.tensors import FLOATS, Floats, Key, Tensor, count_of
from bge_cocktail.models.folder import declared_labels, is_classifier, is_multi_label
from bge_cocktail.models.layout import CLASSIFIER_FILE, transformer_folder
from bge_cocktail.options import MergeOptions

log = logging.getLogger(__name__)
# what transformers calls labels that nobody named
_NAMELESS = "LABEL_"


_LABELS = frozenset(("id2label", "label2id"))


@dataclass(frozen=True, slots=True)
class ReorderedRows:
    """A tensor of a head with a row for each class, in another order of the classes.

    Attributes:
        tensor: As it is kept.
        order: The row that comes first, second, ...
    """

    tensor: Tensor
    order: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """See `Tensor`."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Tensor`."""
        return self.tensor.shape

    def read(self, first: int, out: Floats) -> None:
        """See `Tensor`."""
        values = np.empty(count_of(self.tensor), np.float32)
        self.tensor.read(0, values)
        out[:] = values.reshape(len(self.order), -1)[list(self.order)].reshape(-1)[first : first + len(out)]

    def content(self) -> bytes:
        """See `Tensor`."""
        return self.tensor.content()


def fit_heads(
    checkpoints: tuple[Checkpoint, ...], base: Checkpoint | None, options: MergeOptions
) -> tuple[tuple[Checkpoint, ...], Checkpoint | None, MergeOptions]:
    """Models that can be merged tensor by tensor, whatever their heads.

    Args:
        checkpoints: The models.
        base: What they were tuned from.
        options: Whether heads are merged.

    Returns:
        The models and the base, each with all tensors of the first model; and the options, which exclude the head if it
        is the first model's alone.

    Raises:
        UsageError: A classifier after an encoder, or heads that can't be merged as asked.
        DataError: Encoders of other forms.
    """
    first = checkpoints[0]
    if not is_classifier(first.folder):
        _refuse_classifiers(checkpoints, options)
        check_alike(checkpoints, options, base)
        return checkpoints, base, options
    own = declared_labels(first.folder)
    if not own:  # nothing says what its head means, so all must be alike
        if "heads" in options.model_fields_set:
            raise UsageError(f"`heads`: {first.name} doesn't name its labels, so heads can't be told apart")
        check_alike(checkpoints, options, base)
        return checkpoints, base, options
    others = [*checkpoints[1:], *([base] if base else [])]
    reasons = [_head_differs(first, other, own) for other in others]
    if options.heads == "merge" and any(reasons):
        said = "; ".join(f"{one.name} {reason}" for one, reason in zip(others, reasons, strict=True) if reason)
        raise UsageError(f"`heads=merge`: {said}; leave it out, and models of other labels take the first one's head")
    # task vectors are differences to a base, and a base without the head has none for it
    whole = base is None or not reasons[-1]
    merged = options.heads != "first" and whole and not all(reasons)
    if merged and len(own) > 1 and own[0].startswith(_NAMELESS):
        log.warning("the labels have no names (%s, ...), so nothing says that they mean the same in all models", own[0])
    if merged and not any(reasons) and all(declared_labels(other.folder) == own for other in others):
        check_alike(checkpoints, options, base)
        return checkpoints, base, options
    head = head_of(first)
    # a model that brings no head has the first one's; among task vectors the base's, so that it adds nothing to it
    lent = _fit(first, base, head, options)[0].tensors if merged and base is not None else first.tensors
    fitted = []
    for other, reason in zip(others, reasons, strict=True):
        if reason:
            log.info("%s %s: it takes part under the head of %s", other.name, reason, first.name)
        seen, lines = _fit(first, other, head if merged and not reason else [], options, lent)
        refuse(first, other, lines)
        fitted.append(seen)
    if not merged:
        options = options.model_copy(update={"exclude": [*options.exclude, *sorted(name for _, name in head)]})
    return (first, *fitted[: len(checkpoints) - 1]), fitted[-1] if base else None, options


def in_one_form(models: Sequence[Checkpoint]) -> tuple[list[Checkpoint], list[list[str]]]:
    """Models beside each other, under the head of the first classifier among them.

    Returns:
        The models, and for each what stands against its merge with that one.
    """
    first = next((model for model in models if is_classifier(model.folder)), None)
    if first is None:
        return list(models), [[] for _ in models]
    seen = [(model, list[str]()) if model is first else _fit(first, model, [], MergeOptions()) for model in models]
    return [one for one, _ in seen], [lines for _, lines in seen]


def head_of(classifier: Checkpoint) -> list[Key]:
    """Return the tensors of a classifier that are not its encoder's.

    Of transformers' classes, those outside the part that holds most of them; of a sentence-transformers folder, all
    modules after the first.
    """
    if (classifier.folder / "modules.json").is_file():
        return [key for key in classifier.tensors if key[0] > 0]
    body = Counter(name.split(".")[0] for _, name in classifier.tensors).most_common(1)[0][0]
    return [key for key in classifier.tensors if key[1].split(".")[0] != body]


def _refuse_classifiers(checkpoints: Sequence[Checkpoint], options: MergeOptions) -> None:
    late = next((checkpoint for checkpoint in checkpoints if is_classifier(checkpoint.folder)), None)
    if late is not None:
        raise UsageError(
            f"{late.name} is a classifier, {checkpoints[0].name} is none: name the model first whose head and labels "
            "the merge keeps"
        )
    if "heads" in options.model_fields_set:
        raise UsageError("`heads` does nothing here; it goes with classifiers")


def _head_differs(first: Checkpoint, other: Checkpoint, own: Sequence[str]) -> str:
    """Why a model's head can't be merged with the first one's; nothing if it can."""
    if not is_classifier(other.folder):
        return "has no head"
    theirs = declared_labels(other.folder)
    if sorted(theirs) != sorted(own):
        return f"has the labels {', '.join(theirs[:5])} and not {', '.join(own[:5])}"
    if is_multi_label(first.folder) != is_multi_label(other.folder):
        return "gives another number of labels to a text"
    lines = list(module_differences(first, other))
    if lines:
        return f"has another head ({lines[0]})"
    if lines := list(_setting_differences(first.folder, other.folder)):
        return f"was trained otherwise ({', '.join(lines)})"
    for key in head_of(first):
        if key not in other.tensors or other.tensors[key].shape != first.tensors[key].shape:
            return f"has a head of another form ('{key[1]}')"
        if theirs != own and first.tensors[key].shape[:2] == (len(own), len(own)):
            return "has its labels in another order, and its head doesn't say which side is theirs"
    return ""


def _setting_differences(one: Path, other: Path) -> Iterator[str]:
    """In what two classifiers read their texts differently, so that their heads mean different things."""
    files = [folder / CLASSIFIER_FILE for folder in (one, other)]
    settings = [read_object(file) if file.is_file() else {} for file in files]
    for name in ("pairs", "clean", "truncation"):
        values = [given.get(name) for given in settings]
        if all(settings) and values[0] != values[1]:
            yield f"{name} {values[0]} against {values[1]}"


def _fit(
    first: Checkpoint,
    other: Checkpoint,
    head: Sequence[Key],
    options: MergeOptions,
    lent: Mapping[Key, Tensor] | None = None,
) -> tuple[Checkpoint, list[str]]:
    """Return a model with the tensors of a classifier, its encoder and a head; and what stands against it.

    Args:
        first: The classifier.
        other: The model.
        head: The tensors of the head that are the model's own.
        options: What the user chose to leave out, or to take from one of the models.
        lent: Where the head comes from that is not its own; the classifier without it.
    """
    mine, theirs = (transformer_folder(checkpoint.folder) for checkpoint in (first, other))
    lines = list(config_differences(mine, theirs, besides=_LABELS))
    if options.tokenizer_from is None:
        differences = tokenizer_differences(mine, theirs)
        lines += [f"{line}; to take one all the same: `tokenizer_from=N`" for line in differences]
    labels = declared_labels(first.folder)
    order = [declared_labels(other.folder).index(label) for label in labels] if head else []
    bare = _by_bare_name(other)
    tensors: dict[Key, Tensor] = {}
    outside = set(head_of(first))
    for key, tensor in first.tensors.items():
        if key in head:
            own = other.tensors[key]
            moved = order != sorted(order) and own.shape[0] == len(labels)
            tensors[key] = ReorderedRows(own, tuple(order)) if moved else own
            continue
        name = key[1].partition(".")[2] if outside and key[0] == 0 and _is_prefixed(first) else key[1]
        seen = bare.get(name)
        # encoders often come without the layer between [CLS] and the head
        if key in outside:
            tensors[key] = (lent or first.tensors)[key]
        elif is_excluded(key, options) or (seen is None and (tensor.dtype not in FLOATS or name.startswith("pooler."))):
            tensors[key] = tensor
        elif seen is None:
            lines.append(f"tensor '{name}' is missing in {other.name}")
        elif seen.shape != tensor.shape:
            lines.append(f"tensor '{name}': shape {list(tensor.shape)} against {list(seen.shape)}")
        else:
            tensors[key] = seen
    return replace(other, tensors=tensors, aliases={}), lines


def _is_prefixed(classifier: Checkpoint) -> bool:
    return not (classifier.folder / "modules.json").is_file()


def _by_bare_name(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """Return the tensors of a model's encoder by name, with what its class puts before them and without."""
    keys = [key for key in (*checkpoint.tensors, *checkpoint.aliases) if key[0] == 0]
    short = {name.partition(".")[2]: tensor_of(checkpoint, (0, name)) for _, name in keys}
    return {**short, **{name: tensor_of(checkpoint, (0, name)) for _, name in keys}}
