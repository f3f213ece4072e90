"""Row numbers to a batch: tokens in chunks of nearly equal length, and what documents are to queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bge_cocktail.embed import batches_by_tokens, token_counts
from bge_cocktail.losses import batch_targets
from bge_cocktail.options import Training
from bge_cocktail.records import Record
from bge_cocktail.training.rows import TrainingRows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# measured on two cores with MiniLM: larger chunks lose more to padding and caches than they gain, in bf16 later
CHUNK_TOKENS = {"cpu": {"bf16": 4096, "fp32": 2048}, "cuda": {}, "mps": {"fp32": 4096}}


class Collator:
    """Makes batches; each text of a batch is in it once, and each process gets its share of them by length.

    Args:
        model: For its tokenizer.
        rows: What to train on.
        options: Negatives, prompts of tasks, lengths.
        prompts: Put before queries and documents, by role.
        process: Which process this is, and how many there are.
        precision: Of the computation; with the device, it says how large chunks are best.
    """

    # read by sentence-transformers' trainer: the data has no labels
    valid_label_columns: Sequence[str] = ()

    def __init__(
        self,
        model: SentenceTransformer,
        rows: TrainingRows,
        options: Training,
        prompts: Mapping[str, str],
        process: tuple[int, int] = (0, 1),
        precision: str = "fp32",
    ) -> None:
        self._model, self._rows, self._options, self._prompts = model, rows, options, prompts
        self._process, self._processes = process
        self._budget = options.chunk_tokens or CHUNK_TOKENS.get(model.device.type, {}).get(precision, 16384)
        self._longest = model.max_seq_length

    def __call__(self, batch: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The chunks of this process, and for all of the batch its targets.

        Args:
            batch: Epoch and row, as `Batches` gives them.

        Returns:
            ``chunks``: features for the model; ``targets``: tensors of `Targets` less the documents, ``counts`` of
            texts that each process embeds, ``order`` of all texts (queries, then documents) in what they embed
            together, ``task``, and the numbers of the ``rows``.
        """
        records = [self._rows[row] for _, row in batch]
        task = records[0].task or ""
        options = self._options.of_task(task)
        if self._options.draw == "random":
            draws = zip(records, batch, strict=True)
            records = [_drawn(record, options.negatives, (options.seed, *one)) for record, one in draws]
        targets = batch_targets(
            records,
            negatives=options.negatives,
            known_positives=self._rows.known_positives([record.query for record in records]),
            in_batch_negatives=options.in_batch_negatives,
            blocks=1 if options.cross_device_negatives else self._processes,
        )
        query_prompt = self._prompts["query"] if options.query_prompt is None else options.query_prompt
        document_prompt = self._prompts["document"] if options.document_prompt is None else options.document_prompt
        longest = options.max_length or self._longest
        longest_query = options.query_max_length or longest
        texts = [
            (
                record.query,
                query_prompt if record.prompt is None else record.prompt,
                longest_query,
            )
            for record in records
        ] + [(text, document_prompt, longest) for text in targets.documents]
        # every process gets long and short texts alike
        by_length = sorted(range(len(texts)), key=lambda index: (texts[index][1:], -len(texts[index][0]), index))
        shares = [by_length[process :: self._processes] for process in range(self._processes)]
        embedded, chunks = self._chunks(texts, shares[self._process])
        shares[self._process] = embedded
        return {
            "chunks": chunks,
            "targets": {
                "relevance": torch.from_numpy(targets.relevance),
                "own": torch.from_numpy(targets.own),
                "scores": torch.from_numpy(targets.scores),
                "embedded": torch.tensor(embedded),
                "counts": [len(share) for share in shares],
                "task": task,
                "rows": [row for _, row in batch],
            },
        }

    def _chunks(
        self, texts: Sequence[tuple[str, str, int]], share: Sequence[int]
    ) -> tuple[list[int], list[dict[str, Any]]]:
        """Features of some of the texts, sorted by number of tokens and cut by a budget; and the order they are in."""
        order: list[int] = []
        chunks: list[dict[str, Any]] = []
        for prompt, longest in dict.fromkeys(texts[index][1:] for index in share):
            alike = [index for index in share if texts[index][1:] == (prompt, longest)]
            self._model.max_seq_length = longest
            lengths = token_counts(self._model, [texts[index][0] for index in alike], prompt)
            for chunk in batches_by_tokens(lengths, self._budget):
                chosen = [alike[place] for place in chunk]
                order += chosen
                chunks.append(self._model.preprocess([texts[index][0] for index in chosen], prompt=prompt or None))
        self._model.max_seq_length = self._longest
        return order, chunks


def _drawn(record: Record, negatives: int, seed: tuple[int, ...]) -> Record:
    """A record with a draw of its negatives, the same in every process and after a crash."""
    if len(record.neg) <= negatives:
        return record
    chosen = sorted(np.random.default_rng(seed).permutation(len(record.neg))[:negatives].tolist())
    scores = tuple(record.neg_scores[place] for place in chosen) if record.neg_scores else ()
    return replace(record, neg=tuple(record.neg[place] for place in chosen), neg_scores=scores)
