"""Texts to logits and probabilities."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.devices import enough_memory, resolve_precision
from bge_cocktail.core.errors import CocktailError, DataError
from bge_cocktail.core.progress import progress
from bge_cocktail.data.columns import parse_columns, text_of_row
from bge_cocktail.data.readers import BadRows
from bge_cocktail.data.record import Text
from bge_cocktail.models.embed import NO_LIMIT, batches_by_tokens, tokens_at_once, truncated
from bge_cocktail.models.tokens import Features, Packer, TokenisedTexts
from bge_cocktail.options import PredictOptions, PrepareOptions
from bge_cocktail.preparing.clean import Cleaner
from bge_cocktail.training.classifier.data import check_form

if TYPE_CHECKING:
    from pathlib import Path

    from sentence_transformers import CrossEncoder

    from bge_cocktail.training.classifier.model import Classifier, ClassifierConfig

HEAD_SHARE = 0.25


class Tokens:
    """Tokenised texts, cut at the longest, ready to be padded.

    Args:
        model: For its tokenizer and its longest text.
        texts: Texts, or pairs; of a pair that is too long, the longer text loses its end first.
        truncation: ``head`` keeps the start, ``head+tail`` a quarter from the start and the rest from the end.
    """

    def __init__(self, model: CrossEncoder, texts: Sequence[Text], truncation: str = "head") -> None:
        import torch

        self._tokenizer = model.tokenizer
        longest = model.max_seq_length
        if truncation != "head+tail":  # which needs the end
            limit = longest or NO_LIMIT
            texts = [
                truncated(text, limit)
                if isinstance(text, str)
                else (truncated(text[0], limit), truncated(text[1], limit))
                for text in texts
            ]
        if truncation == "head+tail":
            texts = keep_ends(model, texts)
        columns = [list(column) for column in zip(*(_both(text) for text in texts), strict=True)]
        encoded = self._tokenizer(*columns, truncation=True, max_length=longest) if columns else {"input_ids": []}
        self.lengths: list[int] = [len(ids) for ids in encoded["input_ids"]]
        streams = {name: torch.tensor([one for row in rows for one in row]) for name, rows in encoded.items()}
        alike = {"modality": "text"}
        self._texts = TokenisedTexts(streams, np.array(self.lengths), range(len(texts)), self._tokenizer, alike)

    def chunks(self, budget: int, *, packed: bool = False) -> list[list[int]]:
        """Places of the texts, sorted by length and cut by a budget of tokens; see `batches_by_tokens`."""
        return batches_by_tokens(self.lengths, budget, packed=packed)

    def features(self, places: list[int], pack: Packer | None = None) -> Features:
        """Return what the model takes, for some of the texts."""
        return self._texts.padded(places) if pack is None else pack(self._texts, places)


def keep_ends(model: CrossEncoder, texts: Sequence[Text]) -> list[Text]:
    """Texts that are too long with their middle cut out: a quarter is from the start, the rest from the end.

    Pairs stay as they are. (Sun et al., arXiv:1905.05583: 128 tokens from the start, 382 from the end.)
    """
    single = [text for text in texts if isinstance(text, str)]
    if len(single) < len(texts):
        return list(texts)
    tokenizer = model.tokenizer
    room = model.max_seq_length - tokenizer.num_special_tokens_to_add()
    head = int(room * HEAD_SHARE)
    offsets = tokenizer(single, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    kept: list[Text] = []
    for text, spans in zip(single, offsets, strict=True):
        cut = len(spans) > room
        kept.append(f"{text[: spans[head - 1][1]]} {text[spans[head - room][0] :]}" if cut else text)
    return kept


def _both(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


log = logging.getLogger(__name__)
Floats = NDArray[np.float32]
BLOCK = 20_000


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is predicted for a text.

    Attributes:
        labels: The likeliest one; where a text may have several, all above the threshold.
        probabilities: Of each label, shape (classes,).
    """

    labels: tuple[str, ...]
    probabilities: Floats


def predict(classifier: Classifier, texts: Sequence[Text], options: PredictOptions | None = None) -> list[Prediction]:
    """Predict the labels of texts, cleaned as those of the training were.

    Args:
        classifier: From `load_classifier`.
        texts: Texts, or pairs for a classifier of pairs; empty after cleaning, a text is predicted as it is.
        options: Precision, temperature.

    Raises:
        DataError: Pairs for a classifier of single texts, or the other way round.
    """
    options = options or PredictOptions()
    settings = classifier.settings
    if options.calibrated and settings.temperature == 1.0:
        log.warning("no temperature was found for this model: its probabilities are as they come")
    logits = logits_of(classifier.model, cleaned(texts, settings), settings.truncation, options)
    likely = probabilities(logits, settings, settings.temperature if options.calibrated else 1.0)
    # from the logits: a temperature changes how sure the model is, not what it says
    guessed = chosen(logits.astype(np.float64), settings.multi_label, settings.threshold)
    names = np.array(settings.labels, dtype=object)
    return [Prediction(tuple(names[own]), row) for own, row in zip(guessed, likely, strict=True)]


