"""``bge-cocktail leaderboard``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from bge_cocktail.cli.flags import PATH, format_flag, show

if TYPE_CHECKING:
    from bge_cocktail.evaluating.mteb import MeanDifference

ALPHA = 0.05


@click.command("leaderboard")
@click.argument("results", nargs=-1, required=True, type=PATH)
@click.option("--target", multiple=True, metavar="TASK", help="A task that was tuned for; the others are general.")
@click.option("--tasks", is_flag=True, help="Show every task, too.")
@format_flag
def command(results: tuple[Path, ...], target: tuple[str, ...], tasks: bool, output_format: str) -> None:
    """Put mteb's results of several models into one table, with the averages of its leaderboard.

    RESULTS are folders in mteb's layout, its own or the `mteb` folders of evaluations. Averages are over the tasks that
    all models were judged on; of these, each model is compared with the first.
    """
    from bge_cocktail.evaluating.mteb import read_leaderboard
    from bge_cocktail.report.text import text_table

    board = read_leaderboard(results, target)
    averages = {model: board.averages(model) for model in board.models}
    columns = list(averages[board.models[0]])
    differences = board.differences()
    # the difference stands beside the mean that it is one of
    header = ["model", columns[0], *(["against the first"] if differences else []), *columns[1:]]
    rows = []
    for model, means in averages.items():
        cells = ["-" if means[name] is None else f"{means[name]:.4f}" for name in columns]
        if differences:
            cells.insert(1, _against(differences[model]) if model in differences else "")
        rows.append([model, *cells])
    blocks = [text_table(header, rows)]
    if differences:
        blocks[0] += (
            f"\n+ measurably better than {board.models[0]}, - worse (paired test over the {len(board.shared)} tasks, "
            "95 %), as are the intervals"
        )
    if tasks:
        lines = [
            [
                task,
                kind,
                "target" if task in board.target else "general",
                *(f"{scores[task]:.4f}" if task in (scores := board.scores[model]) else "-" for model in board.models),
            ]
            for task, kind in sorted(board.types.items(), key=lambda item: (item[1], item[0]))
        ]
        blocks.append(text_table(("task", "type", "role", *board.models), lines))
    if left := [task for task in board.types if task not in board.shared]:
        blocks.append(f"Not in the averages, for not all models were judged on them: {', '.join(left)}")
    show(board.to_json(), "\n\n".join(blocks), output_format)


def _against(difference: MeanDifference) -> str:
    mark = "" if difference.p >= ALPHA else "+" if difference.value > 0 else "-"
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]{mark}"
