"""Tasks: each a function from an encoder to scores."""

from bge_cocktail.tasks.score import Role, Run, Score, tasks
from bge_cocktail.tasks.task import Task, check_task, evaluate, open_task, task_path
from bge_cocktail.tasks.texts import Sampled, embed_sample, sample_texts, task_texts

__all__ = [
    "Role",
    "Run",
    "Sampled",
    "Score",
    "Task",
    "check_task",
    "embed_sample",
    "evaluate",
    "open_task",
    "sample_texts",
    "task_path",
    "task_texts",
    "tasks",
]
