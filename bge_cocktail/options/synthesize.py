"""The options of making queries from documents."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from bge_cocktail.options.base import Names, Options
from bge_cocktail.options.prepare import Ratio, SomeNames


class SynthesizeOptions(Options):
    """How documents become queries with the document that answers each."""

    common: ClassVar[str] = "limit writers queries filters documents found_in reranker test_queries ratio seed"
    panels: ClassVar[dict[str, str]] = {
        "Queries": "limit documents passage_chars writers queries seed",
        "Filters": "filters min_words found_in near_threshold max_copied reranker reranker_rank",
        "Splits": "ratio test_queries",
    }

    limit: int | None = Field(
        None, ge=1, description="for a first try: only so many documents of the corpus, evenly spread over all"
    )
    documents: int | None = Field(
        None, ge=1, description="write queries for so many passages, chosen to cover the corpus; default: for all"
    )
    passage_chars: int = Field(1500, ge=100, description="longer documents are cut at sentences into such parts")
    writers: Names = Field(
        ["title", "heading", "definition", "question", "keywords", "crop"],
        description="what writes queries, each in turn; see: bge-cocktail list query-writers",
    )
    queries: int = Field(4, ge=1, description="queries written for each passage at most")
    filters: SomeNames = Field(
        ["short", "repeated", "near", "language", "copied", "found", "answered"],
        description="what leaves queries out, in this order, or none; see: bge-cocktail list query-filters",
    )
    min_words: int = Field(2, ge=1, description="a query has so many words at least")
    found_in: int = Field(
        10, ge=1, description="its passage must be among so many that embeddings and BM25 together find for it"
    )
    near_threshold: float = Field(0.8, gt=0, le=1, description="queries as alike as this (Jaccard) count as the same")
    max_copied: float = Field(
        0.8, gt=0, le=1, description="longest run of words that a query may share with its passage, as a part of it"
    )
    reranker: str | None = Field(None, description="a cross-encoder that says whether the passage answers the query")
    reranker_rank: int = Field(
        1, ge=1, description="the passage must be among so many that the reranker puts first of those found"
    )
    ratio: Ratio = Field([7, 2, 1], description="documents of train, dev and test to each other")
    test_queries: Path | None = Field(
        None,
        description="real queries with their documents (records, or a BEIR folder) that are the test set; nothing is "
        "written for these documents",
    )
    seed: int = Field(13, ge=0, description="seeds the choice of passages and the splits")
