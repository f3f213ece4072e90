"""Recipes: TOML and mergekit's YAML, nested merges, the folder that records them, and --verify."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from conftest import leftovers
from hypothesis import given
from hypothesis import strategies as st
from merge_helpers import raw_model, same_bytes, tensors_in

from bge_cocktail.core.errors import CocktailError, DataError, UsageError
from bge_cocktail.merging.merge import merge, verify_merge
from bge_cocktail.merging.mergekit import from_mergekit
from bge_cocktail.merging.recipe import Recipe, expand, read_recipe, recipe_from, to_toml
from bge_cocktail.options import MergeOptions

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recipe")
    base = raw_model(folder / "base", 0)
    return [base, *(raw_model(folder / f"tuned{seed}", seed, like=base) for seed in (1, 2, 3))]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
options = st.builds(
    MergeOptions,
    method=st.sampled_from(["linear", "ties"]),
    weights=st.one_of(st.just("uniform"), st.lists(st.floats(0, 5), min_size=1, max_size=3)),
    density=st.floats(0.01, 1),
    weights_for=st.dictionaries(texts.filter(bool), st.lists(st.floats(0, 1), min_size=1, max_size=3), max_size=2),
    layer_weights=st.none() | st.just([[0.1, 0.9], [0.9, 0.1]]),
    exclude=st.lists(texts, max_size=2),
    prompts_from=st.none() | st.integers(1, 3),
)
recipes = st.recursive(
    st.builds(Recipe, st.lists(texts, min_size=1, max_size=3).map(tuple), options),
    lambda inner: st.builds(
        Recipe,
        st.lists(st.one_of(texts, inner), min_size=1, max_size=3).map(tuple),
        options,
        texts.filter(lambda text: text != ""),
    ),
    max_leaves=4,
)


@given(recipes)
def test_a_recipe_is_read_as_it_was_written(recipe: Recipe) -> None:
    assert recipe_from(tomllib.loads(to_toml(recipe)), "x") == recipe


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_flags_recipe_and_python_give_the_same_bytes(cli: Cli, models: list[Path], tmp_path: Path) -> None:
    recipe = write(
        tmp_path / "r.toml",
        f"""
        method = "ties"
        base = "{models[0]}"
        density = 0.4
        [[models]]
        model = "{models[1]}"
        weight = 0.3
        [[models]]
        model = "{models[2]}"
        weight = 0.7
        """,
    )
    cli("merge", "-r", recipe, "-o", tmp_path / "one")
    flags = ["--method", "ties", "--base", models[0], "--density", 0.4, "--weights", "0.3,0.7"]
    cli("merge", models[1], models[2], *flags, "-o", tmp_path / "two")
    merge(read_recipe(recipe), tmp_path / "three")
    assert same_bytes(tmp_path / "one", tmp_path / "two")
    assert same_bytes(tmp_path / "one", tmp_path / "three")
    assert (tmp_path / "one/recipe.toml").read_bytes() == (tmp_path / "two/recipe.toml").read_bytes()
    # a flag goes before the file; the recipe in the output is what was done
    cli("merge", "-r", recipe, "--density", 1.0, "-o", tmp_path / "four")
    assert not same_bytes(tmp_path / "one", tmp_path / "four")
    assert read_recipe(tmp_path / "four/recipe.toml").options.density == 1.0
    # and is a recipe itself
    cli("merge", "-r", tmp_path / "one/recipe.toml", "-o", tmp_path / "five")
    assert same_bytes(tmp_path / "one", tmp_path / "five")


def test_a_merge_inside_a_merge_is_what_it_is_outside(models: list[Path], tmp_path: Path) -> None:
    inner = Recipe(tuple(map(str, models[1:3])), MergeOptions(method="slerp", weights=[0.3, 0.7]), "inner")
    merge(inner, tmp_path / "inner")
    for number, options in enumerate(
        [MergeOptions(weights=[0.4, 0.6]), MergeOptions(method="ties", base=str(models[0]))]
    ):
        merge(Recipe((inner, str(models[3])), options), tmp_path / f"nested{number}")
        merge([tmp_path / "inner", models[3]], tmp_path / f"flat{number}", options)
        nested, flat = (tensors_in(tmp_path / f"{name}{number}") for name in ("nested", "flat"))
        assert all(np.abs(nested[name] - flat[name]).max() < 1e-6 for name in flat)
    described = json.loads((tmp_path / "nested0/run.json").read_text())
    assert described["models"][0]["model"] == "inner"
    assert [one["weight"] for one in described["models"][0]["recipe"]["models"]] == pytest.approx([0.3, 0.7])
    assert verify_merge(tmp_path / "nested1")["identical"] is True


def test_the_folder_says_what_made_it(models: list[Path], tmp_path: Path) -> None:
    from bge_cocktail.core.runs import hash_path

    merge(models[1:], tmp_path / "out", MergeOptions(weights=[1, 1, 2]))
    described = json.loads((tmp_path / "out/run.json").read_text())
    assert described["inputs"] == {str(path): hash_path(path) for path in models[1:]}
    assert [one["weight"] for one in described["models"]] == [0.25, 0.25, 0.5]
    assert read_recipe(tmp_path / "out/recipe.toml") == Recipe(
        tuple(map(str, models[1:])), MergeOptions(weights=[1, 1, 2])
    )
    # no byte but run.json's times depends on anything else
    merge(models[1:], tmp_path / "again/out", MergeOptions(weights=[1, 1, 2]))
    for path in sorted((tmp_path / "out").rglob("*")):
        if path.is_file() and path.name != "run.json":
            assert path.read_bytes() == (tmp_path / "again/out" / path.relative_to(tmp_path / "out")).read_bytes()


def test_verify_notices_one_bit(cli: Cli, models: list[Path], tmp_path: Path) -> None:
    inputs = [shutil.copytree(path, tmp_path / path.name) for path in models[1:3]]
    merge(inputs, tmp_path / "out")
    assert "identical: True" in cli("merge", "--verify", "-o", tmp_path / "out").stdout
    file = tmp_path / "out/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(CocktailError, match=r"is not what its recipe gives: it differs after"):
        verify_merge(tmp_path / "out")
    assert "is not what its recipe gives" in cli("merge", "--verify", "-o", tmp_path / "out", code=1).output
    raw_model(tmp_path / "new", 77)
    shutil.copyfile(tmp_path / "new/model.safetensors", inputs[0] / "model.safetensors")
    with pytest.raises(DataError, match=r"tuned1 is no longer what it was"):
        verify_merge(tmp_path / "out")
    with pytest.raises(DataError, match="was not made by bge-cocktail merge"):
        verify_merge(inputs[1])
    assert "--verify takes the recipe" in cli("merge", inputs[0], "--verify", "-o", tmp_path / "out", code=2).output
    assert leftovers(tmp_path) == []


def test_the_model_card_renders(nudged: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML that the hub's own reader takes, a table of models, usage, prompts, the recipe; no path of this machine."""
    from huggingface_hub import ModelCard

    from bge_cocktail.models.prompts import set_prompts

    one = shutil.copytree(nudged[0], tmp_path / "one")
    set_prompts(one, {"query": "what: "})
    (one / "README.md").write_text("---\nlicense: mit\n---\n# One\n")
    (nudged[1] / "README.md").write_text("---\nlicense: mit\ntags:\n- x\n---\n")
    merge([one, nudged[1]], tmp_path / "blend", MergeOptions(weights=[0.3, 0.7], prompts_from=1))
    text = (tmp_path / "blend/README.md").read_text()
    card = ModelCard(text)
    assert card.data.license == "mit"
    assert card.data.library_name == "sentence-transformers"
    assert card.data.pipeline_tag == "sentence-similarity"
    assert {"merge", "sentence-transformers", "bge-cocktail"} <= set(card.data.tags)
    assert "| one | 0.3000 |" in text
    assert "Prompt of queries: `what: `; of documents: none." in text
    assert "32 dimensions, texts of up to 48 tokens, pooling mean." in text
    assert 'query_instruction="what: "' in text
    assert str(tmp_path) not in text
    recipe = tomllib.loads(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    assert recipe["models"][0]["model"] == "one"
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_hub_names_stand_in_the_card(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bge_cocktail.merging import resolve as opening

    places = {"BAAI/bge-small-en-v1.5": models[1], "me/tuned": models[2]}
    monkeypatch.setattr(opening, "model_folder", lambda name: places[name])
    merge(list(places), tmp_path / "out")
    front = yaml.safe_load((tmp_path / "out/README.md").read_text().split("---")[1])
    assert front["base_model"] == list(places)
    assert front["base_model_relation"] == "merge"
    assert front["library_name"] == "transformers"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method = 'linear'", "needs [[models]] tables"),
        ("[[models]]\nmodle = 'a'", "give either 'model'"),
        ("[[models]]\nmodel = 'a'\nwieght = 1", "unknown name 'wieght'. Did you mean 'weight'?"),
        ("densty = 1\n[[models]]\nmodel = 'a'", "unknown name 'densty'. Did you mean 'density'?"),
        ("[[models]]\nmodel = 'a'\nweight = 1\n[[models]]\nmodel = 'b'", "1 of 2 models have a weight"),
        ("weights = [1, 2]\n[[models]]\nmodel = 'a'\nweight = 1", "weights stand both"),
        ("density = 2.0\n[[models]]\nmodel = 'a'", "density"),
        ("method = ", "broken TOML"),
        ("[[models]]\nweight = 1\n[models.recipe]\nmethod = 'x'", "models 1, recipe: a recipe needs [[models]]"),
    ],
)
def test_broken_recipes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        read_recipe(write(tmp_path / "r.toml", text))


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such recipe"):
        read_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merge_method": "sce"}, "method=mergekit:sce"),
        ({"merge_method": None}, "method 'None'"),
        ({"tokenizer_source": "union"}, "tokenizer_source 'union'"),
        ({"parameters": {"weihgt": 1}}, "Did you mean 'weight'?"),
        ({"chat_template": "auto"}, "'chat_template' has no counterpart here"),
        ({"models": [{"model": "a", "parameters": {"density": {"of": 1}}}]}, "plain numbers"),
        ({"models": None, "slices": [{}, {}]}, "several slices"),
        ({"merge_method": "slerp"}, "slerp needs 'base_model' and the parameter 't'"),
    ],
)
def test_what_mergekit_says_and_we_cannot(changes: dict[str, Any], message: str) -> None:
    content = {"merge_method": "ties", "base_model": "b", "models": [{"model": "a"}], **changes}
    with pytest.raises(UsageError, match=re.escape(message)):
        from_mergekit(
            yaml.safe_dump(
                {key: value for key, value in content.items() if value is not None or key == "merge_method"}
            ),
            "x.yml",
        )


