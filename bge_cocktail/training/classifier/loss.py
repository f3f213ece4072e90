"""Batches of labelled texts, and their loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from bge_cocktail.data.labelled import LabelledTexts
from bge_cocktail.models.embed import tokens_at_once
from bge_cocktail.models.tokens import Packer
from bge_cocktail.options import ClassifyOptions
from bge_cocktail.training.classifier.predict import Tokens
from bge_cocktail.training.engine.cpu_functions import fast_functions
from bge_cocktail.training.engine.run import BadLoss

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

# focal loss's slope at no doubt at all is no number where gamma is below 1
LEAST_DOUBT = 1e-7


class ShuffledBatches:
    """Every text once an epoch, in a new order.

    Args:
        count: How many texts there are.
        size: Texts in a batch of all processes together.
        seed: Seeds the orders.
        least: Texts that a batch must have, one for each process; a smaller last one joins the one before.
    """

    def __init__(self, count: int, size: int, seed: int, least: int = 1) -> None:
        self._count, self._size, self._seed = count, size, seed
        self._short = 0 < count % size < least and count > size
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next; the trainer calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._count // self._size) - self._short

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._count).tolist()
        for place in range(len(self)):
            last = self._count if place == len(self) - 1 else (place + 1) * self._size
            yield order[place * self._size : last]


class LabelCollator:
    """Makes batches; each process gets its share of their texts by length.

    Args:
        model: For its tokenizer.
        data: Texts, labels, weights.
        classes: How many labels there are.
        options: Truncation, tokens in a chunk.
        process: Which process this is, and how many there are.
        precision: Of the computation.
        pack: Makes packed chunks; without it, they are padded.
    """

    # read by sentence-transformers' trainer: the data has no labels
    valid_label_columns: Sequence[str] = ()

    def __init__(
        self,
        model: CrossEncoder,
        data: LabelledTexts,
        classes: int,
        options: ClassifyOptions,
        process: tuple[int, int] = (0, 1),
        precision: str = "fp32",
        pack: Packer | None = None,
    ) -> None:
        self._pack = pack
        self._model, self._data, self._classes, self._options = model, data, classes, options
        self._process, self._processes = process
        self._budget = options.chunk_tokens or tokens_at_once(model.device.type, precision, training=True)

    def __call__(self, rows: Sequence[int]) -> dict[str, Any]:
        """The chunks of this process, and the targets of their texts in the order of the chunks.

        Returns:
            ``chunks``: features for the model; ``targets``: ``labels`` (texts, classes), ``weights`` (texts,), the
            ``total`` weight of the batch over all processes, their number ``processes``, and numbers of the ``rows``.
        """
        by_length = sorted(rows, key=lambda row: (-len(str(self._data.texts[row])), row))
        own = by_length[self._process :: self._processes]
        tokens = Tokens(self._model, [self._data.texts[row] for row in own], self._options.truncation)
        chunks = tokens.chunks(self._budget, packed=self._pack is not None)
        ordered = self._data.at(own[place] for chunk in chunks for place in chunk)
        return {
            "chunks": [tokens.features(chunk, self._pack) for chunk in chunks],
            "targets": {
                "labels": torch.from_numpy(ordered.targets(self._classes)),
                "weights": torch.tensor(ordered.weights, dtype=torch.float32),
                "total": sum(self._data.weights[row] for row in rows),
                "processes": self._processes,
                "rows": list(rows),
            },
        }


class LabelLoss(nn.Module):
    """The mean loss of a batch's texts, by their weights.

    Args:
        model: Gives logits.
        options: Which loss, smoothing.
        class_weights: Multiply the loss of each class's texts, shape (classes,); see `class_weights`.
        processes: How many train together.
    """

    def __init__(
        self, model: CrossEncoder, options: ClassifyOptions, class_weights: Tensor, processes: int = 1
    ) -> None:
        super().__init__()
        self.model = model
        self._options, self._device = options, model.device
        self._functions = fast_functions(model.device.type, options.compile, processes)
        # read by the trainer, as the heads of an encoder's tasks are; the classifier's own head is in the model
        self.heads = nn.ModuleList()
        self.register_buffer("class_weights", class_weights.to(model.device), persistent=False)

    def forward(self, chunks: Sequence[dict[str, Tensor]], targets: Mapping[str, Any]) -> Tensor:
        """Return the loss of a batch."""
        with self._functions:
            logits = torch.cat([self.model(dict(chunk))["scores"] for chunk in chunks])
        with torch.autocast(self._device.type, enabled=False):
            losses = label_loss(logits.float(), targets["labels"], self._options, self.class_weights)
        # the mean over processes that is taken of the gradients makes a mean over the batch of this
        loss: Tensor = (losses * targets["weights"]).sum() * targets["processes"] / max(targets["total"], 1e-12)
        value = float(loss.detach())
        if value != value or value in (float("inf"), float("-inf")):
            raise BadLoss(value, targets["rows"])
        return loss


def label_loss(logits: Tensor, labels: Tensor, options: ClassifyOptions, class_weights: Tensor) -> Tensor:
    """Return the loss of each text.

    One of several classes: cross-entropy, with label smoothing (arXiv:1512.00567) or focal, ``(1 - p) ** gamma`` times
    the loss (arXiv:1708.02002), times the weight of the text's class. Any number of labels: the mean over the labels of
    the binary cross-entropy, that of a label that the text has times its weight.

    Args:
        logits: Shape (texts, classes).
        labels: 1 where a text has a label, shape (texts, classes).
        options: Loss, focal_gamma, label_smoothing, multi_label.
        class_weights: Shape (classes,).

    Returns:
        Shape (texts,).
    """
    smoothing, classes = options.label_smoothing, labels.shape[1]
    if options.multi_label:
        smooth = labels * (1 - smoothing) + smoothing / 2
        losses = binary_cross_entropy_with_logits(logits, smooth, pos_weight=class_weights, reduction="none")
        if options.loss == "focal":
            right = torch.where(labels > 0, logits.sigmoid(), 1 - logits.sigmoid())
            losses = losses * (1 - right).clamp(min=LEAST_DOUBT) ** options.focal_gamma
        return losses.mean(dim=1)
    smooth = labels * (1 - smoothing) + smoothing / classes
    losses = cross_entropy(logits, smooth, reduction="none")
    if options.loss == "focal":
        right = (logits.softmax(dim=1) * labels).sum(dim=1)
        losses = losses * (1 - right).clamp(min=LEAST_DOUBT) ** options.focal_gamma
    return losses * (labels @ class_weights)


def class_weights(data: LabelledTexts, classes: int, options: ClassifyOptions) -> Tensor:
    """Return what the loss of each class is multiplied by, shape (classes,); all ones unless they shall count alike.

    Balanced, a class of n texts of all N has N / (classes x n), as in scikit-learn; where texts may have several
    labels, (N - n) / n, so that having a label weighs as much as not having it.
    """
    if options.class_weights == "none":
        return torch.ones(classes)
    counts = torch.from_numpy(data.targets(classes).sum(axis=0)).clamp(min=1)
    if options.multi_label:
        return ((len(data) - counts) / counts).clamp(min=1e-3)
    return len(data) / (classes * counts)
