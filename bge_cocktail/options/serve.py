"""The options of serving and exporting."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from bge_cocktail.options.base import Integers, Options


class ServeOptions(Options):
    """How models are served."""

    panels: ClassVar[dict[str, str]] = {
        "Address": "host port",
        "Computing": "backend device precision threads batch_tokens max_length dimensions watch",
        "Limits": "max_texts max_bytes max_waiting_tokens body_seconds",
    }

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 lets other machines in")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    backend: Literal["auto", "torch", "onnx", "openvino"] = Field(
        "auto", description="what computes: torch, or the graph that export wrote; auto, by the folder"
    )
    device: str = Field("auto", description="where torch computes: auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "fp32", "bf16"] = Field("fp32", description="torch's arithmetic; see train")
    threads: int = Field(0, ge=0, description="processor threads for computing; 0 takes all")
    batch_tokens: int = Field(0, ge=0, description="tokens in a batch, padding too; 0 chooses for the device")
    max_length: int | None = Field(
        None, ge=8, description="longest text in tokens; without it, what the model declares"
    )
    dimensions: Integers = Field(
        default_factory=list,
        description="smaller numbers of dimensions that may be asked for, beside those that the model was tuned for",
    )
    watch: float = Field(
        0.0,
        ge=0,
        description="look every so many seconds whether a model's folder was replaced, and take the new one in",
    )
    max_texts: int = Field(2048, ge=1, description="texts in a request")
    max_bytes: int = Field(16_000_000, ge=1_000, description="bytes of a request's body")
    max_waiting_tokens: int = Field(
        200_000, ge=1_000, description="tokens that may wait; beyond, requests are answered with 429"
    )
    body_seconds: float = Field(
        30.0, gt=0, description="a request's head must have come by then, and its body as long after"
    )


class ExportOptions(Options):
    """How a model becomes a file for another program."""

    panels: ClassVar[dict[str, str]] = {
        "Form": "to dimensions least_cosine prune_layers distil_from epochs",
        "Judging": "max_loss split seed",
    }

    to: Literal["onnx", "onnx-int8", "openvino", "openvino-int8", "torch-bf16", "static", "gguf"] = Field(
        "onnx", description="form of the export"
    )
    dimensions: int | None = Field(
        None,
        ge=8,
        description="keep the first so many dimensions (for models tuned with matryoshka), at unit norm again",
    )
    least_cosine: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="int8: leave matrices in floating point until each text that calibrates has at least this cosine "
        "to the model; without it all are int8",
    )
    prune_layers: int | None = Field(None, ge=1, description="keep so many layers, evenly spaced; needs distil_from")
    distil_from: Path | None = Field(None, description="the model whose embeddings the pruned one is trained to give")
    epochs: float = Field(3.0, gt=0, le=1000, description="passes over the texts for that training")
    max_loss: float = Field(
        0.005, ge=0, le=1, description="refused unless the interval of the change in score lies above minus this"
    )
    split: str = Field("test", description="the split of the target tasks that it is judged on")
    seed: int = Field(13, ge=0, description="seeds what is drawn")
