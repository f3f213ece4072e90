"""``bge-cocktail push``."""

from __future__ import annotations

import rich_click as click

from bge_cocktail.cli.flags import format_flag, show


@click.command("push")
@click.argument("model")
@click.argument("name")
@click.option("--private", is_flag=True, help="Make a repository that others can't see, where it doesn't exist yet.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and upload nothing.")
@format_flag
def command(model: str, name: str, private: bool, dry_run: bool, output_format: str) -> None:
    """Upload a model folder to the hub as owner/name; what goes is shown first.

    The token is the hub's own: hf auth login, or HF_TOKEN. Files that don't belong to a model (.git, .env, code, links
    that lead elsewhere) are kept back.
    """
    from bge_cocktail.report.text import text_table
    from bge_cocktail.serving.push import plan_push, push

    upload = plan_push(model, name)
    rows = [[path, f"{(upload.folder / path).stat().st_size / 1e6:.2f}"] for path in upload.files]
    rows += [[path, "kept back"] for path in upload.kept_back]
    table = text_table((f"to {upload.name}{' (private)' if private else ''}", "MB"), rows)
    if output_format == "table":
        click.echo(table)
    address = None if dry_run else push(upload, private=private)
    described = {
        "name": upload.name,
        "private": private,
        "files": list(upload.files),
        "kept_back": list(upload.kept_back),
        "megabytes": round(upload.megabytes, 2),
        "uploaded": address,
    }
    show(
        described,
        address or f"{len(upload.files)} files, {upload.megabytes:.1f} MB; nothing was uploaded",
        output_format,
    )
