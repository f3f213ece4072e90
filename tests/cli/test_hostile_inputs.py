"""More inputs of the kinds that misled or broke: each is read as what it plainly is, or refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from conftest import WORDS, write_lines
from safetensors.numpy import load_file, save_file

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.core.outputs import scratch_folder
from bge_cocktail.core.runs import files_under
from bge_cocktail.data.beir import read_beir
from bge_cocktail.data.readers import BadRows, read_table
from bge_cocktail.data.record_files import read_records
from bge_cocktail.merging.mergekit import from_mergekit
from bge_cocktail.merging.recipe import read_recipe
from bge_cocktail.models.encoder import load_encoder
from bge_cocktail.preparing.clean import strip_html

Cli = Callable[..., Result]
ALL = ("--ratio", "1,0,0")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("label", ["irrelevant", "relevant"]),
        ("label", ["False", "True"]),
        ("class", ["bad", "good"]),
        ("is_relevant", [0, 1]),
        ("relevance_score", [0, 1]),
        ("label", ["0", ""]),
        ("is_duplicate", [False, True]),
    ],
)
def test_what_says_that_an_answer_is_none_is_asked_about(cli: Cli, tmp_path: Path, name: str, values: Any) -> None:
    rows = [{"query": "how", "answer": f"so {number}", name: value} for number, value in enumerate(values)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    result = cli("prepare", path, *ALL, "-o", tmp_path / "out", code=1)
    assert f"the values of '{name}' may say which answers are wrong; say it: --columns" in result.stderr


@pytest.mark.parametrize("grade", ["0", -1, "0.0", False, "irrelevant"])
def test_records_that_grade_their_positive_as_none(tmp_path: Path, grade: Any) -> None:
    path = write_lines(tmp_path / "r.jsonl", [{"query": "a", "pos": ["b"], "relevance": grade}])
    with pytest.raises(DataError, match="says that 'pos' is no positive"):
        read_records(path)
    write_lines(path, [{"query": "a", "pos": ["b"], "relevance": "2", "class": "physics", "score": 0.3}])
    assert read_records(path)[0].pos == ("b",)
    write_lines(path, [{"query": "a", "pos": ["b"], "score": -2.5}])  # a logit, which is no grade
    assert read_records(path)[0].extra == {"score": -2.5}


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("['open the valve' 'drain the pan']", ("open the valve", "drain the pan")),
        ("['a' \"it's\"]", ("a", "it's")),
        ("[]", ()),
        (" ['x'] ", ("x",)),
        ("('x', 'y')", ("x", "y")),
        ("['x', None]", ("x",)),
        ("['x', nan]", ("x",)),
        ('["x", null]', ("x",)),
        ("(see the manual)", ("(see the manual)",)),
        ("[1] Smith", ("[1] Smith",)),
        ("[1, 2]", ("[1, 2]",)),
    ],
)
def test_lists_in_cells(cli: Cli, tmp_path: Path, cell: str, texts: tuple[str, ...]) -> None:
    quoted = '"' + cell.replace('"', '""') + '"'
    (tmp_path / "rows.csv").write_text(f"query,pos,neg\nhow,so,{quoted}\n")
    cli("prepare", tmp_path / "rows.csv", *ALL, "-o", tmp_path / "out")
    assert read_records(tmp_path / "out/train.jsonl")[0].neg == texts
    write_lines(tmp_path / "rows.jsonl", [{"id": 1, "query": "how", "pos": "so", "neg": cell}])
    cli("prepare", tmp_path / "rows.jsonl", "--columns", "query=query,pos=pos,neg=neg", *ALL, "-o", tmp_path / "two")
    assert read_records(tmp_path / "two/train.jsonl")[0].neg == texts


def test_labels_are_not_melted(cli: Cli, tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": "abc"[number % 3]} for number in range(30)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    result = cli("prepare", path, "--form", "labelled", "--labels", "a=b,c=c", "-o", tmp_path / "out", code=1)
    assert "unknown label 'b'" in result.stderr
    numbered = write_lines(
        tmp_path / "numbered.jsonl", [{"text": f"text {n}", "label": [0.0, True, "yes"][n % 3]} for n in range(30)]
    )
    cli("prepare", numbered, "--form", "labelled", "--labels", "0=no,true=yes,yes=maybe", "-o", tmp_path / "two")


def test_a_plain_folder_keeps_its_splits(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        rows = [{"query": f"{split} query {n}", "pos": [f"{split} answer {n}"]} for n in range(6)]
        write_lines(folder / f"{split}.jsonl", rows)
    result = cli("prepare", folder, "-o", tmp_path / "out")
    assert "its own splits are kept: train, dev, test" in result.stderr
    for split in ("train", "dev", "test"):
        assert {record.query.split()[0] for record in read_records(tmp_path / f"out/{split}.jsonl")} == {split}


@pytest.mark.parametrize(
    "text",
    [
        "usage: cp <source> <dest>",
        "mount <param> <label>",
        "Use the <b> tag for bold, and close it with </b>.",
        "LLaMA uses <s> and </s> as marks",
        "Write it so: ```html <p>x</p> ```",
    ],
)
def test_prose_and_code_about_tags_stay(text: str) -> None:
    assert strip_html(text) == text


def test_html_is_still_stripped() -> None:
    assert strip_html("<p>One <b>two</b></p><!-- no --><p>three</p>").split() == ["One", "two", "three"]
    assert strip_html("first<br>second").split() == ["first", "second"]
    assert strip_html('<input type="text">a<img src="x.png">b').split() == ["ab"]


@pytest.mark.parametrize("text", ["<!--" * 100_000, "<b>x</b> --> " + "<!-- " * 50_000])
def test_comments_that_never_end_take_no_time(text: str) -> None:
    started = time.process_time()
    strip_html(text)
    assert time.process_time() - started < 2


def test_links_that_lead_to_each_other_end(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"d{number}").mkdir()
        for name in "ab":
            (tmp_path / f"d{number}" / name).symlink_to(tmp_path / f"d{number + 1}")
    (tmp_path / "d25").mkdir()
    with pytest.raises(DataError, match="they lead to each other"):
        files_under(tmp_path / "d0")


@pytest.mark.parametrize("command", ["run", "merge", "inspect", "report", "compare"])
def test_pipes_are_refused_everywhere(cli: Cli, tiny: Path, tmp_path: Path, command: str) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    folder = tmp_path / "run"
    folder.mkdir()
    pipes = {
        "run": tmp_path / "f.toml",
        "merge": model / "model.safetensors",
        "inspect": model / "config.json",
        "report": folder / "run.json",
        "compare": folder / "scores.json",
    }
    pipes[command].unlink(missing_ok=True)
    os.mkfifo(pipes[command])
    arguments: dict[str, tuple[object, ...]] = {
        "run": (pipes["run"],),
        "merge": (tiny, model, "-o", tmp_path / "out"),
        "inspect": (tiny, model),
        "report": (folder, "-o", tmp_path / "page.html"),
        "compare": (folder,),
    }
    result = cli(command, *arguments[command], code=None)
    assert result.exit_code in (1, 2)


def test_a_report_does_not_replace_what_it_reads(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    cli("evaluate", tiny, "--target", beir, "-o", tmp_path / "e")
    before = (tmp_path / "e/scores.json").read_bytes()
    result = cli("report", tmp_path / "e", "-o", tmp_path / "e/scores.json", "--overwrite", code=2)
    assert "belongs to a run that is read" in result.stderr
    assert (tmp_path / "e/scores.json").read_bytes() == before


@pytest.mark.parametrize(
    "line", ['{"query":"q","pos"  :["one"],"pos":["two"]}', '{"query":"q","pos":["a"],"pos"\t :["b"]}']
)
def test_a_key_twice(tmp_path: Path, line: str) -> None:
    (tmp_path / "r.jsonl").write_text(line)
    with pytest.raises(DataError, match="twice"):
        read_records(tmp_path / "r.jsonl")


def test_nested_recipes_and_odd_yaml(tiny: Path, nudged: list[Path], tmp_path: Path) -> None:
    for name, text in {
        "deep.toml": "x=" + "[" * 5000,
        "deep.yml": "merge_method: linear\nmodels: " + "[" * 5000,
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError):
            read_recipe(tmp_path / name)
    part = f"merge_method: linear\nmodels: [{{model: {tiny}, layer_range: [0, 1]}}, {{model: {nudged[0]}}}]"
    with pytest.raises(UsageError, match="is a part of the model"):
        from_mergekit(part, "x.yml")
    shared = (
        "merge_method: linear\nx: &p {weight: 5e-1}\n".replace("x: ", "name: ")
        + "models: [{model: a, parameters: {weight: 5e-1}}, {model: b, parameters: {<<: *p}}]"
    )
    assert from_mergekit(shared, "x.yml")["weights"] == [0.5, 0.5]
    with pytest.raises(UsageError, match="a number is expected"):
        from_mergekit("merge_method: linear\nmodels: [{model: a, parameters: {weight: .nan}}]", "x.yml")


def test_tokenizers_that_can_not_be_read(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny, tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    del content["post_processor"]["special_tokens"]["[CLS]"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    result = cli("merge", tiny, other, "-o", tmp_path / "out", code=1)
    assert "not a tokenizer that can be read" in result.stderr


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("modules.json", lambda modules: modules[:1], "no Pooling"),
        ("modules.json", lambda modules: modules[1:], "what embeds is missing"),
        ("config.json", lambda config: {**config, "num_hidden_layers": 10**30}, "can't be meant"),
        ("config.json", lambda config: {**config, "num_hidden_layers": 1}, "says 1 layers, its weights hold 2"),
    ],
)
def test_models_that_would_embed_by_half(tiny: Path, tmp_path: Path, file: str, change: Any, said: str) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    (model / file).write_text(json.dumps(change(json.loads((model / file).read_text()))))
    with pytest.raises(DataError, match=said):
        load_encoder(model, device="cpu")


def test_halves_of_characters_in_our_own_outputs(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    cli("evaluate", tiny, "--target", beir, "-o", tmp_path / "e")
    path = tmp_path / "e/run.json"
    path.write_text(path.read_text().replace('"command": "evaluate"', '"command": "evaluate", "odd": "\\ud800"'))
    path = tmp_path / "e/scores.json"
    path.write_text(path.read_text().replace("nDCG@10", "nDCG@10\\ud800"))
    for command in (("report", tmp_path / "e", "-o", tmp_path / "r.html"), ("compare", tmp_path / "e")):
        assert "not foreseen" not in cli(*command, code=None).output


def test_workers_train(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    """Forked workers tokenise on one thread: they would wait for threads that they don't have."""
    rows = [{"query": f"the red fox {n}", "pos": [f"a blue car {n}"]} for n in range(16)]
    path = write_lines(tmp_path / "train.jsonl", rows)
    quick = ("--epochs", 1, "--batch-size", 8, "--negatives", 0, "--device", "cpu")
    cli("train", path, "-m", tiny, *quick, "--workers", 1, "-o", tmp_path / "out")
    cli("train", path, "-m", tiny, *quick, "-o", tmp_path / "plain")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "plain"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_adapters_that_change_their_base_are_refused(tiny: Path, tmp_path: Path) -> None:
    from bge_cocktail.merging.checkpoints import fold_adapter, read_checkpoint

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tiny), "init_lora_weights": "pissa", "r": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    save_file({"x": np.zeros((2, 2), np.float32)}, adapter / "adapter_model.safetensors")
    with pytest.raises(DataError, match="change the base too"):
        fold_adapter("a", adapter, read_checkpoint("base", tiny))


