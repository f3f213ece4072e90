"""MTEB's tasks, and local data as tasks of MTEB, through the mteb library."""

from bge_cocktail.benchmarks.local import as_mteb_task
from bge_cocktail.benchmarks.model import MtebModel
from bge_cocktail.benchmarks.run import open_mteb_tasks, run_mteb
from bge_cocktail.benchmarks.table import Leaderboard, read_leaderboard

__all__ = ["Leaderboard", "MtebModel", "as_mteb_task", "open_mteb_tasks", "read_leaderboard", "run_mteb"]
