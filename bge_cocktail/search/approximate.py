"""Nearest documents by an index: widened until its recall is enough, or judged beside an exact search."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import CocktailError, UsageError
from bge_cocktail.core.registry import Registry
from bge_cocktail.models.cache import Embeddings
from bge_cocktail.search.exact import (
    BLOCK_BYTES,
    Documents,
    Nearest,
    rows_of,
    take,
    top_k,
)

log = logging.getLogger(__name__)
IndexKind = Literal["exact", "ivf", "hnsw"]
RECALL_SAMPLE = 200
HNSW_LINKS = 32
TIE = 1e-5
# points of a list or a centroid that FAISS wants to learn from
_POINTS = 39


def search(
    queries: Embeddings, documents: Documents, k: int, *, index: IndexKind = "exact", min_recall: float = 0.95
) -> Nearest:
    """Return the k most similar documents of each query, exactly (always so among k documents or fewer) or by an index.

    The index is widened (IVF: more lists probed, HNSW: a longer search) until it finds `min_recall` of the exact
    nearest documents of a sample of the queries.

    Args:
        queries: Shape (queries, dimensions).
        documents: Shape (documents, dimensions).
        k: How many.
        index: ``exact``, ``ivf`` (inverted lists) or ``hnsw`` (a graph; Malkov and Yashunin, arXiv:1603.09320).
        min_recall: That the index must reach on the sample; an exact search needs none.

    Raises:
        CocktailError: No width reaches that recall.
    """
    if index == "exact" or len(documents) <= k:
        return Nearest(*top_k(queries, documents, k))
    queries = np.ascontiguousarray(queries, np.float32)
    sample = queries[:: max(1, len(queries) // RECALL_SAMPLE)]
    exact = top_k(sample, documents, k)[0]
    built, widths, widen = _ivf(documents) if index == "ivf" else _hnsw(documents)
    recall = 0.0
    for width in widths:
        widen(width)
        similarities = built.search(sample, k)[0]
        # by similarity and not by row: of documents that are equally near, any is right
        recall = float(np.mean(similarities >= exact[:, -1:] - TIE))
        if recall >= min_recall:
            similarities, rows = built.search(queries, k)
            return Nearest(similarities, rows, recall)
    raise CocktailError(f"the index '{index}' finds {recall:.3f} of the nearest documents at most; use an exact search")


def _ivf(documents: Documents) -> tuple[Any, list[int], Callable[[int], None]]:
    built, lists = _new_ivf(documents)
    step = max(1, len(documents) // (lists * 64))
    built.train(take(documents, np.arange(0, len(documents), step)))
    _fill(built, documents)
    widths = sorted({min(lists, 1 << power) for power in range(3, 30)})

    def widen(width: int) -> None:
        built.nprobe = width

    return built, widths, widen


def _hnsw(documents: Documents) -> tuple[Any, list[int], Callable[[int], None]]:
    built = _new_hnsw(documents)
    _fill(built, documents)

    def widen(width: int) -> None:
        built.hnsw.efSearch = width

    return built, [1 << power for power in range(6, 13)], widen


def _new_ivf(documents: Documents) -> tuple[Any, int]:
    """Return an untrained index of inverted lists, and how many lists it has."""
    import faiss

    lists = int(max(1, min(4 * len(documents) ** 0.5, len(documents) // _POINTS)))
    flat = faiss.IndexFlatIP(documents.shape[1])
    built = faiss.IndexIVFFlat(flat, documents.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    built.cp.min_points_per_centroid = 1  # FAISS warns of each part; `check_indexes` says it once
    return built, lists


def _new_hnsw(documents: Documents) -> Any:
    import faiss

    built = faiss.IndexHNSWFlat(documents.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    built.hnsw.efConstruction = 120
    return built


def _fill(built: Any, documents: Documents) -> None:
    size = max(1, BLOCK_BYTES // (4 * documents.shape[1]))
    for start in range(0, len(documents), size):
        built.add(rows_of(documents, start, start + size))


Rows = NDArray[np.int64]
Search = Callable[[Embeddings, int], Rows]
"""Queries of unit length, shape (queries, dimensions), and k in; rows of documents out, shape (queries, k)."""
# candidates that coarse codes give for each document that is wanted, before exact similarities order them
RESCORED = 10


_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Index:
    """An index that is built.

    Attributes:
        search: Finds documents.
        megabytes: Of the index itself.
        rescored: Whether it needs the full embeddings beside it, which may lie on a disk.
    """

    search: Search
    megabytes: float
    rescored: bool = False


@dataclass(frozen=True, slots=True)
class IndexScore:
    """What an index is worth.

    Attributes:
        index: Its name.
        recall: Share of the exact search's first k documents that it finds.
        megabytes: Its size.
        queries_a_second: On all threads, the best of three runs.
        build_seconds: Learning and adding all documents.
        rescored: Whether full embeddings order its candidates.
    """

    index: str
    recall: float
    megabytes: float
    queries_a_second: float
    build_seconds: float
    rescored: bool

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


indexes: Registry[Callable[[Embeddings], Index]] = Registry("indexes")


@indexes("exact")
def exact(documents: Embeddings) -> Index:
    """All similarities, in float32."""
    return Index(lambda queries, k: top_k(queries, documents, k)[1], documents.nbytes / 1e6)


@indexes("hnsw")
def hnsw(documents: Embeddings) -> Index:
    """A graph of neighbours (Malkov and Yashunin, arXiv:1603.09320): 32 links, a search of 128."""
    built = _new_hnsw(documents)
    built.hnsw.efSearch = 128
    return _built(built, documents)


@indexes("ivf")
def ivf(documents: Embeddings) -> Index:
    """Inverted lists: about 4 times the root of the number of documents, a tenth of them looked at."""
    built, lists = _new_ivf(documents)
    built.nprobe = max(1, lists // 10)
    return _built(built, documents)


@indexes("int8")
def int8(documents: Embeddings) -> Index:
    """One byte a dimension (scalar quantisation), all documents looked at."""
    import faiss

    kind = faiss.ScalarQuantizer.QT_8bit
    return _built(faiss.IndexScalarQuantizer(documents.shape[1], kind, faiss.METRIC_INNER_PRODUCT), documents)


@indexes("int8-rescored")
def int8_rescored(documents: Embeddings) -> Index:
    """As int8; full embeddings order 10 candidates for each document that is wanted."""
    return _rescored(int8(documents), documents)


@indexes("pq")
def pq(documents: Embeddings) -> Index:
    """Product quantisation (Jegou et al. 2011, doi:10.1109/TPAMI.2010.57): a byte for 8 dimensions, rescored."""
    import faiss

    parts = next(parts for parts in range(max(1, documents.shape[1] // 8), 0, -1) if documents.shape[1] % parts == 0)
    bits = min(8, int(np.log2(max(2, len(documents) / _POINTS))))
    built = faiss.IndexPQ(documents.shape[1], parts, bits, faiss.METRIC_INNER_PRODUCT)
    built.pq.cp.min_points_per_centroid = 1
    return _rescored(_built(built, documents), documents)


@indexes("binary")
def binary(documents: Embeddings) -> Index:
    """One bit a dimension, its sign; Hamming distances, rescored."""
    import faiss

    codes = np.packbits(documents > 0, axis=1)
    built = faiss.IndexBinaryFlat(8 * codes.shape[1])
    built.add(codes)

    def search(queries: Embeddings, k: int) -> Rows:
        rows: Rows = built.search(np.packbits(queries > 0, axis=1), k)[1]
        return rows

    return _rescored(Index(search, codes.nbytes / 1e6), documents)


def check_indexes(names: Sequence[str], k: int, documents: int) -> dict[str, Callable[[Embeddings], Index]]:
    """Return what makes each index, before anything is embedded for it.

    Args:
        names: Of `indexes`.
        k: Documents wanted of each query.
        documents: How many there are.

    Raises:
        UsageError: An unknown name, or more documents wanted than there are.
    """
    if k > documents:
        raise UsageError(f"k={k}: there are {documents} documents")
    if documents < 2 * _POINTS and (trained := [name for name in names if name in ("ivf", "pq")]):
        log.warning("%d documents are too few to train the index %s", documents, " and ".join(trained))
    return {name: indexes[name] for name in names}


def judge_indexes(
    queries: Embeddings, documents: Embeddings, names: Sequence[str], k: int = 10
) -> tuple[list[IndexScore], dict[str, Rows]]:
    """Build indexes over the same documents and ask them the same queries.

    Args:
        queries: Shape (queries, dimensions).
        documents: Shape (documents, dimensions).
        names: Of `indexes`.
        k: Documents wanted of each query.

    Returns:
        The score of each, and the rows that each found, shape (queries, k).

    Raises:
        UsageError: An unknown name, or more documents wanted than there are.
    """
    makers = check_indexes(names, k, len(documents))
    wanted = top_k(queries, documents, k)[1]
    scores, documents_by_index = [], {}
    for name, make in makers.items():
        started = time.perf_counter()
        built = make(documents)
        seconds = time.perf_counter() - started
        spent = []
        for _ in range(_REPEATS):
            started = time.perf_counter()
            documents_by_index[name] = built.search(queries, k)
            spent.append(time.perf_counter() - started)
        shared = [
            len(set(one) & set(other))
            for one, other in zip(documents_by_index[name].tolist(), wanted.tolist(), strict=True)
        ]
        recall = sum(shared) / wanted.size
        speed = len(queries) / max(min(spent), 1e-9)
        scores.append(IndexScore(name, recall, built.megabytes, speed, seconds, built.rescored))
    return scores, documents_by_index


def _built(built: Any, documents: Embeddings) -> Index:
    """Train, fill and weigh an index."""
    import faiss

    if not built.is_trained:
        built.train(documents)
    built.add(documents)

    def search(queries: Embeddings, k: int) -> Rows:
        rows: Rows = built.search(queries, k)[1]
        return rows

    return Index(search, faiss.serialize_index(built).nbytes / 1e6)


def _rescored(coarse: Index, documents: Embeddings) -> Index:
    def search(queries: Embeddings, k: int) -> Rows:
        rows = coarse.search(queries, min(RESCORED * k, len(documents)))
        similarities = np.einsum("qd,qkd->qk", queries, documents[rows])
        similarities[rows < 0] = -np.inf
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(rows, order, 1)

    return Index(search, coarse.megabytes, rescored=True)
