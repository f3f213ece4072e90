"""``bge-cocktail leaderboard``."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from bge_cocktail.cli.flags import PATH, format_flag, show


@click.command("leaderboard")
@click.argument("results", nargs=-1, required=True, type=PATH)
@click.option("--target", multiple=True, metavar="TASK", help="A task that was tuned for; the others are general.")
@click.option("--tasks", is_flag=True, help="Show every task, too.")
@format_flag
def command(results: tuple[Path, ...], target: tuple[str, ...], tasks: bool, output_format: str) -> None:
    """Put mteb's results of several models into one table, with the averages of its leaderboard.

    RESULTS are folders in mteb's layout, its own or the `mteb` folders of evaluations. Averages are over the tasks that
    all models were judged on.
    """
    from bge_cocktail.evaluating.mteb import read_leaderboard
    from bge_cocktail.report.text import text_table

    board = read_leaderboard(results, target)
    averages = {model: board.averages(model) for model in board.models}
    columns = list(averages[board.models[0]])
    rows = [
        [model, *("-" if means[name] is None else f"{means[name]:.4f}" for name in columns)]
        for model, means in averages.items()
    ]
    blocks = [text_table(("model", *columns), rows)]
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
