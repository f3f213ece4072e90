"""The options of merging."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from bge_cocktail.options.base import Names, PluginOptions, Shares


def _number_lists(value: object) -> object:
    return [part.split(",") for part in value.split(";")] if isinstance(value, str) else value


def _word_or_numbers(value: object) -> object:
    """Return a word stays a word; ``0.7,0.3`` becomes numbers."""
    if isinstance(value, str) and value[:1] in tuple("0123456789.+-"):
        return [part.strip() for part in value.split(",")]
    return value


Weights = Annotated[str | list[float], BeforeValidator(_word_or_numbers)]
NumberLists = Annotated[list[list[float]], BeforeValidator(_number_lists)]


class MergeOptions(PluginOptions):
    """How models become one."""

    common: ClassVar[str] = "method weights share base density dtype"
    panels: ClassVar[dict[str, str]] = {
        "Method": "method base scale density density_for shrinkage wudi_steps normalise dtype seed plugin_options",
        "Weights": "weights share weights_for layer_weights decay",
        "Finding weights": "temperature skill_temperature loss_temperature negatives like_lm_cocktail steps rate "
        "per_layer trials epsilon shares auto_shares",
        "Where models differ": "exclude heads prompts_from length_from tokenizer_from pooling",
    }

    method: str = Field("linear", description="how tensors are merged; see: bge-cocktail list merge-methods")
    base: str | None = Field(
        None, description="the model that the others were tuned from, for methods that add up task vectors"
    )
    weights: Weights = Field(
        "uniform",
        description="numbers (0.7,0.3), or how to find them; see: bge-cocktail list weightings",
    )
    share: float | None = Field(
        None, ge=0, le=1, description="kept for the first model; the weights divide the rest among the others"
    )
    normalise: bool | None = Field(
        None,
        description="scale the weights to sum 1 (for ties: divide by those that agree); without it, what is usual for "
        "the method: yes, but not for task-arithmetic and dare",
    )
    weights_for: dict[str, list[float]] = Field(
        default_factory=dict, description="other weights for tensors whose names match a pattern"
    )
    layer_weights: NumberLists | None = Field(
        None,
        description="weights for the first and the last layer, and perhaps layers between, the rest in a straight "
        "line: 0.9,0.1;0.1,0.9",
    )
    scale: float = Field(1.0, description="multiplies the merged task vector (the papers' lambda)")
    density: float = Field(0.2, gt=0, le=1, description="part of each task vector that is kept (ties, dare)")
    density_for: dict[str, list[Annotated[float, Field(ge=0, le=1)]]] = Field(
        default_factory=dict,
        description="other densities for tensors whose names match a pattern, one for each model; 0 keeps nothing",
    )
    wudi_steps: int = Field(
        0, ge=0, le=100_000, description="steps of Adam by which wudi is sought, as in its reference (300); 0 solves it"
    )
    shrinkage: float = Field(
        0.9, ge=0, le=1, description="multiplies what the layers' inputs have in common (regmean; 0 trusts none of it)"
    )
    decay: float = Field(0.9, gt=0, lt=1, description="weights of older checkpoints shrink by this (weights ema)")
    temperature: float = Field(
        5.0, gt=0, description="cocktail weights are softmax(-loss / temperature) (LM-Cocktail's default: 5)"
    )
    skill_temperature: float = Field(
        0.1,
        gt=0,
        description="relative weights are softmax(skill / this), where chance has skill 0 and the best model 1",
    )
    loss_temperature: float = Field(
        0.05, gt=0, description="divides similarities in the loss on examples (LM-Cocktail's: 0.05)"
    )
    negatives: int = Field(7, ge=0, description="negatives taken of each example (LM-Cocktail's: 7)")
    like_lm_cocktail: bool = Field(
        False,
        description="the loss exactly as LM_Cocktail 0.0.4 computes it: CLS pooling, no prompts, the tokenizer's own "
        "longest text, other positives of a query count as negatives",
    )
    steps: int = Field(50, ge=1, description="gradient steps (weights gradient)")
    rate: float = Field(0.1, gt=0, description="learning rate of those steps (Adam on the logits of the weights)")
    per_layer: bool = Field(False, description="weights of its own for each layer (weights gradient)")
    trials: int = Field(40, ge=2, description="merges tried (weights search, pareto with more than two models)")
    epsilon: float = Field(
        0.005, ge=0, description="how much the general score may lie below the base's (weights pareto and auto)"
    )
    shares: Shares = Field(
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        description="shares of the first of two models that are tried (weights pareto)",
    )
    auto_shares: Shares = Field([0.3, 0.5, 0.7], description="shares of the first model that are tried (weights auto)")
    seed: int = Field(13, ge=0, description="seeds what is drawn: dropped numbers, batches, trials")
    exclude: Names = Field(
        default_factory=list,
        description="patterns of tensor names, with commas between, that are neither compared nor merged but taken "
        "from the first model",
    )
    prompts_from: int | None = Field(None, ge=1, description="take the prompts of the model of this number")
    length_from: int | None = Field(None, ge=1, description="take the longest text length of the model of this number")
    tokenizer_from: int | None = Field(None, ge=1, description="take the tokenizer of the model of this number")
    pooling: Literal["cls", "mean", "lasttoken"] | None = Field(
        None, description="how plain transformers folders pool, which don't say it: cls (BGE), mean (E5), lasttoken"
    )
    heads: Literal["auto", "first", "merge"] = Field(
        "auto",
        description="the head of merged classifiers: first, the first model's; merge, of all; auto, of those with the "
        "first one's labels",
    )
    dtype: Literal["same", "float32", "float16", "bfloat16"] = Field(
        "same", description="type of the merged numbers; 'same' as the first model's"
    )
