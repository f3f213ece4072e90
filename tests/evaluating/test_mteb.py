"""mteb's own code on our encoders and on local data: its numbers are ours, and no model gets another's scores."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from conftest import WORDS, perturb, write_lines

from bge_cocktail.evaluating.evaluate import evaluate
from bge_cocktail.evaluating.mteb import MtebModel, as_mteb_task, open_mteb_tasks, run_mteb
from bge_cocktail.evaluating.tasks.task import open_task
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.options import EncodeOptions

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scored pairs, and the same ones as yes or no."""
    folder = tmp_path_factory.mktemp("alike")
    generator = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for number in range(80):
        words = generator.choice(WORDS, 8, replace=False).tolist()
        same = number % 4  # never all: pairs of the same words would be ties but for rounding
        second = " ".join(words[:same] + words[4 : 8 - same])
        rows.append({"sentence1": " ".join(words[:4]), "sentence2": second, "score": same})
    write_lines(folder / "graded/test.jsonl", rows)
    write_lines(folder / "binary/test.jsonl", [{**row, "score": int(int(str(row["score"])) > 1)} for row in rows])
    return folder


@pytest.mark.parametrize("kind", ["retrieval", "sts", "pair-classification"])
def test_numbers_are_those_of_mteb(kind: str, tiny: Path, beir: Path, alike: Path, tmp_path: Path) -> None:
    path = {"retrieval": beir, "sts": alike / "graded", "pair-classification": alike / "binary"}[kind]
    task = open_task(path, "general")
    assert task.kind == kind
    encoder = CachedEncoder(tiny, EncodeOptions(cache_dir=tmp_path))
    ours = next(score for score in evaluate(encoder, [task]) if score.main)
    theirs = run_mteb("tiny", encoder, [as_mteb_task(task)], "general", cache_dir=tmp_path)[0]
    assert theirs.value == pytest.approx(ours.value, abs=2e-4)
    assert theirs.task == f"mteb/{path.name}"


def test_classification_by_the_protocol_of_mteb(tiny: Path, labelled: Path, tmp_path: Path) -> None:
    encoder = CachedEncoder(tiny, EncodeOptions(cache_dir=tmp_path))
    task = as_mteb_task(open_task(labelled, "general"))
    assert (task.samples_per_label, task.n_experiments) == (8, 10)
    assert 0.4 < run_mteb("tiny", encoder, [task], "general", cache_dir=tmp_path)[0].value <= 1


def test_another_model_under_one_name_gets_its_own_scores(tiny: Path, beir: Path, tmp_path: Path) -> None:
    other = perturb(tiny, tmp_path / "other", 3, scale=0.5)
    task = open_task(beir, "general")
    found = []
    for folder in (tiny, other):
        encoder = CachedEncoder(folder, EncodeOptions(cache_dir=tmp_path / "cache"))
        value = run_mteb("same", encoder, [as_mteb_task(task)], "general", cache_dir=tmp_path / "cache")[0].value
        assert value == pytest.approx(next(one.value for one in evaluate(encoder, [task]) if one.main), abs=2e-4)
        found.append(value)
    assert found[0] != found[1]
    # other prompts, too, are another model
    prompted = CachedEncoder(tiny, EncodeOptions(cache_dir=tmp_path / "cache", query_prompt="red "))
    plain = CachedEncoder(tiny, EncodeOptions(cache_dir=tmp_path / "cache"))
    revisions = {MtebModel("same", one).mteb_model_meta.revision for one in (plain, prompted)}
    assert len(revisions) == 2
    # and other data another task
    changed = shutil.copytree(beir, tmp_path / beir.name)
    with (changed / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "new", "title": "", "text": "a new document"}) + "\n")
    revisions = {as_mteb_task(open_task(path, "target")).metadata.dataset["revision"] for path in (beir, changed)}
    assert len(revisions) == 2


def test_prompts_as_mteb_expects_them(tiny: Path, tmp_path: Path) -> None:
    from mteb.types import PromptType

    folder = shutil.copytree(tiny, tmp_path / "prompted")
    prompts = {"query": "ask: ", "STS": "compare: ", "Banking77Classification": "intent: "}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    model = MtebModel("prompted", CachedEncoder(folder))
    sts, banking, other = (task.metadata for task in open_mteb_tasks(["STS12", "Banking77Classification", "SciFact"]))
    assert model.prompt(sts, None) == "compare: "
    assert model.prompt(banking, None) == "intent: "
    assert model.prompt(other, PromptType.query) == "ask: "
    assert model.prompt(other, PromptType.document) == ""
    chosen = MtebModel("prompted", CachedEncoder(folder, EncodeOptions(query_prompt="find: ")))
    assert chosen.prompt(other, PromptType.query) == "find: "


