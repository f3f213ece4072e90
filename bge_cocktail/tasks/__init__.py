"""Tasks: each a function from an encoder to scores."""

from bge_cocktail.tasks.score import Role, Run, Score, tasks
from bge_cocktail.tasks.task import Task, check_task, evaluate, open_task

__all__ = ["Role", "Run", "Score", "Task", "check_task", "evaluate", "open_task", "tasks"]
