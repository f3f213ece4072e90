"""The options of every step: the only home of a default, its help and its bounds.

Command-line flags and the sections of a run file are both made from these models.
"""

from bge_cocktail.options.base import NAMED_PROMPTS, Options, checked, field_names, is_table
from bge_cocktail.options.classify import ClassifyOptions, PredictOptions
from bge_cocktail.options.merge import MergeOptions
from bge_cocktail.options.prepare import AugmentOptions, PrepareOptions
from bge_cocktail.options.presets import PRESETS, Preset, preset_values
from bge_cocktail.options.run import (
    PREPARED,
    CocktailOptions,
    DataOptions,
    RunOptions,
    commented_run_file,
    read_run_file,
)
from bge_cocktail.options.serve import ExportOptions, ServeOptions
from bge_cocktail.options.steps import RESAMPLES, EncodeOptions, EvaluateOptions, MineOptions
from bge_cocktail.options.synthesize import SynthesizeOptions
from bge_cocktail.options.train import CommonTrainOptions, TaskTrainOptions, TrainOptions

__all__ = [
    "NAMED_PROMPTS",
    "PREPARED",
    "PRESETS",
    "RESAMPLES",
    "AugmentOptions",
    "ClassifyOptions",
    "CocktailOptions",
    "CommonTrainOptions",
    "DataOptions",
    "EncodeOptions",
    "EvaluateOptions",
    "ExportOptions",
    "MergeOptions",
    "MineOptions",
    "Options",
    "PredictOptions",
    "PrepareOptions",
    "Preset",
    "RunOptions",
    "ServeOptions",
    "SynthesizeOptions",
    "TaskTrainOptions",
    "TrainOptions",
    "checked",
    "commented_run_file",
    "field_names",
    "is_table",
    "preset_values",
    "read_run_file",
]