def test_gradients_over_layers_in_mergekits_form() -> None:
    text = """
    merge_method: linear
    models:
    - model: a
      parameters: {weight: [1, 0]}
    - model: b
      parameters: {weight: [0, 1]}
    out_dtype: bfloat16
    """
    assert from_mergekit(text, "x") == {
        "method": "linear",
        "layer_weights": [[1, 0], [0, 1]],
        "models": [{"model": "a"}, {"model": "b"}],
        "dtype": "bfloat16",
    }


def test_weights_of_groups_and_layers(models: list[Path], tmp_path: Path) -> None:
    some = models[1:3]
    one, two = (tensors_in(path) for path in some)
    options = MergeOptions(
        weights=[0.5, 0.5],
        weights_for={"*.layer.*": [1, 0], "*layer.2.*": [0, 1], "classifier*": [3, 1]},
    )
    merge(some, tmp_path / "out", options)
    shares = {"layer.0": 1, "layer.1": 1, "layer.2": 0, "classifier": 0.75, "embeddings": 0.5, "scalar": 0.5}
    for name, value in tensors_in(tmp_path / "out").items():
        share = next(share for part, share in shares.items() if part in name)
        assert np.abs(value - (share * one[name] + (1 - share) * two[name])).max() < 1e-6, name
    merge(some, tmp_path / "line", MergeOptions(layer_weights=[[1, 0], [0, 1]]))
    shares = {"layer.0": 1, "layer.1": 0.5, "layer.2": 0, "classifier": 0, "embeddings": 1, "scalar": 0}
    for name, value in tensors_in(tmp_path / "line").items():
        share = next(share for part, share in shares.items() if part in name)
        assert np.abs(value - (share * one[name] + (1 - share) * two[name])).max() < 1e-6, name
    with pytest.raises(UsageError, match=r"weights for 'encoder.lyer.\*': no tensor has such a name"):
        merge(some, tmp_path / "bad", MergeOptions(weights_for={"encoder.lyer.*": [1, 0]}))