def test_from_the_command_line(cli: Cli, tiny: Path, beir: Path, alike: Path, tmp_path: Path) -> None:
    common = ("--cache-dir", tmp_path / "cache", "--format", "json")
    where = ("evaluate", f"mine={tiny}", "--mteb", alike / "graded", "--target", beir, *common)
    found = json.loads(cli(*where, "-o", tmp_path / "out").stdout)["models"][0]["scores"]
    mteb = next(one for one in found if one["kind"] == "mteb")
    assert (mteb["task"], mteb["metric"], mteb["interval"]) == ("mteb/graded", "cosine_spearman", None)
    files = list((tmp_path / "out/mteb").rglob("graded.json"))
    assert len(files) == 1
    assert json.loads(files[0].read_text())["scores"]["test"][0]["main_score"] == pytest.approx(mteb["value"])
    assert (files[0].parent / "model_meta.json").is_file()
    assert "mteb graded" in json.loads((tmp_path / "out/run.json").read_text())["inputs"]
    assert (
        "mteb/graded: cosine_spearman: mteb keeps no values of single queries"
        in cli("compare", tmp_path / "out", _second(cli, tiny, beir, alike, tmp_path)).stdout
    )
    refused = cli("evaluate", tiny, "--mteb", "STSBenchmrk", "-o", tmp_path / "no", code=2)
    assert "Did you mean 'STSBenchmark'" in refused.stderr


def test_results_can_be_handed_in(cli: Cli, tiny: Path, alike: Path, tmp_path: Path) -> None:
    from mteb.models.model_meta import ModelMeta

    common = ("evaluate", tiny, "--mteb", alike / "graded", "--cache-dir", tmp_path / "cache")
    named = ("--model-name", "our/embedder", "--revision", "0a1b2c")
    cli(*common, *named, "--language", "eng-Latn", "--license", "apache-2.0", "-o", tmp_path / "out")
    folder = tmp_path / "out/mteb/results/our__embedder/0a1b2c"
    assert (folder / "graded.json").is_file()
    meta = ModelMeta.model_validate_json_resolved((folder / "model_meta.json").read_text())
    assert (meta.name, meta.revision, meta.languages, meta.license) == (
        "our/embedder",
        "0a1b2c",
        ["eng-Latn"],
        "apache-2.0",
    )
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny), device="cpu")
    assert meta.n_parameters == sum(one.numel() for one in model.parameters())
    assert meta.embed_dim == model.get_sentence_embedding_dimension()
    # the cache keeps what it knows under the name of the weights, whatever they are called
    assert not list((tmp_path / "cache/mteb").rglob("our__embedder"))
    for wrong, said in (
        (("--model-name", "embedder", "--revision", "1"), "mteb doesn't take this of a model: name: "),
        ((*named, "--language", "english"), "mteb doesn't take this of a model: languages: "),
        ((*named, "--license", "free"), "mteb doesn't take this of a model: license: "),
        (("--model-name", "our/embedder"), "--model-name and --revision go together"),
        (("--license", "mit"), "go with --model-name and --revision"),
    ):
        assert said in cli(*common, *wrong, "-o", tmp_path / "no", code=2).stderr, wrong
    nothing = cli("evaluate", tiny, "--target", alike / "graded", *named, "-o", tmp_path / "no", code=2)
    assert "does nothing without tasks of mteb (--mteb)" in nothing.stderr


def test_a_leaderboard_of_our_own_evaluations_is_what_compare_makes(
    cli: Cli, tiny: Path, beir: Path, tmp_path: Path
) -> None:
    cli("evaluate", tiny, "--target", beir, "-o", tmp_path / "own")
    assert "which bge-cocktail compare puts side by side" in cli("leaderboard", tmp_path / "own", code=1).stderr


def _second(cli: Cli, tiny: Path, beir: Path, alike: Path, tmp_path: Path) -> Path:
    other = perturb(tiny, tmp_path / "other", 3)
    where = ("--mteb", alike / "graded", "--target", beir, "--cache-dir", tmp_path / "cache")
    cli("evaluate", f"other={other}", *where, "-o", tmp_path / "second")
    return tmp_path / "second"


