"""The options that all tuning shares: its course, what learns, how it is computed, when it stops."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bge_cocktail.options.base import Names, Options


class Tuning(Options):
    """How a model is tuned, whatever it is tuned for."""

    epochs: float = Field(3, gt=0, description="passes over the records")
    batch_size: int = Field(32, ge=1, description="records in a batch of each process")
    accumulate: int = Field(
        1, ge=1, description="batches whose gradients make one step; each keeps to its own in-batch negatives"
    )
    learning_rate: float = Field(2e-5, gt=0, lt=1, description="peak learning rate")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the rate rises")
    schedule: str = Field(
        "linear",
        description="how the rate goes on after the warm-up: linear, cosine, constant, or another of "
        "transformers' schedules",
    )
    optimizer: str = Field("adamw_torch", description="one of transformers' optimizers")
    weight_decay: float = Field(0.01, ge=0, description="weight decay; none on biases and norms")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="the learning rate of each layer is this much of that of the layer above it"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    max_length: int | None = Field(None, ge=8, description="longest text in tokens while training")
    freeze_embeddings: bool = Field(False, description="keep the token embeddings as they are")
    freeze_layers: int = Field(0, ge=0, description="keep this many of the first layers as they are")
    fixed_positions: bool = Field(False, description="keep the position embeddings as they are")
    reinit_layers: int = Field(0, ge=0, description="start this many of the last layers afresh")
    dropout: float | None = Field(None, ge=0, lt=1, description="instead of the model's; 0 is quicker on a CPU")
    lora: int = Field(0, ge=0, description="train low-rank updates of this rank and merge them in; 0: all weights")
    lora_alpha: int | None = Field(
        None, gt=0, description="scales those updates by this / rank; default: twice the rank"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = Field(
        "auto", description="auto takes bf16 where the device computes in it, else fp32; fp16 and fp8 need a GPU"
    )
    gradient_checkpointing: bool = Field(False, description="compute activations again instead of keeping them")
    chunk_tokens: int = Field(
        0, ge=0, description="tokens embedded at once; 0 chooses for the device (CPU 2048, in bf16 4096, GPU 16384)"
    )
    tf32: bool = Field(False, description="let an NVIDIA GPU multiply fp32 matrices in TF32")
    compile: bool = Field(False, description="compile the model with torch.compile")
    workers: int = Field(0, ge=0, description="processes that prepare batches ahead of the device")
    evaluations: int = Field(2, ge=1, description="dev evaluations (and checkpoints) in an epoch")
    save_steps: int = Field(0, ge=0, description="steps between checkpoints; 0: at every evaluation")
    patience: int = Field(3, ge=0, description="stop after so many evaluations without a better one; 0: never")
    report_to: Names = Field(
        default_factory=list, description="where curves also go: tensorboard, mlflow, trackio, wandb"
    )
    device: str = Field("auto", description="where to compute: auto, cpu, cuda, cuda:N or mps")
    seed: int = Field(13, ge=0, lt=2**32, description="seeds the order of records, dropout and all that is new")
