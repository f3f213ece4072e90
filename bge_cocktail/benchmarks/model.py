"""An encoder of ours as mteb wants it, with an identity that is made of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.encoding import CachedEncoder
from bge_cocktail.layout import declared_length, declared_prompts
from bge_cocktail.provenance import hash_value

OWNER = "local"


class MtebModel:
    """An encoder for mteb: its `EncoderProtocol`.

    A local folder has no identity in mteb, whose result cache would then give one model's scores to another; here name
    and revision are made of the weights, the prompts and the precision.

    Args:
        name: What results call it.
        encoder: Embeds, and caches what it embedded.
    """

    def __init__(self, name: str, encoder: CachedEncoder) -> None:
        self._name, self._encoder = name, encoder

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: Any,
    ) -> NDArray[np.float32]:
        """Embed the texts of all batches.

        Args:
            inputs: Batches with ``text``.
            task_metadata: Of the task, for a prompt that the model declares for it.
            hf_split: Not looked at.
            hf_subset: Not looked at.
            prompt_type: Query, document, or neither.

        Returns:
            Shape (texts, dimensions).
        """
        texts = [text for batch in inputs for text in batch["text"]]
        return self._encoder.encode_query(texts, self.prompt(task_metadata, prompt_type))

    def prompt(self, task_metadata: Any, prompt_type: Any) -> str:
        """The prompt of a task's texts.

        What the user chose for queries and documents goes before what the model declares: for the task, for its type,
        for the role, in mteb's order.
        """
        from mteb.models.abs_encoder import get_prompt_name

        role = getattr(prompt_type, "value", prompt_type)
        options = self._encoder.options
        chosen = {"query": options.query_prompt, "document": options.document_prompt}.get(role)
        if chosen is not None:
            return chosen
        declared = {name: text for name, text in declared_prompts(self._encoder.folder).items() if text}
        special = {name: text for name, text in declared.items() if name not in ("query", "document")}
        found = get_prompt_name(special, task_metadata, prompt_type)
        if found is not None:
            return special[found]
        return self._encoder.prompt_for(role if role in ("query", "document") else "text")

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines, shape (first, second)."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of pairs, shape (pairs,)."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    @cached_property
    def mteb_model_meta(self) -> Any:
        """Who it is: a name, and a revision for its content."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        encoder = self._encoder
        identity = hash_value([encoder.hash, {**encoder.options.what_counts(), "precision": encoder.precision}])
        return ModelMeta.create_empty(
            {
                "name": f"{OWNER}/{re.sub(r'[^A-Za-z0-9._-]', '-', self._name)}",
                "revision": identity,
                "max_tokens": encoder.options.max_length or declared_length(encoder.folder),
                "similarity_fn_name": ScoringFunction.COSINE,
                "framework": ["Sentence Transformers", "PyTorch"],
                "modalities": ["text"],
            }
        )
