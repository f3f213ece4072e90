"""Embeddings kept on disk, so that no text is embedded twice by the same model.

One folder for each (model hash, prompt, precision, length); in it, one NumPy file a batch of new texts: rows of
(text hash, numbers of tokens, embedding), written whole or not at all, so processes can share a cache without locks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from bge_cocktail.core.outputs import new_file, write_json
from bge_cocktail.core.runs import hash_value
from bge_cocktail.data.record import exact_key

log = logging.getLogger(__name__)
Embeddings = NDArray[np.float32]
TokenNumbers = NDArray[np.uint32]
"""Of each text: its tokens, how many of them are unknown, how many are the prompt's and special ones, and how many
the model takes; shape (texts, 4)."""
# so many small files are joined into one; large ones stay as they are, so that joining costs little memory
MERGE_FILES_ABOVE = 32


SMALL_FILE = 4_000_000


def default_cache_dir() -> Path:
    """Return the user's cache folder: $BGE_COCKTAIL_CACHE, else bge-cocktail in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("BGE_COCKTAIL_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bge-cocktail"


class EmbeddingCache:
    """The embeddings of one model with one prompt, precision and length.

    Args:
        folder: Where all caches are.
        what: Everything besides the text that an embedding depends on.
    """

    def __init__(self, folder: Path, what: dict[str, object]) -> None:
        # files of another form lie in another folder
        self._what = {**what, "rows": "key, tokens, embedding"}
        self.folder = folder / "embeddings" / hash_value(self._what)
        self._known = np.empty(0, "S16")
        self._rows: list[NDArray[np.void]] = []
        self._place = np.empty((0, 2), np.int64)
        self._seen: set[str] = set()

    def get(self, texts: Sequence[str]) -> tuple[Embeddings | None, TokenNumbers, NDArray[np.bool_]]:
        """Look texts up.

        Returns:
            The embeddings, shape (texts, dimensions), rows of unknown texts being zeros (None when no text is
            known); their numbers of tokens; and which texts are known, shape (texts,).
        """
        self._load_new_files()
        keys = _keys(texts)
        tokens = np.zeros((len(keys), 4), np.uint32)
        if not len(self._known) or not len(keys):
            return None, tokens, np.zeros(len(keys), bool)
        at = np.minimum(np.searchsorted(self._known, keys), len(self._known) - 1)
        known = self._known[at] == keys
        if not known.any():
            return None, tokens, known
        embeddings = np.zeros((len(keys), self._rows[0]["embedding"].shape[1]), np.float32)
        for number in np.unique(self._place[at[known], 0]):
            here = known & (self._place[at, 0] == number)
            rows = self._rows[number][self._place[at[here], 1]]
            embeddings[here], tokens[here] = rows["embedding"], rows["tokens"]
        whole = np.isfinite(embeddings).all(axis=1)
        if not whole.all():
            log.warning("%d embeddings in %s are damaged and are made anew; remove it", (~whole).sum(), self.folder)
            known &= whole
            embeddings[~whole] = 0
        return embeddings, tokens, known

    def put(self, texts: Sequence[str], embeddings: Embeddings, tokens: TokenNumbers) -> None:
        """Keep the embeddings of texts, shape (texts, dimensions), and their numbers of tokens."""
        of_text = [("key", "S16"), ("tokens", np.uint32, (4,)), ("embedding", np.float32, (embeddings.shape[1],))]
        rows = np.empty(len(texts), of_text)
        rows["key"] = _keys(texts)
        rows["tokens"] = tokens
        rows["embedding"] = embeddings
        if not (self.folder / "what.json").exists():
            write_json(self.folder / "what.json", self._what)
        small = [file for file in sorted(self.folder.glob("*.npy")) if _size(file) < SMALL_FILE]
        if len(small) < MERGE_FILES_ABOVE:
            small = []
        older = [(file, old) for file in small if (old := _load(file)) is not None]
        rows = np.concatenate([*(old for _, old in older), rows])
        with (
            new_file(self.folder / f"{xxhash.xxh3_128_hexdigest(rows['key'].tobytes())}.npy") as working,
            working.open("wb") as file,
        ):
            np.save(file, rows)
        for path, _ in older:
            path.unlink(missing_ok=True)

    def _load_new_files(self) -> None:
        new = [file for file in sorted(self.folder.glob("*.npy")) if file.name not in self._seen]
        for file in new:
            self._seen.add(file.name)
            rows = _load(file)
            if rows is None or (self._rows and rows.dtype != self._rows[0].dtype):
                continue
            self._rows.append(rows)
            place = np.stack([np.full(len(rows), len(self._rows) - 1), np.arange(len(rows))], axis=1)
            self._known = np.concatenate([self._known, rows["key"]])
            self._place = np.concatenate([self._place, place])
        if new:
            order = np.argsort(self._known, kind="stable")
            self._known, self._place = self._known[order], self._place[order]


def _load(file: Path) -> NDArray[np.void] | None:
    """Return the rows of a file; None if another process has just joined it into a larger one, or if it is damaged."""
    try:
        rows: NDArray[np.void] = np.load(file, mmap_mode="r")
        if rows.dtype.names != ("key", "tokens", "embedding"):
            raise ValueError("it holds no embeddings")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s is left out of the cache, remove it: %s", file, error)
        return None
    return rows


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _keys(texts: Sequence[str]) -> NDArray[np.bytes_]:
    # a lone surrogate can't be UTF-8; surrogatepass still tells two such texts apart
    return np.fromiter(map(exact_key, texts), "S16", len(texts))
