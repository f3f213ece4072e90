"""A model folder on the hub: what would go, and the upload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bge_cocktail.core.errors import CocktailError, UsageError
from bge_cocktail.core.runs import files_under
from bge_cocktail.models.card import HUB_NAME, check_card
from bge_cocktail.models.folder import model_folder

# what has no place in a published model, whoever put it there
_KEPT_BACK = (".git", ".env", ".cache", "__pycache__", ".ipynb_checkpoints", ".DS_Store")


@dataclass(frozen=True, slots=True)
class Upload:
    """What goes to the hub.

    Attributes:
        name: owner/name there.
        folder: The model.
        files: Paths in the folder that go, in order.
        kept_back: Paths that don't.
        megabytes: Of all that go (10^6 bytes).
    """

    name: str
    folder: Path
    files: Sequence[str]
    kept_back: Sequence[str]
    megabytes: float


def plan_push(model: str | Path, name: str) -> Upload:
    """Return what `push` would upload.

    Args:
        model: A folder.
        name: owner/name on the hub.

    Raises:
        UsageError: Not such a name.
        DataError: No such model, or no model card that the hub takes.
    """
    if not HUB_NAME.fullmatch(name):
        raise UsageError(f"'{name}' is not a name on the hub; expected owner/name")
    folder = model_folder(model)
    check_card(folder)
    files: list[str] = []
    kept_back: list[str] = []
    for file in files_under(folder):
        relative = file.relative_to(folder)
        # links that lead elsewhere would publish what nobody looked at
        elsewhere = file.is_symlink() and "snapshots" not in folder.resolve().parts
        elsewhere = elsewhere and folder.resolve() not in file.resolve().parents
        hidden = any(part in _KEPT_BACK for part in relative.parts) or file.suffix in (".py", ".pyc", ".tmp")
        (kept_back if elsewhere or hidden else files).append(relative.as_posix())
    size = sum((folder / path).stat().st_size for path in files) / 1e6
    return Upload(name, folder, files, kept_back, size)


def push(upload: Upload, *, private: bool = False, message: str = "Upload by bge-cocktail") -> str:
    """Upload a model; the hub's own token is used (hf auth login, or HF_TOKEN).

    Args:
        upload: From `plan_push`.
        private: Whether a repository that is made for it can be seen by others.
        message: Of the commit.

    Returns:
        The address of the commit.

    Raises:
        CocktailError: The hub refused, or can't be reached.
    """
    import os

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    from bge_cocktail.core.devices import hub_answers

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise CocktailError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    if not hub_answers():
        raise CocktailError("the hub doesn't answer; nothing was uploaded")
    api = HfApi()
    try:
        api.create_repo(upload.name, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=upload.name,
            folder_path=upload.folder,
            allow_patterns=list(upload.files),
            commit_message=message,
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        raise CocktailError(f"{upload.name}: the hub refused the upload: {str(error).splitlines()[0]}") from None
    return str(done.commit_url)
