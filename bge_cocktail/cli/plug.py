"""``bge-cocktail plug``."""

from __future__ import annotations

import rich_click as click


@click.command("plug")
@click.argument("model")
@click.argument("framework")
def command(model: str, framework: str) -> None:
    """Print the lines by which a framework uses a model with its prompts, length and dimensions.

    FRAMEWORK is sentence-transformers, langchain, llama-index, haystack, chroma, qdrant, lancedb, milvus, tei, vllm,
    ollama or openai; bge-cocktail list plugs says what each is. The lines go to standard output, ready to paste.
    """
    from bge_cocktail.models.plug import plugs
    from bge_cocktail.models.profile import model_profile

    lines = plugs[framework]  # a wrong name first
    profile = model_profile(model)
    packages = plugs.trait(framework, "package")
    if packages:
        click.echo(f"needs: pip install {packages}", err=True)
    click.echo(lines(profile), nl=False)
