"""Encoders: any sentence-transformers model, checked when it is loaded, its prompts, a cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from bge_cocktail.core.devices import choose_device, resolve_precision
from bge_cocktail.core.errors import CocktailError, DataError, explain_os_error
from bge_cocktail.core.outputs import read_object
from bge_cocktail.core.progress import progress
from bge_cocktail.core.runs import hash_path, note_finding
from bge_cocktail.data.record import Record
from bge_cocktail.models.cache import EmbeddingCache, Embeddings, TokenNumbers, default_cache_dir
from bge_cocktail.models.embed import compute_in_bf16, embed
from bge_cocktail.models.folder import model_folder, sentence_transformers_folder
from bge_cocktail.models.layers import layer_count
from bge_cocktail.models.layout import check_length, declared_length, modules_of, positions_of, transformer_folder
from bge_cocktail.models.prompts import Prompts, Role, model_prompts
from bge_cocktail.models.tokens import Packer
from bge_cocktail.options import EncodeOptions

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CANT_LOAD = (
    *(OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ArithmeticError, AssertionError),
    ImportError,
    *(SafetensorError, StrictDataclassError, UnpicklingError),
)
"""What libraries raise for a folder that is no model, or a broken one."""
# what encoders come with or without, and embeddings don't use
_OPTIONAL = ("pooler.",)


def why_not(error: Exception) -> str:
    """Return what an error of `CANT_LOAD` says; of a pickle with code in it not torch's advice to run that."""
    if isinstance(error, UnpicklingError) or "weights_only" in str(error):
        return "its .bin file holds more than tensors, such as code, and none is run; take safetensors"
    return str(error)


def weight_files(folder: Path) -> dict[str, Any]:
    """Return how transformers shall read the weights: safetensors, or where there are none, pickles without any code.

    Args:
        folder: Of the transformer itself.
    """
    return {"use_safetensors": any(folder.glob("*.safetensors")) or not any(folder.glob("*.bin"))}


# characters of which hardly a vocabulary has one
_UNKNOWN = "\U0001f9ff \u13a0\u13a1"


def check_loaded(name: str | Path, base: Path, model: Any, tokenizer: Any) -> None:
    """Raise where a model was loaded that isn't whole: it would embed, but nothing that it has learned.

    Args:
        name: For the message.
        base: Its folder.
        model: A loaded transformers model, all of whose weights shall be in the folder.
        tokenizer: Its tokenizer.

    Raises:
        DataError: The files lack weights, for which transformers takes random numbers; or the tokenizer knows no word,
            or more tokens than the model, or none to pad with or for what it doesn't know.
    """
    folder = transformer_folder(base)
    if tokenizer is not None and len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise DataError(f"{name}: its tokenizer knows no word; {folder} lacks its files (tokenizer.json or vocab.txt)")
    try:
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):  # transformers' way to say that it has none
        rows = None
    if tokenizer is not None and rows is not None and len(tokenizer) > rows:
        raise DataError(
            f"{name}: the tokenizer knows {len(tokenizer)} tokens, the model has embeddings for {rows}; were tokens "
            "added without resize_token_embeddings?"
        )
    if tokenizer is not None:
        try:
            tokenizer(_UNKNOWN)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # tokenizers raises plain exceptions, and Rust's panics, which are none
            raise DataError(f"{name}: its tokenizer can't read a word that it doesn't know: {error}") from None
    if tokenizer is not None and getattr(tokenizer, "pad_token", "") is None:
        raise DataError(f"{name}: its tokenizer has no padding token (pad_token), which batches need")
    if lacking := _lacking(folder, model):
        shown = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if lacking[3:] else "")
        raise DataError(
            f"{name}: its files lack the weights {shown}; without them it would embed at random; get its files again"
        )


def _lacking(folder: Path, model: Any) -> list[str]:
    """Names of the weights that the files don't have."""
    from safetensors import safe_open

    held: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            held |= set(opened.keys())
    prefix = f"{model.base_model_prefix}."
    bare = {name.removeprefix(prefix) for name in held}
    # a head on top may go through the pooler
    optional = _OPTIONAL if model.base_model is model else ()
    wanted = [name for name in model.state_dict() if not any(part in name for part in optional)]
    layers = layer_count(model.state_dict())
    if layer_count(held) > layers > 0:
        raise DataError(
            f"{folder}: config.json says {layers} layers, its weights hold {layer_count(held)}; half a model would "
            "embed; get its config.json again"
        )
    if all(name.removeprefix(prefix) in bare for name in wanted):
        return []
    # names may differ and still be known to transformers (older ones, tied ones), and pickles were not looked into
    given = {**weight_files(folder), "local_files_only": True, "output_loading_info": True}
    _, info = type(model).from_pretrained(folder, **given)
    return sorted(name for name in info["missing_keys"] if not any(part in name for part in optional))


