"""Classifiers of few texts: the encoder is tuned on pairs of one class, a logistic head fitted on its embeddings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from bge_cocktail.classifying.data import ClassData
from bge_cocktail.encoding import LoadedEncoder, load_encoder
from bge_cocktail.options import Classifying, Training, Tuning
from bge_cocktail.records import Record
from bge_cocktail.records.examples import LabelledText
from bge_cocktail.records.forming import records_from_labels
from bge_cocktail.training import train

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

# the contrast with one text of another class at a time, as SetFit has it
NEGATIVES = 1


def pairs_of_classes(data: ClassData, count: int, seed: int) -> list[Record]:
    """Records of two texts of one class, with a text of another as negative (Tunstall et al., arXiv:2209.11055).

    Args:
        data: Single texts, one label each.
        count: Records of each text.
        seed: Seeds the draws.
    """
    texts = [text for text in data.train.texts if isinstance(text, str)]
    labels = [data.names[own[0]] for own in data.train.labels]
    rows = zip(texts, labels, data.train.weights, strict=True)
    examples = [LabelledText(text, label, extra={"weight": weight}) for text, label, weight in rows]
    dropped: Counter[str] = Counter()
    return [
        record
        for turn in range(count)
        for record in records_from_labels(examples, negatives=NEGATIVES, seed=seed + turn, dropped=dropped)
    ]


def tune_encoder(
    base: Path, data: ClassData, output: Path, options: Classifying, resume: bool, overwrite: bool
) -> Path:
    """Tune an encoder, without prompts, so that texts of one class come together.

    Args:
        base: A sentence-transformers folder.
        data: What it is tuned on.
        output: The folder to write.
        options: Course, parameters, precision, device.
        resume: Go on from the last checkpoint.
        overwrite: Remove what was begun, however far it came.
    """
    records = pairs_of_classes(data, options.pairs_per_text, options.seed)
    shared = {name: getattr(options, name) for name in Tuning.model_fields}
    own = {"negatives": NEGATIVES, "query_prompt": "", "document_prompt": ""}
    shared["batch_size"] = min(options.batch_size, len(records))
    training = Training.model_validate({**shared, **own})
    # a finished encoder is there if the head could not be fitted
    return train(base, records, output, training, resume=resume, overwrite=overwrite or output.is_dir())


def fit_head(tuned: Path, data: ClassData, options: Classifying) -> CrossEncoder:
    """A logistic head on the embeddings of train, put behind the encoder.

    Args:
        tuned: The encoder.
        data: Train, one label each.
        options: Device, length, class weights.
    """
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense
    from sklearn.linear_model import LogisticRegression

    encoder = load_encoder(tuned, device=options.device, max_length=options.max_length)
    texts = [text for text in data.train.texts if isinstance(text, str)]
    embeddings = LoadedEncoder(encoder).encode_text(texts)  # without prompts, as it will predict
    balanced = "balanced" if options.class_weights == "balanced" else None
    fitted = LogisticRegression(max_iter=2000, class_weight=balanced)
    fitted.fit(embeddings, [own[0] for own in data.train.labels], sample_weight=data.train.weights)
    classes = len(data.names)
    weight, bias = torch.from_numpy(fitted.coef_).float(), torch.from_numpy(fitted.intercept_).float()
    if classes == 2:  # one row tells both apart: half of it for, half against
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    head = Dense(
        embeddings.shape[1],
        classes,
        activation_function=torch.nn.Identity(),
        module_input_name="sentence_embedding",
        module_output_name="scores",
    )
    head.linear.weight.data, head.linear.bias.data = weight, bias
    return CrossEncoder(modules=[*encoder, head], device=str(encoder.device))
