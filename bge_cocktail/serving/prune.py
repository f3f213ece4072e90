"""A smaller encoder: some of the layers, trained to give the embeddings of the whole model.

Layers dropped without training destroy quality; as in DistilBERT (arXiv:1910.01108) the evenly spaced ones are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bge_cocktail.core.errors import UsageError
from bge_cocktail.models.encoder import CachedEncoder, load_encoder
from bge_cocktail.models.folder import model_folder
from bge_cocktail.models.layout import make_portable
from bge_cocktail.options import EncodeOptions, ExportOptions

_RATE, _BATCH, _LONGEST = 1e-4, 32, 128


def prune(folder: Path, options: ExportOptions, texts: Sequence[str], output: Path) -> Path:
    """Keep `prune_layers` layers, and train them so that texts get the embeddings of `distil_from`.

    Args:
        folder: The model.
        options: How many layers, whose embeddings, how long, the seed.
        texts: What it is trained on.
        output: A folder to write.

    Returns:
        `output`, a sentence-transformers folder.

    Raises:
        UsageError: More layers than there are, no layers that can be dropped, or a teacher of other dimensions.
    """
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MSELoss
    from sentence_transformers.models import Normalize

    model = load_encoder(folder, device="cpu")
    encoder = getattr(getattr(model[0], "auto_model", None), "encoder", None)
    layers = getattr(encoder, "layer", None)
    wanted = options.prune_layers or 0
    if encoder is None or layers is None:
        raise UsageError("layers can be dropped from BERT and its kin alone (encoder.layer)")
    if wanted >= len(layers):
        raise UsageError(f"`prune_layers={wanted}`: the model has {len(layers)} layers")
    kept = np.unique(np.linspace(0, len(layers) - 1, wanted).round().astype(int)) if wanted > 1 else [len(layers) - 1]
    encoder.layer = torch.nn.ModuleList([layers[int(row)] for row in kept])
    model[0].auto_model.config.num_hidden_layers = len(kept)
    distinct = list(dict.fromkeys(texts))
    teacher = CachedEncoder(model_folder(options.distil_from or folder), EncodeOptions())
    labels = teacher.encode_document(distinct)
    if labels.shape[1] != model.get_embedding_dimension():
        raise UsageError(f"the teacher gives {labels.shape[1]} dimensions, the model {model.get_embedding_dimension()}")
    prompt = teacher.prompts.document
    length, model.max_seq_length = model.max_seq_length, min(model.max_seq_length or _LONGEST, _LONGEST)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(output.with_name("pruning")),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=_BATCH,
        learning_rate=_RATE,
        warmup_steps=10,
        seed=options.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
    )
    rows = {"sentence": [prompt + text for text in distinct], "label": [row.tolist() for row in labels]}
    # compared at unit norm, as embeddings are used; the model itself keeps its modules
    trained = SentenceTransformer(modules=[*model, Normalize()], device="cpu")
    SentenceTransformerTrainer(trained, arguments, Dataset.from_dict(rows), loss=MSELoss(trained)).train()
    model.max_seq_length = length
    model.save_pretrained(str(output), create_model_card=False)
    make_portable(output, max_length=length, tokenizer_from=folder)
    return output
