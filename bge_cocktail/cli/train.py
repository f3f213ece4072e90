"""``bge-cocktail train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from bge_cocktail.cli.command_kinds import ShortHelp
from bge_cocktail.cli.flags import (
    PATH,
    flags_from,
    format_flag,
    numbers,
    options_from,
    output_flag,
    overwrite_flag,
    preset_flag,
    refuse_both,
    show,
    table_flag,
)
from bge_cocktail.cli.show import searched_names, show_search, training
from bge_cocktail.core.errors import UsageError
from bge_cocktail.options import TrainOptions

if TYPE_CHECKING:
    from bge_cocktail.training.engine.repeat import RepeatedResult

# what the summary shows of run.json
_SHOWN = ("records", "steps", "best_step", "final_loss", "dev_before", "dev_best", "precision", "device", "seconds")


@click.command("train", cls=ShortHelp, finer=("bag", "searched", "trials", "tasks", "folds", "output_format"))
@click.argument("data", type=PATH)
@click.option("-m", "--model", required=True, help="The model to tune: a folder or a hub name.")
@click.option("--dev", type=PATH, help="Records or a BEIR folder (its dev split) for early stopping.")
@click.option("--general", type=PATH, multiple=True, help="A task that is watched for forgetting (again for more).")
@click.option("--seeds", callback=numbers, help="Train once with each of these seeds, and merge the models: 1,2,3.")
@click.option("--bag", help="Train on such percentages of each data set, and merge the models: 80,100 or 50,rest.")
@click.option("--search", "searched", help="Search these options by dev: learning_rate,temperature,batch_size,...")
@click.option("--trials", type=click.IntRange(2), help="Trainings of a search.  [default: 20]")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of a training that was cut off.")
@table_flag("--task", "tasks", "An option of one task's batches: NAME.option=value (again for more).")
@preset_flag
@output_flag
@overwrite_flag
@format_flag
@flags_from(TrainOptions)
def command(
    data: Path,
    model: str,
    dev: Path | None,
    general: tuple[Path, ...],
    seeds: list[int] | None,
    bag: str | None,
    searched: str | None,
    trials: int | None,
    resume: bool,
    output: Path,
    overwrite: bool,
    output_format: str,
    **flags: Any,
) -> None:
    """Tune an encoder on records with a contrastive loss.

    DATA is a file of records, a folder that `mine` or `prepare` wrote, or a BEIR folder (its train split). Started by
    torchrun or accelerate launch (-m bge_cocktail train ...), all processes share the batches.
    """
    from bge_cocktail.core.outputs import refuse_to_replace
    from bge_cocktail.core.runs import RUN_FILE
    from bge_cocktail.data.record_files import open_records
    from bge_cocktail.data.retrieval import read_retrieval

    refuse_both(resume, overwrite)
    options = options_from(TrainOptions, flags)
    if sum(given is not None for given in (searched, seeds, bag)) > 1:
        raise UsageError("--seeds, --bag and --search are trainings of their own; give one of them")
    if searched is not None and dev is None:
        raise UsageError("--search needs --dev, which judges the trials")
    if trials is not None and searched is None:
        raise UsageError("--trials goes with --search")
    refuse_to_replace(output, overwrite, [data, model, *([dev] if dev else []), *general])
    records = open_records(data)
    judged = read_retrieval(dev, "dev") if dev is not None else None

    from bge_cocktail.training.encoder.repeated_runs import search_options, train_bagged, train_seeds
    from bge_cocktail.training.encoder.train import train
    from bge_cocktail.training.engine.processes import is_first_process

    common: dict[str, Any] = {"general": general, "resume": resume, "overwrite": overwrite}
    kept = f"the study is in {output}.search" if searched else f"it lies in {output}.unfinished"
    with training(options.device, kept):
        if searched is not None and judged is not None:
            names = searched_names(searched)
            result = search_options(model, records, output, options, names, trials=trials or 20, dev=judged, **common)
            show_search(output, result, names, "nDCG@10", output_format)
        elif seeds is not None:
            described = train_seeds(model, records, output, options, seeds, dev=judged, **common)
            _show_seeds(output, described, output_format)
        elif bag is not None:
            described = train_bagged(model, records, output, options, bag.split(","), dev=judged, **common)
            _show_seeds(output, described, output_format)
        else:
            train(model, records, output, options, dev=judged, datasets=[str(data)], **common)
    if is_first_process() and searched is None and seeds is None and bag is None:
        _show(output, model, json.loads((output / RUN_FILE).read_text()), output_format)


def _show(output: Path, model: str, described: dict[str, Any], output_format: str) -> None:
    from bge_cocktail.report.text import text_table

    summary = {name: described[name] for name in _SHOWN}
    watched = {name: f"{before:.4f} to {after:.4f}" for name, (before, after) in described["general"].items()}
    rows = [(name.replace("_", " "), _shown(value)) for name, value in summary.items() if value is not None]
    rows += [(f"general {name}", change) for name, change in watched.items()]
    content = {"output": str(output), **summary, "general": described["general"]}
    then = ("merge", output, model, "--share", 0.5, "-o", "FOLDER")
    show(content, text_table(("trained", ""), rows), output_format, output, then)


def _show_seeds(output: Path, described: RepeatedResult, output_format: str) -> None:
    from bge_cocktail.report.text import text_table

    names = list(described["mean"])
    lines = {**described["runs"], "mean": described["mean"], "spread (sd)": described["spread"]}
    lines["soup"] = described["soup"]
    rows = [[name, *(f"{one[key]:.4f}" if key in one else "" for key in names)] for name, one in lines.items()]
    content = {"output": str(output), **{key: value for key, value in described.items() if key != "seconds"}}
    show(content, text_table(("", *names), rows), output_format, output)


def _shown(value: object) -> str:
    """Metrics with four digits, seconds and the like without what nobody reads."""
    return (
        f"{value:.4f}"
        if isinstance(value, float) and value < 10
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )
