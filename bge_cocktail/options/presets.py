"""Options that go together, by one name: what is given besides goes before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bge_cocktail.options.base import Options
from bge_cocktail.options.classify import ClassifyOptions
from bge_cocktail.options.prepare import PrepareOptions
from bge_cocktail.options.steps import EncodeOptions, EvaluateOptions, MineOptions
from bge_cocktail.options.train import TrainOptions

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Preset:
    """Options that go together.

    Attributes:
        description: What they are for.
        values: By section of a run file; of sections that a run has not, too.
        base: The model that a run tunes, where it isn't the usual one.
    """

    description: str
    values: Mapping[str, Values]
    base: str | None = None


class Presets(dict[str, Preset]):
    """Presets by name."""

    def describe(self) -> dict[str, str]:
        """Return what each is for."""
        return {name: preset.description for name, preset in self.items()}


PRESETS = Presets(
    {
        "quick": Preset(
            "a first try in minutes: a thousand records, one epoch, three negatives, texts cut at 128 tokens",
            {
                "encode": {"precision": "auto", "max_length": 128},
                "mine": {"limit": 1000, "negatives": 3},
                "train": {"limit": 1000, "epochs": 1.0, "negatives": 3, "max_length": 128, "evaluations": 1},
                "merge": {"shares": [0.0, 0.5, 1.0]},
                "evaluate": {"limit": 200},
                "classify": {"limit": 1000, "max_length": 128},
            },
        ),
        "cpu": Preset(
            "a day's work for a processor: bf16 where it computes in it, three negatives, texts cut at 256 tokens",
            {
                "encode": {"precision": "auto", "max_length": 256},
                "mine": {"negatives": 3},
                "train": {"negatives": 3, "max_length": 256, "query_max_length": 64},
                "classify": {"max_length": 256},
            },
        ),
        "gpu": Preset(
            "one GPU: its half precision, batches of 128, whole texts",
            {
                "encode": {"precision": "auto"},
                "train": {"batch_size": 128},
                "classify": {"batch_size": 64},
            },
        ),
        "chinese": Preset(
            "Chinese texts: BAAI/bge-small-zh-v1.5 (in run files), BGE's Chinese prompt before queries",
            {
                "encode": {"query_prompt": "bge-zh", "document_prompt": "none"},
                "train": {"query_prompt": "bge-zh", "document_prompt": "none"},
            },
            base="BAAI/bge-small-zh-v1.5",
        ),
        "code": Preset(
            "programs: indents and angle brackets stay as they are, texts of up to 512 tokens, queries of 128",
            {
                "prepare": {"clean": ["control"]},
                "encode": {"max_length": 512},
                "train": {"max_length": 512, "query_max_length": 128},
            },
        ),
    }
)
_SECTIONS: dict[type[Options], str] = {
    PrepareOptions: "prepare",
    EncodeOptions: "encode",
    MineOptions: "mine",
    TrainOptions: "train",
    EvaluateOptions: "evaluate",
    ClassifyOptions: "classify",
}


def preset_values(name: str, model: type[Options]) -> Values:
    """Return what a preset sets of a model of options."""
    return PRESETS[name].values.get(_SECTIONS.get(model, ""), {})


def preset_run(name: str) -> dict[str, Any]:
    """Return what a preset sets of a run: sections and their values, as a run file has them."""
    preset = PRESETS[name]
    values: dict[str, Any] = {section: dict(own) for section, own in preset.values.items() if section != "classify"}
    return {**({"base": preset.base} if preset.base else {}), **values}
