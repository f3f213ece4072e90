"""Pages of the site that stand elsewhere or in the code, for mkdocs (`mkdocs build --strict`, extra `docs`).

README is the first page, in Chinese the second; CONTRIBUTING, CHANGELOG and the description of the data have one each.
The reference is made of the code: commands with all their options, what the registries hold, the library's functions.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import bge_cocktail
from bge_cocktail.cli.registries import KINDS, describe

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "index.md": "README.md",
    "zh.md": "README.zh.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "data.md": "data/README.md",
}
COMMANDS = """# Commands and options

::: mkdocs-click
    :module: bge_cocktail.cli
    :command: main
    :prog_name: bge-cocktail
    :depth: 1
    :style: table
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages; called by mkdocs."""
    made = {name: moved(source) for name, source in PAGES.items()}
    made |= {"reference/cli.md": COMMANDS, "reference/registries.md": registries(), "reference/python.md": library()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to pages that stand elsewhere in the repository lead to them in the site; called by mkdocs."""
    return markdown if "/" in page.file.src_uri else linked(markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Leave out what mkdocs-click writes where an option has no default; called by mkdocs."""
    return html.replace("<code>Sentinel.UNSET</code>", "")


def moved(source: str) -> str:
    """Return a page of the repository as one of the site's first folder."""
    return linked((ROOT / source).read_text(encoding="utf-8"))


def linked(text: str) -> str:
    """Return a page with its links as they are from the site's first folder."""
    names = {source: page for page, source in PAGES.items()}

    def link(match: re.Match[str]) -> str:
        target = match[1].removeprefix("../").removeprefix("docs/")
        return f"]({names.get(target, target)})"

    return re.sub(r"\]\(([^)#:]+)\)", link, text)


def registries() -> str:
    """Return what each registry holds, by name."""
    lines = ["# What there is by name", ""]
    for kind in KINDS:
        lines += [f"## {kind}", "", "| name | |", "|---|---|"]
        lines += [f"| `{name}` | {text.replace('|', chr(92) + '|')} |" for name, text in describe(kind).items()]
        lines.append("")
    return "\n".join(lines)


def library() -> str:
    """Return the page of all that the library gives out."""
    lines = ["# Python", ""]
    lines += [f"::: bge_cocktail.{bge_cocktail._HOMES[name]}.{name}\n" for name in bge_cocktail.__all__]
    return "\n".join(lines)
