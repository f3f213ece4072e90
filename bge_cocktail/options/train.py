"""The options of training an encoder, and those that all training shares."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bge_cocktail.options.base import (
    LIMIT_HELP,
    PACKED_HELP,
    PROMPT_HELP,
    Directions,
    Integers,
    Names,
    Options,
    Packed,
    PositiveNumbers,
    Prompt,
)


class CommonTrainOptions(Options):
    """How a model is tuned, whatever it is tuned for."""

    limit: int | None = Field(None, ge=1, description=LIMIT_HELP.format(what="records (texts) of train"))
    epochs: float = Field(3, gt=0, le=10_000, description="passes over the records")
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
    optimizer: str = Field("adamw_torch_fused", description="one of transformers' optimizers")
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
    lora: int = Field(
        0, ge=0, le=65_536, description="train low-rank updates of this rank and merge them in; 0: all weights"
    )
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
    packed: Packed = Field("auto", description=PACKED_HELP)
    tf32: bool = Field(False, description="let an NVIDIA GPU multiply fp32 matrices in TF32")
    compile: bool = Field(False, description="compile the model with torch.compile")
    workers: int | None = Field(
        None,
        ge=0,
        le=1024,
        description="processes that prepare batches ahead of the device; default: 4 for a GPU, else 0",
    )
    evaluations: int = Field(2, ge=1, le=10_000, description="dev evaluations (and checkpoints) in an epoch")
    save_steps: int = Field(0, ge=0, description="steps between checkpoints; 0: at every evaluation")
    patience: int = Field(3, ge=0, description="stop after so many evaluations without a better one; 0: never")
    average: int = Field(
        0,
        ge=0,
        le=1000,
        description="write the mean of the weights at so many of the last evaluations (checkpoint averaging); 0: those "
        "of the best one",
    )
    report_to: Names = Field(
        default_factory=list, description="where curves also go: tensorboard, mlflow, trackio, wandb"
    )
    device: str = Field("auto", description="where to compute: auto, cpu, cuda, cuda:N or mps")
    seed: int = Field(13, ge=0, lt=2**32, description="seeds the order of records, dropout and all that is new")


class TaskTrainOptions(Options):
    """What one task's batches do in their own way; what is left out is as for the others."""

    loss: Names | None = Field(None, description="the losses of its batches")
    loss_weights: PositiveNumbers | None = Field(None, description="their weights, above 0")
    temperature: float | None = Field(None, gt=0, le=10, description="divides its similarities")
    in_batch_negatives: bool | None = Field(
        None, description="whether documents of other records are negatives; off for classification and clustering data"
    )
    negatives: int | None = Field(None, ge=0, description="hard negatives used of each of its records")
    query_prompt: Prompt = Field(None, description="put before its queries")
    document_prompt: Prompt = Field(None, description="put before its documents")
    query_max_length: int | None = Field(None, ge=8, description="its longest query in tokens")
    max_length: int | None = Field(None, ge=8, description="its longest text in tokens")


