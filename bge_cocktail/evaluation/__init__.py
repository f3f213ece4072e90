"""Several models on the same tasks: the scores, and the folder that they are kept in."""

from bge_cocktail.evaluation.details import Details, read_details
from bge_cocktail.evaluation.folder import read_evaluation, write_evaluation
from bge_cocktail.evaluation.gathering import gather_details, gather_evaluations
from bge_cocktail.evaluation.judging import ModelScores, evaluate_models, evaluation_inputs, open_tasks, scorer

__all__ = [
    "Details",
    "ModelScores",
    "evaluate_models",
    "evaluation_inputs",
    "gather_details",
    "gather_evaluations",
    "open_tasks",
    "read_details",
    "read_evaluation",
    "scorer",
    "write_evaluation",
]