def test_without_a_network_it_fails_in_seconds(
    cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr("bge_cocktail.evaluating.mteb.hub_answers", lambda: False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    # what the command sets for the process is taken back
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", datasets.config.HF_HUB_OFFLINE)
    open_mteb_tasks(["STS12"])  # the import takes its seconds once
    started = time.monotonic()
    result = cli("evaluate", tiny, "--mteb", "STS12", "-o", tmp_path / "out", "--cache-dir", tmp_path, code=1)
    assert time.monotonic() - started < 15
    assert "mteb's task STS12 needs its data" in result.stderr
    assert not (tmp_path / "out").exists()


def results_of(folder: Path, model: str, revision: str, scores: dict[str, float]) -> Path:
    """Files as mteb writes them."""
    place = folder / "results" / model.replace("/", "__") / revision
    place.mkdir(parents=True, exist_ok=True)
    (place / "model_meta.json").write_text(json.dumps({"name": model, "revision": revision}))
    for task, score in scores.items():
        part = {"main_score": score, "hf_subset": "default", "languages": ["eng-Latn"]}
        (place / f"{task}.json").write_text(
            json.dumps(
                {
                    "dataset_revision": "1",
                    "task_name": task,
                    "mteb_version": "2.20.0",
                    "scores": {"test": [part]},
                    "evaluation_time": 1.0,
                    "kg_co2_emissions": None,
                }
            )
        )
    return folder


def test_the_leaderboard_has_mtebs_averages(cli: Cli, tmp_path: Path) -> None:
    one = {"STSBenchmark": 0.8, "SICK-R": 0.6, "SciFact": 0.5, "handbook": 0.9}
    other = {"STSBenchmark": 0.7, "SICK-R": 0.7, "SciFact": 0.6, "handbook": 0.8, "NFCorpus": 0.3}
    first = results_of(tmp_path / "one", "local/base", "aaaaaaaaaaaa", one)
    second = results_of(tmp_path / "two", "local/tuned", "bbbbbbbbbbbb", other)
    result = cli("leaderboard", first, second, "--target", "handbook", "--tasks", "--format", "json")
    content = json.loads(result.stdout)
    assert content["shared"] == ["SICK-R", "STSBenchmark", "SciFact", "handbook"]
    averages = {model["model"]: model["averages"] for model in content["models"]}
    assert averages["local/base"] == pytest.approx(
        {
            "mean (task)": 0.7,
            "mean (type)": (0.7 + 0.5 + 0.9) / 3,
            "target": 0.9,
            "general": (0.8 + 0.6 + 0.5) / 3,
            "STS": 0.7,
            "Retrieval": 0.5,
            "Local": 0.9,
        }
    )
    assert (
        "Not in the averages, for not all models were judged on them: NFCorpus"
        in cli("leaderboard", first, second).stdout
    )


def test_the_leaderboard_says_which_mean_is_measurably_better(cli: Cli, tmp_path: Path) -> None:
    names = ["STSBenchmark", "SICK-R", "SciFact", "NFCorpus", "ArguAna", "SCIDOCS", "TRECCOVID", "handbook"]
    base = {name: 0.5 + 0.03 * place for place, name in enumerate(names)}
    better = {name: value + 0.01 * (1 + place % 3) for place, (name, value) in enumerate(base.items())}
    other = {name: value + 0.05 * (-1) ** place for place, (name, value) in enumerate(base.items())}
    folders = [
        results_of(tmp_path / model, f"local/{model}", model * 4, scores)
        for model, scores in (("base", base), ("better", better), ("other", other))
    ]
    content = json.loads(cli("leaderboard", *folders, "--format", "json").stdout)
    against = {model["model"]: model["against_first"] for model in content["models"]}
    assert against["local/base"] is None
    better_by = np.array(list(better.values())) - np.array(list(base.values()))
    assert against["local/better"]["value"] == pytest.approx(better_by.mean())
    assert 0.01 < against["local/better"]["low"] < better_by.mean() < against["local/better"]["high"] < 0.03
    # 8 tasks, all signs alike: 2 of 256, twice for two models
    assert against["local/better"]["p"] == pytest.approx(4 / 256)
    assert against["local/other"]["p"] > 0.9
    lines = cli("leaderboard", *folders).stdout.splitlines()
    assert next(line for line in lines if line.startswith("local/better")).count("]+") == 1
    assert "]+" not in next(line for line in lines if line.startswith("local/other"))
    assert "paired test over the 8 tasks" in lines[-1]
    fewer = [results_of(tmp_path / f"few-{place}", f"local/{place}", "c" * 12, {"SciFact": 0.5}) for place in range(2)]
    assert "against the first" not in cli("leaderboard", *fewer).stdout


def test_models_of_one_name_are_told_apart(cli: Cli, tmp_path: Path) -> None:
    results_of(tmp_path, "local/m", "aaaaaaaaaaaa", {"SciFact": 0.5})
    results_of(tmp_path, "local/m", "bbbbbbbbbbbb", {"SciFact": 0.6})
    shown = cli("leaderboard", tmp_path).stdout
    assert "local/m @ aaaaaaaa" in shown
    assert "local/m @ bbbbbbbb" in shown


def test_what_is_no_result(cli: Cli, tmp_path: Path) -> None:
    assert "holds no results of mteb" in cli("leaderboard", tmp_path, code=1).stderr
    folder = results_of(tmp_path / "one", "local/base", "aaaaaaaaaaaa", {"SciFact": 0.5})
    result = cli("leaderboard", folder, "--target", "SciFac", code=2)
    assert "no result is of a task 'SciFac'. Did you mean 'SciFact'?" in result.stderr
    (folder / "results/local__base/aaaaaaaaaaaa/SciFact.json").write_text("{")
    assert "SciFact.json can't be read" in cli("leaderboard", folder, code=1).stderr


def test_an_evaluation_by_mteb_goes_onto_the_leaderboard(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    cli("evaluate", f"m={tiny}", "--mteb", beir, "-o", tmp_path / "out")
    scores = json.loads((tmp_path / "out/scores.json").read_text())["models"][0]["scores"]
    content = json.loads(cli("leaderboard", tmp_path / "out", "--format", "json").stdout)
    assert content["models"][0]["model"] == "local/m"
    assert content["models"][0]["scores"] == {"animals": pytest.approx(scores[0]["value"], abs=1e-4)}


def test_a_kind_that_names_a_type_and_gives_no_data(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bge_cocktail.core.errors import UsageError
    from bge_cocktail.evaluating.tasks.task import TaskKind, tasks

    class Half(TaskKind):
        mteb = ("Retrieval", "ndcg_at_10")

        def read(self, folder: object, split: str) -> object:
            return split

        def judge(self, encoder: object, task: object, options: object) -> list[object]:
            return []

    monkeypatch.setattr(tasks, "_entries", {**tasks._all(), "half": Half()})
    with pytest.raises(UsageError, match="'half' names mteb's Retrieval ndcg_at_10, and lacks a to_mteb"):
        as_mteb_task(open_task(f"half:{labelled}", "general"))


def test_a_label_that_train_lacks_is_one_line(cli: Cli, tiny: Path, labelled: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(labelled, tmp_path / "kinds")
    with (folder / "test.jsonl").open("a") as file:
        file.write('{"text": "the red fox", "label": "zebra"}\n')
    said = cli("evaluate", tiny, "--mteb", folder, "-o", tmp_path / "out", code=1).stderr
    assert "unknown label 'zebra' of 'the red fox'" in said


def test_results_are_those_of_this_call_in_the_order_of_its_models(
    cli: Cli, tiny: Path, nudged: list[Path], beir: Path, labelled: Path, tmp_path: Path
) -> None:
    models = (f"z={tiny}", f"a={nudged[0]}")
    cli("evaluate", *models, "--mteb", labelled, "-o", tmp_path / "other")
    result = cli("evaluate", *models, "--mteb", beir, "-o", tmp_path / "out")
    assert f"next:    bge-cocktail leaderboard {tmp_path / 'out'}" in result.stdout
    names = {path.stem for path in (tmp_path / "out/mteb").rglob("*.json")} - {"model_meta"}
    assert names == {beir.name}
    board = json.loads(cli("leaderboard", tmp_path / "out", "--format", "json").stdout)
    assert [model["model"] for model in board["models"]] == ["local/z", "local/a"]
    assert list(board["tasks"]) == [beir.name]
    cli("evaluate", tiny, "--mteb", beir, "--model-name", "me/m", "--revision", "abc", "-o", tmp_path / "handed-in")
    handed_in = {path.name for path in (tmp_path / "handed-in/mteb/results/me__m/abc").iterdir()}
    assert handed_in == {"model_meta.json", f"{beir.name}.json"}
    said = cli("evaluate", tiny, "--mteb", tmp_path / "handed_in", "-o", tmp_path / "x", code=1).stderr
    assert "no such folder" in said
    assert "Did you mean" in said
    said = cli("evaluate", tiny, "--mteb", "qqqqqqqqqq", "-o", tmp_path / "x", code=2).stderr
    assert re.search(r"and [\d,]+ more\.", said)