def test_two_judgements_of_one_split(cli: Cli, tiny: Path, beir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(beir, tmp_path / "beir")
    text = (folder / "qrels/test.tsv").read_text()
    (folder / "qrels/test.csv").write_text(text.replace("\t", ","))
    result = cli("evaluate", tiny, "--target", folder, "-o", tmp_path / "out", code=1)
    assert "both judge the split 'test'" in result.stderr
    (folder / "qrels/test.csv").unlink()
    (folder / "qrels/dev.tsv").unlink(missing_ok=True)
    (folder / "qrels/test.tsv").rename(folder / "qrels/validation.tsv")
    cli("evaluate", tiny, "--target", folder, "--split", "dev", "-o", tmp_path / "out")


def test_words_of_others_between_backticks_are_no_flags(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    from bge_cocktail.cli import _option_names
    from bge_cocktail.core.errors import options_as_flags

    said = "use `prompts_from=2`; transformers says: set `trust_remote_code=True`, and your text says `rm`"
    shown = options_as_flags(said, _option_names())
    assert shown == said.replace("`prompts_from=2`", "--prompts-from 2")
    assert {"overwrite", "columns", "target", "examples", "epochs", "few_shot", "judge"} <= _option_names()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("test.tsv", '"{query}"\t"{document}"\t"{grade}"'),
        ("test.tsv", " {query} \t {document} \t {grade}.0 "),
        ("test.tsv", "{query},{document},{grade}"),
        ("test.csv", '"{query}";"{document}";{grade}'),
        ("test.txt", "{query} 0 {document} {grade}"),
    ],
)
@pytest.mark.parametrize("header", ["", "\n\n", "query-id\tcorpus-id\tscore\n"])
def test_judgements_in_other_dress(beir: Path, tmp_path: Path, name: str, line: str, header: str) -> None:
    wanted = read_beir(beir, "test").qrels
    folder = shutil.copytree(beir, tmp_path / "beir")
    (folder / "qrels/test.tsv").unlink()
    sign = next((sign for sign in "\t;," if sign in line), " ")
    rows = [
        line.format(query=query, document=document, grade=grade)
        for query, grades in wanted.items()
        for document, grade in grades.items()
    ]
    (folder / "qrels" / name).write_text(header.replace("\t", sign) + "\n".join(rows) + "\n")
    assert read_beir(folder, "test").qrels == wanted


