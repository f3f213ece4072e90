"""A classifier judged on labelled texts: scores with intervals, classes, calibration, what it gets wrong; baselines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import UsageError
from bge_cocktail.core.outputs import new_folder, refuse_to_replace, write_json
from bge_cocktail.core.runs import RUN_FILE, begin_findings, describe_run, hash_path, note_finding
from bge_cocktail.data.labelled import LabelledTexts, number_labels
from bge_cocktail.data.record import Text
from bge_cocktail.data.sources import Source
from bge_cocktail.evaluating.measures import macro_f1
from bge_cocktail.evaluating.scores import bootstrap_interval
from bge_cocktail.evaluating.tasks.labelled import LabelledEmbeddings, features, knn, logistic
from bge_cocktail.models.encoder import CachedEncoder, Encoder
from bge_cocktail.models.folder import model_folder
from bge_cocktail.options import ClassifyOptions, EncodeOptions, EvaluateOptions, PredictOptions
from bge_cocktail.training.classifier.data import check_form, read_class_data, read_split
from bge_cocktail.training.classifier.model import Classifier, ClassifierConfig, load_classifier
from bge_cocktail.training.classifier.predict import chosen, logits_of, probabilities

Floats = NDArray[np.float64]
BINS = 15


def dev_metrics(logits: NDArray[np.float32], data: LabelledTexts, options: ClassifyOptions) -> dict[str, float]:
    """Return what is watched while a classifier is tuned.

    Args:
        logits: Shape (texts, classes).
        data: The texts' labels.
        options: Whether a text may have several, and from which probability one counts.

    Returns:
        accuracy (of several labels: the share of texts with exactly the right ones), macro-F1, and the loss,
        cross-entropy without weights or smoothing.
    """
    truth = data.targets(logits.shape[1]).astype(bool)
    loss = float(np.mean(log_losses(logits, truth, options.multi_label)))
    guessed = chosen(logits.astype(np.float64), options.multi_label, options.threshold)
    return {"accuracy": accuracy(truth, guessed), "macro-F1": f1_of_classes(truth, guessed), "loss": loss}


def accuracy(truth: NDArray[np.bool_], guessed: NDArray[np.bool_]) -> float:
    """Share of the texts whose labels are all right."""
    return float((truth == guessed).all(axis=1).mean())


def f1_of_classes(truth: NDArray[np.bool_], guessed: NDArray[np.bool_]) -> float:
    """Return macro-F1 (see `measures.macro_f1`) of true and predicted labels, shapes (texts, classes)."""
    return float(macro_f1((truth & guessed).sum(axis=0), truth.sum(axis=0) + guessed.sum(axis=0)))


def log_losses(
    logits: NDArray[np.float32], truth: NDArray[np.bool_], multi_label: bool, temperature: float = 1.0
) -> Floats:
    """Cross-entropy of each text, of several labels the mean over them, shape (texts,)."""
    from scipy.special import log_expit, log_softmax

    scaled = logits.astype(np.float64) / temperature
    if multi_label:
        return np.asarray(-np.where(truth, log_expit(scaled), log_expit(-scaled)).mean(axis=1))
    return np.asarray(-log_softmax(scaled, axis=1)[truth])


def calibration_temperature(logits: NDArray[np.float32], data: LabelledTexts, multi_label: bool) -> float:
    """Return the temperature with the least cross-entropy on dev (Guo et al., arXiv:1706.04599).

    Args:
        logits: Shape (texts, classes).
        data: The texts' labels.
        multi_label: Whether a text may have several.
    """
    from scipy.optimize import minimize_scalar

    truth = data.targets(logits.shape[1]).astype(bool)

    def loss(exponent: float) -> float:
        return float(log_losses(logits, truth, multi_label, float(np.exp(exponent))).mean())

    # within e^-6 and e^6: beyond, dev is too small or too easy to say
    return float(np.exp(minimize_scalar(loss, bounds=(-6, 6), method="bounded").x))


def calibration_error(probabilities: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    """Expected calibration error: how far confidence is from accuracy, over 15 bins of confidence (arXiv:1706.04599).

    Args:
        probabilities: Of the predicted labels, shape (predictions,).
        right: Whether each is right, shape (predictions,).
    """
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    gaps = np.abs(np.bincount(bins, right, BINS) - np.bincount(bins, probabilities.astype(np.float64), BINS))
    return float(gaps.sum() / max(counts.sum(), 1))


SHOWN = 20
# words; the last bucket is open
LENGTHS = (8, 16, 32, 64, 128, 256)


class Mistake(TypedDict):
    """A text with its labels and what was predicted: one name, or a list where there may be several."""

    text: Text
    label: str | list[str]
    predicted: str | list[str]
    probability: float


class Confusion(TypedDict):
    """How many texts of a label are taken for another, and what share of that label's texts."""

    label: str
    predicted: str
    count: int
    share: float


