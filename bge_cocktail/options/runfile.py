"""The options of a whole run."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from bge_cocktail.options.base import Options, Shares
from bge_cocktail.options.steps import Encoding, Evaluating, Mining
from bge_cocktail.options.training import Training


class Data(Options):
    """What a run works on: record files or folders, BEIR folders, folders of labelled texts."""

    train: Path = Field(description="records (JSON Lines), or a BEIR folder, whose train split is taken")
    dev: Path | None = Field(
        None, description="records or a BEIR folder (its dev split): early stopping and cocktail weights"
    )
    target: list[Path] = Field(default_factory=list, description="tasks tuned for")
    general: list[Path] = Field(default_factory=list, description="tasks that must not get worse")
    watch: list[Path] = Field(
        default_factory=list, description="general tasks that are also judged while training, on train.general_split"
    )


class Cocktails(Options):
    """The merges that a run makes and compares."""

    share: float = Field(0.5, ge=0, le=1, description="share of the tuned model in the cocktails")
    others: list[str] = Field(default_factory=list, description="more models of the same shape for the larger cocktail")
    slices: int = Field(
        0, ge=0, le=16, description="also tune this many variants, each on its own slice of the records"
    )
    shares: Shares = Field(
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        description="shares of the tuned model at which the trade-off is measured; empty: not at all",
    )
    examples: int = Field(100, ge=2, description="dev records that cocktail weights are found on")


class RunFile(Options):
    """A whole run: what `bge-cocktail run FILE.toml` reads."""

    base: str = Field("BAAI/bge-small-en-v1.5", description="the model to tune: a folder or a hub name")
    output: Path = Field(Path("runs/run"), description="folder of the run")
    rounds: int = Field(
        1, ge=1, le=5, description="times that negatives are mined, each time with the model tuned on those before"
    )
    data: Data
    encode: Encoding = Encoding()
    mine: Mining = Mining()
    train: Training = Training()
    merge: Cocktails = Cocktails()
    evaluate: Evaluating = Evaluating()
