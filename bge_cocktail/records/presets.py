"""Data sets of the hub whose columns and labels are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A data set by its short name.

    Attributes:
        name: On the hub.
        config: Which part of it.
        columns: As `--columns` takes them.
        labels: Names of the numbers it gives.
        scale: What its scores are divided by.
        splits: Its own names for train, dev and test, where they differ.
        unlabelled: Splits whose labels are kept back (all -1), so that nothing can be learned or judged by them.
    """

    name: str
    config: str | None
    columns: str
    labels: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0
    splits: dict[str, str] = field(default_factory=dict)
    unlabelled: tuple[str, ...] = ()


def _numbered(*names: str) -> dict[str, str]:
    return {str(number): name for number, name in enumerate(names)}


_TRIPLET = "query=anchor,pos=positive,neg=negative"
_VALIDATION: dict[str, Any] = {"splits": {"dev": "validation"}}
# GLUE keeps the labels of its tests back
_GLUE: dict[str, Any] = {**_VALIDATION, "unlabelled": ("test",)}
PRESETS = {
    "sst2": Preset("stanfordnlp/sst2", None, "text=sentence,label=label", _numbered("negative", "positive"), **_GLUE),
    "mnli": Preset(
        "nyu-mll/multi_nli",
        None,
        "first=premise,second=hypothesis,label=label",
        _numbered("entailment", "neutral", "contradiction"),
        splits={"dev": "validation_matched", "test": "validation_mismatched"},
    ),
    "imdb": Preset("stanfordnlp/imdb", None, "text=text,label=label", _numbered("negative", "positive")),
    "stsb": Preset("nyu-mll/glue", "stsb", "first=sentence1,second=sentence2,score=label", scale=5.0, **_GLUE),
    "qqp": Preset("nyu-mll/glue", "qqp", "query=question1,pos=question2,rating=label", **_GLUE),
    "quora": Preset("sentence-transformers/quora-duplicates", "triplet", _TRIPLET),
    "msmarco": Preset("sentence-transformers/msmarco-bm25", "triplet", "query=query,pos=positive,neg=negative"),
    "nli": Preset("sentence-transformers/all-nli", "triplet", _TRIPLET, **_VALIDATION),
    "banking77": Preset("mteb/banking77", None, "text=text,label=label_text"),
    "ag_news": Preset(
        "fancyzhx/ag_news", None, "text=text,label=label", _numbered("World", "Sports", "Business", "Sci/Tech")
    ),
    "dureader": Preset("sentence-transformers/dureader", "triplet", _TRIPLET),
    "t2ranking": Preset("sentence-transformers/t2ranking", "triplet", _TRIPLET),
}
