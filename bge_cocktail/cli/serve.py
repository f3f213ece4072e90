"""``bge-cocktail serve``."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import rich_click as click

from bge_cocktail.cli.flags import PATH, flags_from, options_from
from bge_cocktail.options import ServeOptions

KEY = "BGE_COCKTAIL_API_KEY"
_LOCAL = ("127.0.0.1", "localhost", "::1")


@click.command("serve")
@click.argument("models", nargs=-1, required=True)
@click.option("--corpus", type=PATH, help="Documents to search on the server's page: a BEIR folder, or JSON Lines.")
@flags_from(ServeOptions)
def command(models: tuple[str, ...], corpus: Path | None, **flags: Any) -> None:
    """Serve models over HTTP: OpenAI's embeddings, reranking, classification.

    MODELS are folders (also what export wrote), hub names or NAME=FOLDER. Clients ask for NAME:query or NAME:document
    (or say input_type), and the model's prompt is put before their texts. If the variable BGE_COCKTAIL_API_KEY is set,
    clients must send it. The page at / compares what two models find; /docs describes all requests.
    """
    from bge_cocktail.data.beir import read_corpus
    from bge_cocktail.serving.endpoint import open_served, serve, served_names

    options = options_from(ServeOptions, flags)
    key = os.environ.get(KEY) or None
    if key is None and options.host not in _LOCAL:
        click.echo(f"warning: {options.host} lets others in, and ${KEY} is not set: anyone can ask", err=True)
    documents = [text for text in read_corpus(corpus) if text] if corpus is not None else []
    served = open_served(served_names(models), options, corpus=documents, api_key=key)

    def on_ready(address: str) -> None:
        click.echo(
            f"serving {', '.join(served.names())} at {address} (page: {address}/, OpenAI: {address}/v1)", err=True
        )

    with suppress(KeyboardInterrupt):  # how it is told to stop, once all requests are answered
        serve(served, on_ready)
