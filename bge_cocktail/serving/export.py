"""A model in the form of another program, judged before it is written: ONNX, OpenVINO, int8, bfloat16, static, GGUF."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from bge_cocktail.core.errors import CocktailError, MissingExtra, UsageError
from bge_cocktail.core.outputs import new_folder, read_object, refuse_to_replace, scratch_folder, write_json
from bge_cocktail.core.progress import progress
from bge_cocktail.core.registry import Registry
from bge_cocktail.core.runs import RUN_FILE, begin_findings, describe_run, files_under, hash_path
from bge_cocktail.core.version import __version__
from bge_cocktail.evaluating.evaluate import TaskPath, evaluate, open_tasks
from bge_cocktail.evaluating.scores import Score, bootstrap_interval
from bge_cocktail.models.card import Parent, write_card
from bge_cocktail.models.embed import batches_by_tokens
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.models.layout import transformer_folder
from bge_cocktail.models.profile import ModelProfile, model_profile
from bge_cocktail.models.prompts import SETTINGS_FILE
from bge_cocktail.options import EvaluateOptions, ExportOptions, ServeOptions
from bge_cocktail.serving.backends import Backend, TorchBackend, padded, smaller_dimensions, unit
from bge_cocktail.serving.graph import INPUTS, OUTPUT, channel_scales, quantise, within_cosine, write_graph
from bge_cocktail.serving.runtime import EXPORT_FILE, BackendEncoder, ExportedBackend, Run, run_onnx, run_openvino

log = logging.getLogger(__name__)
# texts that calibrate, and texts on which embeddings and speed are compared
CALIBRATING, COMPARED = 256, 512
# texts on which each choice of int8 matrices is tried
COMPARED_IN_SEARCH = 64
FIRST = 10


class Refused(CocktailError):
    """An export that loses more than it may; nothing was written."""

    exit_code = 3


class ScoreChange(TypedDict):
    """What an export does to one score; the interval is that of the difference, query by query."""

    task: str
    metric: str
    before: float
    after: float
    difference: float
    interval: tuple[float, float] | None


class ExportReport(TypedDict):
    """What was measured of an export, beside the model that it was made of; no cosines of another space."""

    to: str
    cosine: float | None
    least_cosine: float | None
    first_ten: float
    megabytes: tuple[float, float]
    texts_per_second: tuple[float, float]
    scores: list[ScoreChange]


@dataclass(frozen=True)
class Source:
    """What an export is made of.

    Attributes:
        folder: The model, pruned if that was asked for.
        profile: What it declares.
        texts: The user's texts, for calibration.
        options: How.
        scratch: A folder for what is needed in between.
    """

    folder: Path
    profile: ModelProfile
    texts: Sequence[str]
    options: ExportOptions
    scratch: Path


Opener = Callable[[], Backend]
Exporter = Callable[[Source, Path], Opener]
"""Writes the files of an export into a folder, and returns what opens them, to be judged."""
exporters = Registry[Exporter]("exports", ("bge_cocktail.serving.gguf",))


def export(
    model: str | Path,
    output: Path,
    options: ExportOptions | None = None,
    *,
    target: Sequence[TaskPath] = (),
    texts: Sequence[str] = (),
    judge: bool = True,
    overwrite: bool = False,
) -> ExportReport | None:
    """Write a model in another form, if it loses no more than it may.

    Args:
        model: A folder or a hub name.
        output: The folder to write.
        options: The form, what is cut, how much may be lost.
        target: Tasks that it is judged on.
        texts: The user's texts, for calibration and distillation; without, documents of the target tasks.
        judge: Compare it with the model first; without, it is written unseen, and its card says so.
        overwrite: Replace an older output of this tool.

    Returns:
        What was measured; None where nothing was judged.

    Raises:
        UsageError: Nothing to judge it on, or options that don't go together.
        Refused: The interval of a score's change reaches below what may be lost.
        MissingExtra: What writes or runs the form is not installed.
    """
    begin_findings()
    options = options or ExportOptions()
    exporter = exporters[options.to]
    profile = model_profile(model)
    refuse_to_replace(output, overwrite, [profile.folder])
    tasks = open_tasks(target, ()) if target else []
    _check(options, profile, bool(tasks), len(texts), judge)
    started = time.monotonic()
    with scratch_folder() as scratch, new_folder(output, overwrite=overwrite) as new:
        known = list(texts) or [text for task in tasks for text in _documents_of(task, options)]
        folder = profile.folder
        if options.prune_layers is not None:
            from bge_cocktail.serving.prune import prune

            folder = prune(profile.folder, options, known, scratch / "pruned")
        source = Source(folder, model_profile(folder), known, options, scratch)
        opener = exporter(source, new)
        report = _judge(profile, source, opener(), tasks, new) if judge else None
        if report is not None:
            refuse_loss(report, options.max_loss)
        write_card(
            new,
            output.name,
            _described(report, profile, options),
            parents=[Parent(str(model), profile.folder)],
            relation="quantized",
        )
        run = describe_run(
            "export",
            options=options.model_dump(mode="json"),
            inputs={str(model): hash_path(profile.folder)},
            seconds=time.monotonic() - started,
            report=report,
        )
        write_json(new / RUN_FILE, run)
    return report


def _check(options: ExportOptions, profile: ModelProfile, judged: bool, texts: int, judge: bool) -> None:
    if judge and not judged:
        raise UsageError("an export is judged before it is written: name a `target` task (or `judge=False`)")
    if "int8" in options.to and not texts and not judged:
        raise UsageError("int8 is calibrated on texts: name `data`, or a `target` task")
    if options.least_cosine is not None and "int8" not in options.to:
        raise UsageError(f"`least_cosine` says what int8 may change, and {options.to} has none")
    if (options.prune_layers is None) != (options.distil_from is None):
        raise UsageError("`prune_layers` and `distil_from` go together: dropped layers have to be made up for")
    if options.prune_layers is not None and not texts and not judged:
        raise UsageError("distillation needs texts: name `data`, or a `target` task")
    if options.dimensions is not None and profile.dimensions is not None and options.dimensions > profile.dimensions:
        raise UsageError(f"`dimensions={options.dimensions}`: the model has {profile.dimensions}")
    if options.dimensions is not None and options.to in ("torch-bf16", "gguf"):
        raise UsageError(f"`dimensions` doesn't go with {options.to}, whose readers cut by themselves")


def _documents_of(task: Any, options: ExportOptions) -> list[str]:
    """Return texts of a task, the first that it would draw for a map."""
    return [text.text for text in task.map_texts(options.split, 4 * COMPARED, options.seed)]


# --- judging -----------------------------------------------------------------------------------------------------


def _judge(profile: ModelProfile, source: Source, backend: Backend, tasks: Sequence[Any], new: Path) -> ExportReport:
    options = EvaluateOptions(split=source.options.split)
    original = TorchBackend(profile.folder, ServeOptions(device="cpu"))
    encoders = BackendEncoder(original), BackendEncoder(backend)
    scores = [evaluate(encoder, tasks, options) for encoder in encoders]
    sample = [text for task in tasks for text in _documents_of(task, source.options)][: 2 * COMPARED]
    halves = sample[::2], sample[1::2]
    embedded = [[encoder.encode_document(half) for half in halves if half] for encoder in encoders]
    speeds = [_texts_per_second(one, halves[0]) for one in (original, backend)]
    return {
        "to": source.options.to,
        **_compared(embedded[0], embedded[1], bool(exporters.trait(source.options.to, "own_space"))),  # type: ignore[typeddict-item]
        "megabytes": (_megabytes(profile.folder), _megabytes(new)),
        "texts_per_second": (speeds[0], speeds[1]),
        "scores": [_change(before, after, options) for before, after in zip(*scores, strict=True) if before.main],
    }


def _compared(before: Sequence[np.ndarray], after: Sequence[np.ndarray], own_space: bool) -> dict[str, float | None]:
    """Return cosines of the same texts, and the share of the first ten of one half that the other half still finds.

    Fewer dimensions are compared with the first ones of the model; embeddings in a space of their own with nothing.
    """
    one, two = np.concatenate(before), np.concatenate(after)
    cosines = (unit(one[:, : two.shape[1]]) * two).sum(axis=1)
    overlap = 1.0
    if len(before) == 2:
        first = [np.argsort(-halves[0] @ halves[1].T, axis=1)[:, :FIRST] for halves in (before, after)]
        overlap = float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(*first, strict=True)]))
    if own_space:
        return {"cosine": None, "least_cosine": None, "first_ten": overlap}
    return {"cosine": float(cosines.mean()), "least_cosine": float(cosines.min()), "first_ten": overlap}


def _texts_per_second(backend: Backend, texts: Sequence[str]) -> float:
    """Return how many texts a second of processor time are embedded; wall time would count what else runs here."""
    ids = backend.tokenize(texts, "document")
    batches = batches_by_tokens([len(one) for one in ids], backend.batch_tokens)
    backend.embed([ids[row] for row in batches[0]], "document")  # what is made ready once
    started = time.process_time()
    for rows in batches:
        backend.embed([ids[row] for row in rows], "document")
    return len(texts) / max(time.process_time() - started, 1e-9)


def _change(before: Score, after: Score, options: EvaluateOptions) -> ScoreChange:
    shared = [name for name in before.per_query if name in after.per_query]
    interval = None
    if shared:
        differences = np.array([after.per_query[name] - before.per_query[name] for name in shared])
        interval = bootstrap_interval(differences, confidence=options.confidence, seed=options.seed)
    return {
        "task": before.task,
        "metric": before.metric,
        "before": before.value,
        "after": after.value,
        "difference": after.value - before.value,
        "interval": interval,
    }


def refuse_loss(report: ExportReport, max_loss: float) -> None:
    """Raise if a score may have lost more than it may, by the interval of its change.

    Raises:
        Refused: With the score that did.
    """
    for change in report["scores"]:
        least = change["interval"][0] if change["interval"] is not None else change["difference"]
        if least < -max_loss:
            raise Refused(
                f"{change['task']}: {change['metric']} {change['before']:.4f} becomes {change['after']:.4f}; the "
                f"difference may be {least:+.4f}, and `max_loss` allows {-max_loss:+.4f}; nothing was written"
            )


def _megabytes(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in files_under(folder)) / 1e6, 2)


def _described(report: ExportReport | None, profile: ModelProfile, options: ExportOptions) -> list[str]:
    """Return what the card says of an export."""
    lines = [f"`{profile.folder.name}` as {options.to}, made with bge-cocktail {__version__}."]
    if report is None:
        return [*lines, "", "**It was not judged** before it was written."]
    lines += ["", "| | model | this |", "|---|---|---|"]
    for name, key in (("MB", "megabytes"), ("texts a second of processor time", "texts_per_second")):
        one, two = report[key]  # type: ignore[literal-required]
        lines.append(f"| {name} | {one:,.1f} | {two:,.1f} |")
    for change in report["scores"]:
        name = f"{change['task']}, {change['metric']}".replace("|", "\\|")
        lines.append(f"| {name} | {change['before']:.4f} | {change['after']:.4f} |")
    kept = f"{report['first_ten']:.1%} of the first {FIRST} neighbours are the same."
    if report["cosine"] is not None:
        kept = f"Cosine to the model's embeddings {report['cosine']:.5f} (least {report['least_cosine']:.5f}); {kept}"
    return [*lines, "", kept]


# --- the forms ---------------------------------------------------------------------------------------------------


def _graph(source: Source) -> Path:
    """Return the ONNX graph of the model, written to the scratch folder."""
    _refuse_unfit(source.profile)
    path = source.scratch / "model.onnx"
    with progress("writing the graph", 1):
        write_graph(load_encoder(source.folder, device="cpu"), path, source.options.dimensions)
    return path


def _refuse_unfit(profile: ModelProfile) -> None:
    if "Transformer" not in profile.modules:
        raise UsageError(
            f"{profile.name} is no transformer ({', '.join(profile.modules)}); it is small and quick as it is"
        )
    config = read_object(profile.folder / next(iter(_pooling_files(profile)), SETTINGS_FILE))
    if config.get("include_prompt") is False and (profile.prompts.query or profile.prompts.document):
        raise UsageError(f"{profile.name} leaves its prompt out of the mean, which one graph for all texts can't do")


def _pooling_files(profile: ModelProfile) -> list[Path]:
    return sorted(path.relative_to(profile.folder) for path in profile.folder.glob("*_Pooling/config.json"))


def _calibrating(source: Source) -> list[list[int]]:
    backend = TorchBackend(source.folder, ServeOptions(device="cpu"))
    step = max(1, len(source.texts) // CALIBRATING)
    return backend.tokenize(list(source.texts[::step])[:CALIBRATING], "document")


def _finish(source: Source, new: Path, runtime: str, graph: str, hints: dict[str, str] | None = None) -> Opener:
    """Put tokenizer and description beside a graph, and open it."""
    tokenizer = transformer_folder(source.folder) / "tokenizer.json"
    original = TorchBackend(source.folder, ServeOptions(device="cpu"))
    _write_tokenizer(tokenizer, new / "tokenizer.json", original.max_length, original.padding)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
        if (tokenizer.parent / name).is_file():
            shutil.copyfile(tokenizer.parent / name, new / name)
    if (source.folder / SETTINGS_FILE).is_file():
        shutil.copyfile(source.folder / SETTINGS_FILE, new / SETTINGS_FILE)
    dimensions = source.options.dimensions or original.dimensions
    smaller = smaller_dimensions(source.folder, ServeOptions(), original.dimensions)
    described = {
        "to": source.options.to,
        "runtime": runtime,
        "graph": graph,
        "inputs": list(INPUTS),
        "output": OUTPUT,
        "dimensions": dimensions,
        "smaller": [size for size in smaller if size < dimensions],
        "max_length": original.max_length,
        "padding": original.padding,
        "prompts": {
            "query": original.prompts.query,
            "document": original.prompts.document,
            "text": original.prompts.text,
        },
        **({"hints": hints} if hints else {}),
    }
    write_json(new / EXPORT_FILE, described)
    return lambda: ExportedBackend(new, ServeOptions())


def _write_tokenizer(source: Path, path: Path, max_length: int, padding: int) -> None:
    """Write a tokenizer that cuts and pads by itself, for programs that use it alone."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source))
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(pad_id=padding, pad_token=tokenizer.id_to_token(padding) or "[PAD]")
    tokenizer.save(str(path))


