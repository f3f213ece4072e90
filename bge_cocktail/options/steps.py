"""The options of encoding, mining and evaluating."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bge_cocktail.options.base import (
    LIMIT_HELP,
    PACKED_HELP,
    PROMPT_HELP,
    Limit,
    Names,
    Options,
    Packed,
    PluginOptions,
    Prompt,
)

RESAMPLES = 10_000
"""Draws of the tests and intervals by which models are compared."""


class EncodeOptions(Options):
    """How texts become embeddings."""

    common: ClassVar[str] = "device precision max_length"
    panels: ClassVar[dict[str, str]] = {
        "Embedding": "device precision batch_tokens packed max_length query_prompt document_prompt cache cache_dir"
    }

    device: str = Field("auto", description="where to compute: auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "fp32",
        description="arithmetic of the encoder; auto takes bf16 where the device computes in it, else fp32",
    )
    batch_tokens: int = Field(0, ge=0, description="tokens in a batch; 0 chooses for the device (CPU 2048, GPU 65536)")
    packed: Packed = Field("auto", description=PACKED_HELP)
    max_length: int | None = Field(
        None, ge=8, description="longest text in tokens; without it, what the model declares"
    )
    query_prompt: Prompt = Field(None, description=f"put before every query: {PROMPT_HELP}")
    document_prompt: Prompt = Field(None, description=f"put before every document: {PROMPT_HELP}")
    cache: bool = Field(True, description="keep embeddings on disk, so that no text is embedded twice")
    cache_dir: Path | None = Field(None, description="where embeddings are kept; default: the user's cache folder")

    def what_counts(self) -> dict[str, Any]:
        """Return the options that embeddings depend on; the others only say where and how fast."""
        return self.model_dump(mode="json", include={"precision", "max_length", "query_prompt", "document_prompt"})


class MineOptions(Options):
    """Which documents become hard negatives."""

    common: ClassVar[str] = "limit negatives depth skip relative_margin candidates also teacher seed"
    panels: ClassVar[dict[str, str]] = {
        "Candidates": "limit candidates also skip depth index min_recall",
        "What is left out": "relative_margin absolute_margin margin_from max_similarity min_similarity "
        "duplicate_similarity",
        "Choice": "negatives choice choice_temperature keep_negatives pad seed",
        "Teacher": "teacher teacher_margin teacher_max teacher_depth",
    }

    limit: int | None = Field(None, ge=1, description=LIMIT_HELP.format(what="records"))
    negatives: int = Field(7, ge=1, description="hard negatives to find for each record")
    skip: int = Field(0, ge=0, description="leave out the first ranks, where false negatives are likeliest")
    depth: int = Field(60, ge=1, description="the last rank that may become a negative")
    relative_margin: Limit = Field(
        0.05,
        ge=0,
        lt=1,
        description="keep only documents with similarity at most (1 - this) of the positive's (NV-Retriever, "
        "arXiv:2407.15831); none turns it off",
    )
    absolute_margin: float | None = Field(
        None, ge=0, description="keep only documents this much less similar than the positive"
    )
    margin_from: Literal["lowest", "mean", "highest"] = Field(
        "mean", description="which similarity of a query's several positives the margins are measured from"
    )
    max_similarity: float | None = Field(
        None, ge=-1, le=1, description="keep only documents at most this similar to the query"
    )
    min_similarity: float | None = Field(
        None, ge=-1, le=1, description="keep only documents at least this similar to the query"
    )
    duplicate_similarity: Limit = Field(
        0.98,
        gt=0,
        le=1,
        description="leave out documents this similar to a positive, which are most likely relevant too; none turns "
        "it off",
    )
    candidates: Names = Field(
        ["dense"],
        description="where candidates come from, with commas between: dense, bm25; see: bge-cocktail list "
        "candidate-sources",
    )
    also: Names = Field(
        default_factory=list, description="more encoders whose candidates are taken too, with commas between"
    )
    index: Literal["exact", "ivf", "hnsw"] = Field(
        "exact", description="how embeddings are searched: exactly, or by an index that is faster on large corpora"
    )
    min_recall: float = Field(
        0.95, gt=0, le=1, description="share of the nearest documents that an index must find (measured)"
    )
    choice: str = Field(
        "top",
        description="which of the candidates left: top, random, stratified, softmax",
    )
    choice_temperature: float = Field(0.05, gt=0, description="softmax draws with odds exp(similarity / this)")
    teacher: str | None = Field(
        None, description="a cross-encoder (folder or hub name) that judges candidates and whose scores are written"
    )
    teacher_margin: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="keep only documents that the teacher scores at most (1 - this) of the positive's",
    )
    teacher_max: float | None = Field(None, description="keep only documents that the teacher scores at most this")
    teacher_depth: int = Field(30, ge=1, description="candidates of each query that the teacher judges by its limits")
    pad: bool = Field(
        False,
        description="fill up with random documents where there are too few: marked, none that was left out",
    )
    keep_negatives: bool = Field(True, description="keep the negatives that a record already has")
    seed: int = Field(13, ge=0, description="seeds the draw")

    @model_validator(mode="after")
    def _some_similarity(self) -> MineOptions:
        least, most = self.min_similarity, self.max_similarity
        if least is not None and most is not None and least > most:
            raise ValueError(f"min_similarity={least:g} lies above max_similarity={most:g}, so that nothing is left")
        return self


class EvaluateOptions(PluginOptions):
    """How models are judged."""

    common: ClassVar[str] = "limit depth split reranker probe"
    limit: int | None = Field(
        None,
        ge=1,
        description=LIMIT_HELP.format(what="queries (texts, pairs) of each task")
        + ", and ten times as many documents beside the relevant ones; scores are those of smaller tasks",
    )
    depth: int = Field(100, ge=10, description="documents retrieved for a query")
    metrics: Names = Field(
        ["nDCG@10", "MRR@10", "MAP@100", "Recall@10", "Recall@100"],
        min_length=1,
        description="measures of retrieval, the main one first: nDCG@10, P@5, hit@1, R-precision, ...; see: "
        "bge-cocktail list measures",
    )
    hybrid: bool = Field(
        False, description="join the ranking by embeddings with BM25's, by reciprocal rank (1 / (60 + rank))"
    )
    reranker: str | None = Field(
        None, description="a cross-encoder (folder or hub name) that orders the first documents anew"
    )
    rerank_depth: int = Field(100, ge=1, description="how many documents of each query it reads")
    probe: Literal["full", "few", "knn"] = Field(
        "full",
        description="how labels are told from embeddings: a logistic regression on all of train, its C chosen on dev "
        "where there is one (full); mteb's ten on 8 texts a label (few); the nearest neighbours (knn)",
    )
    map_texts: int = Field(
        200, ge=0, description="texts of each task whose embeddings are kept for the report's map; 0 keeps none"
    )
    save_runs: bool = Field(False, description="keep what was found for each query, as trec_eval reads it (runs/)")
    split: str = Field("test", description="split of the task that is judged")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the bootstrap intervals")
    seed: int = Field(13, ge=0, description="seeds the bootstrap")

    @model_validator(mode="after")
    def _ranks_within_depth(self) -> EvaluateOptions:
        beyond = [
            name for name in self.metrics if (rank := name.partition("@")[2]).isdecimal() and int(rank) > self.depth
        ]
        if beyond:
            raise ValueError(f"{beyond[0]} looks further than the depth={self.depth} documents that are retrieved")
        if self.reranker is None and "rerank_depth" in self.model_fields_set and self.rerank_depth != 100:
            raise ValueError("rerank_depth does nothing without a reranker")
        return self
