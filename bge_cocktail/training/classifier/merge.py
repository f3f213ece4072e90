"""Classifiers merged with weights from their cross-entropy on a few examples, as LM-Cocktail weighs models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import UsageError
from bge_cocktail.data.labelled import LabelledTexts
from bge_cocktail.data.record import Text
from bge_cocktail.merging.merge import Merged, merge
from bge_cocktail.merging.objective import loadable_folder, parameters_by_key, put_tensors, tiles_of
from bge_cocktail.merging.plan import Plan, source_of, with_weights
from bge_cocktail.merging.recipe import Recipe
from bge_cocktail.merging.weights import MergeScores
from bge_cocktail.models.folder import declared_labels, model_folder
from bge_cocktail.options import MergeOptions, PredictOptions
from bge_cocktail.training.classifier.evaluate import log_losses
from bge_cocktail.training.classifier.model import Classifier, load_classifier
from bge_cocktail.training.classifier.predict import cleaned, logits_of

if TYPE_CHECKING:
    import torch
    from sentence_transformers import CrossEncoder

    from bge_cocktail.merging.tensors import Key


def _first_folder(models: Sequence[str | Path] | Recipe) -> Path:
    first = models.models[0] if isinstance(models, Recipe) else models[0]
    return _first_folder(first) if isinstance(first, Recipe) else model_folder(first)


@dataclass
class ClassifierObjective:
    """Answers what weightings ask of classifiers; see `merging.weights.Objective`.

    Attributes:
        plan: The merge, with whatever weights.
        examples: Labelled texts; the numbers of their labels are the first model's.
        device: Where they are predicted.
        scratch: A folder for what must be written to be loaded.
        own_texts: Those that each model is measured on, for methods that do that; without, those of `examples`.
    """

    plan: Plan
    examples: LabelledTexts
    device: str
    scratch: Path
    own_texts: Sequence[Sequence[Text]] = ()

    @property
    def names(self) -> Sequence[str]:
        """The models."""
        return [checkpoint.name for checkpoint in self.plan.checkpoints]

    def losses(self, rows: Sequence[int]) -> list[float]:
        """Return the cross-entropy of models on the examples, each under the head that it brings into the merge."""
        return [float(self._losses_of(row).mean()) for row in rows]

    def losses_in_parts(self, rows: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the cross-entropy of models on each text, and that of equal probabilities."""
        settings = self.classifier.settings
        losses = [self._losses_of(row) for row in rows]
        chance = np.log(2 if settings.multi_label else len(settings.labels))
        return np.array(losses, np.float64), np.full(len(self.examples), chance)

    @property
    def other_methods(self) -> Sequence[str]:
        """See `Objective`."""
        return []

    def scores(self, weights: Sequence[float]) -> tuple[float, float | None]:
        """Minus the cross-entropy of a merge with such weights."""
        plan = with_weights(self.plan, weights, {}, None)
        put_tensors(self.parameters, ((key, plan.tiles(key)) for key in self.parameters))
        return -float(self._losses().mean()), None

    def judged(self, weights: Sequence[float], method: str = "") -> MergeScores:
        """Not for classifiers, which are merged without tasks."""
        raise UsageError("weights that judge general tasks are found for encoders; for classifiers take search")

    @cached_property
    def classifier(self) -> Classifier:
        """One loaded model of the form of all."""
        return load_classifier(loadable_folder(self.plan.checkpoints[0], self.scratch), device=self.device)

    @cached_property
    def parameters(self) -> dict[Key, torch.Tensor]:
        """The loaded model's parameters by tensor."""
        return parameters_by_key(self.classifier.model, self.plan.checkpoints[0])

    @cached_property
    def _truth(self) -> np.ndarray:
        return self.examples.targets(len(self.classifier.settings.labels)).astype(bool)

    @property
    def model(self) -> CrossEncoder:
        """That model, without its settings."""
        return self.classifier.model

    def place(self, row: int) -> CrossEncoder:
        """Put the weights of one of the models into the loaded one."""
        put_tensors(self.parameters, ((key, tiles_of(source_of(self.plan, row, key))) for key in self.parameters))
        return self.model

    def run(self, row: int) -> None:
        """Predict what model `row` is measured on with the loaded model."""
        self._logits(self.own_texts[row] if self.own_texts else self.examples.texts)

    def _losses_of(self, row: int) -> NDArray[np.float64]:
        self.place(row)
        return self._losses()

    def _losses(self) -> NDArray[np.float64]:
        if not self.examples.texts:
            raise UsageError(f"weights '{self.plan.options.weights}' need labelled texts: `examples`")
        return log_losses(self._logits(self.examples.texts), self._truth, self.classifier.settings.multi_label)

    def _logits(self, texts: Sequence[Text]) -> NDArray[np.float32]:
        settings = self.classifier.settings
        options = PredictOptions(device=self.device, precision="fp32")
        return logits_of(self.model, cleaned(texts, settings), settings.truncation, options)


def merge_classifiers(
    models: Sequence[str | Path] | Recipe,
    output: Path,
    options: MergeOptions | None = None,
    *,
    examples: LabelledTexts | None = None,
    own_texts: Sequence[Sequence[Text]] = (),
    device: str = "auto",
    more_inputs: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Merged:
    """Merge classifiers, or a classifier and encoders, into a classifier with the first model's labels.

    As `merging.merge`, but weights come from the cross-entropy on labelled texts. A model with other labels, or
    without a head, is judged under the first one's head, which is the one that it will have in the merge.

    Args:
        models: Folders or hub names, the classifier whose labels are kept first; or a recipe.
        output: The folder to write.
        options: Method, weights, whether heads are merged.
        examples: Labelled texts of the first model's labels, for weights and methods that look at data.
        own_texts: Texts of each model's own task, for methods that measure each model; without, the examples.
        device: Where they are predicted.
        more_inputs: What else the result depends on, by name and hash.
        overwrite: Replace an older output of this tool.

    Raises:
        UsageError, DataError: As `merging.merge`.
    """

    def make_objective(plan: Plan, scratch: Path) -> ClassifierObjective:
        if examples is None:
            return ClassifierObjective(plan, LabelledTexts(), device, scratch, own_texts)
        # an inner merge has a first model of its own, whose labels may be in another order
        own = declared_labels(plan.checkpoints[0].folder)
        if sorted(own) != sorted(labels):
            raise UsageError(
                f"{plan.checkpoints[0].name} has the labels {', '.join(own[:5])}, the examples "
                f"{', '.join(labels[:5])}; give the weights of that merge as numbers"
            )
        numbered = [tuple(sorted(own.index(labels[number]) for number in row)) for row in examples.labels]
        return ClassifierObjective(plan, replace(examples, labels=numbered), device, scratch, own_texts)

    wanted = len(models.models if isinstance(models, Recipe) else models)
    if own_texts and len(own_texts) != wanted:
        raise UsageError(f"{len(own_texts)} `own_examples` for {wanted} models: give one for each, in order")
    labels = declared_labels(_first_folder(models)) if examples is not None else []
    chosen = make_objective if own_texts or (examples is not None and len(examples)) else None
    return merge(models, output, options, make_objective=chosen, more_inputs=more_inputs, overwrite=overwrite)
