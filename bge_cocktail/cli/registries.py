"""``bge-cocktail list`` and ``completion``: names, for people and for shells."""

from __future__ import annotations

from importlib import import_module

import rich_click as click

from bge_cocktail.cli.flags import format_flag, show

# where each registry is
KINDS = {
    "merge-methods": ("merging.methods", "merge_methods"),
    "weightings": ("merging.weights", "weightings"),
    "tasks": ("evaluating.tasks.task", "tasks"),
    "measures": ("evaluating.measures", "measures"),
    "indexes": ("search.approximate", "indexes"),
    "losses": ("losses.total", "losses"),
    "cleaning-steps": ("preparing.clean", "cleaning_steps"),
    "language-detectors": ("preparing.clean", "language_detectors"),
    "duplicate-finders": ("preparing.duplicates", "duplicate_finders"),
    "augmentations": ("preparing.augment", "augmentations"),
    "thesauri": ("preparing.augment", "thesauri"),
    "query-writers": ("synthesizing.writers", "query_writers"),
    "query-filters": ("synthesizing.filters", "query_filters"),
    "candidate-sources": ("mining.candidates", "candidate_sources"),
    "negative-filters": ("mining.filters", "negative_filters"),
    "choices": ("mining.filters", "choices"),
    "record-weightings": ("preparing.record_weights", "record_weightings"),
    "exports": ("serving.export", "exporters"),
    "plugs": ("models.plug", "plugs"),
    "report-sections": ("report.blocks", "report_sections"),
    "presets": ("options.presets", "PRESETS"),
}


@click.command("list")
@click.argument("kind", type=click.Choice(list(KINDS)))
@format_flag
def command(kind: str, output_format: str) -> None:
    """List what can be chosen by name."""
    from bge_cocktail.report.text import text_table

    found = describe(kind)
    show(found, text_table((kind, "what it is"), list(found.items())), output_format)


def describe(kind: str) -> dict[str, str]:
    """Return what a registry holds: names, and what each is."""
    room, name = KINDS[kind]
    found: dict[str, str] = getattr(import_module(f"bge_cocktail.{room}"), name).describe()
    return found


# as click names it for a program of this name
_VARIABLE = "_BGE_COCKTAIL_COMPLETE"


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes bash, zsh or fish complete commands and options.

    bash and zsh: eval "$(bge-cocktail completion bash)" in ~/.bashrc or ~/.zshrc. fish: bge-cocktail completion fish >
    ~/.config/fish/completions/bge-cocktail.fish
    """
    from click.shell_completion import get_completion_class

    from bge_cocktail.cli import main

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    completion = kind(main, {}, "bge-cocktail", _VARIABLE)
    click.echo(completion.source_template % completion.source_vars())
