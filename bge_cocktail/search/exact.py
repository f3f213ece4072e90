"""Nearest documents with FAISS, exactly: in blocks that fit in memory."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.outputs import require_space, scratch_folder
from bge_cocktail.core.progress import progress
from bge_cocktail.models.cache import Embeddings

# bytes of documents that are searched at once
BLOCK_BYTES = 256 << 20


# bytes of embeddings from which they are kept in a file instead of memory, and from which in half precision there
MEMORY_BYTES, EXACT_BYTES = 1 << 30, 1 << 32


TEXTS_AT_ONCE = 20_000


class StoredEmbeddings:
    """Embeddings in a file, read a block at a time, so that they need not fit in memory.

    Args:
        path: A file of rows and nothing else.
        dimensions: Of each row.
        count: How many rows, the first ones; without it, all.
        dtype: Of its numbers.
    """

    def __init__(
        self, path: Path, dimensions: int, count: int | None = None, dtype: type[np.floating[Any]] = np.float32
    ) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        rows = path.stat().st_size // (self.dtype.itemsize * dimensions) if count is None else count
        self.shape = (rows, dimensions)

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> Embeddings:
        """Rows from start to stop, shape (stop - start, dimensions)."""
        count = max(0, min(stop, len(self)) - start) * self.shape[1]
        offset = self.dtype.itemsize * start * self.shape[1]
        rows: Embeddings = np.fromfile(self.path, self.dtype, count, offset=offset).astype(np.float32, copy=False)
        return rows.reshape(-1, self.shape[1])

    def take(self, rows: NDArray[np.int64]) -> Embeddings:
        """Return some rows, shape (rows, dimensions)."""
        # mapped anew each time: pages that were touched go when the map goes
        mapped = np.memmap(self.path, self.dtype, "r", shape=self.shape)
        embeddings: Embeddings = np.asarray(mapped[rows], np.float32)
        return embeddings


Documents = Embeddings | StoredEmbeddings


@dataclass(frozen=True, slots=True)
class Nearest:
    """What a search gives.

    Attributes:
        similarities: From high to low, shape (queries, k).
        rows: Of the documents, shape (queries, k); -1 where an index found fewer.
        recall: Share of the exact nearest that were found, on a sample of the queries; 1 for an exact search.
    """

    similarities: NDArray[np.float32]
    rows: NDArray[np.int64]
    recall: float = 1.0


def top_k(queries: Embeddings, documents: Documents, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the k most similar documents of each query, by inner product, exactly.

    Args:
        queries: Shape (queries, dimensions).
        documents: Shape (documents, dimensions).
        k: How many; fewer come back when there are fewer documents.

    Returns:
        Similarities from high to low and document rows, both of shape (queries, min(k, documents)). Equal
        similarities are in the order of rows.
    """
    import faiss

    queries = np.ascontiguousarray(queries, np.float32)
    k = min(k, len(documents))
    card = _card(len(queries) * len(documents))
    size = max(1, BLOCK_BYTES // (4 * documents.shape[1]))
    best: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None
    with progress("searching", len(documents)) as advance:
        for start in range(0, len(documents), size):
            block = rows_of(documents, start, start + size)
            if card is None:
                similarities, rows = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
            else:
                similarities, rows = nearest_by_torch(queries, block, min(k, len(block)), card)
            rows = rows.astype(np.int64) + start
            if best is not None:
                similarities, rows = (
                    np.concatenate([best[0], similarities], axis=1),
                    np.concatenate([best[1], rows], axis=1),
                )
            best = _ordered(similarities, rows, k, everywhere=best is not None or card is not None)
            advance(len(block))
    if best is None:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    return best


# products of a query and a document from which on a card is quicker, its copies of both included
_WORTH_A_CARD = 10**8
# similarities that are on a card at once
_ON_CARD = 1 << 28


def _card(products: int) -> str | None:
    """Return the card to search on: where this process has loaded torch already, and torch finds one."""
    torch = sys.modules.get("torch")
    return "cuda" if products >= _WORTH_A_CARD and torch is not None and torch.cuda.is_available() else None


def nearest_by_torch(
    queries: Embeddings, documents: Embeddings, k: int, device: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the k most similar documents of each query, by inner product in fp32, computed on a device.

    Args:
        queries: Shape (queries, dimensions).
        documents: Shape (documents, dimensions); all are on the device at once.
        k: At most as many as there are documents.
        device: ``cuda``, ``cpu``.

    Returns:
        Similarities from high to low and document rows, both of shape (queries, k).
    """
    import torch

    columns = torch.from_numpy(documents).to(device).T
    size = max(1, _ON_CARD // len(documents))
    found = []
    for start in range(0, len(queries), size):
        similarities = torch.from_numpy(queries[start : start + size]).to(device) @ columns
        found.append([one.cpu().numpy() for one in similarities.topk(k, dim=1)])
    values, rows = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return values, rows


def top_k_and_ties(queries: Embeddings, documents: Documents, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """As `top_k`, and of documents that are as similar as the last one none is missing before it by chance.

    An exact search may take any of the documents whose similarities are equal where k cuts them apart; here the ones of
    the lowest rows are taken.
    """
    margin = 8
    similarities, rows = top_k(queries, documents, k + margin)
    # still equal at the end of what was found: there may be more
    while len(cut := np.flatnonzero(similarities[:, k - 1 : k] == similarities[:, -1:])) and k + margin < len(
        documents
    ):
        margin = min(8 * margin, len(documents) - k)
        wider, wider_rows = top_k(queries[cut], documents, k + margin)
        similarities[cut, :k], rows[cut, :k] = wider[:, :k], wider_rows[:, :k]
        # of the others the tie goes on, and they are searched for again
        ended = wider[:, k - 1] != wider[:, -1]
        similarities[cut[ended], -1] = -np.inf
    return similarities[:, :k], rows[:, :k]


def rows_of(documents: Documents, start: int, stop: int) -> Embeddings:
    """Rows from start to stop, from memory or from a file."""
    if isinstance(documents, StoredEmbeddings):
        return documents.rows(start, stop)
    return np.ascontiguousarray(documents[start:stop], np.float32)


def first_rows(documents: Documents, count: int) -> Documents:
    """Return the first rows, without copying them."""
    if isinstance(documents, StoredEmbeddings):
        return StoredEmbeddings(documents.path, documents.shape[1], count, documents.dtype.type)
    return documents[:count]


def take(documents: Documents, rows: NDArray[np.int64]) -> Embeddings:
    """Return some rows, from memory or from a file; shape (..., dimensions) for rows of shape (...)."""
    if isinstance(documents, StoredEmbeddings):
        return documents.take(rows.ravel()).reshape(*rows.shape, documents.shape[1])
    return documents[rows]


@contextmanager
def embedded(embed: Callable[[Sequence[str]], Embeddings], texts: Sequence[str]) -> Iterator[Documents]:
    """Texts embedded in blocks: in memory, or from 1 GB on in a file that goes at the end.

    From 4 GB on, the file holds half precision: similarities of unit embeddings are then off by 0.0005 at most.

    Args:
        embed: Texts to embeddings.
        texts: What is embedded.
    """
    first = embed(texts[:TEXTS_AT_ONCE])
    size = len(texts) * first.shape[1] * 4
    if size <= MEMORY_BYTES:
        rest = embed(texts[TEXTS_AT_ONCE:]) if len(texts) > TEXTS_AT_ONCE else first[:0]
        yield np.concatenate([first, rest]) if len(rest) else first
        return
    dtype: type[np.floating[Any]] = np.float32 if size <= EXACT_BYTES else np.float16
    require_space(Path(tempfile.gettempdir()), size // 4 * np.dtype(dtype).itemsize)
    with scratch_folder() as folder:
        path = folder / "rows"
        with path.open("wb") as file:
            file.write(np.ascontiguousarray(first, dtype).data)
            for start in range(TEXTS_AT_ONCE, len(texts), TEXTS_AT_ONCE):
                file.write(np.ascontiguousarray(embed(texts[start : start + TEXTS_AT_ONCE]), dtype).data)
        yield StoredEmbeddings(path, first.shape[1], dtype=dtype)


def _ordered(
    similarities: NDArray[np.float32], rows: NDArray[np.int64], k: int, *, everywhere: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first k by similarity, equal ones by row; FAISS has sorted what comes from one block, but for the latter."""
    tied = (
        np.arange(len(similarities))
        if everywhere
        else np.flatnonzero((similarities[:, 1:] == similarities[:, :-1]).any(axis=1))
    )
    if len(tied):
        order = np.lexsort((rows[tied], -similarities[tied]), axis=1)
        similarities[tied] = np.take_along_axis(similarities[tied], order, 1)
        rows[tied] = np.take_along_axis(rows[tied], order, 1)
    return similarities[:, :k], rows[:, :k]


def unit_rows(rows: Embeddings) -> Embeddings:
    """Return embeddings at length 1, shape (texts, dimensions); rows of zeros stay."""
    scaled = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(scaled, np.float32)