log = logging.getLogger(__name__)
BLOCK = 20_000
# of unit embeddings, what rounding leaves between equal ones
SAME = 1e-6
PLURAL: dict[Role, str] = {"query": "queries", "document": "documents", "text": "texts"}


class Encoder(Protocol):
    """Whatever embeds: texts in, float32 embeddings of unit norm out, shape (texts, dimensions)."""

    def encode_query(self, texts: Sequence[str], prompt: str | None = None) -> Embeddings:
        """Embed queries, with the prompt for queries, or the one given."""
        ...

    def encode_document(self, texts: Sequence[str]) -> Embeddings:
        """Embed documents, with the prompt for documents."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts that are neither (for classification), with the model's default prompt."""
        ...


def load_encoder(name: str | Path, *, device: str = "auto", max_length: int | None = None) -> SentenceTransformer:
    """Load a sentence-transformers model from a folder or by its hub name.

    Local folders cause no network call, and code inside a model is never run.

    Args:
        name: A folder or a hub name.
        device: ``auto`` takes a GPU if there is one.
        max_length: Longest text in tokens, instead of what the model declares.

    Raises:
        DataError: No such model, or its weights can't be read.
        UsageError: No such device, or a length beyond the model's positions.
    """
    folder = sentence_transformers_folder(name)
    if any(kind == "Router" for kind, _ in modules_of(folder)):
        raise DataError(f"{name} has separate routes for queries and documents (a Router module): not supported")
    _check_modules(name, folder)
    check_length(folder, max_length)
    declared_length(folder)  # a length that is none would be met in the middle of the work
    with progress(f"loading {Path(name).name}", 1):  # the libraries alone take seconds to import
        model = _load(name, folder, device)
    if model.similarity_fn_name not in (None, "cosine"):
        log.warning(
            "%s declares similarity '%s'; embeddings are normalised here: cosine", name, model.similarity_fn_name
        )
    if max_length is not None:
        model.max_seq_length = max_length
    elif hasattr(model[0], "auto_model"):
        room = positions_of(model[0].auto_model.config.to_dict())
        if room is not None and (model.max_seq_length is None or model.max_seq_length > room):
            model.max_seq_length = room
    return model


# more than any model has; what a file says beyond is not allocated
_MOST_LAYERS = 1000
# what modules say of the vectors that come in and go out
_SIZES = {
    "Pooling": ("word_embedding_dimension", "embedding_dimension"),
    "Dense": ("in_features", "out_features"),
}


def _check_modules(name: str | Path, folder: Path) -> None:
    """Raise where modules don't make one embedding of a text, or the configuration can't be meant."""
    kinds = [kind for kind, _ in modules_of(folder)]
    if not kinds or kinds[0] in ("Pooling", "Dense", "Normalize"):
        raise DataError(f"{name}: modules.json begins with {kinds[0] if kinds else 'nothing'}; what embeds is missing")
    if "Transformer" in kinds and not {"Pooling", "WordWeights", "CNN", "LSTM"} & set(kinds):
        raise DataError(f"{name}: modules.json has no Pooling, so that no text gets one embedding")
    config = transformer_folder(folder) / "config.json"
    layers = read_object(config).get("num_hidden_layers") if config.is_file() else None
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise DataError(f"{config}: num_hidden_layers is {layers:.3g}, which can't be meant")
    for kind, place in modules_of(folder):
        described = read_object(path) if (path := place / "config.json").is_file() and kind in _SIZES else {}
        for size in _SIZES.get(kind, ()):
            value = described.get(size)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise DataError(f"{path}: '{size}' must be a whole number of at least 1, got {value!r:.40}")


