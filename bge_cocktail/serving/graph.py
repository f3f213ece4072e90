"""A model as one ONNX graph: transformer, pooling, Dense, fewer dimensions and unit norm inside; and its int8 forms."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bge_cocktail.core.errors import CocktailError, MissingExtra
from bge_cocktail.core.progress import progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentence_transformers import SentenceTransformer

OPSET = 18
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
Cosines = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Takes the scales of the matrices that are int8; gives each text's cosine to its embedding in floating point."""
# a range of weights is shrunk by at most this while the best is sought
_SHRINK = np.linspace(0.6, 1.0, 21)


def write_graph(model: SentenceTransformer, path: Path, dimensions: int | None = None) -> None:
    """Write an encoder as an ONNX graph; texts and tokens are dynamic axes.

    Args:
        model: On the CPU, in float32.
        path: The file.
        dimensions: Keep the first so many.

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
        CocktailError: A model that can't be traced.
    """
    import torch

    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError:
        raise MissingExtra("onnx and onnxscript", "export") from None

    class Whole(torch.nn.Module):
        """Ids and mask to embeddings at unit norm."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            """Return embeddings, shape (texts, dimensions)."""
            features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
            for module in self.model:
                features = module(features)
            embeddings: torch.Tensor = features[OUTPUT]
            if dimensions is not None:
                embeddings = embeddings[:, :dimensions]
            return torch.nn.functional.normalize(embeddings, dim=-1)

    ids = torch.ones((2, 7), dtype=torch.int64)
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens", max=int(model.max_seq_length or 512))}
    try:
        with _quiet():
            torch.onnx.export(
                Whole().eval(),
                (ids, ids.clone()),
                str(path),
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=dict.fromkeys(INPUTS, axes),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch's exporter raises whatever its passes do
        raise CocktailError(f"torch can't write this model as a graph: {str(error).splitlines()[0][:300]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's log of its own passes off the screen."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def channel_scales(source: Path, texts: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Return the scale in int8 of each output channel of all weight matrices, chosen by what the texts put in.

    It minimises ``sum_k E[x_k²] (w_k - q_k)²``, the error of the product over the texts' own inputs x if their
    components are uncorrelated: the diagonal of the Hessian in GPTQ (arXiv:2210.17323).

    Args:
        source: A graph of `write_graph`.
        texts: Ids of the user's texts.

    Returns:
        By the matrix's name, in the order of the graph.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(source).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    inputs = {node.input[1]: node.input[0] for node in _products(graph, held)}
    moments = _second_moments(source, list(inputs.values()), texts)
    return {
        name: best_scales(numpy_helper.to_array(held[name]).astype(np.float32), moments[taken])
        for name, taken in inputs.items()
    }


def quantise(source: Path, path: Path, scales: Mapping[str, np.ndarray], *, weights_only: bool) -> None:
    """Write a graph with weights in int8; embedding tables have a scale for each row.

    Args:
        source: A graph of `write_graph`.
        path: The file to write.
        scales: Those of the matrices that become int8; the others stay as they are.
        weights_only: Leave inputs in floating point where they are multiplied (OpenVINO quantises them itself, token
            by token); else they are quantised as they come, tensor by tensor, as onnxruntime does quickest.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(source)
    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    new: dict[str, Any] = {}
    nodes: dict[str, list[Any]] = {}
    for node in _products(graph, held):
        name = node.input[1]
        if name not in scales:
            continue
        if f"{name}.int8" not in new:
            weights = numpy_helper.to_array(held[name]).astype(np.float32)
            new[f"{name}.int8"] = np.clip(np.round(weights / scales[name]), -127, 127).astype(np.int8)
            new[f"{name}.scale"] = scales[name]
            new[f"{name}.zero"] = np.zeros(weights.shape[1] if weights_only else (), np.int8)
        make = _dequantised if weights_only else _integer_product
        nodes[node.output[0]] = make(helper, node)
    tables = [node for node in graph.node if node.op_type == "Gather" and _is_table(node, held)]
    for node in tables:
        name = node.input[0]
        table = numpy_helper.to_array(held[name]).astype(np.float32)
        row_scales = np.maximum(np.abs(table).max(axis=1, keepdims=True) / 127, 1e-12).astype(np.float32)
        new[f"{name}.int8"] = np.round(table / row_scales).astype(np.int8)
        new[f"{name}.scale"] = row_scales
        nodes[node.output[0]] = _rows_of_table(helper, node, onnx.TensorProto.FLOAT)
    replaced = [each for node in graph.node for each in nodes.get(node.output[0], [node])]
    del graph.node[:]
    graph.node.extend(replaced)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in new.items())
    del graph.value_info[:]  # shapes of what is no longer there
    onnx.checker.check_model(model)
    onnx.save(model, path)