class LengthAccuracy(TypedDict):
    """Accuracy on texts of a range of words."""

    words: str
    count: int
    accuracy: float


class LabelError(TypedDict):
    """A text whose label is likely another; `number` counts texts from 1."""

    text: Text
    number: int
    label: str
    likely: str
    margin: float


class ClassScore(TypedDict):
    """Precision, recall and F1 of a label, and how many texts have it."""

    label: str
    precision: float
    recall: float
    F1: float
    count: int


class MetricScore(TypedDict):
    """A metric with its interval; `positive` is the label that AUC and AP rank for."""

    metric: str
    value: float
    interval: tuple[float, float]
    positive: NotRequired[str]


class FrozenAccuracy(TypedDict):
    """How often a way on frozen embeddings is right, and the strength or number of votes that dev chose."""

    way: str
    accuracy: float
    interval: tuple[float, float]
    C: NotRequired[float]
    k: NotRequired[int]


class Judgement(TypedDict):
    """What is said of a classifier. A confusion matrix (rows are the truth) needs texts of one label each."""

    count: int
    scores: list[MetricScore]
    classes: list[ClassScore]
    mistakes: list[Mistake]
    lengths: list[LengthAccuracy]
    confusion: NotRequired[list[list[int]]]
    confusions: NotRequired[list[Confusion]]
    label_errors: NotRequired[list[LabelError]]
    frozen: NotRequired[list[FrozenAccuracy]]


def mistakes(
    data: LabelledTexts, likely: NDArray[np.float64], guessed: NDArray[np.bool_], labels: Sequence[str]
) -> list[Mistake]:
    """Return the mistakes that it is surest of.

    Args:
        data: Texts and labels.
        found: Probabilities, shape (texts, classes).
        guessed: What is predicted, shape (texts, classes).
        labels: Names of the classes.
    """
    truth = data.targets(len(labels)).astype(bool)
    wrong = np.flatnonzero((truth != guessed).any(axis=1))
    # how sure it is of the label that is most wrong
    apart = np.where(truth, 1 - likely, likely)[wrong].max(axis=1)
    order = wrong[np.argsort(-apart, kind="stable")][:SHOWN]
    return [
        {
            "text": data.texts[row],
            "label": _named(truth[row], labels),
            "predicted": _named(guessed[row], labels),
            "probability": round(float(np.where(truth[row], 1 - likely[row], likely[row]).max()), 4),
        }
        for row in order.tolist()
    ]


def confusions(matrix: NDArray[np.int_], labels: Sequence[str]) -> list[Confusion]:
    """Return which label is taken for which, the most frequent first.

    Args:
        matrix: Texts by true label (rows) and predicted one, shape (classes, classes).
        labels: Names of the classes.
    """
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:SHOWN]
    places = zip(*(part.tolist() for part in np.unravel_index(order, off.shape)), strict=True)
    totals = matrix.sum(axis=1)
    return [
        {
            "label": labels[row],
            "predicted": labels[column],
            "count": int(off[row, column]),
            "share": round(float(off[row, column] / totals[row]), 4),
        }
        for row, column in places
        if off[row, column]
    ]


