"""The options of varied copies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from bge_cocktail.options.base import Names, Options


def _no_names(value: object) -> object:
    return [] if value == "none" else value


# a list with a default needs a word for the empty one
SomeNames = Annotated[Names, BeforeValidator(_no_names)]


class Augmenting(Options):
    """How texts of train are varied."""

    augment: SomeNames = Field([], description="how train records are varied; see: bge-cocktail list augmentations")
    augment_share: float = Field(0.3, ge=0, le=1, description="share of the train records that get a varied copy")
    word_share: float = Field(0.1, gt=0, le=1, description="share of a text's words that change in it")
    thesaurus: str = Field("wordnet", description="where synonyms come from; see: bge-cocktail list thesauri")
    wordnet_dir: Path | None = Field(
        None, description="folder of WordNet's files (index.noun, data.noun, ...); default: /usr/share/wordnet"
    )
    thesaurus_file: Path | None = Field(None, description="synonyms of your own: lines of words with tabs between")

    @model_validator(mode="after")
    def _a_file_with_its_thesaurus(self) -> Augmenting:
        if self.thesaurus_file and self.thesaurus != "file":
            raise ValueError("thesaurus_file does nothing without thesaurus=file")
        return self
