"""Exported models, run by onnxruntime or OpenVINO without torch: as a backend for serving, and as an encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bge_cocktail.core.errors import CocktailError, DataError, MissingExtra, UsageError
from bge_cocktail.core.outputs import read_object
from bge_cocktail.core.runs import hash_path
from bge_cocktail.models.cache import Embeddings
from bge_cocktail.models.embed import batches_by_tokens
from bge_cocktail.models.folder import model_folder
from bge_cocktail.models.prompts import Prompts, Role
from bge_cocktail.options import ServeOptions
from bge_cocktail.serving.backends import Backend, Ids, Tokens, TorchBackend, padded, unit, with_allowed

EXPORT_FILE = "export.json"
# measured on two cores with MiniLM: larger batches lose more to padding and caches than they gain
_BATCH_TOKENS = 1024

Run = Callable[[np.ndarray, np.ndarray], Embeddings]
"""Takes ids and attention mask, shape (texts, tokens), int64; gives embeddings."""


def is_exported(folder: Path) -> bool:
    """Return whether a folder holds a graph that `export` wrote."""
    return (folder / EXPORT_FILE).is_file()


class ExportedBackend:
    """A graph with its tokenizer beside it; see `Backend`.

    Args:
        folder: What `export` wrote.
        options: Backend, threads, length.

    Raises:
        DataError: Not such a folder.
        UsageError: Another backend than the graph's.
        MissingExtra: Its runtime is not installed.
    """

    def __init__(self, folder: Path, options: ServeOptions) -> None:
        described = read_object(folder / EXPORT_FILE)
        try:
            runtime, graph = str(described["runtime"]), folder / str(described["graph"])
            self.prompts = Prompts(**described["prompts"])
            self.dimensions, self.max_length = int(described["dimensions"]), int(described["max_length"])
            padding, inputs = int(described["padding"]), list(described["inputs"])
            self.smaller = [int(size) for size in described["smaller"]]
            hints = {str(name): str(value) for name, value in described.get("hints", {}).items()}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / EXPORT_FILE} is not what export writes: {error!r}") from None
        if runtime not in _RUNTIMES:
            raise UsageError(f"{folder} holds a {described.get('to')} file, for another program; it can't be run here")
        if options.backend not in ("auto", runtime):
            raise UsageError(f"{folder} was exported for {runtime}, not for {options.backend}")
        if options.max_length is not None:
            if options.max_length > self.max_length:
                raise UsageError(f"max_length={options.max_length} is more than the export's {self.max_length}")
            self.max_length = options.max_length
        self.hash = hash_path(folder)
        self.smaller = with_allowed(self.smaller, options, self.dimensions)
        self.batch_tokens = options.batch_tokens or _BATCH_TOKENS
        self._tokens = Tokens(folder / "tokenizer.json", self.prompts, self.max_length)
        self._padding = padding
        self._run: Run = _RUNTIMES[runtime](graph, inputs, options.threads, hints)

    def tokenize(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """See `Backend`."""
        return self._tokens.tokenize(texts, role)

    def wrap(self, ids: Ids, role: Role) -> list[int]:
        """See `Backend`."""
        return self._tokens.wrap(ids, role)

    def embed(self, batch: Sequence[Ids], role: Role) -> Embeddings:
        """See `Backend`."""
        return unit(self._run(*padded(batch, self._padding)))


def _features(ids: np.ndarray, mask: np.ndarray, inputs: Sequence[str]) -> dict[str, np.ndarray]:
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: every[name] for name in inputs}


def run_onnx(graph: Path, inputs: Sequence[str], threads: int = 0, _hints: Any = None) -> Run:
    """Return an ONNX graph as a function.

    Raises:
        MissingExtra: onnxruntime is not installed.
        CocktailError: The graph can't be loaded.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnxruntime", "export") from None
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.log_severity_level = 3
    # threads that wait by spinning take the processor from everything else
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(graph), chosen, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception of its own for each status
        raise CocktailError(f"{graph}: onnxruntime can't load it: {str(error).splitlines()[0]}") from None

    def run(ids: np.ndarray, mask: np.ndarray) -> Embeddings:
        embeddings: Embeddings = session.run(None, _features(ids, mask, inputs))[0]
        return embeddings

    return run


