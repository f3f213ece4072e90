"""The commands and the Python of README and docs/ run as they stand, on a tiny model in the place of the hub name."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result
from conftest import ROOT

import bge_cocktail
from bge_cocktail.cli import main
from bge_cocktail.cli.registries import KINDS, describe

sys.path.insert(0, str(ROOT / "scripts"))
from figures import FIGURES, TABLES, code_hashes
from measuring import joined

# in the order of a first reading: a page may use what an earlier one made
PAGES = [
    ROOT / name
    for name in (
        "README.md",
        *("docs/own-data.md", "docs/prepare.md", "docs/mine.md", "docs/train.md", "docs/merge.md", "docs/evaluate.md"),
        *(
            "docs/classify.md",
            "docs/production.md",
            "docs/commands.md",
            "docs/files.md",
            "docs/results.md",
            "docs/benchmarks.md",
        ),
        *("docs/tutorials/first-run.md", "docs/tutorials/classifier.md", "docs/tutorials/rag.md"),
        *(
            f"docs/how-to/{name}.md"
            for name in ("documents-only", "several-gpus", "gate-in-ci", "mteb", "report", "update")
        ),
        *(f"docs/how-to/from-{name}.md" for name in ("flagembedding", "sentence-transformers", "mergekit")),
        *(f"docs/why/{name}.md" for name in ("merging", "false-negatives", "intervals-and-tests")),
        *("docs/guarantees.md", "docs/words.md", "docs/tutorial.zh.md", "CONTRIBUTING.md"),
    )
]
HUB_NAME = "BAAI/bge-small-en-v1.5"
CHINESE_NAME = "BAAI/bge-small-zh-v1.5"


def blocks(language: str) -> list[str]:
    return [one for page in PAGES[:-1] for one in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands(cli: Callable[..., Result], tiny: Path, in_folder: Path) -> None:
    commands = [
        shlex.split(line.split("#")[0])
        for block in blocks("sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("bge-cocktail")
    ]
    assert len(commands) == 39
    for command in commands:
        arguments = [part.replace(HUB_NAME, str(tiny)).replace(CHINESE_NAME, str(tiny)) for part in command[1:]]
        extra = ["--set", f"base={tiny}"] if arguments[0] == "run" else []
        # the tiny model knows no word of the handbook; three epochs of it would only take time
        extra += ["--epochs", "1"] if arguments[0] == "train" else []
        cli(*arguments, *extra)
    assert (in_folder / "runs/scores/scores.json").is_file()
    assert (in_folder / "runs/report.html").is_file()


def test_python(tiny: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    exec(compile(code.replace(HUB_NAME, str(tiny)), "own-data.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "known positive of the query" in printed
    assert "nDCG@10" in printed


def test_the_chinese_readme_has_the_same_commands_and_pages() -> None:
    """And nothing of the command line is translated."""
    pages = [(ROOT / name).read_text() for name in ("README.md", "README.zh.md")]
    for pattern in (r"```console\n(.*?)```", r"\]\((docs/[^)]+)\)", r"`(--[\w-]+)`"):
        one, two = (re.findall(pattern, page, re.DOTALL) for page in pages)
        assert [name for name in one if name in two] == one, pattern
    one, two = (
        [
            line.split("#")[0].rstrip()
            for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
            for line in block.splitlines()
        ]
        for page in pages
    )
    assert one == two


def test_readme_is_short_and_no_page_is_forgotten() -> None:
    readme = PAGES[0].read_text()
    assert len(readme.splitlines()) <= 150
    docs = ROOT / "docs"
    pages = set(docs.rglob("*.md")) - set(docs.glob("frameworks/*")) - set(docs.glob("results/*"))
    assert pages == {page for page in PAGES if page.parent != ROOT}
    site = (ROOT / "mkdocs.yml").read_text()
    assert [page for page in pages if page.relative_to(docs).as_posix() not in site] == []
    for page in PAGES[1:]:
        assert f"({page.relative_to(ROOT)})" in readme, page


def test_every_file_that_is_written_is_described() -> None:
    page = (ROOT / "docs/files.md").read_text()
    own = {"config_sentence_transformers.json", "tokenizer.json"}  # of every model, with many others
    constants = "\n".join(path.read_text() for path in (ROOT / "bge_cocktail").rglob("*.py"))
    found = re.findall(r"^(?:[A-Z_]+_FILE(?:, )?)+ = (.+)$", constants, re.MULTILINE)
    names = {name for line in found for name in re.findall(r'"([\w.]+\.\w+)"', line)}
    names |= set(re.findall(r'new / "([\w.]+\.(?:jsonl?|png))"', constants))
    assert len(names) > 25
    assert sorted(name for name in names - own if name not in page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / name).is_file(), name
    for name in re.findall(r"scripts/\w+(?:\.py)?", text):
        assert (ROOT / name).is_file(), name


def test_the_site_has_every_command_flag_and_name(tmp_path: Path) -> None:
    """Built strictly: a link that leads nowhere is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    commands = html.unescape((tmp_path / "site/reference/cli.html").read_text())
    assert "UNSET" not in commands
    todo: list[tuple[str, click.Command]] = [("bge-cocktail", main)]
    while todo:
        name, one = todo.pop()
        assert name in commands
        for flag in (flag for parameter in one.params for flag in parameter.opts if flag.startswith("--")):
            assert flag in commands, (name, flag)
        if isinstance(one, click.Group):
            context = click.Context(one)
            todo += [(sub, found) for sub in one.list_commands(context) if (found := one.get_command(context, sub))]
    names = html.unescape((tmp_path / "site/reference/registries.html").read_text())
    for kind in KINDS:
        for name in describe(kind):
            assert f"<code>{name}</code>" in names, (kind, name)
    library = (tmp_path / "site/reference/python.html").read_text()
    assert all(f"{bge_cocktail._HOMES[name]}.{name}" in library for name in bge_cocktail.__all__)
    # nothing is loaded from elsewhere
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.search(r"""<(?:script|link|img)[^>]*(?:src|href)=["']?https?:""", page.read_text()), page


