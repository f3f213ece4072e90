"""The options of classifiers: how they are trained, and how they predict."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bge_cocktail.options.base import PACKED_HELP, Options, Packed
from bge_cocktail.options.prepare import AugmentOptions, Ratio, SomeNames
from bge_cocktail.options.train import CommonTrainOptions


class ClassifyOptions(CommonTrainOptions, AugmentOptions):
    """How an encoder gets a classification head."""

    common: ClassVar[str] = (
        "limit epochs batch_size learning_rate few_shot head multi_label per_class max_length metric "
        "precision device seed"
    )
    panels: ClassVar[dict[str, str]] = {
        "Course": "limit epochs batch_size accumulate learning_rate head_learning_rate warmup schedule optimizer "
        "weight_decay layer_decay max_grad_norm seed",
        "Head and loss": "few_shot pairs_per_text head head_start head_layers head_dropout multi_label threshold loss "
        "focal_gamma class_weights label_smoothing anchor",
        "Texts": "clean max_length truncation ratio per_class augment augment_share word_share thesaurus wordnet_dir "
        "thesaurus_file",
        "Parameters": "freeze_encoder freeze_embeddings freeze_layers fixed_positions reinit_layers dropout lora "
        "lora_alpha",
        "Memory and speed": "precision device gradient_checkpointing chunk_tokens packed tf32 compile workers",
        "Watching": "metric evaluations save_steps patience report_to",
    }

    batch_size: int = Field(32, ge=1, description="texts in a batch of each process")
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one step")
    evaluations: int = Field(1, ge=1, description="dev evaluations (and checkpoints) in an epoch")
    head: Literal["auto", "cls", "pooled"] = Field(
        "auto",
        description="pooled: a head on the embedding as the model pools it, which sentence-transformers loads; cls: "
        "the architecture's own head on [CLS], which plain transformers loads; auto: pooled where the model says how "
        "it pools",
    )
    head_layers: int = Field(1, ge=1, le=4, description="layers of a pooled head, tanh between them")
    head_dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout before the last layer; default: the model's own, 0.1 in a pooled head"
    )
    head_start: Literal["probe", "random"] = Field(
        "probe",
        description="what a new head begins as: a logistic regression on what the frozen encoder gives it (LP-FT, "
        "arXiv:2202.10054), or random numbers",
    )
    head_learning_rate: float | None = Field(
        None, gt=0, lt=1, description="peak learning rate of the head, if it is another one"
    )
    freeze_encoder: bool = Field(False, description="train the head alone")
    multi_label: bool = Field(
        False, description="a text has any number of labels: a list, or one text with | between them"
    )
    threshold: float = Field(
        0.5, gt=0, lt=1, description="probability from which a label of several counts as predicted"
    )
    loss: Literal["cross-entropy", "focal"] = Field(
        "cross-entropy", description="focal turns to the texts that are still wrong (arXiv:1708.02002)"
    )
    focal_gamma: float = Field(2.0, ge=0, description="how far focal loss turns from what is right already")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: classes count alike, however many texts they have"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    anchor: float = Field(
        0.0, ge=0, le=1e6, description="how strongly the encoder's weights are held to where they began (L2-SP); 0: off"
    )
    max_length: int | None = Field(
        None, ge=8, description="longest text (or pair) in tokens, in training and in every prediction"
    )
    clean: SomeNames = Field(
        default_factory=lambda: ["unicode", "html", "control", "space"],
        description="what is done to texts before training and before every prediction; see: bge-cocktail list "
        "cleaning-steps; or none",
    )
    truncation: Literal["head", "head+tail"] = Field(
        "head",
        description="what stays of a text that is too long: its start, or a quarter from the start and the rest "
        "from the end (arXiv:1905.05583)",
    )
    ratio: Ratio = Field(
        [7, 2, 1],
        description="sizes of train, dev and test to each other where the data are one file; of train and dev "
        "where only dev is missing",
    )
    per_class: int = Field(0, ge=0, description="train on a draw of so many texts of each class; 0: on all")
    few_shot: bool = Field(
        False,
        description="for few texts a class: tune the encoder on pairs of texts of one class, then a logistic head on "
        "its embeddings (SetFit, arXiv:2209.11055)",
    )
    pairs_per_text: int = Field(20, ge=1, description="pairs made for each text in few_shot")
    metric: Literal["accuracy", "macro-F1"] = Field(
        "accuracy", description="what early stopping and the best checkpoint go by, on dev"
    )


class PredictOptions(Options):
    """How a classifier predicts."""

    device: str = Field("auto", description="where to compute: auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto takes bf16 where the device computes in it, else fp32"
    )
    batch_tokens: int = Field(
        0, ge=0, description="tokens in a batch; 0 chooses for the device (CPU 2048, in bf16 4096; GPU 65536)"
    )
    packed: Packed = Field("auto", description=PACKED_HELP)
    calibrated: bool = Field(
        False, description="probabilities by the temperature that training found on dev (arXiv:1706.04599)"
    )
