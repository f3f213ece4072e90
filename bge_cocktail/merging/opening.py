"""From the names in a recipe to tensors: folders, hub names, adapters, merges of merges."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from bge_cocktail.errors import DataError, UsageError
from bge_cocktail.hub import model_folder
from bge_cocktail.layout import declare_pooling, read_object
from bge_cocktail.merging.adapters import base_of, fold_adapter, is_adapter
from bge_cocktail.merging.checkpoints import Checkpoint, read_checkpoint
from bge_cocktail.merging.settings import SETTINGS


def open_model(name: str, scratch: Path, pooling: str | None = None, *, under_head: bool = False) -> Checkpoint:
    """Open a model.

    Args:
        name: A folder or a hub name; an adapter is folded into the base that it names.
        scratch: A folder that lives as long as the checkpoint is read.
        pooling: How a plain transformers folder pools.
        under_head: Whether it comes under a classifier's head, where that makes no difference.

    Raises:
        DataError: No such model, or a broken one.
        UsageError: A plain folder of an encoder, and nobody said how it pools.
    """
    folder = model_folder(name)
    if is_adapter(folder):
        base = model_folder(base_of(folder))
        if is_adapter(base):
            raise DataError(f"{name}: its base {base} is an adapter too; fold that one into its own base first")
        return fold_adapter(name, folder, open_model(str(base), scratch, pooling, under_head=under_head))
    if is_plain_encoder(folder) and not under_head:
        if pooling is None:
            raise UsageError(
                f"{name} is a plain transformers folder (no modules.json), so its pooling is unknown; say it: "
                "--pooling cls (BGE and what FlagEmbedding trains), mean (E5, MiniLM) or lasttoken (decoders)"
            )
        return replace(read_checkpoint(name, _with_pooling(folder, pooling, scratch)), origins=(folder,))
    return read_checkpoint(name, folder)


def is_plain_encoder(folder: Path) -> bool:
    """Whether a folder is of transformers' own form and has no head: an encoder, whose pooling nothing says."""
    if (folder / "modules.json").is_file() or not (folder / "config.json").is_file():
        return False
    names = read_object(folder / "config.json").get("architectures") or []
    return not any("For" in str(name) or "LMHead" in str(name) for name in names)


def _with_pooling(folder: Path, pooling: str, scratch: Path) -> Path:
    """The same files in another folder, with the modules declared."""
    view = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=scratch))
    for path in folder.iterdir():
        if path.name == SETTINGS:
            shutil.copyfile(path, view / path.name)
        elif path.name not in ("1_Pooling", "2_Normalize"):
            (view / path.name).symlink_to(path.resolve())
    declare_pooling(view, pooling)
    return view