def test_ids_keep_the_quotes_and_signs_that_they_have(tmp_path: Path) -> None:
    write_lines(tmp_path / "corpus.jsonl", [{"_id": '"a"', "text": "one"}, {"_id": "b,1", "text": "two"}])
    write_lines(tmp_path / "queries.jsonl", [{"_id": "q;1", "text": "which"}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/test.tsv").write_text('q;1\t"a"\t1\nq;1\tb,1\t2\n')
    assert read_beir(tmp_path, "test").qrels == {"q;1": {'"a"': 1, "b,1": 2}}
    (tmp_path / "qrels/test.tsv").write_text("q;1 0 b,1 2\n")
    assert read_beir(tmp_path, "test").qrels == {"q;1": {"b,1": 2}}


def test_passages_that_are_objects(tmp_path: Path) -> None:
    row = {"query": "how", "pos": [{"docid": 3, "title": "A", "text": "so"}], "neg": [{"text": "no"}]}
    record = read_records(write_lines(tmp_path / "r.jsonl", [row]))[0]
    assert (record.pos, record.neg) == (("A so",), ("no",))


@pytest.mark.parametrize(("name", "yes", "no"), [("label", 1, 0), ("label", "1", "0"), ("score", 1, -1)])
def test_pairs_that_belong_together_or_not(cli: Cli, tiny: Path, tmp_path: Path, name: str, yes: Any, no: Any) -> None:
    words = WORDS[:8]
    rows = [
        {"sentence1": one, "sentence2": other, name: yes if one == other else no} for one in words for other in words
    ]
    write_lines(tmp_path / "pairs/test.jsonl", rows)
    shown = cli("evaluate", tiny, "--target", tmp_path / "pairs", "-o", tmp_path / "out", "--format", "json").stdout
    score = json.loads(shown)["models"][0]["scores"][0]
    assert (score["kind"], score["metric"], score["value"]) == ("pair-classification", "AP", 1.0)


def test_the_cure_is_of_the_command_that_has_it(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "odd.jsonl", [{"a": "how", "b": "so"}])
    for command in ("mine", "train"):
        assert (
            "(an option of `bge-cocktail prepare" in cli(command, path, "-m", tiny, "-o", tmp_path / "o", code=1).stderr
        )
    assert "an option of" not in cli("prepare", path, "-o", tmp_path / "o", code=1).stderr


def test_empty_rows_of_one_column_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text('text\nfirst\n\nsecond\n""\nthird\n\n\n')
    rows = list(read_table(path, ",", BadRows()))
    assert [row["text"] for _, row in rows] == ["first", "", "second", "", "third"]
    assert [where.rpartition(":")[2] for where, _ in rows] == ["2", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Comments stand between <!-- and -->", "Comments stand between <!-- and -->"),
        ("write '&nbsp;' for it", "write '&nbsp;' for it"),
        ("the entity &amp; is one", "the entity &amp; is one"),
        ("Tom &amp; Jerry (&lt;0.05) <!-- x -->", "Tom & Jerry (<0.05) "),
    ],
)
def test_prose_about_html(text: str, cleaned: str) -> None:
    assert strip_html(text) == cleaned


def test_names_that_move_the_cursor(cli: Cli, tiny: Path, labelled: Path, tmp_path: Path) -> None:
    shown = cli("evaluate", tiny, "--target", labelled, "-o", tmp_path / "a\x1b[31m", code=2).stderr
    assert "\x1b" not in shown
    assert "control characters" in shown
    folder = shutil.copytree(labelled, tmp_path / "task\x1b[2J")
    shown = cli("evaluate", tiny, "--target", folder, "-o", tmp_path / "out", code=1).stderr
    assert "\x1b" not in shown
    assert "rename the folder" in shown


def test_links_to_nothing_are_no_place_for_a_file(cli: Cli, tmp_path: Path) -> None:
    for name, target in (("gone.toml", "nowhere"), ("loop.toml", "loop.toml")):
        (tmp_path / name).symlink_to(target)
        assert "is a link" in cli("init", tmp_path / name, code=2).stderr
        assert (tmp_path / name).is_symlink()
    assert "leads back to itself" in cli("leaderboard", tmp_path / "loop.toml", code=1).stderr


def test_warnings_of_libraries_are_lines(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "large")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("output.dense.weight"))
    save_file({**tensors, name: np.full_like(tensors[name], 3e38)}, folder / "model.safetensors", {"format": "pt"})
    shown = cli("inspect", tiny, folder, code=1).stderr
    assert "RuntimeWarning" not in shown
    assert "too large values" in shown