@exporters("onnx")
def to_onnx(source: Source, new: Path) -> Opener:
    """One ONNX graph in float32, for onnxruntime and all that read ONNX."""
    shutil.move(_graph(source), new / "model.onnx")
    return _finish(source, new, "onnx", "model.onnx")


@exporters("onnx-int8")
def to_onnx_int8(source: Source, new: Path) -> Opener:
    """ONNX with int8 weights, one scale a channel, calibrated on the texts; inputs quantised as they come."""
    _quantise(source, new / "model.onnx", lambda path: run_onnx(path, INPUTS), weights_only=False)
    return _finish(source, new, "onnx", "model.onnx")


def _quantise(source: Source, path: Path, opened: Callable[[Path], Run], *, weights_only: bool) -> None:
    """Write the int8 graph, in floating point what `least_cosine` wants so; `opened` runs one as it will be run."""
    graph, texts = _graph(source), _calibrating(source)
    with progress("calibrating", 1):
        scales = channel_scales(graph, texts)
    if source.options.least_cosine is not None:
        batches = [padded([ids], 0) for ids in texts[:COMPARED_IN_SEARCH]]
        expected = _embedded(run_onnx(graph, INPUTS), batches)

        def cosines(tried: Mapping[str, np.ndarray]) -> np.ndarray:
            quantise(graph, source.scratch / "tried.onnx", tried, weights_only=weights_only)
            found: np.ndarray = (_embedded(opened(source.scratch / "tried.onnx"), batches) * expected).sum(axis=1)
            return found

        every = len(scales)
        scales = within_cosine(scales, cosines, source.options.least_cosine)
        log.info("%d of %d matrices are int8", len(scales), every)
    quantise(graph, path, scales, weights_only=weights_only)