def accuracy_by_length(texts: Sequence[Text], correct: NDArray[np.bool_]) -> list[LengthAccuracy]:
    """Return accuracy by number of words.

    Args:
        texts: Texts or pairs.
        correct: Whether the classifier labelled each text right, shape (texts,).

    Returns:
        For each range of lengths that holds a text, such as "8-15" words.
    """
    words = np.array([len((text if isinstance(text, str) else " ".join(text)).split()) for text in texts])
    buckets = np.searchsorted(LENGTHS, words, side="right")
    starts = [0, *LENGTHS]
    return [
        {
            "words": f"{starts[bucket]}-{LENGTHS[bucket] - 1}" if bucket < len(LENGTHS) else f"{LENGTHS[-1]} or more",
            "count": int((buckets == bucket).sum()),
            "accuracy": float(correct[buckets == bucket].mean()),
        }
        for bucket in sorted(set(buckets.tolist()))
    ]


def likely_label_errors(data: LabelledTexts, likely: NDArray[np.float64], labels: Sequence[str]) -> list[LabelError]:
    """Texts whose label is likely wrong (confident learning, Northcutt et al., arXiv:1911.00068).

    A text counts as of another class where that one's probability reaches the mean that it has among the texts so
    labelled, and no other such class is likelier. The model must not have been trained on these texts.

    Args:
        data: Texts, one label each.
        found: Probabilities, shape (texts, classes).
        labels: Names of the classes.

    Returns:
        All of them with their number among the texts, the surest first: by how much likelier the other class is than
        the given one.
    """
    given = np.array([numbers[0] for numbers in data.labels])
    own = [likely[given == number, number] for number in range(len(labels))]
    means = np.array([label.mean() if len(label) else np.inf for label in own])
    reached = np.where(likely >= means, likely, -1.0)
    other = reached.argmax(axis=1)
    rows = np.flatnonzero((reached.max(axis=1) >= 0) & (other != given))
    margin = likely[rows, other[rows]] - likely[rows, given[rows]]
    order = np.argsort(-margin, kind="stable")
    return [
        {
            "text": data.texts[row],
            "number": row + 1,
            "label": labels[int(given[row])],
            "likely": labels[int(other[row])],
            "margin": round(float(difference), 4),
        }
        for row, difference in zip(rows[order].tolist(), margin[order].tolist(), strict=True)
    ]


def _named(row: NDArray[np.bool_], labels: Sequence[str]) -> Any:
    names = [labels[number] for number in np.flatnonzero(row).tolist()]
    return names[0] if len(names) == 1 else names


# of metrics that must be computed anew for every resample
JUDGEMENT_FILE = "judgement.json"


def run_classifier_evaluate(
    model: str | Path,
    source: Source,
    output: Path,
    options: PredictOptions | None = None,
    *,
    encoder: str | None = None,
    overwrite: bool = False,
) -> Judgement:
    """Judge a classifier, and keep the judgement in a folder.

    Args:
        model: Folder or hub name of the classifier.
        source: Labelled texts or pairs; its split is judged, or a file as it is.
        output: The folder to write.
        options: How texts are embedded and labels chosen.
        encoder: Also judge a probe and nearest neighbours on this encoder's frozen embeddings.
        overwrite: Replace an older output of this tool.

    Returns:
        See `judge_classifier`; with an encoder also ``frozen``, the accuracy of each way on frozen embeddings.

    Raises:
        UsageError: An encoder with nothing to learn from, or an output that exists.
        DataError: Labels or a form of texts that the classifier doesn't know.
    """
    begin_findings()
    options = options or PredictOptions()
    refuse_to_replace(output, overwrite, [source.name, model])
    if encoder is not None and (source.path.is_file() or source.split in ("train", "dev")):
        raise UsageError("`encoder` learns from train and chooses by dev: judge the test of a folder or data set")
    started = time.monotonic()
    classifier = load_classifier(model, device=options.device)
    config = classifier.settings
    if encoder is not None and config.multi_label:
        raise UsageError("`encoder`: probe and nearest neighbours give a text one label, this classifier any number")
    where = f"{source.name} ({source.split})"
    data = number_labels(read_split(source, config.clean), config.labels, config.multi_label, where)
    check_form(data.texts, config.pairs, where)
    judged = judge_classifier(classifier, data, options)
    largest = max(row["count"] for row in judged["classes"]) / max(1, judged["count"])
    if not config.multi_label and judged["scores"][0]["interval"][0] <= largest:
        note_finding("no better than chance", where, what=f"{largest:.3f}")
    if encoder is not None:
        chosen = ClassifyOptions(clean=config.clean, multi_label=config.multi_label)
        known = read_class_data(replace(source, split="train"), chosen, config.labels)
        judged["frozen"] = _baselines(encoder, known.train, known.dev, data, options)
    content = hash_path(source.path) if source.path.exists() else ""
    inputs = {str(model): hash_path(model_folder(model)), source.name: content}
    with new_folder(output, overwrite=overwrite) as new:
        write_json(new / JUDGEMENT_FILE, judged)
        described = describe_run(
            "classify evaluate",
            options=options.model_dump(mode="json"),
            inputs=inputs,
            seconds=time.monotonic() - started,
        )
        write_json(new / RUN_FILE, described)
    return judged


