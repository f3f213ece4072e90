"""``bge-cocktail classify``: train, predict, evaluate."""

from __future__ import annotations

import rich_click as click

from bge_cocktail.cli.lazy import LazyGroup

COMMANDS = ("train", "predict", "evaluate")


@click.group("classify", cls=LazyGroup, homes={name: f"bge_cocktail.cli.classify_{name}" for name in COMMANDS})
def command() -> None:
    """Train classifiers on an encoder, judge them, predict with them."""
