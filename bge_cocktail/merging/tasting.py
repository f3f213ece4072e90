"""Models and merges tried on data: one model is loaded, and the weights of whichever is asked for are put into it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bge_cocktail.encoding import CachedEncoder, Encoder, LoadedEncoder, load_encoder
from bge_cocktail.errors import UsageError
from bge_cocktail.layout import declared_length, prompt_for
from bge_cocktail.merging.checkpoints import Checkpoint, hash_of
from bge_cocktail.merging.placing import loadable_folder, parameters_by_key, put, tiles_of
from bge_cocktail.merging.plan import Plan, source_of, with_weights
from bge_cocktail.merging.tensors import Floats, Key
from bge_cocktail.merging.weights import Found
from bge_cocktail.options import Encoding
from bge_cocktail.records import Record

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

Score = Callable[[Encoder], tuple[float, float | None]]
"""Target and general score of an encoder; None without general tasks."""


@dataclass
class ModelTasting:
    """Answers what weightings ask; see `Tasting`.

    Attributes:
        plan: The merge, with whatever weights.
        examples: Records, their negatives drawn.
        encoding: Prompts, precision, cache.
        score: Judges an encoder on tasks; without it, the examples do.
        scratch: A folder for what must be written to be loaded.
    """

    plan: Plan
    examples: Sequence[Record]
    encoding: Encoding
    score: Score | None
    scratch: Path

    @property
    def names(self) -> Sequence[str]:
        """See `Tasting`."""
        return [checkpoint.name for checkpoint in self.plan.checkpoints]

    def losses(self, rows: Sequence[int]) -> list[float]:
        """See `Tasting`."""
        return [self._loss(row) for row in rows]

    def chance(self) -> float:
        """See `Tasting`."""
        from bge_cocktail.merging.example_loss import chance_loss

        return chance_loss(self.needed_examples)

    def scores(self, weights: Sequence[float]) -> tuple[float, float | None]:
        """See `Tasting`."""
        encoder = self.merged(Found(weights))
        if self.score is not None:
            return self.score(encoder)
        from bge_cocktail.merging.example_loss import example_loss

        return -example_loss(encoder, self.needed_examples, temperature=self.plan.options.loss_temperature), None

    def descend(self, *, steps: int, rate: float, per_layer: bool, scaled: bool, seed: int) -> Found:
        """See `Tasting`."""
        from bge_cocktail.merging.descent import descend

        return descend(self, steps=steps, rate=rate, per_layer=per_layer, scaled=scaled, seed=seed)

    @property
    def needed_examples(self) -> Sequence[Record]:
        """The examples.

        Raises:
            UsageError: None were given.
        """
        if not self.examples:
            options = self.plan.options
            what = f"method {options.method}" if isinstance(options.weights, list) else f"weights '{options.weights}'"
            what = f"method {options.method}" if options.weights == "uniform" else what
            raise UsageError(f"{what} needs examples: a file of records with --examples")
        return self.examples

    @cached_property
    def model(self) -> SentenceTransformer:
        """One loaded model of the form of all."""
        first = self.plan.checkpoints[0]
        folder = loadable_folder(first, self.scratch)
        model = load_encoder(folder, device=self.encoding.device, max_length=self.encoding.max_length)
        if folder != first.folder:
            shutil.rmtree(folder)
        return model

    def encoder(self, row: int) -> CachedEncoder:
        """One of the models; it is loaded only if a text isn't in the cache of embeddings."""
        checkpoint = self.plan.checkpoints[row]

        known = CachedEncoder(checkpoint.prompts_of or checkpoint.folder, self.encoding, load=lambda: self.place(row))
        known.hash = hash_of(checkpoint)
        return known

    def merged(self, found: Found) -> Encoder:
        """The merge with such weights; one of the models where all the weight is its."""
        weights = list(found.weights)
        # its embeddings may be in the cache
        if self._is_plain(found) and sorted(weights)[-1] == 1 == sum(weights):
            return self.encoder(weights.index(1))
        return self.placed(found)

    def placed(self, found: Found) -> LoadedEncoder:
        """The merge with such weights in the loaded model, with the prompts and length that would be written."""
        plan = with_weights(self.plan, found.weights, found.weights_for, found.scale)
        model = self._with((key, plan.tiles(key)) for key in self.parameters)
        self._set_length(self.plan.checkpoints[(self.plan.options.length_from or 1) - 1])
        first = self.plan.checkpoints[(self.plan.options.prompts_from or 1) - 1]
        prompts = [
            prompt_for(first.prompts_of or first.folder, role) if chosen is None else chosen
            for role, chosen in (
                ("query", self.encoding.query_prompt),
                ("document", self.encoding.document_prompt),
                ("text", None),
            )
        ]
        return LoadedEncoder(
            model,
            query_prompt=prompts[0],
            document_prompt=prompts[1],
            text_prompt=prompts[2],
            precision=CachedEncoder(first.folder, self.encoding).precision,
        )

    @cached_property
    def parameters(self) -> dict[Key, torch.Tensor]:
        """The loaded model's parameters and buffers of floating types, by tensor."""
        return parameters_by_key(self.model, self.plan.checkpoints[0])

    def place(self, row: int) -> SentenceTransformer:
        """Put the weights of one of the models into the loaded one."""
        self._set_length(self.plan.checkpoints[row])
        return self._with((key, tiles_of(source_of(self.plan, row, key))) for key in self.parameters)

    def _is_plain(self, found: Found) -> bool:
        """Whether a merge with all the weight on one model is that model, in everything."""
        plan, options = self.plan, self.plan.options
        chosen = (options.prompts_from, options.length_from, options.tokenizer_from)
        weights = not found.weights_for and not plan.weights.patterns and not plan.weights.anchors
        return plan.base is None and weights and not options.exclude and chosen == (None, None, None)

    def _set_length(self, checkpoint: Checkpoint) -> None:
        length = declared_length(checkpoint.length_of or checkpoint.folder)
        if self.encoding.max_length is None and length is not None:
            self.model.max_seq_length = length

    def _with(self, tensors: Iterable[tuple[Key, Iterable[Floats]]]) -> SentenceTransformer:
        put(self.parameters, tensors)
        return self.model

    def _loss(self, row: int) -> float:
        from bge_cocktail.merging.example_loss import example_loss, lm_cocktail_loss

        encoder, temperature = self.encoder(row), self.plan.options.loss_temperature
        if self.plan.options.like_lm_cocktail:
            return lm_cocktail_loss(encoder.model, self.needed_examples, temperature=temperature)
        return example_loss(encoder, self.needed_examples, temperature=temperature)
