"""The options of every step: the only home of a default, its help and its bounds.

Command-line flags and the sections of a run file are both made from these models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bge_cocktail.errors import UsageError, nearest

NAMED_PROMPTS = {
    # the instruction that the English BGE models were trained with, for queries only
    "bge-en": "Represent this sentence for searching relevant passages: ",
    "bge-zh": "为这个句子生成表示以用于检索相关文章：",
    "e5-query": "query: ",
    "e5-document": "passage: ",
    "none": "",
}


def _prompt(value: object) -> object:
    return NAMED_PROMPTS.get(value, value) if isinstance(value, str) else value


def _comma_separated(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _none_word(value: object) -> object:
    return None if value == "none" else value


# a limit with a default needs a word to turn it off, for TOML and flags have no null
Limit = Annotated[float | None, BeforeValidator(_none_word)]
Prompt = Annotated[str | None, BeforeValidator(_prompt)]
Numbers = Annotated[list[float], BeforeValidator(_comma_separated)]
Integers = Annotated[list[int], BeforeValidator(_comma_separated)]
PROMPT_HELP = "a text, or one of " + ", ".join(NAMED_PROMPTS) + "; without it, what the model declares"


class Options(BaseModel):
    """What all options share: they don't change, and unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Encoding(Options):
    """How texts become embeddings."""

    device: str = Field("auto", description="where to compute: auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "fp32",
        description="arithmetic of the encoder; auto takes bf16 where the device computes in it, else fp32",
    )
    batch_tokens: int = Field(0, ge=0, description="tokens in a batch; 0 chooses for the device (CPU 2048, GPU 65536)")
    max_length: int | None = Field(
        None, ge=8, description="longest text in tokens; without it, what the model declares"
    )
    query_prompt: Prompt = Field(None, description=f"put before every query: {PROMPT_HELP}")
    document_prompt: Prompt = Field(None, description=f"put before every document: {PROMPT_HELP}")
    cache: bool = Field(True, description="keep embeddings on disk, so that no text is embedded twice")
    cache_dir: Path | None = Field(None, description="where embeddings are kept; default: the user's cache folder")


class Mining(Options):
    """Which documents become hard negatives."""

    negatives: int = Field(7, ge=1, description="hard negatives to find for each record")
    skip: int = Field(0, ge=0, description="leave out the first ranks, where false negatives are likeliest")
    depth: int = Field(60, ge=1, description="the last rank that may become a negative")
    relative_margin: Limit = Field(
        0.05,
        ge=0,
        lt=1,
        description="keep only documents with similarity at most (1 - this) of the lowest positive's "
        "(NV-Retriever, arXiv:2407.15831); none turns it off",
    )
    absolute_margin: float | None = Field(
        None, ge=0, description="keep only documents this much less similar than the lowest positive"
    )
    max_similarity: float | None = Field(
        None, ge=-1, le=1, description="keep only documents at most this similar to the query"
    )
    choice: Literal["top", "random"] = Field("top", description="take the hardest that remain, or a draw")
    keep_negatives: bool = Field(True, description="keep the negatives that a record already has")
    seed: int = Field(13, ge=0, description="seeds the draw")


class Training(Options):
    """How an encoder is tuned."""

    epochs: float = Field(3, gt=0, description="passes over the records")
    batch_size: int = Field(32, ge=2, description="records in a batch; more in-batch negatives with more")
    learning_rate: float = Field(2e-5, gt=0, lt=1, description="peak learning rate (AdamW)")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the rate rises")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="how the learning rate goes on after the warm-up"
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    temperature: float = Field(0.05, gt=0, le=10, description="divides similarities in the loss")
    negatives: int = Field(7, ge=0, description="hard negatives used of each record, the first ones")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto takes bf16 where the device computes in it, else fp32; fp16 needs a GPU"
    )
    evaluations: int = Field(2, ge=1, description="dev evaluations (and checkpoints) in an epoch")
    dev_queries: int = Field(500, ge=1, description="queries of dev that are evaluated, a seeded draw")
    dev_documents: int = Field(
        2000,
        ge=10,
        description="documents they are searched in: the relevant ones and a seeded draw of others",
    )
    patience: int = Field(3, ge=0, description="stop after so many evaluations without a better one; 0: never")
    max_length: int | None = Field(None, ge=8, description="longest text in tokens while training")
    query_prompt: Prompt = Field(None, description=f"put before every query, stored in the model: {PROMPT_HELP}")
    document_prompt: Prompt = Field(None, description=f"put before every document, stored in the model: {PROMPT_HELP}")
    device: str = Field("auto", description="where to compute: auto, cpu, cuda, cuda:N or mps")
    seed: int = Field(13, ge=0, description="seeds the order of records and dropout")