def test_weights_for_on_the_command_line(cli: Cli, models: list[Path], tmp_path: Path) -> None:
    cli(
        "merge",
        *models[1:3],
        "--weights-for",
        "*layer.[0-1].*",
        "1,0",
        "--layer-weights",
        "0,1;0,1",
        "-o",
        tmp_path / "out",
    )
    merged, one, two = (tensors_in(path) for path in (tmp_path / "out", *models[1:3]))
    for name in merged:
        source = one if ".layer.0." in name or ".layer.1." in name else two
        assert merged[name].tobytes() == source[name].tobytes()


def test_checkpoints_of_one_run_in_their_order(models: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for number, path in zip((5, 20, 100), models[1:], strict=True):
        shutil.copytree(path, run / f"checkpoint-{number}")
    assert [Path(name).name for name in expand([run])] == ["checkpoint-5", "checkpoint-20", "checkpoint-100"]
    merged = merge([run], tmp_path / "out", MergeOptions(weights="ema", decay=0.5))
    assert merged.weights == pytest.approx([1 / 7, 2 / 7, 4 / 7])


def test_dry_run_says_what_would_be(cli: Cli, models: list[Path], tmp_path: Path) -> None:
    result = cli("merge", *models[1:], "--dry-run", "--format", "json", "-o", tmp_path / "out")
    plan = json.loads(result.stdout)
    assert plan["tensors"] == 7
    assert plan["megabytes_read"] == pytest.approx(3 * plan["megabytes_written"], rel=0.05)
    assert plan["seconds_about"] > 0
    assert list(tmp_path.iterdir()) == []
    sought = ["--weights", "search", "--dry-run", "--format", "json"]
    plan = json.loads(cli("merge", *models[1:], *sought, "-o", tmp_path / "out").stdout)
    assert plan["weights"] == "'search', found when merging"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--density", "0.5"], "--density does nothing here; it goes with dare-linear, dare-ties, ties"),
        (["--temperature", "2"], "--temperature does nothing here; it goes with cocktail"),
        (["--base", "x"], "linear needs no base"),
        (["--method", "slerp"], "slerp merges exactly 2 models, got 3"),
        (["--method", "model-stock", "--base", "x", "--weights", "1,2,3"], "model-stock takes no weights"),
        (["--weights", "coctail"], "Did you mean 'cocktail'?"),
        (["--weights", "1,-2,3"], "negative ones: --no-normalise"),
        (["--weights", "search", "--share", "0.5"], "--share doesn't go with weights 'search'"),
        (["--prompts-from", "4"], "--prompts-from 4: there are 3 models"),
        (["--layer-weights", "1,0,0"], "at least two lists"),
        (["--weights-for", "*", "1,x,2"], "weights_for"),
        (["--general", "somewhere"], "such as --weights auto or pareto"),
    ],
)
def test_options_that_do_not_fit(cli: Cli, models: list[Path], tmp_path: Path, flags: list[str], message: str) -> None:
    assert message in cli("merge", *models[1:], *flags, "-o", tmp_path / "out", code=2).output
    assert list(tmp_path.iterdir()) == []