def test_scratch_of_killed_commands_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / ".bge-cocktail.0123abcd.tmp").mkdir()
    with scratch_folder() as living:
        with scratch_folder() as other:
            assert living.is_dir()
            assert other != living
        assert [path.name for path in tmp_path.iterdir()] == [living.name]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("names", [-1, [None], "BertModel"])
def test_architectures_of_another_type(cli: Cli, tiny: Path, tmp_path: Path, names: Any) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": names}))
    for command in (("doctor",), ("inspect", tiny), ("merge", tiny, "-o", tmp_path / "out")):
        assert "'architectures' must be a list of names" in cli(command[0], folder, *command[1:], code=1).stderr


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("config.json", "num_hidden_layers", [], "layers, which is no whole number"),
        ("config.json", "num_hidden_layers", "", "layers, which is no whole number"),
        ("1_Pooling/config.json", None, [], "must be a whole number of at least 1, got []"),
        ("1_Pooling/config.json", None, -3, "must be a whole number of at least 1, got -3"),
    ],
)
def test_sizes_that_are_none_are_named(
    cli: Cli, tiny: Path, labelled: Path, tmp_path: Path, file: str, key: str | None, value: Any, said: str
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((folder / file).read_text())
    key = key or next(name for name in config if name.endswith("embedding_dimension"))
    (folder / file).write_text(json.dumps({**config, key: value}))
    shown = cli("classify", "train", labelled, "-m", folder, "-o", tmp_path / "out", "--device", "cpu", code=1).stderr
    assert said in shown


def test_a_tokenizer_without_its_unknown_token(cli: Cli, tiny: Path, labelled: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    del tokenizer["model"]["vocab"]["[UNK]"]
    tokenizer["added_tokens"] = [one for one in tokenizer["added_tokens"] if one["content"] != "[UNK]"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    shown = cli("evaluate", folder, "--target", labelled, "-o", tmp_path / "out", code=1).stderr
    assert "its tokenizer can't read a word that it doesn't know" in shown or "knows" in shown
    assert "not foreseen" not in cli("inspect", tiny, folder, code=None).output