def _baselines(
    encoder: str, train: LabelledTexts, dev: LabelledTexts, data: LabelledTexts, options: PredictOptions
) -> list[FrozenAccuracy]:
    embeds = CachedEncoder(encoder, EncodeOptions(device=options.device))
    truth = data.classes()

    def judged(way: str, predicted: NDArray[np.int64]) -> FrozenAccuracy:
        right = (predicted == truth).astype(float)
        interval = bootstrap_interval(right, seed=EvaluateOptions().seed)
        return {"way": way, "accuracy": float(right.mean()), "interval": interval}

    predicted, strength = probe(embeds, train, dev, data.texts)
    neighbours, count = nearest_neighbours(embeds, train, dev, data.texts)
    return [{**judged("probe", predicted), "C": strength}, {**judged("nearest neighbours", neighbours), "k": count}]


RESAMPLES = 1000


def judge_classifier(
    classifier: Classifier,
    data: LabelledTexts,
    predicting: PredictOptions | None = None,
    evaluating: EvaluateOptions | None = None,
) -> Judgement:
    """Judge a classifier.

    Args:
        classifier: From `load_classifier`.
        data: Cleaned texts, their labels numbered as the classifier's.
        predicting: Precision, temperature.
        evaluating: Confidence of the intervals, seed.

    Returns:
        See `judge_logits`.
    """
    predicting, evaluating = predicting or PredictOptions(), evaluating or EvaluateOptions()
    settings = classifier.settings
    logits = logits_of(classifier.model, data.texts, settings.truncation, predicting)
    return judge_logits(logits, data, settings, evaluating, settings.temperature if predicting.calibrated else 1.0)


def judge_logits(
    logits: NDArray[np.float32],
    data: LabelledTexts,
    settings: ClassifierConfig,
    options: EvaluateOptions,
    temperature: float = 1.0,
) -> Judgement:
    """Judge logits.

    Args:
        logits: Shape (texts, classes).
        data: The texts and their labels.
        settings: Names of the labels, and whether a text may have several.
        options: Confidence of the intervals, seed.
        temperature: Divides the logits where probabilities are judged.

    """
    truth = data.targets(len(settings.labels)).astype(bool)
    likely = probabilities(logits, settings, temperature).astype(np.float64)
    guessed = chosen(logits.astype(np.float64), settings.multi_label, settings.threshold)
    several = settings.multi_label
    judged: Judgement = {
        "count": len(data),
        "scores": _scores(logits, likely, truth, guessed, settings, options, temperature),
        "classes": _classes(truth, guessed, settings.labels),
        "mistakes": mistakes(data, likely, guessed, settings.labels),
        "lengths": accuracy_by_length(data.texts, (truth == guessed).all(axis=1)),
    }
    if not several:
        matrix = truth.T.astype(int) @ guessed.astype(int)
        judged["confusion"] = matrix.tolist()
        judged["confusions"] = confusions(matrix, settings.labels)
        judged["label_errors"] = likely_label_errors(data, likely, settings.labels)
    return judged


