"""Corners of merging: odd folders, odd combinations, damaged records; each was wrong once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from conftest import leftovers, perturb
from merge_helpers import raw_model, same_bytes, tensors_in, write_model
from safetensors.numpy import save_file
from test_checkpoints import adapter, as_pickle
from test_weights import EXAMPLES

from bge_cocktail.core.errors import CocktailError, DataError, UsageError
from bge_cocktail.core.outputs import read_json
from bge_cocktail.merging.inspect import inspect
from bge_cocktail.merging.merge import merge, verify_merge
from bge_cocktail.merging.mergekit import from_mergekit
from bge_cocktail.merging.objective import example_loss
from bge_cocktail.merging.recipe import Recipe, read_recipe
from bge_cocktail.models.encoder import CachedEncoder, Encoder
from bge_cocktail.models.prompts import set_prompts
from bge_cocktail.options import EncodeOptions, MergeOptions

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("corners")
    base = raw_model(folder / "base", 0)
    return [base, *(raw_model(folder / f"tuned{seed}", seed, like=base) for seed in (1, 2, 3))]


def plain_of(tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("modules.json", "1_Pooling", "2_Normalize"))
    return folder


def test_declaring_a_pooling_leaves_the_input_as_it_is(tiny: Path, tmp_path: Path) -> None:
    plain = plain_of(tiny, tmp_path / "plain")
    set_prompts(plain, {"query": "Q: "})
    (plain / "1_Pooling").mkdir()
    before = {path: path.read_bytes() for path in plain.rglob("*") if path.is_file()}
    merge([plain], tmp_path / "out", MergeOptions(pooling="mean"))
    assert {path: path.read_bytes() for path in plain.rglob("*") if path.is_file()} == before
    assert read_json(tmp_path / "out/config_sentence_transformers.json")["prompts"]["query"] == "Q: "


def test_no_output_replaces_an_adapter_or_lies_in_it(models: list[Path], tmp_path: Path) -> None:
    merge(models[:2], tmp_path / "previous")
    inside = adapter(tmp_path / "previous/adapter", models[0], 3)
    for output in (tmp_path / "previous", inside / "out", inside):
        with pytest.raises(UsageError, match="input"):
            merge([inside], output, overwrite=True)
    assert (inside / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_inner_merges_that_look_at_data_keep_their_own_numbers(
    nudged: list[Path], tiny: Path, tmp_path: Path, method: str
) -> None:
    inner = [
        Recipe(tuple(map(str, pair)), MergeOptions(method=method), f"inner{number}")
        for number, pair in enumerate([nudged[:2], [nudged[2], tiny]])
    ]
    more: dict[str, Any] = {"examples": EXAMPLES, "encoding": EncodeOptions(cache=False)}
    merge(Recipe(tuple(inner), MergeOptions(weights=[1, 0])), tmp_path / "nested", **more)
    merge(nudged[:2], tmp_path / "flat", MergeOptions(method=method), **more)
    assert same_bytes(tmp_path / "nested", tmp_path / "flat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
        ({"base_model_name_or_path": 5}, "names no base"),
    ],
)
def test_odd_adapters(models: list[Path], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    bad = adapter(tmp_path / "bad", models[0], 1, **change)
    with pytest.raises(DataError, match=message):
        merge([bad, models[0]], tmp_path / "out")


def test_more_odd_adapters(models: list[Path], tmp_path: Path) -> None:
    itself = adapter(tmp_path / "itself", models[0], 1, base_model_name_or_path=str(tmp_path / "itself"))
    with pytest.raises(DataError, match="is an adapter too"):
        merge([itself], tmp_path / "out")
    beside = adapter(tmp_path / "beside", models[0], 1)
    (beside / "modules.json").write_text("[]")
    with pytest.raises(DataError, match="beside modules of its own"):
        merge([beside], tmp_path / "out")
    thin = adapter(tmp_path / "thin", models[0], 1)
    name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_{}.weight"
    for a, b, message in (((2, 8), (8, 3), "matrices of"), ((0, 8), (8, 0), "matrices of")):
        tensors = {name.format("A"): np.zeros(a, np.float32), name.format("B"): np.zeros(b, np.float32)}
        save_file(tensors, thin / "adapter_model.safetensors")
        with pytest.raises(DataError, match=message):
            merge([thin], tmp_path / "out")
    save_file({name.format("A"): np.zeros((2, 8), np.int64)}, thin / "adapter_model.safetensors")
    with pytest.raises(DataError, match="of type I64"):
        merge([thin], tmp_path / "out")
    save_file({"base_model.model.bert.odd.lora_magnitude": np.zeros(3, np.float32)}, thin / "adapter_model.safetensors")
    with pytest.raises(DataError, match="has no tensor 'bert.odd.lora_magnitude'"):
        merge([thin], tmp_path / "out")


def test_the_first_pattern_counts_as_in_peft(models: list[Path], tmp_path: Path) -> None:
    from bge_cocktail.merging.checkpoints import _factors

    pair = {"A": np.ones((2, 8), np.float32), "B": np.ones((8, 2), np.float32)}
    config = {"lora_alpha": 2, "alpha_pattern": {"query": 20, ".*": 4}}
    assert _factors(tmp_path, "layer.query", pair, config)[1][0, 0] == 10
    assert _factors(tmp_path, "layer.key", pair, config)[1][0, 0] == 2
    assert _factors(tmp_path, "layer.key", pair, {"lora_alpha": 0})[1][0, 0] == 0


def test_weights_that_no_module_reads_are_not_lost(tiny: Path, tmp_path: Path) -> None:
    for number, name in enumerate(["3_Head/head.pt", "route/pytorch_model.bin", "route/model.safetensors"]):
        folder = shutil.copytree(tiny, tmp_path / f"stray{number}")
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(b"weights")
        with pytest.raises(DataError, match=f"no module owns {name}"):
            merge([folder, tiny], tmp_path / "out")
    trained = shutil.copytree(tiny, tmp_path / "trained")
    (trained / "training_args.bin").write_bytes(b"arguments")
    merge([trained, tiny], tmp_path / "out")
    assert not (tmp_path / "out/training_args.bin").exists()


def test_a_module_that_shares_the_first_ones_folder(tiny: Path, tmp_path: Path) -> None:
    from bge_cocktail.models.encoder import load_encoder

    folder = shutil.copytree(tiny, tmp_path / "shared")
    modules = read_json(folder / "modules.json")
    modules[2]["path"] = ""
    (folder / "modules.json").write_text(json.dumps(modules))
    merge([folder, folder], tmp_path / "out")
    assert same_bytes(tmp_path / "out", tiny)
    assert load_encoder(tmp_path / "out", device="cpu").encode("a dog").shape == (32,)


def test_shards_that_are_missing(models: list[Path], tmp_path: Path) -> None:
    one = shutil.copytree(models[1], tmp_path / "one")
    (one / "model.safetensors").rename(one / "model-00001-of-00002.safetensors")
    with pytest.raises(DataError, match="speaks of more; is the model whole"):
        merge([one, models[1]], tmp_path / "out")


def test_the_index_is_that_of_the_files_written(models: list[Path], tmp_path: Path) -> None:
    every = tensors_in(models[1])
    sharded = shutil.copytree(models[1], tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    places = {}
    for number, names in enumerate((list(every)[::2], list(every)[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: every[name] for name in names}, sharded / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    merge([sharded, models[2]], tmp_path / "out", MergeOptions(dtype="float16"))
    written = read_json(tmp_path / "out/model.safetensors.index.json")
    assert written["weight_map"] == places
    assert written["metadata"]["total_size"] == sum(2 * value.size for value in every.values())


@pytest.mark.parametrize("method", ["slerp", "karcher"])
def test_a_meaning_only_with_weights_of_sum_1(models: list[Path], tmp_path: Path, method: str) -> None:
    with pytest.raises(UsageError, match="leave out `normalise=False`"):
        merge(models[:2], tmp_path / "out", MergeOptions(method=method, normalise=False))


def test_opposite_models_meet_in_the_middle(models: list[Path], tmp_path: Path) -> None:
    opposite = write_model(tmp_path / "opposite", {name: -value for name, value in tensors_in(models[0]).items()})
    merge([models[0], opposite], tmp_path / "out", MergeOptions(method="karcher"))
    assert all(np.abs(value).max() < 1e-6 for value in tensors_in(tmp_path / "out").values())


def test_whole_numbers_are_compared_inside_too(models: list[Path], tmp_path: Path) -> None:
    folders = []
    for number in (0, 1):
        ids = {"bert.ids": np.arange(4) + number}
        folders.append(write_model(tmp_path / f"ids{number}", {**tensors_in(models[1]), **ids}))
    inner = Recipe(tuple(map(str, folders)), MergeOptions(), "inner")
    with pytest.raises(DataError, match=r"'bert.ids' \(I64\) differs"):
        merge(Recipe((inner, str(folders[0]))), tmp_path / "out")


def test_layers_are_told_by_name_and_not_by_place() -> None:
    from bge_cocktail.models.layers import nearest_layer

    first = ["shared.weight", "wte.weight", "transformer.wpe.weight", "embeddings.tok_embeddings.weight"]
    last = ["final_norm.weight", "ln_f.bias", "norm.weight", "pooler.dense.weight", "classifier.bias", "lm_head.weight"]
    assert [nearest_layer(name, 6) for name in first] == [0] * len(first)
    assert [nearest_layer(name, 6) for name in last] == [5] * len(last)
    assert nearest_layer("h.3.attn.weight", 6) == nearest_layer("layers.3.mlp.weight", 6) == 3


@pytest.mark.parametrize(
    "options", [{"weights": "cocktail"}, {"weights": "gradient", "steps": 2}, {"method": "fisher"}]
)
def test_what_is_excluded_is_the_first_models_everywhere(tiny: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    other = perturb(tiny, tmp_path / "other", 1)
    tensors = tensors_in(other)
    tensors["embeddings.word_embeddings.weight"] = np.ones((80, 32), np.float32)
    del tensors["pooler.dense.weight"]
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    exclude = ["*word_embeddings*", "*pooler*"]
    merge([tiny, other], tmp_path / "out", MergeOptions(exclude=exclude, **options), examples=EXAMPLES)
    name = "embeddings.word_embeddings.weight"
    assert tensors_in(tmp_path / "out")[name].tobytes() == tensors_in(tiny)[name].tobytes()


def test_exclude_that_does_nothing_or_everything(models: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`exclude` 'nothing\*': no tensor has such a name"):
        merge(models[:2], tmp_path / "out", MergeOptions(exclude=["nothing*"]))
    with pytest.raises(UsageError, match="no tensor is left to merge"):
        merge(models[:2], tmp_path / "out", MergeOptions(exclude=["*"]))


def test_a_merge_is_judged_with_the_settings_it_is_written_with(tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    """Prompts and length of the chosen model, also where one model has all the weight."""
    prompted = shutil.copytree(nudged[0], tmp_path / "prompted")
    set_prompts(prompted, {"query": "plum pear apple "})
    short = shutil.copytree(nudged[1], tmp_path / "short")
    settings = short / "sentence_bert_config.json"
    settings.write_text(json.dumps({**read_json(settings), "max_seq_length": 4}))
    seen: list[np.ndarray] = []

    def score(encoder: Encoder) -> tuple[float, float | None]:
        seen.append(encoder.encode_query(["where is the small red boat in the garden"]))
        return float(len(seen)), None

    for number, (pair, options) in enumerate(
        [
            ([tiny, prompted], {"prompts_from": 1}),
            ([short, tiny], {"length_from": 2}),
            ([tiny, short], {"length_from": 2}),
        ]
    ):
        seen.clear()
        merge(pair, tmp_path / f"out{number}", MergeOptions(weights="greedy", **options), score=score)
        # the scores of the models alone come first; the folder with all the weight on each embeds the same
        for row in (0, 1):
            weights = [float(row == 0), float(row == 1)]
            merge(pair, tmp_path / f"alone{number}{row}", MergeOptions(weights=weights, **options))
            found = CachedEncoder(tmp_path / f"alone{number}{row}").encode_query(
                ["where is the small red boat in the garden"]
            )
            assert np.abs(found - seen[row]).max() < 1e-6


def test_inner_merges_and_pickles_come_first_too(tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    """A first model that isn't simply a folder is written to be loaded, with its own settings."""
    inner = Recipe(tuple(map(str, nudged[:2])), MergeOptions(), "inner")
    pickled = as_pickle(nudged[0], tmp_path / "pickled")
    for first in (inner, str(pickled)):
        recipe = Recipe((first, str(tiny)), MergeOptions(weights="cocktail", prompts_from=2, length_from=2))
        for name in ("cold", "warm"):  # with and without embeddings in the cache
            folder = tmp_path / f"{name}{isinstance(first, str)}"
            merged = merge(recipe, folder, examples=EXAMPLES)
            assert merged.losses[1] == pytest.approx(example_loss(CachedEncoder(tiny), EXAMPLES), abs=1e-5)
        searched = Recipe((first, str(tiny)), MergeOptions(weights="search", trials=3))
        for name in ("cold", "warm"):
            merge(searched, tmp_path / f"search-{name}{isinstance(first, str)}", examples=EXAMPLES)