def run_openvino(graph: Path, inputs: Sequence[str], threads: int = 0, hints: Any = None) -> Run:
    """Return an OpenVINO graph as a function.

    Raises:
        MissingExtra: openvino is not installed.
        CocktailError: The graph can't be loaded.
    """
    try:
        import openvino
    except ImportError:
        raise MissingExtra("openvino", "export") from None
    core = openvino.Core()
    # a mapped file that is replaced while it serves would be torn
    core.set_property({"ENABLE_MMAP": "NO"})
    known = core.get_property("CPU", "SUPPORTED_PROPERTIES")
    configuration = {name: value for name, value in (hints or {}).items() if name in known}
    # where the processor computes in bfloat16 only by turns, float32 is quicker
    able = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if configuration.get("INFERENCE_PRECISION_HINT") == "bf16" and not able:
        configuration["INFERENCE_PRECISION_HINT"] = "f32"
    if threads:
        configuration["INFERENCE_NUM_THREADS"] = str(threads)
    try:
        compiled = core.compile_model(str(graph), "CPU", {"PERFORMANCE_HINT": "LATENCY", **configuration})
    except RuntimeError as error:
        raise CocktailError(f"{graph}: OpenVINO can't load it: {str(error).splitlines()[0]}") from None
    request = compiled.create_infer_request()

    def run(ids: np.ndarray, mask: np.ndarray) -> Embeddings:
        return np.array(request.infer(_features(ids, mask, inputs))[0], np.float32)

    return run


_RUNTIMES: dict[str, Callable[..., Run]] = {"onnx": run_onnx, "openvino": run_openvino}


def open_backend(name: str | Path, options: ServeOptions) -> Backend:
    """Load a model to be served: what export wrote, or a sentence-transformers folder.

    Args:
        name: A folder or a hub name.
        options: What computes, and how.

    Raises:
        DataError: No such model.
        UsageError: A backend that the folder isn't for.
    """
    if is_exported(Path(name)):
        return ExportedBackend(Path(name), options)
    folder = model_folder(name)
    if options.backend not in ("auto", "torch"):
        raise UsageError(
            f"{name} is a sentence-transformers folder; write a graph first: "
            f"bge-cocktail export {name} --to {options.backend} -o OUT"
        )
    return TorchBackend(folder, options)


class BackendEncoder:
    """A backend as an encoder, so that it can be judged, searched with and plugged; see `models.encoder.Encoder`.

    Args:
        backend: What computes.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def encode_query(self, texts: Sequence[str], prompt: str | None = None) -> Embeddings:
        """Embed queries."""
        if prompt is None:
            return self._encode(texts, "query")
        # a prompt of one's own stands where that of plain texts would
        return self._encode([prompt + text for text in texts], "text")

    def encode_document(self, texts: Sequence[str]) -> Embeddings:
        """Embed documents."""
        return self._encode(texts, "document")

    def encode_text(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts that are neither."""
        return self._encode(texts, "text")

    def _encode(self, texts: Sequence[str], role: Role) -> Embeddings:
        if not texts:
            raise CocktailError("no texts to embed")
        distinct = list(dict.fromkeys(texts))
        ids = self.backend.tokenize(distinct, role)
        embeddings = np.empty((len(distinct), self.backend.dimensions), np.float32)
        for rows in batches_by_tokens([len(one) for one in ids], self.backend.batch_tokens):
            embeddings[rows] = self.backend.embed([ids[row] for row in rows], role)
        place = {text: row for row, text in enumerate(distinct)}
        return embeddings[[place[text] for text in texts]]