def _scores(
    logits: NDArray[np.float32],
    found: NDArray[np.float64],
    truth: NDArray[np.bool_],
    guessed: NDArray[np.bool_],
    settings: ClassifierConfig,
    options: EvaluateOptions,
    temperature: float,
) -> list[MetricScore]:
    rows = np.arange(len(truth), dtype=np.float64)

    def score(name: str, of: Callable[[Any], float], *, grows: bool = False) -> MetricScore:
        """A metric of some rows, with an interval over resamples of them; `grows`: resampling raises it by itself."""
        values: list[float] = []

        def statistic(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
            found = np.array([of(row.astype(int)) for row in drawn])
            values.extend(found.tolist())
            return found

        low, high = bootstrap_interval(
            rows, confidence=options.confidence, seed=options.seed, resamples=RESAMPLES, statistic=statistic
        )
        value = of(np.arange(len(truth)))
        excess = np.nanmean(values) - value if grows else 0.0
        return {"metric": name, "value": value, "interval": (max(float(low - excess), 0.0), float(high - excess))}

    losses = log_losses(logits, truth, settings.multi_label, temperature)
    sure, right = _sureness(found, truth, guessed, settings.multi_label)
    scores = [
        score("accuracy", lambda rows: accuracy(truth[rows], guessed[rows])),
        score("macro-F1", lambda rows: f1_of_classes(truth[rows], guessed[rows])),
        score("log-loss", lambda rows: float(losses[rows].mean())),
        score(
            "calibration error",
            lambda rows: calibration_error(sure[rows].ravel().astype(np.float32), right[rows].ravel()),
            grows=True,  # a text that is drawn twice looks like evidence
        ),
    ]
    # of one class alone, there is nothing to rank
    if len(settings.labels) == 2 and not settings.multi_label and truth.any(axis=0).all():
        positive, likely = truth[:, 1], found[:, 1]
        scores += [
            {**score(name, _ranking(positive, likely, name)), "positive": settings.labels[1]} for name in ("AUC", "AP")
        ]
    return scores


def _sureness(
    likely: NDArray[np.float64], truth: NDArray[np.bool_], guessed: NDArray[np.bool_], several: bool
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probability and rightness of what is predicted: of each text's label, or of each label that a text may have.

    Returns:
        Both of shape (texts, 1), or (texts, classes).
    """
    if several:
        return np.maximum(likely, 1 - likely), ~(truth ^ guessed)
    right = np.asarray((truth & guessed).any(axis=1, keepdims=True), dtype=np.bool_)
    return likely.max(axis=1, keepdims=True), right


def _ranking(positive: NDArray[np.bool_], likely: NDArray[np.float64], which: str) -> Callable[[Any], float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    metric = roc_auc_score if which == "AUC" else average_precision_score

    def of(rows: Any) -> float:
        # a resample that holds one class only says nothing
        return float(metric(positive[rows], likely[rows])) if len(set(positive[rows].tolist())) == 2 else math.nan

    return of


def _classes(truth: NDArray[np.bool_], guessed: NDArray[np.bool_], labels: Sequence[str]) -> list[ClassScore]:
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, count = precision_recall_fscore_support(truth, guessed, average=None, zero_division=0)
    return [
        {
            "label": label,
            "precision": float(precision[number]),
            "recall": float(recall[number]),
            "F1": float(f1[number]),
            "count": int(count[number]),
        }
        for number, label in enumerate(labels)
    ]


def probe(
    encoder: Encoder, train: LabelledTexts, dev: LabelledTexts, texts: Sequence[Text]
) -> tuple[NDArray[np.int64], float]:
    """Logistic regression on frozen embeddings, its strength chosen on dev.

    Args:
        encoder: Embeds.
        train: Learned from, one label each.
        dev: Chooses C.
        texts: Predicted.

    Returns:
        The predicted class of each text, and the C chosen.
    """
    return logistic(_labelled_embeddings(encoder, train), _labelled_embeddings(encoder, dev), features(encoder, texts))


def nearest_neighbours(
    encoder: Encoder, train: LabelledTexts, dev: LabelledTexts, texts: Sequence[Text]
) -> tuple[NDArray[np.int64], int]:
    """Return the label that the nearest texts of train vote for, by their similarity; how many vote is chosen on dev.

    See `probe` for the arguments.

    Returns:
        The predicted class of each text, and the k chosen.
    """
    return knn(_labelled_embeddings(encoder, train), _labelled_embeddings(encoder, dev), features(encoder, texts))


def _labelled_embeddings(encoder: Encoder, data: LabelledTexts) -> LabelledEmbeddings:
    if any(len(own) != 1 for own in data.labels):
        raise UsageError("probe and nearest neighbours take texts with one label each")
    return features(encoder, data.texts), np.array([own[0] for own in data.labels], np.int64)