def _embedded(run: Run, batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return unit(np.concatenate([run(*batch) for batch in batches]))


@exporters("openvino")
def to_openvino(source: Source, new: Path) -> Opener:
    """OpenVINO's form with float16 weights, computed in bfloat16 where the processor does."""
    _save_openvino(_graph(source), new)
    return _finish(source, new, "openvino", "model.xml", {"INFERENCE_PRECISION_HINT": "bf16"})


@exporters("openvino-int8")
def to_openvino_int8(source: Source, new: Path) -> Opener:
    """OpenVINO with int8 weights, one scale a channel, calibrated; inputs quantised token by token."""
    size = read_object(transformer_folder(source.folder) / "config.json").get("hidden_size", 0)
    hints = {"INFERENCE_PRECISION_HINT": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(size)}

    def opened(graph: Path) -> Run:
        _save_openvino(graph, source.scratch)
        return run_openvino(source.scratch / "model.xml", INPUTS, hints=hints)

    path = source.scratch / "int8.onnx"
    _quantise(source, path, opened, weights_only=True)
    _save_openvino(path, new)
    return _finish(source, new, "openvino", "model.xml", hints)


def _save_openvino(graph: Path, new: Path) -> None:
    try:
        import openvino
    except ImportError:
        raise MissingExtra("openvino", "export") from None
    try:
        openvino.save_model(openvino.Core().read_model(str(graph)), str(new / "model.xml"), compress_to_fp16=True)
    except RuntimeError as error:
        raise CocktailError(f"OpenVINO can't write it: {str(error).splitlines()[0]}") from None


@exporters("torch-bf16")
def to_torch_bf16(source: Source, new: Path) -> Opener:
    """A sentence-transformers folder with bfloat16 weights: half the size, loaded by all that load the model."""
    import torch
    from safetensors.torch import load_file, save_file

    for file in files_under(source.folder):
        path = new / file.relative_to(source.folder)
        if file.name in (RUN_FILE, "README.md", "recipe.toml") or file.suffix == ".py":
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, path)
    weights = list(new.rglob("*.safetensors"))
    if not weights:
        raise UsageError(f"{source.profile.name} has no safetensors; bge-cocktail doctor --fix writes them")
    for file in weights:
        tensors = load_file(file)
        halved = {name: one.to(torch.bfloat16) if one.is_floating_point() else one for name, one in tensors.items()}
        save_file(halved, file, metadata={"format": "pt"})
    config = transformer_folder(new) / "config.json"
    if config.is_file():
        write_json(config, {**read_object(config), "dtype": "bfloat16"})
    return lambda: TorchBackend(new, ServeOptions(device="cpu", precision="bf16"))


@exporters("static", own_space=True)
def to_static(source: Source, new: Path) -> Opener:
    """Static embeddings of the model's own tokens (model2vec): hundreds of times quicker, and a loss to be judged."""
    try:
        import model2vec.distill  # noqa: F401
    except ImportError:
        raise MissingExtra("model2vec", "static") from None
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, StaticEmbedding

    from bge_cocktail.models.layout import make_portable

    size = source.options.dimensions or source.profile.dimensions or 256
    # model2vec draws bars of its own, and says which options an older version lacks
    with progress("distilling tokens", 1), redirect_stderr(StringIO()):
        embedding = StaticEmbedding.from_distillation(str(source.folder), device="cpu", pca_dims=size)
    SentenceTransformer(modules=[embedding, Normalize()], device="cpu").save_pretrained(
        str(new), create_model_card=False
    )
    make_portable(new)
    return lambda: TorchBackend(new, ServeOptions(device="cpu"))