def test_contributing_adds_a_method_that_keeps_the_laws(
    nudged: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from bge_cocktail.merging.merge import merge
    from bge_cocktail.merging.methods import merge_methods
    from bge_cocktail.options import MergeOptions

    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = re.search(r'(    @merge_methods\("median"\)\n.*?axis=0\)\n)', text, re.DOTALL)
    monkeypatch.setattr(merge_methods, "_entries", dict(merge_methods._all()))
    exec("\n".join(line[4:] for line in code[1].splitlines()), {"merge_methods": merge_methods, "np": np})
    assert merge_methods.describe()["median"] == "Median of the same tensor of each model."
    merge([nudged[0], nudged[0]], tmp_path / "out", MergeOptions(method="median"))
    assert (tmp_path / "out/model.safetensors").read_bytes() == (nudged[0] / "model.safetensors").read_bytes()


def test_contributing_adds_a_step_and_a_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    from test_miner import HashEncoder

    from bge_cocktail.data.record import Record
    from bge_cocktail.mining.filters import negative_filters
    from bge_cocktail.mining.miner import mine
    from bge_cocktail.options import MineOptions, PrepareOptions
    from bge_cocktail.preparing.clean import Cleaner, cleaning_steps

    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = re.search(r'(    @cleaning_steps\("no-mail"\)\n.*?ranks <= 3\n)', text, re.DOTALL)
    for registry in (cleaning_steps, negative_filters):
        monkeypatch.setattr(registry, "_entries", dict(registry._all()))
    names = {"cleaning_steps": cleaning_steps, "negative_filters": negative_filters, "re": re}
    exec("\n".join(line[4:] for line in code[1].splitlines()), names)
    assert Cleaner(PrepareOptions(clean=["no-mail"]))("write to a.b@c.org now", "text") == "write to ADDRESS now"
    documents = [f"document {number}" for number in range(20)]
    mined = mine([Record("q", ("a",))], HashEncoder(), MineOptions(relative_margin=None, depth=20), corpus=documents)
    assert mined.dropped["in the first three ranks"] == 3


def test_contributing_adds_a_kind_of_task(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conftest import write_lines

    from bge_cocktail.evaluating.evaluate import evaluate
    from bge_cocktail.evaluating.tasks.task import TaskKind, interval_of, open_task, tasks
    from bge_cocktail.models.encoder import CachedEncoder
    from bge_cocktail.options import EvaluateOptions

    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = re.search(r"(    class Titles\(TaskKind\):\n.*?tasks\(\"titles\"\)\(Titles\(\)\)\n)", text, re.DOTALL)
    monkeypatch.setattr(tasks, "_entries", dict(tasks._all()))
    names = {"TaskKind": TaskKind, "tasks": tasks, "interval_of": interval_of, "__name__": "plugin"}
    exec("\n".join(line[4:] for line in code[1].splitlines()), names)
    rows: list[dict[str, object]] = [{"title": word, "body": word} for word in ("dog", "river", "apple")]
    write_lines(tmp_path / "test.jsonl", [*rows, {"title": "boat", "body": "dog"}])
    task = open_task(tmp_path, "target")
    assert task.kind == "titles"
    assert evaluate(CachedEncoder(tiny), [task])[0].value == 0.75
    every = EvaluateOptions(plugin_options={"nearest": "4"})
    assert evaluate(CachedEncoder(tiny), [task], every)[0].value == 1


def test_contributing_adds_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bge_cocktail.report.blocks import Section, Words, report_sections
    from bge_cocktail.report.build import build_report, markdown
    from bge_cocktail.report.collect import collect

    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = re.search(r'(    @report_sections\("longest run".*? s\."\)\]\)\n)', text, re.DOTALL)
    monkeypatch.setattr(report_sections, "_entries", dict(report_sections._all()))
    names = {"report_sections": report_sections, "Section": Section, "Words": Words}
    exec("\n".join(line[4:] for line in code[1].splitlines()), names)
    (tmp_path / "run.json").write_text('{"command": "merge", "seconds": 7}')
    assert f"{tmp_path.name}: 7 s." in markdown(build_report(collect([tmp_path]), "")).replace("\\", "")


def test_a_benchmark_keeps_what_it_did_not_measure() -> None:
    old = "| | sst2 | imdb |\n|---|---|---|\n| probe | 0.1 | 0.2 |\n| head | 0.3 | 0.4 |"
    new = "| | imdb | mnli |\n|---|---|---|\n| head | 0.5 | 0.6 |\n| few | 0.7 | - |"
    assert joined(old, new).splitlines() == [
        "| | sst2 | imdb | mnli |",
        "|---|---|---|---|",
        "| probe | 0.1 | 0.2 | - |",
        "| head | 0.3 | 0.5 | 0.6 |",
        "| few | - | 0.7 | - |",
    ]


def test_tables_of_benchmarks_can_be_written_again() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    tables = re.findall(r"<!-- bench .*? -->\n(.*?)\n<!-- /bench", text, re.DOTALL)
    assert len(tables) > 5
    for table in tables:
        assert joined(table, table) == joined("", table) == table


def test_every_table_says_what_it_measures(tmp_path: Path) -> None:
    marked = {
        (page.name, name)
        for page in PAGES
        for name in re.findall(r"<!-- bench (.*?) -->", page.read_text())
        if page.parent != ROOT
    }
    figures = json.loads(FIGURES.read_text())
    known = {(TABLES[name].page, name) for name in figures}
    assert marked <= known
    # what has no marks is written by hand, or as files of its own
    assert {name for _, name in known - marked} == {"lm-cocktail", "false negatives"}
    for name in figures:
        assert code_hashes(TABLES[name].code)
    package = tmp_path / "bge_cocktail"
    package.mkdir()
    hashes = []
    for code in ('"""One."""\nx = 1\n', '"""Two."""\n\nx = 1  # so\n', "x = 2\n"):
        (package / "a.py").write_text(code)
        hashes.append(code_hashes(["a.py"], tmp_path)["a.py"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_chinese_data_are_what_the_tutorial_says() -> None:
    from bge_cocktail.data.beir import read_beir

    folder = ROOT / "data/handbook_zh"
    splits = {name: read_beir(folder, name) for name in ("train", "dev", "test")}
    assert [len(one.queries) for one in splits.values()] == [36, 12, 24]
    assert len(splits["train"].corpus) == 24
    asked = {document for grades in splits["train"].qrels.values() for document in grades}
    assert len(splits["train"].corpus.keys() - asked) == 4
    texts = [text for one in splits.values() for text in one.queries.values()]
    assert len(set(texts)) == 72
    assert not any(text in document for text in texts for document in splits["train"].corpus.values())
