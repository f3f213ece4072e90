"""``bge-cocktail merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from bge_cocktail.cli.flags import (
    PATH,
    flags_from,
    format_flag,
    options_from,
    output_flag,
    overwrite_flag,
    show,
)
from bge_cocktail.options import Encoding, Merging


@click.command("merge")
@click.argument("models", nargs=-1, required=True)
@click.option("--examples", type=PATH, help="Records with negatives, for weights 'cocktail'.")
@click.option("--dry-run", is_flag=True, help="Check the models and print the plan; write nothing.")
@output_flag
@overwrite_flag
@format_flag
@flags_from(Merging, Encoding)
def command(
    models: tuple[str, ...],
    examples: Path | None,
    dry_run: bool,
    output: Path,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Merge models of the same shape into one.

    MODELS are folders or hub names. With --share, the first keeps that share and the others divide the rest:
    merge TUNED BASE --share 0.5 is LM-Cocktail's cocktail of 2. The tokenizer and prompts are the first model's. The
    options about encoding matter for --weights cocktail only.
    """
    from bge_cocktail.errors import UsageError
    from bge_cocktail.merging.streaming import merge, plan_merge
    from bge_cocktail.provenance import hash_path, hash_value
    from bge_cocktail.report.table import text_table

    options = options_from(Merging, flags)
    encoding = options_from(Encoding, flags)
    loss = _loss_on(examples, options, encoding) if examples else None
    if examples and options.weights != "cocktail":
        raise UsageError("--examples goes with --weights cocktail")
    if dry_run:
        plan = plan_merge(models, output, options, overwrite=overwrite)
        rows = [[name.replace("_", " "), str(value)] for name, value in plan.items()]
        show(plan, text_table(("plan", ""), rows), output_format)
        return
    more = {}
    if examples:
        embedded = encoding.model_dump(mode="json", exclude={"cache", "cache_dir", "device", "batch_tokens"})
        more = {str(examples): hash_path(examples), f"embedded with {embedded}": hash_value(embedded)}
    merged = merge(models, output, options, loss=loss, more_inputs=more, overwrite=overwrite)
    described = [
        {"model": model, "weight": weight, **({"loss": merged.losses[row]} if merged.losses else {})}
        for row, (model, weight) in enumerate(zip(merged.models, merged.weights, strict=True))
    ]
    header = ["model", "weight", *(["loss"] if merged.losses else [])]
    rows = [[f"{value:.4f}" if isinstance(value, float) else str(value) for value in one.values()] for one in described]
    show({"output": str(output), "models": described}, text_table(header, rows), output_format)


def _loss_on(examples: Path, options: Merging, encoding: Encoding) -> Any:
    from bge_cocktail.records import read_records

    records = read_records(examples)

    def loss(model: str) -> float:
        from bge_cocktail.encoding import CachedEncoder
        from bge_cocktail.merging.weights import example_loss

        return example_loss(CachedEncoder(model, encoding), records, temperature=options.loss_temperature)

    return loss
