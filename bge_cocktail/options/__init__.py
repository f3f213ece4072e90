"""The options of every step: the only home of a default, its help and its bounds.

Command-line flags and the sections of a run file are both made from these models.
"""

from bge_cocktail.options.augmenting import Augmenting
from bge_cocktail.options.base import NAMED_PROMPTS, Options, checked, field_names, is_table
from bge_cocktail.options.classifying import Classifying, Predicting
from bge_cocktail.options.merging import Merging
from bge_cocktail.options.preparing import Preparing
from bge_cocktail.options.runfile import Cocktails, Data, RunFile
from bge_cocktail.options.steps import Encoding, Evaluating, Mining
from bge_cocktail.options.training import TaskTraining, Training
from bge_cocktail.options.tuning import Tuning

__all__ = [
    "NAMED_PROMPTS",
    "Augmenting",
    "Classifying",
    "Cocktails",
    "Data",
    "Encoding",
    "Evaluating",
    "Merging",
    "Mining",
    "Options",
    "Predicting",
    "Preparing",
    "RunFile",
    "TaskTraining",
    "Training",
    "Tuning",
    "checked",
    "field_names",
    "is_table",
]