class TrainOptions(CommonTrainOptions):
    """How an encoder is tuned."""

    common: ClassVar[str] = (
        "limit epochs batch_size learning_rate loss temperature negatives query_prompt max_length "
        "lora anchor precision memory patience device seed"
    )
    panels: ClassVar[dict[str, str]] = {
        "Course": "limit epochs batch_size accumulate learning_rate warmup schedule optimizer weight_decay layer_decay "
        "max_grad_norm seed",
        "Loss": "loss loss_weights temperature negatives draw too_few_negatives in_batch_negatives directions "
        "partition mask_margin label_smoothing teacher_temperature matryoshka anchor anchor_by cross_device_negatives",
        "Batches and texts": "mix mix_power query_prompt document_prompt query_max_length max_length",
        "Parameters": "freeze_embeddings freeze_layers fixed_positions reinit_layers dropout lora lora_alpha dense "
        "task_heads",
        "Memory and speed": "precision device memory gradient_cache gradient_checkpointing chunk_tokens packed shard "
        "tf32 compile workers",
        "Watching": "evaluations save_steps average dev_queries dev_documents general_split patience report_to",
    }

    batch_size: int = Field(
        32, ge=2, description="records in a batch of each process; more in-batch negatives with more"
    )
    loss: Names = Field(["info-nce"], description="losses, with commas between; see: bge-cocktail list losses")
    loss_weights: PositiveNumbers = Field(
        default_factory=list, description="what each loss is multiplied by, above 0, with commas between; without it, 1"
    )
    temperature: float = Field(0.05, gt=0, le=10, description="divides similarities in the loss")
    negatives: int = Field(7, ge=0, description="hard negatives used of each record")
    draw: Literal["first", "random"] = Field(
        "first", description="which of a record's negatives are used: the first, or a seeded draw in every epoch"
    )
    too_few_negatives: Literal["fewer", "drop", "refuse"] = Field(
        "fewer", description="what happens to records with fewer: trained with those they have, dropped, or refused"
    )
    in_batch_negatives: bool = Field(
        True,
        description="whether documents of the other records in a batch are negatives, unless a record says otherwise",
    )
    directions: Directions = Field(
        ["query-document"],
        description="similarities in info-nce, with commas between: query-document, query-query, "
        "document-query, document-document",
    )
    partition: Literal["joint", "apart"] = Field(
        "joint", description="one softmax over all directions, or one for each"
    )
    mask_margin: float | None = Field(
        None,
        ge=-1,
        le=2,
        description="leave out in-batch negatives more similar than the positive by this much: they "
        "are most likely relevant",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of info-nce's target spread over all candidates")
    teacher_temperature: float = Field(1.0, gt=0, description="divides a teacher's scores in kl and m3")
    matryoshka: Integers = Field(
        default_factory=list, description="first dimensions that must do alone too, with commas between: 256,128,64"
    )
    anchor: float = Field(
        0.0, ge=0, le=1e6, description="how strongly the base is held on to, against forgetting; 0: off"
    )
    anchor_by: Literal["embeddings", "weights"] = Field(
        "embeddings", description="hold on to the base's embeddings of the batch's texts, or to its weights (L2-SP)"
    )
    cross_device_negatives: bool = Field(True, description="with several processes, whether batches are joined")
    mix: Literal["shuffled", "round-robin"] = Field("shuffled", description="the order in which tasks give batches")
    mix_power: float = Field(
        1.0, ge=0, le=1, description="tasks give batches in proportion to size^this: 1 as they are, 0 all the same"
    )
    query_prompt: Prompt = Field(None, description=f"put before every query, stored in the model: {PROMPT_HELP}")
    document_prompt: Prompt = Field(None, description=f"put before every document, stored in the model: {PROMPT_HELP}")
    query_max_length: int | None = Field(None, ge=8, description="longest query in tokens while training")
    dense: int = Field(
        0, ge=0, le=65_536, description="add a linear projection to this many dimensions, stored in the model"
    )
    task_heads: bool = Field(
        False, description="a linear head for each task between embeddings and loss, dropped after training"
    )
    memory: float = Field(
        0, ge=0, description="GB that the training may take, its weights too; 0: up to half of what is free"
    )
    gradient_cache: bool = Field(
        False, description="embed all twice, in the memory of one chunk, even where there is more (arXiv:2101.06983)"
    )
    shard: bool = Field(
        False, description="with several processes, each holds a part of model and optimizer instead of all (FSDP)"
    )
    dev_queries: int = Field(500, ge=1, description="queries of dev that are evaluated, a seeded draw")
    dev_documents: int = Field(
        2000,
        ge=10,
        description="documents they are searched in: the relevant ones and a seeded draw of others",
    )
    general_split: str = Field("dev", description="the split of general tasks that is watched while training")
    tasks: dict[str, TaskTrainOptions] = Field(
        default_factory=dict,
        description="options of single tasks, by the records' 'task': a table [train.tasks.NAME] for each",
    )

    def of_task(self, task: str) -> TrainOptions:
        """Return the options for the batches of a task."""
        own = self.tasks.get(task)
        if own is None:
            return self
        return self.model_copy(update={k: v for k, v in own.model_dump().items() if v is not None})
