"""Indexes against a slow exact search, and from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from bge_cocktail.core.errors import UsageError
from bge_cocktail.search.approximate import indexes, judge_indexes

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def clouds() -> tuple[np.ndarray, np.ndarray]:
    """Queries and documents in clusters, of unit length."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(40, 32))
    rows = [
        centres[generator.integers(0, 40, count)] + 0.4 * generator.normal(size=(count, 32)) for count in (60, 3000)
    ]
    queries, documents = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in rows)
    return queries.astype(np.float32), documents.astype(np.float32)


def test_recall_is_of_the_exact_search(clouds: tuple[np.ndarray, np.ndarray]) -> None:
    queries, documents = clouds
    wanted = np.argsort(-(queries @ documents.T), axis=1)[:, :10]
    scores, found = judge_indexes(queries, documents, list(indexes), k=10)
    for one in scores:
        rows = found[one.index]
        assert rows.shape == (60, 10)
        shared = [len(set(mine) & set(exact)) / 10 for mine, exact in zip(rows.tolist(), wanted.tolist(), strict=True)]
        assert one.recall == pytest.approx(np.mean(shared), abs=2e-3)  # of ties, either
        assert one.megabytes > 0
        assert one.queries_a_second > 0
    recalls = {one.index: one.recall for one in scores}
    sizes = {one.index: one.megabytes for one in scores}
    assert recalls["exact"] == 1
    assert recalls["int8-rescored"] >= recalls["int8"] > 0.9
    assert recalls["hnsw"] > 0.9
    assert min(recalls.values()) > 0.4
    assert sizes["binary"] < sizes["pq"] * 4 < sizes["int8"] < sizes["exact"] < sizes["hnsw"]
    assert sizes["exact"] == pytest.approx(3000 * 32 * 4 / 1e6)


def test_few_documents(clouds: tuple[np.ndarray, np.ndarray]) -> None:
    queries, documents = clouds[0][:3], clouds[1][:12]
    scores, _ = judge_indexes(queries, documents, list(indexes), k=12)
    assert all(one.recall == 1 for one in scores if one.index in ("exact", "int8", "hnsw", "ivf", "binary"))
    with pytest.raises(UsageError, match="there are 12 documents"):
        judge_indexes(queries, documents, ["exact"], k=13)


def test_from_the_command_line(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    where = ("indexes", tiny, beir, "-o")
    found = json.loads(cli(*where, tmp_path / "out", "--k", 5, "--format", "json").stdout)["indexes"]
    assert found[0]["index"] == "exact"
    assert (tmp_path / "out/indexes.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "out/run.json").read_text())["indexes"] == found
    judged = cli(
        "evaluate", tiny, "--target", beir, "--metrics", "nDCG@5", "-o", tmp_path / "scores", "--format", "json"
    )
    score = json.loads(judged.stdout)["models"][0]["scores"][0]["value"]
    assert found[0]["nDCG@5"] == pytest.approx(score, abs=0.02)  # ties are not ordered by id here
    assert "full embeddings order its candidates" in cli(*where, tmp_path / "two", "--k", 5, "--index", "binary").stdout
    assert "Did you mean 'hnsw'" in cli(*where, tmp_path / "no", "--index", "hnws", code=2).stderr