def test_negative_weights_unlearn(models: list[Path], tmp_path: Path) -> None:
    merge(models[1:3], tmp_path / "out", MergeOptions(weights=[1.5, -0.5], normalise=False))
    one, two, merged = (tensors_in(path) for path in (*models[1:3], tmp_path / "out"))
    for name in merged:
        assert np.abs(merged[name] - (1.5 * one[name] - 0.5 * two[name])).max() < 1e-5


def fake_mergekit(folder: Path, body: str) -> Path:
    """A program in the place of mergekit-yaml."""
    import sys

    program = folder / "mergekit-yaml"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys, shutil, pathlib\nrecipe = json.load(open(sys.argv[1]))\n{body}"
    )
    program.chmod(0o755)
    return program


def test_the_bridge_hands_on_what_was_asked(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second model is taken for the merge: the first model's folder comes out with its weights, and the recipe."""
    program = fake_mergekit(
        tmp_path,
        f"json.dump([recipe, sys.argv], open({str(tmp_path / 'seen')!r}, 'w'))\n"
        "out = pathlib.Path(sys.argv[2]); out.mkdir()\n"
        "for name in ('config.json', 'model.safetensors'):\n"
        "    shutil.copy(pathlib.Path(recipe['models'][1]['model']) / name, out / name)\n",
    )
    monkeypatch.setenv("BGE_COCKTAIL_MERGEKIT", str(program))
    options = MergeOptions(method="mergekit:sce", base=str(models[0]), weights=[1, 0.5], density=0.3, seed=7)
    merge(models[1:3], tmp_path / "out", options)
    assert same_bytes(tmp_path / "out", models[2])
    recipe, command = json.loads((tmp_path / "seen").read_text())
    assert recipe["merge_method"] == "sce"
    assert recipe["base_model"] == str(models[0])
    assert [one["parameters"] for one in recipe["models"]] == [{"weight": 1}, {"weight": 0.5}]
    assert recipe["parameters"] == {"density": 0.3}
    assert command[-2:] == ["--random-seed", "7"]
    assert read_recipe(tmp_path / "out/recipe.toml").options.method == "mergekit:sce"
    assert verify_merge(tmp_path / "out")["identical"] is True


def test_the_bridge_says_what_is_wrong(models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bge_cocktail.core.errors import MissingExtra

    sce = MergeOptions(method="mergekit:sce", base=str(models[0]))
    monkeypatch.setenv("BGE_COCKTAIL_MERGEKIT", str(tmp_path / "nothing"))
    with pytest.raises(MissingExtra, match=r"pip install -c constraints\.txt '\.\[mergekit\]'"):
        merge(models[1:], tmp_path / "out", sce)
    monkeypatch.setenv("BGE_COCKTAIL_MERGEKIT", str(fake_mergekit(tmp_path, "sys.exit('no such method: sce')")))
    with pytest.raises(CocktailError, match="mergekit could not merge by sce: no such method: sce"):
        merge(models[1:], tmp_path / "out", sce)
    with pytest.raises(UsageError, match="built in, and faster: `method=ties`"):
        merge(models[1:], tmp_path / "out", MergeOptions(method="mergekit:ties", base=str(models[0])))
    assert not (tmp_path / "out").exists()