@pytest.mark.parametrize("method", ["ties", "dare-linear", "dare-ties"])
def test_signed_zeros_stay(models: list[Path], tmp_path: Path, method: str) -> None:
    zeros = write_model(tmp_path / "zeros", {"bert.encoder.layer.0.weight": np.float32([[-0.0, 0.0, 1.0]])})
    merge([zeros, zeros], tmp_path / "out", MergeOptions(method=method, base=str(zeros)))
    assert same_bytes(zeros, tmp_path / "out")


def test_verify_looks_at_every_file(nudged: list[Path], tmp_path: Path) -> None:
    merge(nudged[:2], tmp_path / "out")
    assert verify_merge(tmp_path / "out")["files_compared"] > 5
    for file in ("1_Pooling/config.json", "tokenizer.json"):
        folder = shutil.copytree(tmp_path / "out", tmp_path / file.replace("/", "-"))
        (folder / file).write_text("{}")
        with pytest.raises(CocktailError, match=f"{file} is not what its recipe gives"):
            verify_merge(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run.pop("models"),
        lambda run: run.pop("inputs"),
        lambda run: run.update(models=[]),
        lambda run: run.update(models=[1, 2]),
        lambda run: run.update(models=[{}, {}]),
        lambda run: run.update(inputs=[1]),
        lambda run: run.update(weights_for=[1]),
        lambda run: run.update(weights_for={"a": ["x"]}),
        lambda run: run.update(scale="x"),
        lambda run: run.update(command="train"),
    ],
)
def test_verify_of_a_damaged_record(models: list[Path], tmp_path: Path, change: Callable[[Any], Any]) -> None:
    merge(models[:2], tmp_path / "out")
    run = read_json(tmp_path / "out/run.json")
    change(run)
    (tmp_path / "out/run.json").write_text(json.dumps(run))
    with pytest.raises(DataError, match="was not made by bge-cocktail merge"):
        verify_merge(tmp_path / "out")