def logits_of(
    model: CrossEncoder, texts: Sequence[Text], truncation: str, options: PredictOptions, label: str = "predicting"
) -> Floats:
    """Logits of cleaned texts, in batches of nearly equal length, each text once.

    Returns:
        Shape (texts, classes).

    Raises:
        CocktailError: The model gave NaN or infinite numbers.
    """
    import torch

    from bge_cocktail.models.packing import packer

    precision = resolve_precision(options.precision, model.device.type)
    budget = options.batch_tokens or tokens_at_once(model.device.type, precision)
    if not texts:
        return np.empty((0, model.num_labels), np.float32)
    distinct = list(dict.fromkeys(texts))
    tokens = Tokens(model, distinct, truncation)
    rows: list[Floats] = []
    order: list[int] = []
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16")
    memory = enough_memory(label, "predict with a smaller `batch_tokens`")
    training = model.training
    model.eval()
    pack = packer(model, options.packed, precision)
    with progress(label, len(distinct)) as advance, torch.inference_mode(), autocast, memory:
        for chunk in tokens.chunks(budget, packed=pack is not None):
            features = {
                name: value.to(model.device) if isinstance(value, torch.Tensor) else value
                for name, value in tokens.features(chunk, pack).items()
            }
            rows.append(model(features)["scores"].float().cpu().numpy())
            order += chunk
            advance(len(chunk))
    model.train(training)
    logits = np.empty((len(distinct), rows[0].shape[1]), np.float32)
    logits[order] = np.concatenate(rows)
    if not np.isfinite(logits).all():
        bad = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
        raise CocktailError(f"the model gives NaN or infinite numbers, first for: {str(distinct[bad])[:80]!r}")
    place = {text: number for number, text in enumerate(distinct)}
    return logits[[place[text] for text in texts]]


def probabilities(logits: Floats, settings: ClassifierConfig, temperature: float = 1.0) -> Floats:
    """Softmax of the logits, or of several labels the sigmoid of each.

    Args:
        logits: Shape (texts, classes).
        settings: Whether a text may have several labels.
        temperature: Divides the logits.
    """
    from scipy.special import expit, softmax

    scaled = logits.astype(np.float64) / temperature
    likely = expit(scaled) if settings.multi_label else softmax(scaled, axis=1)
    return np.asarray(likely, np.float32)


def cleaned(texts: Sequence[Text], settings: ClassifierConfig) -> list[Text]:
    """Texts as the classifier's training had them.

    Raises:
        DataError: Pairs for a classifier of single texts, or the other way round.
    """
    cleaner = Cleaner(PrepareOptions(clean=settings.clean))
    empty = 0

    def clean(text: str) -> str:
        nonlocal empty
        found = cleaner(text, "text")
        empty += found is None
        return text if found is None else found

    check_form(texts, settings.pairs, "texts")
    found: list[Text] = [clean(text) if isinstance(text, str) else (clean(text[0]), clean(text[1])) for text in texts]
    if empty:
        log.warning("%d texts are empty after cleaning and are predicted as they were", empty)
    return found


def read_texts(path: Path, settings: ClassifierConfig, columns: str = "") -> Iterator[tuple[str, Text, dict[str, Any]]]:
    """Yield the texts of a file, one at a time: JSON Lines, CSV, TSV or Parquet with columns, or plain lines.

    Args:
        path: The file.
        settings: Whether pairs are looked for.
        columns: Which column is what (``text=tweet``); told from the names without it.

    Yields:
        Where it stands, the text or pair, and its row.

    Raises:
        DataError: A row lacks its text.
        UsageError: The columns are said wrongly.
    """
    from bge_cocktail.data.readers import kind_of, rows_of_file, text_lines

    roles = parse_columns(columns)
    if not kind_of(path):
        for number, line in text_lines(path, BadRows()):
            if text := line.strip():
                yield f"{path}:{number}", text, {"text": text}
        return
    for where, row in rows_of_file(path, BadRows()):
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object with columns, got {type(row).__name__}")
        yield where, text_of_row(row, settings.pairs, roles, where), row


def predict_file(
    classifier: Classifier, path: Path, options: PredictOptions, columns: str = ""
) -> Iterator[tuple[str, dict[str, Any], Prediction]]:
    """Predict the rows of a file of any size: `BLOCK` of them are in memory at a time.

    Args:
        classifier: From `load_classifier`.
        path: The file; see `read_texts`.
        options: Precision, temperature.
        columns: Which column is what.

    Yields:
        Where each row stands, the row, and what is predicted for it, in the order of the file.
    """
    rows = read_texts(path, classifier.settings, columns)
    while block := list(islice(rows, BLOCK)):
        predictions = predict(classifier, [text for _, text, _ in block], options)
        yield from ((where, row, one) for (where, _, row), one in zip(block, predictions, strict=True))


def as_json(row: dict[str, Any], prediction: Prediction, settings: ClassifierConfig) -> str:
    """Return a line of JSON: the row, ``predicted`` and ``probabilities`` by label."""
    shown: Any = list(prediction.labels) if settings.multi_label else prediction.labels[0]
    named = zip(settings.labels, prediction.probabilities.tolist(), strict=True)
    # a table's empty cell may be NaN, which JSON has no word for
    own = {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in row.items()}
    value = {**own, "predicted": shown, "probabilities": {name: round(one, 6) for name, one in named}}
    return json.dumps(value, ensure_ascii=False, default=str)


def chosen(logits: NDArray[np.floating[Any]], multi_label: bool, threshold: float = 0.5) -> NDArray[np.bool_]:
    """Return what is predicted: the likeliest class, or all labels whose probability reaches the threshold.

    Returns:
        True for predicted labels, shape (texts, classes).
    """
    if multi_label:
        labelled: NDArray[np.bool_] = logits >= np.log(threshold / (1 - threshold))
        return labelled
    labelled = np.zeros(logits.shape, bool)
    labelled[np.arange(len(logits)), logits.argmax(axis=1)] = True
    return labelled