def within_cosine(scales: Mapping[str, np.ndarray], cosines: Cosines, least: float) -> dict[str, np.ndarray]:
    """Return the scales of as many matrices as can be int8 with all cosines at least as wanted.

    Each matrix is tried alone; then those that turn the embeddings least are taken first, as many as go together.

    Args:
        scales: Of all matrices.
        cosines: Measures the embeddings with the given matrices in int8.
        least: The least cosine of any text.

    Raises:
        CocktailError: Not even without any the cosines are so near; the rest of the export turns them further.
    """
    if cosines(scales).min() >= least:
        return dict(scales)
    reached = float(cosines({}).min())
    if reached < least:
        raise CocktailError(
            f"least_cosine={least:g} can't be had: with no matrix in int8 it is {reached:.6f}; ask for less, or for a "
            "form without int8"
        )
    harm = {}
    with progress("trying matrices in int8", len(scales)) as advance:
        for name, own in scales.items():
            harm[name] = 1 - float(cosines({name: own}).mean())
            advance(1)
    order = sorted(scales, key=harm.__getitem__)
    fits, fails = 0, len(order)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        together = {name: scales[name] for name in order[:middle]}
        if cosines(together).min() >= least:
            fits = middle
        else:
            fails = middle
    return {name: scales[name] for name in order[:fits]}


def best_scales(weights: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return the scale of each output channel that loses least over inputs of these second moments.

    Args:
        weights: Shape (inputs, outputs).
        moments: Mean squares of the inputs, shape (inputs,).

    Returns:
        Shape (outputs,), float32.
    """
    whole = np.maximum(np.abs(weights).max(axis=0) / 127, 1e-12)
    best = np.full(weights.shape[1], np.inf)
    chosen = whole.copy()
    for shrink in _SHRINK:
        tried = whole * shrink
        rounded = np.clip(np.round(weights / tried), -127, 127) * tried
        losses = moments @ np.square(weights - rounded)
        better = losses < best
        best[better], chosen[better] = losses[better], tried[better]
    scales: np.ndarray = chosen.astype(np.float32)
    return scales


def _products(graph: Any, held: Mapping[str, Any]) -> list[Any]:
    """Return the nodes that multiply by a matrix of weights."""
    return [
        node
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in held and len(held[node.input[1]].dims) == 2
    ]


def _is_table(node: Any, held: dict[str, Any]) -> bool:
    """Return whether a Gather takes rows out of a large table of weights, such as the embeddings of tokens."""
    return node.input[0] in held and len(held[node.input[0]].dims) == 2 and held[node.input[0]].dims[0] > 1000


def _dequantised(helper: Any, node: Any) -> list[Any]:
    name, product = node.input[1], f"{node.output[0]}.weights"
    read = [f"{name}.int8", f"{name}.scale", f"{name}.zero"]
    dequantise = helper.make_node("DequantizeLinear", read, [product], axis=1)
    return [dequantise, helper.make_node("MatMul", [node.input[0], product], list(node.output), name=node.name)]


def _integer_product(helper: Any, node: Any) -> list[Any]:
    """Return the nodes that onnxruntime fuses to one: input to uint8 as it comes, product of integers, both scales."""
    taken, name, out = node.input[0], node.input[1], node.output[0]
    quantised = [f"{out}.input", f"{out}.input_scale", f"{out}.input_zero"]
    factors = [quantised[0], f"{name}.int8", quantised[2], f"{name}.zero"]
    return [
        helper.make_node("DynamicQuantizeLinear", [taken], quantised),
        helper.make_node("MatMulInteger", factors, [f"{out}.whole"]),
        helper.make_node("Cast", [f"{out}.whole"], [f"{out}.float"], to=1),
        helper.make_node("Mul", [quantised[1], f"{name}.scale"], [f"{out}.scale"]),
        helper.make_node("Mul", [f"{out}.float", f"{out}.scale"], [out]),
    ]


def _rows_of_table(helper: Any, node: Any, kind: int) -> list[Any]:
    name, ids, out = node.input[0], node.input[1], node.output[0]
    return [
        helper.make_node("Gather", [f"{name}.int8", ids], [f"{out}.whole"]),
        helper.make_node("Cast", [f"{out}.whole"], [f"{out}.float"], to=kind),
        helper.make_node("Gather", [f"{name}.scale", ids], [f"{out}.scale"]),
        helper.make_node("Mul", [f"{out}.float", f"{out}.scale"], [out]),
    ]


def _second_moments(source: Path, names: Sequence[str], texts: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Return the mean squares of what goes into products, over the tokens of texts, by the tensor's name."""
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    wanted = list(dict.fromkeys(names))
    model = onnx.load(source)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1], np.int64), "every.token"))
    for name in wanted:
        # a product's input may have lost its text axis; then the sum is over what there is but the last axis
        model.graph.node.append(
            helper.make_node("ReduceSumSquare", [name, "every.token"], [f"{name}.square"], keepdims=0)
        )
        model.graph.output.append(helper.make_empty_tensor_value_info(f"{name}.square"))
    chosen = onnxruntime.SessionOptions()
    chosen.log_severity_level = 3
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, chosen, providers=["CPUExecutionProvider"])
    sums: list[Any] = [0.0] * len(wanted)
    count = 0
    for ids in texts:  # one by one, so that there is no padding among the tokens
        row = np.asarray([ids], np.int64)
        found = session.run([f"{name}.square" for name in wanted], {INPUTS[0]: row, INPUTS[1]: np.ones_like(row)})
        sums = [total + np.asarray(square, np.float64) for total, square in zip(sums, found, strict=True)]
        count += len(ids)
    return {name: total / max(count, 1) for name, total in zip(wanted, sums, strict=True)}
