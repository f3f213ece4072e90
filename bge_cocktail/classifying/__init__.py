"""Encoders with a classification head: trained, judged, predicting."""

from bge_cocktail.classifying.data import (
    ClassData,
    LabelledTexts,
    label_names,
    number_labels,
    read_class_data,
    read_split,
    read_test,
)
from bge_cocktail.classifying.judging import judge_classifier
from bge_cocktail.classifying.merging import merge_classifiers
from bge_cocktail.classifying.model import Classifier, load_classifier
from bge_cocktail.classifying.predicting import Prediction, predict, predict_file
from bge_cocktail.classifying.searching import search_classifier
from bge_cocktail.classifying.settings import Settings, read_settings
from bge_cocktail.classifying.several import fold_runs, seed_runs, train_runs
from bge_cocktail.classifying.tune import train_classifier

__all__ = [
    "ClassData",
    "Classifier",
    "LabelledTexts",
    "Prediction",
    "Settings",
    "fold_runs",
    "judge_classifier",
    "label_names",
    "load_classifier",
    "merge_classifiers",
    "number_labels",
    "predict",
    "predict_file",
    "read_class_data",
    "read_settings",
    "read_split",
    "read_test",
    "search_classifier",
    "seed_runs",
    "train_classifier",
    "train_runs",
]
