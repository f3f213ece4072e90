"""What must be the same in models that are merged, looked at before any byte is written."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from bge_cocktail.errors import DataError
from bge_cocktail.layout import declared_prompts, modules_of, portable_pooling, read_json
from bge_cocktail.merging.checkpoints import FLOATS, Checkpoint

log = logging.getLogger(__name__)
MANY = 5


def check_same_shape(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse models whose modules, pooling or tensors differ.

    Raises:
        DataError: With the differences.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        differences = _module_differences(first, other) or _tensor_differences(first, other)
        if differences:
            shown = differences[:MANY]
            if len(differences) > MANY:
                shown.append(f"and {len(differences) - MANY} more")
            raise DataError(
                f"{first.name} and {other.name} can't be merged:\n" + "\n".join(f"  {line}" for line in shown)
            )
        one, two = ({k: v for k, v in declared_prompts(model.folder).items() if v} for model in (first, other))
        if one != two:
            log.warning("%s declares other prompts than %s; the first model's are kept", other.name, first.name)


def _module_differences(first: Checkpoint, other: Checkpoint) -> list[str]:
    with_modules = [(checkpoint.folder / "modules.json").is_file() for checkpoint in (first, other)]
    if with_modules == [False, False]:
        return []
    if with_modules[0] != with_modules[1]:
        plain = (first, other)[with_modules.index(False)]
        return [f"{plain.name} is a plain transformers folder (no modules.json), so its pooling is unknown"]
    described = []
    for checkpoint in (first, other):
        modules = modules_of(checkpoint.folder)
        pooling = [
            portable_pooling(read_json(path / "config.json"), str(path)) for kind, path in modules if kind == "Pooling"
        ]
        modes = [sorted(key for key, on in one.items() if key.startswith("pooling_mode") and on) for one in pooling]
        described.append(([kind for kind, _ in modules], modes))
    lines = []
    for what, one, two in zip(("modules", "pooling"), *described, strict=True):
        if one != two:
            lines.append(f"{what}: {one} against {two}")
    return lines


def _tensor_differences(first: Checkpoint, other: Checkpoint) -> list[str]:
    lines = []
    for key in sorted(first.tensors.keys() | other.tensors.keys()):
        one, two = first.tensors.get(key), other.tensors.get(key)
        present = one or two
        # newer versions of transformers no longer store position numbers and the like
        if (one is None or two is None) and present is not None and present.dtype in FLOATS:
            lacking = first.name if one is None else other.name
            lines.append(f"tensor '{key[1]}' is missing in {lacking}")
        elif one is not None and two is not None and one.shape != two.shape:
            lines.append(f"tensor '{key[1]}': shape {list(one.shape)} against {list(two.shape)}")
        elif one is not None and two is not None and (one.dtype in FLOATS) != (two.dtype in FLOATS):
            lines.append(f"tensor '{key[1]}': type {one.dtype} against {two.dtype}")
    return lines
