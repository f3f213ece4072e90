"""The options of preparing data, and of varied copies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bge_cocktail.options.base import Names, Options


def _no_names(value: object) -> object:
    return [] if value == "none" else value


# a list with a default needs a word for the empty one
SomeNames = Annotated[Names, BeforeValidator(_no_names)]


class AugmentOptions(Options):
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
    def _a_file_with_its_thesaurus(self) -> AugmentOptions:
        if self.thesaurus_file and self.thesaurus != "file":
            raise ValueError("thesaurus_file does nothing without thesaurus=file")
        return self


def _by_colon(value: object) -> object:
    return value.replace(",", ":").split(":") if isinstance(value, str) else value


def _with_exact(names: list[str]) -> list[str]:
    """Return what is exactly the same is nearly the same, too."""
    return ["exact", *names] if names and "exact" not in names else names


Ratio = Annotated[list[float], BeforeValidator(_by_colon)]


class PrepareOptions(AugmentOptions):
    """How data become clean, split records."""

    common: ClassVar[str] = "limit corpus form clean duplicates ratio keep_splits on_leak negatives augment skip_bad"
    panels: ClassVar[dict[str, str]] = {
        "Cleaning": "clean min_chars max_chars min_tokens max_tokens languages language_detector",
        "Duplicates, splits and leaks": "duplicates near_threshold semantic_threshold ratio keep_splits group_by "
        "stratify on_leak",
        "Records": "limit corpus form negatives positive_from negative_below skip_bad seed",
        "Augmentation and weights": "augment augment_share word_share thesaurus wordnet_dir thesaurus_file weigh "
        "weight_column task_temperature",
    }

    limit: int | None = Field(
        None, ge=1, description="for a first try: only the first so many rows of each source (of each of its splits)"
    )
    corpus: Path | None = Field(
        None,
        description="more documents to mine and to search: a file with `text`, or a BEIR folder",
    )
    form: Literal["records", "labelled", "pairs"] = Field(
        "records",
        description="what is written: training records, or labelled texts and pairs of texts as they came",
    )
    skip_bad: bool = Field(False, description="go on after bad rows: they are counted and written to rejected.jsonl")
    clean: SomeNames = Field(
        ["unicode", "html", "control", "space"],
        description="cleaning steps, with commas between, or none; see: bge-cocktail list cleaning-steps",
    )
    min_chars: int = Field(1, ge=1, description="shorter texts go")
    max_chars: int | None = Field(None, ge=1, description="longer texts go")
    min_tokens: int = Field(0, ge=0, description="texts with fewer tokens go (needs `model`, whose tokenizer counts)")
    max_tokens: int | None = Field(None, ge=1, description="texts with more tokens go (needs `model`)")
    languages: SomeNames = Field([], description="texts in other languages go (en,zh); short ones stay")
    language_detector: str = Field(
        "py3langid", description="what tells the language; see: bge-cocktail list language-detectors"
    )
    duplicates: Annotated[SomeNames, AfterValidator(_with_exact)] = Field(
        ["exact", "near"],
        description="what counts as the same text, for duplicates, splits and leaks: exact, near (MinHash), semantic "
        "(needs `model`); or none",
    )
    near_threshold: float = Field(
        0.8, gt=0, le=0.99, description="Jaccard similarity of near-duplicates (5-character shingles)"
    )
    semantic_threshold: float = Field(0.95, gt=0, le=1, description="cosine from which texts are semantic duplicates")
    ratio: Ratio = Field([7, 2, 1], description="sizes of train, dev and test to each other: 7:2:1")
    keep_splits: bool | None = Field(
        None,
        description="keep the splits that the sources have (train, dev, test); without it, those of BEIR folders are "
        "kept unless `ratio`, `stratify` or `group_by` ask for others",
    )
    group_by: SomeNames = Field([], description="columns whose equal values stay in one split (document or user ids)")
    stratify: bool = Field(
        False,
        description="give every label (or task) the same ratio; without it, records go by their hash alone, so "
        "that new data move no old ones",
    )
    on_leak: Literal["refuse", "drop", "warn"] = Field(
        "refuse", description="when train holds queries of a test set: stop, take them out of train, or only say so"
    )
    negatives: int = Field(7, ge=0, description="texts of other labels that a labelled text gets as negatives")
    positive_from: float = Field(0.8, description="pairs with a score of at least this are positives (after `scale`)")
    negative_below: float = Field(0.4, description="pairs with a score below this are negatives (after `scale`)")
    weigh: SomeNames = Field(
        [], description="what weighs train records, multiplied; see: bge-cocktail list record-weightings"
    )
    weight_column: str | None = Field(None, description="column that weighs a record (`weigh=column`)")
    task_temperature: float = Field(
        2.0, gt=0, description="tasks are weighed in proportion to size ** (1 / this) (weigh task)"
    )
    seed: int = Field(13, ge=0, description="seeds splits, draws and augmentation")

    @model_validator(mode="after")
    def _three_parts(self) -> PrepareOptions:
        if len(self.ratio) != 3 or min(self.ratio) < 0 or self.ratio[0] <= 0:
            raise ValueError(f"ratio is three numbers, the first above 0 (7:2:1), got {self.ratio}")
        if self.negative_below > self.positive_from:
            raise ValueError("negative_below lies above positive_from")
        for least, most in ((self.min_chars, self.max_chars), (self.min_tokens, self.max_tokens)):
            if most is not None and least > most:
                raise ValueError(f"the shortest text allowed ({least}) is longer than the longest ({most})")
        if wrong := [name for name in self.languages if not 2 <= len(name) <= 3]:
            raise ValueError(f"languages are codes (en, zh), got '{wrong[0]}'")
        for name, given, needs, chosen in (
            ("weight_column", self.weight_column, "weigh=column", "column" in self.weigh),
            ("group_by", self.group_by, "splits of its own", not self.keep_splits),
            ("stratify", self.stratify, "splits of its own", not self.keep_splits),
        ):
            if given and not chosen:
                raise ValueError(f"{name} does nothing without {needs}")
        return self
