"""Tasks: each a function from an encoder to scores."""

from bge_cocktail.tasks.score import Role, Score, tasks
from bge_cocktail.tasks.task import Task, evaluate, open_task

__all__ = ["Role", "Score", "Task", "evaluate", "open_task", "tasks"]