def _load(name: str | Path, folder: Path, device: str) -> SentenceTransformer:
    import torch
    from sentence_transformers import SentenceTransformer

    quiet_libraries()
    try:
        model = SentenceTransformer(
            str(folder),
            device=choose_device(device),
            local_files_only=True,
            trust_remote_code=False,
            # weights stored in half precision are computed with, and tuned, in full: small steps would be lost
            model_kwargs={"dtype": torch.float32, **weight_files(transformer_folder(folder))},
        )
    except CANT_LOAD as error:
        raise CocktailError(f"{name}: the model can't be loaded: {why_not(error)}") from error
    if hasattr(model[0], "auto_model"):
        check_loaded(name, folder, model[0].auto_model, model.tokenizer)
    return model


class CachedEncoder:
    """An encoder over a model folder that embeds no text twice, not even across processes.

    The model itself is loaded when the first text is embedded that isn't in the cache.

    Args:
        name: A folder or a hub name.
        options: Prompts, precision, cache.
        load: Gives the loaded model, if it isn't simply what the folder holds.
    """

    def __init__(
        self,
        name: str | Path,
        options: EncodeOptions | None = None,
        *,
        load: Callable[[], SentenceTransformer] | None = None,
    ) -> None:
        self.name = str(name)
        self.options = options or EncodeOptions()
        self.folder = model_folder(name)
        if self.options.device not in ("auto", "cpu"):
            choose_device(self.options.device)  # before the work, part of which may come out of the cache
        self.load = load
        self._turned = False
        self._pack: Packer | None = None
        self._said: set[str] = set()
        self.about = self.name
        """What cut texts and unknown tokens are said of: the model, or the task that it is judged on."""
        self.tells = True
        """Whether anything is said of texts; not of a draw of those that were looked at."""
        self.embedded = 0
        """Texts embedded so far, those from the cache not counted."""
        self.seconds = 0.0
        """What embedding them took, loading the model left out."""

    @property
    def device(self) -> str:
        """Where it computes, as the options say it."""
        return self.options.device

    @cached_property
    def hash(self) -> str:
        """Hash of the folder's content: another model under the same name is another model."""
        return hash_path(self.folder)

    @cached_property
    def precision(self) -> Literal["fp32", "bf16"]:
        """The arithmetic that is really used."""
        if self.options.precision != "auto":
            return self.options.precision
        return "bf16" if resolve_precision("auto", choose_device(self.options.device)) == "bf16" else "fp32"

    @cached_property
    def model(self) -> SentenceTransformer:
        """The loaded model."""
        if self.load is not None:
            return self.load()
        from bge_cocktail.models.packing import packer

        model = load_encoder(self.folder, device=self.options.device, max_length=self.options.max_length)
        self._pack = packer(model, self.options.packed, self.precision)
        self._turned = self.precision == "bf16" and compute_in_bf16(model)
        return model

    @cached_property
    def prompts(self) -> Prompts:
        """What is put before every text."""
        options = self.options
        declared = model_prompts(self.folder)
        for role, chosen in (("query", options.query_prompt), ("document", options.document_prompt)):
            if chosen == "" and getattr(declared, role):
                note_finding("prompt left out", self.name, what="queries" if role == "query" else "documents")
        return model_prompts(self.folder, query=options.query_prompt, document=options.document_prompt)

    def encode_query(self, texts: Sequence[str], prompt: str | None = None) -> Embeddings:
        """Embed queries; see `Encoder`."""
        return self._encode(texts, "query", prompt)

    def encode_document(self, texts: Sequence[str], prompt: str | None = None) -> Embeddings:
        """Embed documents; see `Encoder`. A prompt goes before the document's own."""
        return self._encode(texts, "document", prompt)

    def encode_text(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts that are neither; see `Encoder`."""
        return self._encode(texts, "text")

    def _encode(self, texts: Sequence[str], role: Role, prompt: str | None = None) -> Embeddings:
        prompt = self.prompts.of(role) if prompt is None else prompt
        distinct = list(dict.fromkeys(texts))
        cache = self._cache(prompt) if self.options.cache else None
        embeddings: Embeddings | None = None
        tokens, known = np.zeros((len(distinct), 4), np.uint32), np.zeros(len(distinct), bool)
        if cache:
            embeddings, tokens, known = cache.get(distinct)
        missing = [text for text, here in zip(distinct, known, strict=True) if not here]
        # in blocks, so that hours of embedding that are cut off are not lost
        for start in range(0, len(missing), BLOCK):
            block, rows = missing[start : start + BLOCK], np.flatnonzero(~known)[start : start + BLOCK]
            model = self.model  # loading it tells whether it could be turned to bf16, and be packed
            started = time.perf_counter()
            fresh = embed(
                model,
                block,
                prompt=prompt,
                precision="fp32" if self._turned else self.precision,
                batch_tokens=self.options.batch_tokens,
                label=f"{self.name.rstrip('/').rsplit('/', 1)[-1]}: {PLURAL[role]}",
                on_tokens=lambda numbers, rows=rows: tokens.__setitem__(rows, numbers),  # type: ignore[misc]
                pack=self._pack,
            )
            self.embedded += len(block)
            self.seconds += time.perf_counter() - started
            if cache:
                try:
                    cache.put(block, fresh, tokens[rows])
                except OSError as error:
                    log.warning("embeddings are not kept: %s", explain_os_error(error))
                    cache = None
            if embeddings is None:
                embeddings = np.zeros((len(distinct), fresh.shape[1]), np.float32)
            embeddings[rows] = fresh
        if embeddings is None:
            raise CocktailError("no texts to embed")
        self._look_at(role, tokens, embeddings)
        row = {text: index for index, text in enumerate(distinct)}
        return embeddings[[row[text] for text in texts]]

    def _look_at(self, role: Role, tokens: TokenNumbers, embeddings: Embeddings) -> None:
        """Say, of texts that may come out of the cache, what a reader should know: cut, unknown, all embedded alike."""
        if not self.tells:
            return
        # the first two tell most models apart without a look at all
        if len(embeddings) > 1 and all(np.ptp(part, axis=0).max() <= SAME for part in (embeddings[:2], embeddings)):
            note_finding("equal embeddings", self.name, len(embeddings))
        every, unknown, overhead, limit = tokens.astype(np.int64).T
        if 2 * unknown.sum() > (every - overhead).sum():
            note_finding("unknown tokens", self.about, int(unknown.sum()), int((every - overhead).sum()))
        if not (cut := int((every > limit).sum())):
            return
        what = f"{PLURAL[role]} are longer than {limit.max()} tokens and were cut there"
        if cut > len(tokens) / 2:
            note_finding("texts cut", self.about, cut, len(tokens), what)
        elif (line := f"{self.about}: {cut:,} of {len(tokens):,} {what}") not in self._said:
            self._said.add(line)
            log.info(line)

    def _cache(self, prompt: str) -> EmbeddingCache:
        folder = self.options.cache_dir or default_cache_dir()
        return EmbeddingCache(
            folder,
            {
                "model": self.hash,
                "prompt": prompt,
                "precision": self.precision,
                "max_length": self.options.max_length,
            },
        )


class LoadedEncoder:
    """An encoder over a model in memory that still changes (while it is trained), so nothing is cached.

    Args:
        model: The model.
        prompts: Put before every text.
        precision: Arithmetic of the encoder.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        prompts: Prompts | None = None,
        *,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        self._embed: Callable[..., Embeddings] = lambda texts, prompt: embed(
            model, texts, prompt=prompt, precision=precision, label="dev"
        )
        self.prompts = prompts or Prompts()

    def encode_query(self, texts: Sequence[str], prompt: str | None = None) -> Embeddings:
        """Embed queries; see `Encoder`."""
        return self._embed(texts, self.prompts.query if prompt is None else prompt)

    def encode_document(self, texts: Sequence[str]) -> Embeddings:
        """Embed documents; see `Encoder`."""
        return self._embed(texts, self.prompts.document)

    def encode_text(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts that are neither; see `Encoder`."""
        return self._embed(texts, self.prompts.text)


def encode_queries_of(records: Sequence[Record], encoder: Encoder) -> Embeddings:
    """Embeddings of the records' queries, each with the record's own prompt if it has one.

    Returns:
        Shape (records, dimensions).
    """
    if not records:
        raise CocktailError("no records to embed")
    rows: dict[str | None, list[int]] = {}
    for row, record in enumerate(records):
        rows.setdefault(record.prompt, []).append(row)
    parts = [
        encoder.encode_query([records[row].query for row in chosen], *([] if prompt is None else [prompt]))
        for prompt, chosen in rows.items()
    ]
    if len(parts) == 1:
        return parts[0]
    embeddings = np.empty((len(records), parts[0].shape[1]), np.float32)
    embeddings[np.concatenate(list(rows.values()))] = np.concatenate(parts)
    return embeddings


def quiet_libraries() -> None:
    """Silence the loading bars of transformers and torch's advice; errors still come as exceptions."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
