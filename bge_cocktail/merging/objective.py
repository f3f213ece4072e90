"""What weights are judged by: models and merges tried on data, and their contrastive loss on examples."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.data.record import Record, positives_by_query
from bge_cocktail.losses.contrastive import info_nce
from bge_cocktail.losses.total import batch_relevance
from bge_cocktail.merging.checkpoints import Checkpoint, hash_of
from bge_cocktail.merging.methods import TILE
from bge_cocktail.merging.plan import GroupWeights, Plan, source_of, with_weights
from bge_cocktail.merging.tensors import FLOATS, Floats, Key, Tensor, count_of
from bge_cocktail.merging.weights import MergeScores, WeightsResult
from bge_cocktail.models.embed import NO_LIMIT, TOKENS_OF_MERGING, batches_by_tokens, embed, token_counts, truncated
from bge_cocktail.models.encoder import CachedEncoder, Encoder, LoadedEncoder, encode_queries_of, load_encoder
from bge_cocktail.models.layout import declared_length
from bge_cocktail.models.prompts import Prompts, model_prompts
from bge_cocktail.options import EncodeOptions, MergeOptions

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer
    from torch.nn import Module


def loadable_folder(checkpoint: Checkpoint, scratch: Path) -> Path:
    """A folder that a library can load: the model's own, or a new one in `scratch` of what is computed or pickled."""
    folder = checkpoint.folder
    if checkpoint.made is None and all((folder / file).is_file() for file in checkpoint.files):
        return folder
    from bge_cocktail.merging.write import write_model

    folder = Path(tempfile.mkdtemp(dir=scratch))
    write_model(Plan((checkpoint,), None, MergeOptions(), GroupWeights([1.0], {})), folder)
    return folder


def parameters_by_key(model: Iterable[Module], checkpoint: Checkpoint) -> dict[Key, torch.Tensor]:
    """Return which tensor of a checkpoint each parameter of a loaded model, module by module, is.

    The names differ by what classes put before them (``auto_model.`` on one side, ``bert.`` on the other). A parameter
    that the checkpoint doesn't have stays as it was loaded: such are the poolers that no embedding uses.
    """
    parameters: dict[Key, torch.Tensor] = {}
    for number, module in enumerate(model):
        endings: dict[str, list[str]] = {}
        for key, tensor in checkpoint.tensors.items():
            if key[0] == number and tensor.dtype in FLOATS:
                for start in _starts(key[1]):
                    endings.setdefault(key[1][start:], []).append(key[1])
        for name, parameter in module.state_dict(keep_vars=True).items():
            match = next((endings[name[s:]] for s in _starts(name) if len(endings.get(name[s:], [])) == 1), None)
            if match and parameter.is_floating_point():
                parameters[number, match[0]] = parameter.detach()
    return parameters


def put_tensors(parameters: Mapping[Key, torch.Tensor], tensors: Iterable[tuple[Key, Iterable[Floats]]]) -> None:
    """Overwrite parameters of a loaded model, tile by tile."""
    import torch

    with torch.no_grad():
        for key, tiles in tensors:
            place = 0
            target = parameters[key].view(-1)
            for tile in tiles:
                target[place : place + len(tile)] = torch.from_numpy(tile)
                place += len(tile)


def tiles_of(tensor: Tensor) -> Iterator[Floats]:
    """Yield a tensor's numbers, flattened, part by part."""
    count = count_of(tensor)
    for first in range(0, count, TILE):
        values = np.empty(min(TILE, count - first), np.float32)
        tensor.read(first, values)
        yield values


def _starts(name: str) -> list[int]:
    """Return where a dotted name may be cut at its front, from the whole name on; two parts at least are left."""
    dots = [place + 1 for place, sign in enumerate(name) if sign == "."]
    return [0, *dots[:-1]]


# LM-Cocktail's reference implementation takes in-batch negatives from batches of two examples
EXAMPLES_A_BATCH = 2


