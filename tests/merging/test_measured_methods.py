"""Methods that measure each model on examples of its own, against a loop over layers written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merge_helpers import same_bytes
from sentence_transformers import SentenceTransformer

from bge_cocktail.core.errors import UsageError
from bge_cocktail.data.record import Record
from bge_cocktail.merging.merge import merge
from bge_cocktail.options import EncodeOptions, MergeOptions

OWN = [
    [Record("which dog is red", ("the red dog runs",), ("a blue cat", "the small house"))],
    [Record("where is the boat", ("the boat sails near the river",), ("big train", "a grey horse"))],
]
ENCODING = EncodeOptions(cache=False, device="cpu", precision="fp32")
SHRINKAGE = 0.9


def inputs_of(model: SentenceTransformer, layer: int, texts: list[str]) -> dict[str, torch.Tensor]:
    """What goes into each linear layer of one layer, one text at a time, so that nothing is padded."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = []
    for name, module in model[0].named_modules():
        if isinstance(module, torch.nn.Linear) and f"layer.{layer}." in name:
            rows = seen.setdefault(name, [])
            handles.append(module.register_forward_pre_hook(lambda _, inputs, rows=rows: rows.append(inputs[0][0])))
    for text in texts:
        model.encode([text])
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows).double() for name, rows in seen.items()}


def slow_reference(models: list[Path]) -> dict[str, torch.Tensor]:
    loaded = [SentenceTransformer(str(model), device="cpu") for model in models]
    states = [{name: value.double() for name, value in one[0].state_dict().items()} for one in loaded]
    merged = {name: (states[0][name] + states[1][name]) / 2 for name in states[0]}
    done = {name for name in merged if "embeddings" in name}
    for layer in range(2):
        grams: list[dict[str, torch.Tensor]] = []
        for model, state, (record,) in zip(loaded, states, OWN, strict=True):
            model[0].load_state_dict({name: merged[name] if name in done else value for name, value in state.items()})
            inputs = inputs_of(model, layer, [record.query, *record.pos, *record.neg])
            products = {name: rows.T @ rows for name, rows in inputs.items()}
            grams.append({n: SHRINKAGE * g + (1 - SHRINKAGE) * torch.diag(torch.diag(g)) for n, g in products.items()})
        for name in grams[0]:
            weights = [state[f"{name}.weight"] for state in states]
            one, two = (gram[name] / 2 for gram in grams)
            ridge = 1e-6 * torch.trace(one + two) / len(one) * torch.eye(len(one))
            moved = (weights[0] - weights[1]) @ two
            merged[f"{name}.weight"] = weights[0] - torch.linalg.solve(one + two + ridge, moved.T).T
        done |= {name for name in merged if f"layer.{layer}." in name}
    return merged


def test_regmean_plus_plus_sees_what_comes_out_of_merged_layers(nudged: list[Path], tmp_path: Path) -> None:
    models, options = nudged[:2], MergeOptions(method="regmean++", shrinkage=SHRINKAGE)
    for name, order in (("one", [0, 1]), ("two", [1, 0])):
        own = [OWN[row] for row in order]
        merge([models[row] for row in order], tmp_path / name, options, own_examples=own, encoding=ENCODING)
    found = SentenceTransformer(str(tmp_path / "one"), device="cpu")[0].state_dict()
    for name, value in slow_reference(models).items():
        if "pooler" in name:  # no embedding uses it
            continue
        np.testing.assert_allclose(found[name].double(), value, atol=2e-5, err_msg=name)
    assert same_bytes(tmp_path / "one", tmp_path / "two")
    # examples of the other model's task give something else, and so does regmean
    merge(models, tmp_path / "turned", options, own_examples=OWN[::-1], encoding=ENCODING)
    merge(models, tmp_path / "plain", MergeOptions(method="regmean"), own_examples=OWN, encoding=ENCODING)
    assert not same_bytes(tmp_path / "one", tmp_path / "turned")
    assert not same_bytes(tmp_path / "one", tmp_path / "plain")


@pytest.mark.parametrize(
    ("options", "own", "said"),
    [
        ({"method": "regmean++"}, OWN[:1], "1 `own_examples` for 2 models: give one for each"),
        ({"method": "regmean++", "weights": "cocktail"}, OWN, "give numbers, or uniform"),
        ({"method": "regmean", "weights": "cocktail"}, OWN, "need examples"),
        ({"method": "regmean"}, [], "method regmean needs examples"),
    ],
)
def test_what_is_missing(nudged: list[Path], tmp_path: Path, options: Any, own: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        merge(nudged[:2], tmp_path / "out", MergeOptions(**options), own_examples=own, encoding=ENCODING)
    assert not (tmp_path / "out").exists()