def test_inputs_of_one_name_are_all_recorded(models: list[Path], tmp_path: Path) -> None:
    inner = [Recipe((str(models[0]), str(path)), MergeOptions()) for path in models[1:3]]
    merge(Recipe(tuple(inner)), tmp_path / "out")
    inputs = read_json(tmp_path / "out/run.json")["inputs"]
    assert {"merge", "merge (2)", *map(str, models[:3])} == set(inputs)


def test_a_merge_does_not_depend_on_where_the_base_lies(models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(models[0])
    for name, base in (("one", models[0]), ("two", tmp_path / "link")):
        inner = Recipe((str(models[1]),), MergeOptions(method="task-arithmetic", base=str(base)), "inner")
        outer = Recipe((inner, str(models[2])), MergeOptions(method="dare-linear", base=str(models[0])))
        merge(outer, tmp_path / name)
    assert same_bytes(tmp_path / "one", tmp_path / "two")


def test_an_output_that_is_a_link(models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "place")
    merge(models[:2], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "place/model.safetensors").is_file()
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_no_file_stays_open(models: list[Path], tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", models[0], 1)
    merge([folder, models[0]], tmp_path / "out")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        merge([folder, models[0]], tmp_path / "out", overwrite=True)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_values_beyond_bfloat16(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", {"bert.encoder.layer.0.weight": np.float32([[3.4e38, 1]])})
    with pytest.raises(DataError, match="beyond bfloat16"):
        merge([model, model], tmp_path / "out", MergeOptions(dtype="bfloat16"))


@pytest.mark.parametrize(
    "file", ["1_Pooling/config.json", "config.json", "sentence_bert_config.json", "tokenizer.json"]
)
@pytest.mark.parametrize("content", ["[]", "5", '"x"', "{", "[" * 5000])
def test_wrong_types_in_a_model(cli: Cli, tiny: Path, tmp_path: Path, file: str, content: str) -> None:
    bad = shutil.copytree(tiny, tmp_path / "bad")
    (bad / file).write_text(content)
    for command in (["merge", tiny, bad, "-o", tmp_path / "out"], ["inspect", tiny, bad]):
        result = cli(*command, code=None)
        assert result.exit_code in (0, 1, 2)
        assert result.exception is None or isinstance(result.exception, SystemExit)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [5, [1], "s", {"query": 5}])
def test_prompts_that_are_none(cli: Cli, tiny: Path, tmp_path: Path, value: Any) -> None:
    bad = shutil.copytree(tiny, tmp_path / "bad")
    (bad / "config_sentence_transformers.json").write_text(json.dumps({"prompts": value}))
    assert "'prompts' must be texts by name" in cli("merge", tiny, bad, "-o", tmp_path / "out", code=1).output


@pytest.mark.parametrize("value", ["x", [1], -3])
def test_lengths_that_are_none(cli: Cli, tiny: Path, tmp_path: Path, value: Any) -> None:
    bad = shutil.copytree(tiny, tmp_path / "bad")
    (bad / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": value}))
    assert "must be a whole number" in cli("merge", tiny, bad, "-o", tmp_path / "out", code=1).output


def test_names_that_cannot_be_written(tmp_path: Path) -> None:
    import torch

    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps({"\ud800": entry}).encode()
    model = raw_model(tmp_path / "model", 1)
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"1234")
    with pytest.raises(DataError, match="model.safetensors"):
        merge([model, model], tmp_path / "out")
    for number, name in enumerate(["__metadata__", "../x", 5, ""]):
        pickled = as_pickle(raw_model(tmp_path / f"other{number}", 1), tmp_path / f"pickled{number}")
        torch.save({name: torch.zeros(2)}, pickled / "pytorch_model.bin")
        with pytest.raises(DataError, match="is no name of a tensor"):
            merge([pickled, pickled], tmp_path / "out")
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(DataError, match="found nothing"):
        merge([pickled, pickled], tmp_path / "out")
    torch.save({"x": torch.zeros(2, 2).to_sparse()}, pickled / "pytorch_model.bin")
    with pytest.raises(DataError, match="this can be merged"):
        merge([pickled, pickled], tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer-weights", "1,0;0,1", "--weights", "1,2"], "leave out --weights and --share"),
        (["--negatives", "3"], "--negatives does nothing here"),
        (["--like-lm-cocktail"], "--like-lm-cocktail does nothing here"),
        (["--weights", "unifrom", "--dry-run"], "Did you mean 'uniform'?"),
        (["--weights", "greedy", "--share", "0.5", "--dry-run"], "--share doesn't go with weights 'greedy'"),
        (["--weights", "pareto"], "need --target and --general tasks"),
        (["--method", "fisher"], "method fisher needs examples"),
        (["--weights", "pareto", "--shares", "2,3"], "shares are between 0 and 1"),
        (["--base", "x", "--weights", "gradient"], "linear needs no base"),
    ],
)
def test_options_without_effect(cli: Cli, models: list[Path], tmp_path: Path, flags: list[str], message: str) -> None:
    assert message in cli("merge", *models[:2], *flags, "-o", tmp_path / "out", code=2).output


def test_inspect_of_two_that_do_not_fit(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny, tmp_path / "other")
    config = read_json(other / "config.json")
    (other / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    set_prompts(other, {"query": "q"})
    assert "hidden_act gelu against relu" in cli("inspect", tiny, other, "-o", tmp_path / "out").stdout
    assert not (tmp_path / "out/heatmap.png").exists()
    prompted = shutil.copytree(tiny, tmp_path / "prompted")
    set_prompts(prompted, {"query": "q"})
    assert inspect([str(tiny), str(prompted)]).pairs[0].verdict == "can be merged (with `prompts_from=N`)"
    assert "can be merged (with --prompts-from N)" in cli("inspect", tiny, prompted).stdout


def test_tokenizers_in_other_files(tiny: Path, tmp_path: Path) -> None:
    none = shutil.copytree(tiny, tmp_path / "none")
    words = read_json(tiny / "tokenizer.json")["model"]["vocab"]
    for name in ("tokenizer.json", "vocab.txt"):
        (none / name).unlink(missing_ok=True)
    with pytest.raises(DataError, match="none has none"):
        merge([tiny, none], tmp_path / "out")
    (none / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)))
    settings = read_json(none / "tokenizer_config.json")
    (none / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": False}))
    with pytest.raises(DataError, match="lowercase True against False"):
        merge([tiny, none], tmp_path / "out")


@pytest.mark.parametrize(
    "content",
    [
        "merge_method: ties\nbase_model: b\nmodels: 5",
        "merge_method: ties\nbase_model: b\nmodels: []",
        "merge_method: linear\nmodels: [{model: a}]\nparameters: 3",
        "merge_method: [a]\nmodels: [{model: a}]",
        "merge_method: linear\nslices: [{sources: 5}]",
        "merge_method: linear\nslices: [{sources: [5]}]",
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: []}}, {model: b, parameters: {weight: []}}]",
        "merge_method: linear\nmodels: [{model: a}]\nparameters: {1: 2}",
        "merge_method: ties\nbase_model: b\nmodels: [{model: a}]\nparameters: {lambda: true}",
        "merge_method: ties\nbase_model: b\nmodels: [{model: a}]\nparameters: {rescale: true}",
        "merge_method: linear\nslices: [{sources: [{model: a}], parameters: {weight: 0.3}}]",
        "merge_method: linear\nslices: [{sources: [{model: a, foo: 1}]}]",
        "- a",
        "a: [",
    ],
)
def test_yaml_that_is_not_what_mergekit_takes(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.yml").write_text(content)
    with pytest.raises(UsageError):
        read_recipe(tmp_path / "r.yml")


def test_slices_are_taken_whole_or_not(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "model", 1, num_hidden_layers=3)

    def sliced(end: int) -> str:
        sources = [{"model": str(model), "layer_range": [0, end]}] * 2
        return json.dumps({"merge_method": "linear", "slices": [{"sources": sources}]})

    assert len(from_mergekit(sliced(3), "x")["models"]) == 2
    with pytest.raises(UsageError, match="is a part of the model"):
        from_mergekit(sliced(2), "x")


def test_densities_as_mergekit_takes_them() -> None:
    text = "merge_method: ties\nbase_model: b\nmodels: [{model: a, parameters: {density: 0.3}}, {model: c}]"
    # what mergekit doesn't say of a model it keeps whole
    assert from_mergekit(text, "x")["density_for"] == {"*": [0.3, 1.0]}
    assert from_mergekit(text.replace(", {model: c}", ""), "x")["density"] == 0.3
    assert from_mergekit("merge_method: ties\nbase_model: b\nmodels: [{model: a}]", "x")["density"] == 1.0