class Merging(Options):
    """How models become one."""

    method: str = Field("linear", description="see: bge-cocktail list merge-methods")
    weights: Literal["uniform", "cocktail"] | Numbers = Field(
        "uniform",
        description="numbers (0.7,0.3; scaled to sum 1), 'uniform', or 'cocktail': from the loss of each "
        "model on a few examples (LM-Cocktail, arXiv:2311.13534)",
    )
    share: float | None = Field(
        None, ge=0, le=1, description="kept for the first model; the weights divide the rest among the others"
    )
    temperature: float = Field(
        5.0, gt=0, description="cocktail weights are softmax(-loss / temperature) (LM-Cocktail's default: 5)"
    )
    loss_temperature: float = Field(0.05, gt=0, description="divides similarities in that loss (LM-Cocktail's: 0.05)")
    dtype: Literal["same", "float32", "float16", "bfloat16"] = Field(
        "same", description="type of the merged numbers; 'same' as the first model's"
    )


class Evaluating(Options):
    """How models are judged."""

    depth: int = Field(100, ge=10, description="documents retrieved for a query (MAP and Recall look so far)")
    recall_at: Integers = Field([10, 100], description="ranks at which recall is reported")
    split: str = Field("test", description="split of the task that is judged")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the bootstrap intervals")
    seed: int = Field(13, ge=0, description="seeds the bootstrap")

    @model_validator(mode="after")
    def _ranks_within_depth(self) -> Evaluating:
        beyond = [k for k in self.recall_at if not 1 <= k <= self.depth]
        if beyond:
            raise ValueError(f"recall_at has {beyond}, but only ranks 1 to depth={self.depth} are retrieved")
        return self


class Data(Options):
    """What a run works on: record files or folders, BEIR folders, folders of labelled texts."""

    train: Path = Field(description="records (JSON Lines), or a BEIR folder, whose train split is taken")
    dev: Path | None = Field(
        None, description="records or a BEIR folder (its dev split): early stopping and cocktail weights"
    )
    target: list[Path] = Field(default_factory=list, description="tasks tuned for")
    general: list[Path] = Field(default_factory=list, description="tasks that must not get worse")


class Cocktails(Options):
    """The merges that a run makes and compares."""

    share: float = Field(0.5, ge=0, le=1, description="share of the tuned model in the cocktails")
    others: list[str] = Field(default_factory=list, description="more models of the same shape for the larger cocktail")
    slices: int = Field(
        0, ge=0, le=16, description="also tune this many variants, each on its own slice of the records"
    )
    shares: Numbers = Field(
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        description="shares of the tuned model at which the trade-off is measured; empty: not at all",
    )
    examples: int = Field(100, ge=2, description="dev records that cocktail weights are found on")

    @model_validator(mode="after")
    def _shares_are_shares(self) -> Cocktails:
        wrong = [share for share in self.shares if not 0 <= share <= 1]
        if wrong:
            raise ValueError(f"shares are between 0 and 1, got {wrong}")
        return self


class RunFile(Options):
    """A whole run: what `bge-cocktail run FILE.toml` reads."""

    base: str = Field("BAAI/bge-small-en-v1.5", description="the model to tune: a folder or a hub name")
    output: Path = Field(Path("runs/run"), description="folder of the run")
    data: Data
    encode: Encoding = Encoding()
    mine: Mining = Mining()
    train: Training = Training()
    merge: Cocktails = Cocktails()
    evaluate: Evaluating = Evaluating()


def checked(model: type[Options], values: dict[str, Any], where: dict[str, str] | None = None) -> Any:
    """Build options from plain values; all that is wrong is said at once.

    Args:
        model: The options model.
        values: Names and values, nested for sections.
        where: For a dotted name, where the user wrote it (``run.toml:7``).

    Returns:
        An instance of `model`.

    Raises:
        UsageError: With a line for each wrong name or value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError("\n".join(_explain(model, one, where or {}) for one in error.errors())) from None


def field_names(model: type[BaseModel], path: tuple[str, ...] = ()) -> list[str]:
    """The names allowed in a (nested) section; empty when the path leads to no section."""
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _explain(model: type[Options], error: Any, where: dict[str, str]) -> str:
    # pydantic adds the branch of a union or the index in a list to the location; users wrote only names
    path: list[str] = []
    for part in error["loc"]:
        if isinstance(part, str) and part.isidentifier() and not part.startswith("function"):
            path.append(part)
        else:
            break
    if error["type"] != "extra_forbidden":
        while path and path[-1] not in field_names(model, tuple(path[:-1])):
            path.pop()
    name = ".".join(path)
    place = next((where[key] for key in (name, *_parents(path)) if key in where), "")
    prefix = f"{place}: " if place else ""
    if error["type"] == "extra_forbidden":
        allowed = field_names(model, tuple(path[:-1]))
        return f"{prefix}unknown name '{name}'.{nearest(path[-1], allowed)}"
    if error["type"] == "missing":
        return f"{prefix}'{name}' is missing: {_help(model, path)}"
    message = error["msg"].removeprefix("Value error, ")
    seen = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"
    return f"{prefix}{name + ': ' if name else ''}{message}{seen}"


def _parents(path: list[str]) -> list[str]:
    return [".".join(path[:end]) for end in range(len(path) - 1, 0, -1)]


def _help(model: type[BaseModel], path: list[str]) -> str:
    for part in path[:-1]:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return model.model_fields[path[-1]].description or "needed"
