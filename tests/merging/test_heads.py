"""Heads in a merge: other architectures, inner merges, task vectors, what may not be merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from conftest import write_lines
from safetensors.numpy import load_file
from test_merging_classifiers import HEAD, relabelled, tensors_of, trained

from bge_cocktail.core.errors import UsageError
from bge_cocktail.merging.merge import merge
from bge_cocktail.options import MergeOptions
from bge_cocktail.training.classifier.model import load_classifier

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def pair(tiny: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two classifiers of the same labels."""
    folder = tmp_path_factory.mktemp("pair")
    return [trained(tiny, labelled, folder / f"seed-{seed}", seed=seed, epochs=3) for seed in (1, 2)]


def saved(model: Any, tiny: Path, folder: Path) -> Path:
    """A transformers model with the tokenizer of the small one."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (tiny / name).is_file():
            shutil.copyfile(tiny / name, folder / name)
    return folder


@pytest.mark.parametrize("family", ["Albert", "DistilBert", "Roberta", "ModernBert"])
def test_an_encoder_under_the_head_of_its_family(family: str, tiny: Path, tmp_path: Path) -> None:
    import transformers

    sizes: dict[str, Any] = {
        "Albert": {"embedding_size": 8, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32},
        "DistilBert": {"dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 32},
        "Roberta": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32},
        "ModernBert": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32},
    }[family]
    config = getattr(transformers, f"{family}Config")(
        vocab_size=80, num_labels=2, id2label={0: "no", 1: "yes"}, pad_token_id=0, **sizes
    )
    torch.manual_seed(0)
    classifier = saved(
        getattr(transformers, f"{family}ForSequenceClassification")(config), tiny, tmp_path / "classifier"
    )
    encoder = saved(getattr(transformers, f"{family}Model")(config), tiny, tmp_path / "encoder")
    merge([classifier, encoder], tmp_path / "out", MergeOptions(weights=[0.5, 0.5]))
    one, other, out = (load_file(folder / "model.safetensors") for folder in (classifier, encoder, tmp_path / "out"))
    body = next(name for name in one if "embeddings" in name).split(".")[0]
    moved = 0
    for name, value in out.items():
        bare = name.removeprefix(f"{body}.")
        expected = (one[name] + other[bare]) / 2 if bare in other else one[name]
        np.testing.assert_allclose(value, expected, atol=1e-6, err_msg=name)
        moved += bare in other
    assert moved >= len(other) - 2


def test_an_inner_merge_numbers_labels_by_its_own_first(
    pair: list[Path], labelled: Path, cli: Cli, tmp_path: Path
) -> None:
    turned = [relabelled(model, tmp_path / f"turned-{row}", [1, 0]) for row, model in enumerate(pair)]
    losses = []
    for number, inner in enumerate((pair, turned)):
        recipe = tmp_path / f"{number}.toml"
        models = "".join(f'[[models.recipe.models]]\nmodel = "{model}"\n' for model in inner)
        recipe.write_text(
            f'weights = "cocktail"\n[[models]]\nmodel = "{pair[0]}"\n[[models]]\n[models.recipe]\n'
            f'weights = "cocktail"\n{models}'
        )
        output = tmp_path / f"out-{number}"
        cli("merge", "-r", recipe, "--examples", labelled, "--split", "test", "-o", output)
        losses.append(json.loads((output / "run.json").read_text())["models"][1]["losses"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[0][0] != losses[0][1]


def test_an_inner_merge_of_encoders_needs_no_examples(
    pair: list[Path], tiny: Path, labelled: Path, cli: Cli, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.toml"
    inner = f'[[models.recipe.models]]\nmodel = "{tiny}"\n' * 2
    recipe.write_text(
        f'weights = "cocktail"\n[[models]]\nmodel = "{pair[0]}"\n[[models]]\n[models.recipe]\n'
        f"weights = [0.5, 0.5]\n{inner}"
    )
    cli("merge", "-r", recipe, "--examples", labelled, "--split", "test", "-o", tmp_path / "out")
    recipe.write_text(recipe.read_text().replace("[0.5, 0.5]", '"cocktail"'))
    where = ("merge", "-r", recipe, "--examples", labelled, "--split", "test", "-o", tmp_path / "no")
    assert "its examples are records" in cli(*where, code=2).stderr


def test_task_vectors_of_models_without_the_head_add_nothing_to_it(
    pair: list[Path], tiny: Path, labelled: Path, tmp_path: Path
) -> None:
    base = trained(tiny, labelled, tmp_path / "base", seed=9, epochs=1)
    for models in ([pair[0]], [pair[0], tiny], [pair[0], tiny, tiny]):
        options = MergeOptions(method="task-arithmetic", base=str(base))
        out = merge(models, tmp_path / f"out-{len(models)}", options).folder
        for name in HEAD:
            np.testing.assert_allclose(tensors_of(out)[name], tensors_of(pair[0])[name], atol=1e-6)


def test_settings_that_differ_keep_heads_apart(pair: list[Path], tiny: Path, labelled: Path, tmp_path: Path) -> None:
    other = trained(tiny, labelled, tmp_path / "other", clean=["space"], max_length=16)
    with pytest.raises(UsageError, match="was trained otherwise \\(clean"):
        merge([pair[0], other], tmp_path / "no", MergeOptions(heads="merge"))
    out = merge([pair[0], other], tmp_path / "out", MergeOptions(length_from=2)).folder
    assert all(np.array_equal(tensors_of(out)[name], tensors_of(pair[0])[name]) for name in HEAD)
    assert load_classifier(out).model.max_seq_length == 16
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 16
    assert not (out / "sentence_bert_config.json").exists()


def test_pooled_heads_of_other_poolings_are_kept_apart(tiny: Path, labelled: Path, tmp_path: Path) -> None:
    cls = shutil.copytree(tiny, tmp_path / "cls")
    config = json.loads((cls / "1_Pooling/config.json").read_text())
    config |= {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    (cls / "1_Pooling/config.json").write_text(json.dumps(config))
    models = [trained(base, labelled, tmp_path / f"p{row}", head="pooled") for row, base in enumerate((tiny, cls))]
    with pytest.raises(UsageError, match="pooling: "):
        merge(models, tmp_path / "no", MergeOptions(heads="merge"))


def test_a_tokenizer_that_differs_can_be_chosen(pair: list[Path], tiny: Path, cli: Cli, tmp_path: Path) -> None:
    other = shutil.copytree(tiny, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"} if tokenizer["normalizer"]["type"] != "Lowercase" else None
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused = cli("merge", pair[0], other, "-o", tmp_path / "no", code=1)
    assert "--tokenizer-from N" in refused.stderr
    cli("merge", pair[0], other, "--tokenizer-from", 1, "-o", tmp_path / "out")


@pytest.mark.parametrize("flag", [("--prompts-from", 1), ("--negatives", 3), ("--loss-temperature", 0.1)])
def test_options_of_encoders_are_refused(
    pair: list[Path], labelled: Path, cli: Cli, tmp_path: Path, flag: tuple[str, object]
) -> None:
    where = ("--weights", "cocktail", "--examples", labelled, "--split", "test", "-o", tmp_path / "out")
    assert "does nothing" in cli("merge", *pair, *flag, *where, code=2).stderr


def test_copies_repeat_no_text_of_a_test_of_its_own(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    from bge_cocktail.data.sources import Source
    from bge_cocktail.options import ClassifyOptions
    from bge_cocktail.training.classifier.data import read_class_data, with_augmented

    words = [f"word{number}" for number in range(60)]
    rows: list[dict[str, object]] = [
        {"text": f"{words[row]} other{row} same", "label": str(row % 2)} for row in range(60)
    ]
    write_lines(tmp_path / "data/train.jsonl", rows)
    write_lines(tmp_path / "data/test.jsonl", [{**row, "text": f"{words[n]} same"} for n, row in enumerate(rows)])
    options = ClassifyOptions.model_validate({"augment": "delete", "augment_share": 1.0})
    data = with_augmented(read_class_data(Source(str(tmp_path / "data")), options), options)
    copies = {text for text in data.train.texts if isinstance(text, str) and len(text.split()) == 2}
    assert len(copies) > 10
    assert not copies & {f"{word} same" for word in words}


def test_a_search_of_what_does_nothing_is_refused(cli: Cli, tiny: Path, labelled: Path, tmp_path: Path) -> None:
    where = ("classify", "train", labelled, "-m", tiny, "-o", tmp_path / "out", "--trials", 2)
    assert "goes with few_shot" in cli(*where, "--search", "pairs_per_text", code=2).stderr
    refused = cli(*where, "--few-shot", "--search", "label_smoothing", code=2)
    assert "label_smoothing goes with a head" in refused.stderr
    assert not (tmp_path / "out.search").exists()
