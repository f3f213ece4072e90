"""Encoders with a classification head: trained, judged, predicting."""

from bge_cocktail.classifying.data import (
    ClassData,
    LabelledTexts,
    label_names,
    number_labels,
    read_class_data,
    read_split,
)
from bge_cocktail.classifying.judging import judge_classifier
from bge_cocktail.classifying.model import Classifier, Settings, load_classifier, read_settings
from bge_cocktail.classifying.predicting import Prediction, predict, predict_file
from bge_cocktail.classifying.tune import train_classifier

__all__ = [
    "ClassData",
    "Classifier",
    "LabelledTexts",
    "Prediction",
    "Settings",
    "judge_classifier",
    "label_names",
    "load_classifier",
    "number_labels",
    "predict",
    "predict_file",
    "read_class_data",
    "read_settings",
    "read_split",
    "train_classifier",
]
