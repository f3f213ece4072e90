"""The loss of a batch that comes in chunks, from tokens to a number; and the trainer that takes it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses import CachedLossMixin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback

from bge_cocktail.losses.total import Embedded, LossSettings, total_loss
from bge_cocktail.models.packing import packer
from bge_cocktail.models.prompts import Prompts
from bge_cocktail.models.tokens import PACKED, token_count
from bge_cocktail.options import TrainOptions
from bge_cocktail.training.encoder.batches import Batches, Collator
from bge_cocktail.training.encoder.training_pairs import TrainingPairs
from bge_cocktail.training.engine.callbacks import AnchorCallback
from bge_cocktail.training.engine.checkpoints import shard
from bge_cocktail.training.engine.cpu_functions import fast_functions, recompute_layers
from bge_cocktail.training.engine.memory import GB, bytes_a_token, give_back, most_memory, room_for_step
from bge_cocktail.training.engine.parameters import learning_rates
from bge_cocktail.training.engine.run import BadLoss
from bge_cocktail.training.engine.trainer import DeviceSetup, Metrics, ShardedTrainer, Trainer, assemble

log = logging.getLogger(__name__)
Chunk = dict[str, Tensor]
# of the first chunk, from which the memory that a token takes is known
_MEASURED_TOKENS = 1024


class BatchLoss(CachedLossMixin, nn.Module):
    """Embeds the texts of a batch, each once, and takes the losses of its task.

    With several processes, each embeds its share of the joined batch and all take the loss of the whole: what they
    learn is what one process would learn from the joined batch.

    Args:
        model: The model.
        options: Losses, of single tasks too.
        tasks: Names of all tasks.
        processes: How many train together.
    """

    # a chunk is embedded whole, unless too little memory is free for it
    mini_batch_size = 2**31

    def __init__(
        self, model: SentenceTransformer, options: TrainOptions, tasks: Sequence[str] = ("",), processes: int = 1
    ) -> None:
        super().__init__()
        self.model = model
        self._options, self._device = options, model.device
        self._settings = {task: loss_settings(options.of_task(task)) for task in tasks}
        self._places = {task: place for place, task in enumerate(tasks)}
        self.heads = nn.ModuleList(_head(model) for _ in tasks if options.task_heads)
        self._of_heads: list[Tensor | None] = []
        by_embeddings = bool(options.anchor) and options.anchor_by == "embeddings"
        # in a tuple, so that the base is no part of this module and its weights are not trained
        self._base = (copy.deepcopy(model).eval().requires_grad_(False),) if by_embeddings else ()
        self._fits = processes == 1 and not options.compile
        self._functions = fast_functions(model.device.type, options.compile, processes)
        # tokens that a step has room for, of which so many are left, and the embeddings that have their graph
        self._room: int | None = None
        self._most, self._left, self._told = 0.0, 0, False
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._shown: dict[str, Tensor] = {}

    def forward(self, chunks: Sequence[Chunk], targets: Mapping[str, Any]) -> Tensor | dict[str, Tensor]:
        """Return the loss of a batch; where there are several, by name, and their sum is trained on."""
        anchors = self._anchors(chunks)
        chunks = self._as_many(chunks)
        # of a model that only looks words up, nothing is kept
        fits = self._fits and all("attention_mask" in chunk or PACKED in chunk for chunk in chunks)
        if (fits or self._options.gradient_cache) and self.training and torch.is_grad_enabled():
            if fits:
                self._make_fit(chunks)
            total = self.forward_cached([dict(chunk) for chunk in chunks], {**targets, "anchors": anchors})
            total.register_hook(partial(self._add_to_heads, gradients=self._of_heads))
            losses = self._shown_with(total)
        else:
            with self._functions:
                embeddings = torch.cat([self.model(dict(chunk))["sentence_embedding"] for chunk in chunks])
            losses = self._losses(embeddings, targets, anchors)
        value = float(sum(losses.values(), torch.zeros(())).detach())
        if value != value or value in (float("inf"), float("-inf")):
            raise BadLoss(value, targets["rows"])
        return losses if len(losses) > 1 else next(iter(losses.values()))

    def calculate_loss(self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False) -> Tensor:
        """Return the loss of chunks that are embedded already, as sentence-transformers' gradient cache asks for it."""
        before: list[Tensor | None] = []
        if with_backward:
            # the heads' gradients wait for the factor that the real backward pass brings (accumulation, fp16's scale);
            # taken before the forward pass, in which heads that are cut into parts have other parameters
            for head in self.heads:
                if isinstance(head, FSDPModule):
                    head.reshard()
            before = [parameter.grad for parameter in self.heads.parameters()]
            self.heads.zero_grad()
        losses = self._losses(torch.cat([part for chunk in reps for part in chunk]), labels, labels["anchors"])
        self._shown = {name: loss.detach() for name, loss in losses.items()}
        total: Tensor = torch.stack(list(losses.values())).sum()
        if with_backward:
            total.backward()
            self._of_heads = [parameter.grad for parameter in self.heads.parameters()]
            for one, gradient in zip(self.heads.parameters(), before, strict=True):
                one.grad = gradient
        return total.detach() if with_backward else total

    def embed_minibatch(
        self,
        sentence_feature: Chunk,
        begin: int,
        end: int,
        with_grad: bool,
        copy_random_state: bool,
        random_state: Any = None,
    ) -> tuple[Tensor, Any]:
        """Return a chunk's embeddings; the first time with their graph while there is room for it, else without.

        What was kept isn't embedded again in the backward pass. The result is the same to the last bit.
        """
        place = id(sentence_feature), begin
        if with_grad and place in self._kept:
            return self._kept.pop(place), None
        if self._fits:
            give_back(self._most, self._device)
        keep = False
        if self._left and not with_grad:
            tokens = _tokens_of(sentence_feature, begin, end)
            keep = tokens <= self._left
            # the first chunks, which go first in the backward pass, too; and autocast remembers weights that were cast
            # without a gradient, so that after them nothing can be kept
            self._left = self._left - tokens if keep else 0
        with self._functions:
            embeddings, state = super().embed_minibatch(
                sentence_feature, begin, end, with_grad or keep, copy_random_state, random_state
            )
        if keep:
            self._kept[place] = embeddings
        return embeddings, state

    def _make_fit(self, chunks: Sequence[Chunk]) -> None:
        """Keep the graphs of as many tokens as there is room for, and cut chunks that are larger than that.

        The room is that of the first batch, and so is what a token takes.
        """
        tokens = [token_count(chunk) for chunk in chunks]
        if self._room is None:
            self._most = most_memory(self._options.memory, self._device)
            self._room = self._measured_room(chunks[0])
        self.mini_batch_num_tokens = self._room if self._room < max(tokens) else None
        self._kept, self._left = {}, 0 if self._options.gradient_cache else self._room
        if sum(tokens) > self._room and not self._told:
            self._told = True
            log.info(
                "a batch has %s tokens, and there is memory to keep %s of them for the backward pass; the others are "
                "embedded twice (`memory` sets how much may be taken)",
                f"{sum(tokens):,}",
                f"{self._left:,}",
            )

    def _measured_room(self, chunk: Chunk) -> int:
        """Return how many tokens there is room for; where not for a whole text, its layers are computed again, too."""
        longest = chunk["max_length_q"] if PACKED in chunk else chunk["attention_mask"].shape[1]
        texts = min(_text_count(chunk), max(1, _MEASURED_TOKENS // longest))
        tokens = _tokens_of(chunk, 0, texts)
        transformer = getattr(self.model[0], "auto_model", None)

        def embed() -> Tensor:
            with self._functions:
                return CachedLossMixin.embed_minibatch(self, dict(chunk), 0, texts, True, False)[0]

        room = room_for_step(self._most, self._device, self.model)
        each = bytes_a_token(embed, tokens, self.model)
        if room < each * longest and getattr(transformer, "supports_gradient_checkpointing", False):
            recompute_layers(transformer, self._functions)
            each = bytes_a_token(embed, tokens, self.model)
            log.info("there is no memory for a text of %d tokens: layers are computed again (checkpointing)", longest)
        if room < each * longest:
            log.warning(
                "a text of %d tokens takes %.1f GB, and %.1f are free for it; a lower `max_length` makes it fit",
                longest,
                each * longest / GB,
                room / GB,
            )
        return max(1, int(room / each))

    def _as_many(self, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        """As many chunks as the process with most has, where all gather the model's parts for each chunk.

        The smallest is embedded again; these embeddings, the last ones, are left out and so have no gradient.
        """
        if not self._options.shard:
            return chunks
        import torch.distributed as dist

        most = torch.tensor(len(chunks), device=self._device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        smallest = min(chunks, key=lambda chunk: chunk["input_ids"].numel())
        return [*chunks, *[smallest] * (int(most) - len(chunks))]

    def _shown_with(self, total: Tensor) -> dict[str, Tensor]:
        """Return the losses by name; their sum is the total, whose gradient the first one has."""
        first, *others = self._shown
        rest = {name: self._shown[name] for name in others}
        return {first: total - sum(rest.values(), torch.zeros_like(total)), **rest}

    def _add_to_heads(self, factor: Tensor, gradients: Sequence[Tensor | None]) -> None:
        for one, gradient in zip(self.heads.parameters(), gradients, strict=True):
            if gradient is not None:
                one.grad = gradient * factor if one.grad is None else one.grad + gradient * factor

    def _losses(self, embeddings: Tensor, targets: Mapping[str, Any], anchors: Tensor | None) -> dict[str, Tensor]:
        embeddings = embeddings[: len(targets["embedded"])]
        with torch.autocast(embeddings.device.type, enabled=False):
            everything = self._everything(nn.functional.normalize(embeddings.float(), dim=1), targets)
            task, relevance = targets["task"], targets["relevance"]
            judged = everything
            if len(self.heads):
                judged = nn.functional.normalize(self.heads[self._places[task]](everything), dim=1)
            queries, documents = judged.split(list(relevance.shape))
            batch = Embedded(queries, documents, relevance, targets["own"], targets["scores"])
            losses = total_loss(batch, self._settings[task])
            if anchors is not None:
                base = self._everything(nn.functional.normalize(anchors.float(), dim=1), targets)
                losses["anchor"] = self._options.anchor * (1 - (everything * base).sum(dim=1)).mean()
        return losses

    def _everything(self, embeddings: Tensor, targets: Mapping[str, Any]) -> Tensor:
        """Embeddings of all texts of the joined batch: queries, then documents."""
        embedded, counts = targets["embedded"], targets["counts"]
        if len(counts) > 1:
            # the mean that is taken of the processes' gradients makes a sum of them where each is that many times its
            # own; what others embedded has no gradient here, for they go back through it themselves
            own = embeddings * len(counts) - (embeddings * (len(counts) - 1)).detach()
            embeddings, embedded = _gathered(own, counts), _gathered(embedded[:, None], counts)[:, 0]
        return embeddings[embedded.argsort()]

    def _anchors(self, chunks: Sequence[Chunk]) -> Tensor | None:
        if not self._base:
            return None
        with torch.no_grad():
            return torch.cat([self._base[0](dict(chunk))["sentence_embedding"] for chunk in chunks])


def _text_count(chunk: Chunk) -> int:
    return len(chunk[PACKED]) - 1 if PACKED in chunk else len(chunk["input_ids"])


def _tokens_of(chunk: Chunk, begin: int, end: int) -> int:
    """Return the tokens that some texts of a chunk compute, padding too."""
    if PACKED not in chunk:
        return int(chunk["attention_mask"][begin:end].numel())
    bounds = chunk[PACKED]
    return int(bounds[min(end, len(bounds) - 1)] - bounds[begin])


def loss_settings(options: TrainOptions) -> LossSettings:
    """Return what the losses need to know of the options."""
    names = LossSettings.__dataclass_fields__
    return LossSettings(**{name: getattr(options, name) for name in names})


def _gathered(own: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the tensors of all processes, one after the other; only the own one has a gradient."""
    import torch.distributed as dist

    room = own.new_zeros((max(counts), own.shape[1]))
    room[: len(own)] = own.detach()
    rooms = [torch.empty_like(room) for _ in counts]
    dist.all_gather(rooms, room)
    parts = [one[:count] for one, count in zip(rooms, counts, strict=True)]
    parts[dist.get_rank()] = own
    return torch.cat(parts)


def _head(model: SentenceTransformer) -> nn.Module:
    """Return a linear map that at first changes nothing."""
    dimensions = model.get_embedding_dimension()
    head = nn.Linear(dimensions, dimensions, bias=False, device=model.device)
    nn.init.eye_(head.weight)
    return head


def make_trainer(
    model: SentenceTransformer,
    rows: TrainingPairs,
    options: TrainOptions,
    prompts: Prompts,
    checkpoints: Path,
    setting: DeviceSetup,
    *,
    metrics: Metrics | None = None,
    primary: str | None = None,
    report: Callable[[int, float], None] | None = None,
    more_callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """Return a trainer over rows, ready to run.

    Args:
        model: The model to tune, on its device, its parameters prepared.
        rows: One pair of query and positive each.
        options: How to tune.
        prompts: Put before queries and documents, by role.
        checkpoints: Folder for checkpoints.
        setting: Device, precision, processes.
        metrics: What is watched.
        primary: The metric that early stopping watches; without it, the last weights are kept.
        report: Is told step and primary metric.
        more_callbacks: For the trainer.
    """
    # before the loss, which may copy the model as it is
    pack = packer(model, options.packed, setting.precision, compiled=options.compile)
    loss = BatchLoss(model, options, rows.tasks, setting.processes)
    if options.shard:
        shard(model, list(loss.heads), setting.processes)
    anchor = [AnchorCallback(options.anchor, model)] if options.anchor and options.anchor_by == "weights" else []
    process = setting.process, setting.processes
    collator = Collator(model, rows, options, prompts, process, setting.precision, pack)
    if not setting.process:
        collator.note_cut()
    return assemble(
        model,
        options,
        checkpoints,
        setting,
        batches=Batches(rows, options, setting.processes),
        rows=len(rows),
        loss=loss,
        collator=collator,
        rates=learning_rates(model, options),
        metrics=metrics,
        primary=primary,
        report=report,
        more_callbacks=[*anchor, *more_callbacks],
        kind=ShardedTrainer if options.shard else Trainer,
    )