LM_COCKTAIL_LENGTH = 2048


def draw_negatives(examples: Sequence[Record], negatives: int, seed: int) -> list[Record]:
    """Examples with at most so many negatives each, drawn where there are more; the same for every model.

    Raises:
        DataError: No examples.
    """
    if not examples:
        raise DataError("no examples to find weights on")
    drawn = []
    for row, example in enumerate(examples):
        chosen = np.arange(len(example.neg))
        if len(chosen) > negatives:
            chosen = np.sort(np.random.default_rng([seed, row]).permutation(chosen)[:negatives])
        drawn.append(
            Record(
                example.query,
                example.pos,
                tuple(example.neg[number] for number in chosen),
                prompt=example.prompt,
                weight=1.0,  # every example counts the same here
            )
        )
    return drawn


def example_loss(encoder: Encoder, examples: Sequence[Record], *, temperature: float = 0.05) -> float:
    """Return the mean of `batch_losses`, which LM-Cocktail weighs models by."""
    return float(batch_losses(encoder, examples, temperature=temperature).mean())


def batch_losses(encoder: Encoder, examples: Sequence[Record], *, temperature: float = 0.05) -> torch.Tensor:
    """Return the losses of a model with its own pooling, prompts and normalisation.

    Args:
        encoder: The model.
        examples: Records with positives and, to tell models apart well, hard negatives.
        temperature: Divides similarities (LM-Cocktail: 0.05).

    Returns:
        InfoNCE of each batch of two examples, shape (batches,).

    Raises:
        DataError: No examples.
    """
    import torch

    batches = _batches(examples)
    queries = torch.from_numpy(encode_queries_of(examples, encoder))
    texts = list(dict.fromkeys(text for documents, _ in batches for text in documents))
    rows = {text: row for row, text in enumerate(texts)}
    embeddings = torch.from_numpy(encoder.encode_document(texts))
    losses = [
        info_nce(
            queries[number * EXAMPLES_A_BATCH : (number + 1) * EXAMPLES_A_BATCH],
            embeddings[[rows[text] for text in documents]],
            torch.from_numpy(relevance),
            temperature,
        )
        for number, (documents, relevance) in enumerate(batches)
    ]
    return torch.stack(losses)


def chance_losses(examples: Sequence[Record]) -> NDArray[np.float64]:
    """Return the losses of a model for which all texts are alike: the mean logarithm of the number of candidates.

    Returns:
        Of each batch of two examples, shape (batches,).
    """
    return np.array([np.log((relevance >= 0).sum(axis=1)).mean() for _, relevance in _batches(examples)], np.float64)


