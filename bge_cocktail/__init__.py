"""Tune text-embedding models on your own data without losing what they already knew."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bge_cocktail.core.version import __version__ as __version__

if TYPE_CHECKING:
    from bge_cocktail.core.errors import CocktailError
    from bge_cocktail.data.record import Record
    from bge_cocktail.data.record_files import read_records, write_records
    from bge_cocktail.evaluating.compare import compare
    from bge_cocktail.evaluating.evaluate import evaluate, run_evaluate, run_indexes
    from bge_cocktail.evaluating.scores import Score
    from bge_cocktail.evaluating.store import open_evaluation
    from bge_cocktail.evaluating.tasks.task import open_task
    from bge_cocktail.flow.flow import run
    from bge_cocktail.merging.inspect import inspect, run_inspect
    from bge_cocktail.merging.merge import merge
    from bge_cocktail.mining.miner import Mined, mine, run_mine
    from bge_cocktail.models.encoder import CachedEncoder, Encoder, load_encoder
    from bge_cocktail.preparing.prepare import prepare
    from bge_cocktail.report.build import build_report, write_report
    from bge_cocktail.report.collect import collect
    from bge_cocktail.synthesizing.synthesize import Synthesis, synthesize
    from bge_cocktail.training.classifier.data import read_class_data
    from bge_cocktail.training.classifier.evaluate import run_classifier_evaluate
    from bge_cocktail.training.classifier.merge import merge_classifiers
    from bge_cocktail.training.classifier.model import load_classifier
    from bge_cocktail.training.classifier.predict import predict
    from bge_cocktail.training.classifier.train import train_classifier
    from bge_cocktail.training.encoder.repeated_runs import train_bagged
    from bge_cocktail.training.encoder.train import train
    from bge_cocktail.training.encoder.update import update

# loaded on demand, so that importing the package (and --help) never imports torch
_HOMES = {
    "CachedEncoder": "models.encoder",
    "CocktailError": "core.errors",
    "Encoder": "models.encoder",
    "Mined": "mining.miner",
    "Record": "data.record",
    "Score": "evaluating.scores",
    "Synthesis": "synthesizing.synthesize",
    "build_report": "report.build",
    "collect": "report.collect",
    "compare": "evaluating.compare",
    "evaluate": "evaluating.evaluate",
    "inspect": "merging.inspect",
    "load_classifier": "training.classifier.model",
    "load_encoder": "models.encoder",
    "merge": "merging.merge",
    "merge_classifiers": "training.classifier.merge",
    "mine": "mining.miner",
    "open_evaluation": "evaluating.store",
    "open_task": "evaluating.tasks.task",
    "predict": "training.classifier.predict",
    "prepare": "preparing.prepare",
    "read_class_data": "training.classifier.data",
    "read_records": "data.record_files",
    "run": "flow.flow",
    "run_classifier_evaluate": "training.classifier.evaluate",
    "run_evaluate": "evaluating.evaluate",
    "run_indexes": "evaluating.evaluate",
    "run_inspect": "merging.inspect",
    "run_mine": "mining.miner",
    "synthesize": "synthesizing.synthesize",
    "train": "training.encoder.train",
    "train_bagged": "training.encoder.repeated_runs",
    "train_classifier": "training.classifier.train",
    "update": "training.encoder.update",
    "write_records": "data.record_files",
    "write_report": "report.build",
}
__all__ = [
    "CachedEncoder",
    "CocktailError",
    "Encoder",
    "Mined",
    "Record",
    "Score",
    "Synthesis",
    "build_report",
    "collect",
    "compare",
    "evaluate",
    "inspect",
    "load_classifier",
    "load_encoder",
    "merge",
    "merge_classifiers",
    "mine",
    "open_evaluation",
    "open_task",
    "predict",
    "prepare",
    "read_class_data",
    "read_records",
    "run",
    "run_classifier_evaluate",
    "run_evaluate",
    "run_indexes",
    "run_inspect",
    "run_mine",
    "synthesize",
    "train",
    "train_bagged",
    "train_classifier",
    "update",
    "write_records",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bge_cocktail' has no attribute '{name}'")
    return getattr(import_module(f"bge_cocktail.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
