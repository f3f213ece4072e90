"""Tasks: each a function from an encoder to scores."""

from bge_cocktail.tasks.score import Role, Score, tasks
from bge_cocktail.tasks.task import Task, check_task, evaluate, open_task

__all__ = ["Role", "Score", "Task", "check_task", "evaluate", "open_task", "tasks"]