def lm_cocktail_loss(model: SentenceTransformer, examples: Sequence[Record], *, temperature: float = 0.05) -> float:
    """Return the loss as LM_Cocktail 0.0.4 computes it, for comparison with its numbers.

    CLS pooling whatever the model uses, no prompts, all texts of a batch as candidates, also those that are positives
    of the query or stand there twice.

    Args:
        model: A loaded model.
        examples: With their negatives drawn.
        temperature: Divides similarities.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling

    cls = Pooling(model[0].get_embedding_dimension(), pooling_mode="cls")
    like_it = SentenceTransformer(modules=[model[0], cls, Normalize()], device=str(model.device))
    kept, like_it.max_seq_length = model.max_seq_length, min(LM_COCKTAIL_LENGTH, model.tokenizer.model_max_length)
    documents = [[example.pos[0], *example.neg] for example in examples]
    texts = list(
        dict.fromkeys([example.query for example in examples] + [text for document in documents for text in document])
    )
    rows = {text: row for row, text in enumerate(texts)}
    embeddings = embed(like_it, texts, label="examples").astype(np.float64)
    model.max_seq_length = kept
    losses = []
    for first in range(0, len(examples), EXAMPLES_A_BATCH):
        batch = documents[first : first + EXAMPLES_A_BATCH]
        queries = embeddings[[rows[example.query] for example in examples[first : first + EXAMPLES_A_BATCH]]]
        similarities = queries @ embeddings[[rows[text] for record in batch for text in record]].T / temperature
        places = np.cumsum([0, *(len(record) for record in batch)])[:-1]
        largest = similarities.max(axis=1)
        total = largest + np.log(np.exp(similarities - largest[:, None]).sum(axis=1))
        losses.append(float(np.mean(total - similarities[range(len(batch)), places])))
    return float(np.mean(losses))


def _batches(examples: Sequence[Record]) -> list[tuple[list[str], np.ndarray]]:
    if not examples:
        raise DataError("no examples to find weights on")
    known = positives_by_query(examples)
    most = max(len(example.neg) for example in examples)
    return [
        batch_relevance(examples[first : first + EXAMPLES_A_BATCH], negatives=most, known_positives=known)
        for first in range(0, len(examples), EXAMPLES_A_BATCH)
    ]


Features = dict[str, Any]
Forward = Callable[[Features], "torch.Tensor"]
"""Tokenised texts in, embeddings out, shape (texts, dimensions)."""


def batch_loss(
    model: SentenceTransformer,
    batch: Sequence[Record],
    known: Mapping[str, set[str]],
    forward: Forward,
    *,
    prompts: Prompts,
    temperature: float,
    chunk_tokens: int = 0,
    in_bf16: bool = False,
) -> torch.Tensor:
    """InfoNCE of a batch of examples, with a graph to its parameters.

    Args:
        model: For its tokenizer and device.
        batch: The examples.
        known: Positives by query, so that none counts as a negative.
        forward: Gives embeddings, shape (texts, dimensions), from tokenised texts.
        prompts: Put before queries, but those that bring their own, and documents.
        temperature: Divides similarities.
        chunk_tokens: Tokens embedded at once; 0 for the usual number.
        in_bf16: Whether it is computed in bfloat16.

    Returns:
        A scalar.
    """
    import torch

    most = max(len(record.neg) for record in batch)
    documents, relevance = batch_relevance(batch, negatives=most, known_positives=known)
    queries = [(prompts.query if record.prompt is None else record.prompt) + record.query for record in batch]
    texts = queries + [prompts.document + text for text in documents]
    # chunks of nearly equal length, so that little is computed for padding
    limit = model.max_seq_length or NO_LIMIT
    texts = [truncated(text, limit) for text in texts]
    lengths = [min(count, limit) for count in token_counts(model, texts)]
    chunks = batches_by_tokens(lengths, chunk_tokens or TOKENS_OF_MERGING)
    parts = []
    for chunk in chunks:
        features = model.preprocess([texts[row] for row in chunk])
        features = {name: v.to(model.device) if hasattr(v, "to") else v for name, v in features.items()}
        with torch.autocast(model.device.type, torch.bfloat16, enabled=in_bf16):
            parts.append(forward(features).float())
    back = torch.from_numpy(np.argsort(np.concatenate(chunks)))
    embeddings = torch.nn.functional.normalize(torch.cat(parts), dim=1)[back.to(model.device)]
    relevant = torch.from_numpy(relevance).to(model.device)
    return info_nce(embeddings[: len(batch)], embeddings[len(batch) :], relevant, temperature)


Scorer = Callable[[Encoder], tuple[float, float | None, Callable[[Any], NDArray[np.float64]]]]
"""Target and general score of an encoder (None without general tasks), and what gives the general score on resamples of
the queries, shape (resamples,)."""


@dataclass
class EncoderObjective:
    """Answers what weightings ask; see `Objective`.

    Attributes:
        plan: The merge, with whatever weights.
        examples: Records, their negatives drawn.
        encoding: Prompts, precision, cache.
        score: Judges an encoder on tasks; without it, the examples do.
        scratch: A folder for what must be written to be loaded.
        own_examples: Those that each model is measured on, for methods that do that; without, `examples`.
    """

    plan: Plan
    examples: Sequence[Record]
    encoding: EncodeOptions
    score: Scorer | None
    scratch: Path
    own_examples: Sequence[Sequence[Record]] = ()

    @property
    def names(self) -> Sequence[str]:
        """See `Objective`."""
        return [checkpoint.name for checkpoint in self.plan.checkpoints]

    @property
    def other_methods(self) -> Sequence[str]:
        """See `Objective`: the one that kept most of other tasks where LM-Cocktail was done again (docs/results.md)."""
        return ["ties"] if self.plan.options.method == "linear" else []

    def losses(self, rows: Sequence[int]) -> list[float]:
        """See `Objective`."""
        return [self._loss(row) for row in rows]

    def losses_in_parts(self, rows: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See `Objective`."""
        if self.plan.options.like_lm_cocktail:  # its loss comes as one number
            return np.array([[loss] for loss in self.losses(rows)]), chance_losses(self.needed_examples).mean(
                keepdims=True
            )
        temperature = self.plan.options.loss_temperature
        losses = [batch_losses(self.encoder(row), self.needed_examples, temperature=temperature) for row in rows]
        return np.array([loss.double().numpy() for loss in losses]), chance_losses(self.needed_examples)

    def scores(self, weights: Sequence[float]) -> tuple[float, float | None]:
        """See `Objective`."""
        encoder = self.merged(WeightsResult(weights))
        if self.score is not None:
            return self.score(encoder)[:2]

        return -example_loss(encoder, self.needed_examples, temperature=self.plan.options.loss_temperature), None

    def judged(self, weights: Sequence[float], method: str = "") -> MergeScores:
        """See `Objective`."""
        if self.score is None:
            raise UsageError(f"weights '{self.plan.options.weights}' need `target` and `general` tasks")
        target, general, resampled = self.score(self.merged(WeightsResult(weights, method=method)))
        if general is None:
            raise UsageError(f"weights '{self.plan.options.weights}' need `target` and `general` tasks")
        return MergeScores(target, general, resampled("target"), resampled("general"))

    @property
    def needed_examples(self) -> Sequence[Record]:
        """The examples.

        Raises:
            UsageError: None were given.
        """
        if not self.examples:
            options = self.plan.options
            what = f"method {options.method}" if isinstance(options.weights, list) else f"weights '{options.weights}'"
            what = f"method {options.method}" if options.weights == "uniform" else what
            raise UsageError(f"{what} needs examples: a file of records with `examples`")
        return self.examples

    @cached_property
    def model(self) -> SentenceTransformer:
        """One loaded model of the form of all."""
        first = self.plan.checkpoints[0]
        folder = loadable_folder(first, self.scratch)
        model = load_encoder(folder, device=self.encoding.device, max_length=self.encoding.max_length)
        if folder != first.folder:
            shutil.rmtree(folder)
        return model

    def encoder(self, row: int) -> CachedEncoder:
        """Return one of the models; it is loaded only if a text isn't in the cache of embeddings."""
        checkpoint = self.plan.checkpoints[row]

        known = CachedEncoder(checkpoint.prompts_of or checkpoint.folder, self.encoding, load=lambda: self.place(row))
        known.hash = hash_of(checkpoint)
        return known

    def merged(self, result: WeightsResult) -> Encoder:
        """Return the merge with such weights; one of the models where all the weight is its."""
        weights = list(result.weights)
        # its embeddings may be in the cache
        if self._is_plain(result) and sorted(weights)[-1] == 1 == sum(weights):
            return self.encoder(weights.index(1))
        return self.placed(result)

    def placed(self, result: WeightsResult) -> LoadedEncoder:
        """Return the merge with such weights in the loaded model, with the prompts and length that would be written."""
        plan = with_weights(self.plan, result.weights, result.weights_for, result.scale, result.method)
        model = self._with((key, plan.tiles(key)) for key in self.parameters)
        self._set_length(self.plan.checkpoints[(self.plan.options.length_from or 1) - 1])
        return LoadedEncoder(model, self.prompts, precision=self.encoder(0).precision)

    @cached_property
    def prompts(self) -> Prompts:
        """The prompts that the merge will have, or that the user chose to embed with."""
        source = self.plan.checkpoints[(self.plan.options.prompts_from or 1) - 1]
        chosen = self.encoding
        return model_prompts(
            source.prompts_of or source.folder, query=chosen.query_prompt, document=chosen.document_prompt
        )

    @cached_property
    def parameter_names(self) -> dict[Key, str]:
        """The name that each tensor has in the loaded model."""
        by_place = {value.data_ptr(): name for name, value in self.model.state_dict().items()}
        return {key: by_place[parameter.data_ptr()] for key, parameter in self.parameters.items()}

    def batch_losses(self, row: int) -> Iterator[torch.Tensor]:
        """Yield the losses of the loaded model, to differentiate, on batches of what model `row` is measured on."""
        examples = self.own_examples[row] if self.own_examples else self.needed_examples
        known = positives_by_query(examples)
        model = self.model.eval()

        def forward(features: Features) -> torch.Tensor:
            output: torch.Tensor = model(features)["sentence_embedding"]
            return output

        for first in range(0, len(examples), EXAMPLES_A_BATCH):
            yield self.batch_loss(examples[first : first + EXAMPLES_A_BATCH], known, forward)

    def run(self, row: int) -> None:
        """Embed what model `row` is measured on with the loaded model."""
        for _ in self.batch_losses(row):
            continue

    def batch_loss(self, batch: Sequence[Record], known: Mapping[str, set[str]], forward: Forward) -> torch.Tensor:
        """Return the loss of some examples as something to differentiate; see `batch_loss`."""
        return batch_loss(
            self.model,
            batch,
            known,
            forward,
            prompts=self.prompts,
            temperature=self.plan.options.loss_temperature,
            chunk_tokens=self.encoding.batch_tokens,
            in_bf16=self.encoder(0).precision == "bf16",
        )

    @cached_property
    def parameters(self) -> dict[Key, torch.Tensor]:
        """The loaded model's parameters and buffers of floating types, by tensor."""
        return parameters_by_key(self.model, self.plan.checkpoints[0])

    def place(self, row: int) -> SentenceTransformer:
        """Put the weights of one of the models into the loaded one."""
        self._set_length(self.plan.checkpoints[row])
        return self._with((key, tiles_of(source_of(self.plan, row, key))) for key in self.parameters)

    def _is_plain(self, result: WeightsResult) -> bool:
        """Return whether a merge with all the weight on one model is that model, in everything."""
        plan, options = self.plan, self.plan.options
        chosen = (options.prompts_from, options.length_from, options.tokenizer_from)
        weights = not result.weights_for and not plan.weights.patterns and not plan.weights.anchors
        return (
            plan.base is None and not result.method and weights and not options.exclude and chosen == (None, None, None)
        )

    def _set_length(self, checkpoint: Checkpoint) -> None:
        length = declared_length(checkpoint.length_of or checkpoint.folder)
        if self.encoding.max_length is None and length is not None:
            self.model.max_seq_length = length

    def _with(self, tensors: Iterable[tuple[Key, Iterable[Floats]]]) -> SentenceTransformer:
        put_tensors(self.parameters, tensors)
        return self.model

    def _loss(self, row: int) -> float:

        encoder, temperature = self.encoder(row), self.plan.options.loss_temperature
        if self.plan.options.like_lm_cocktail:
            return lm_cocktail_loss(encoder.model, self.needed_examples, temperature=temperature)
        return example_loss(encoder, self.needed_examples, temperature=temperature)
