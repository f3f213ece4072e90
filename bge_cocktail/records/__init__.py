"""Training records, BEIR folders and labelled texts: reading, checking, writing."""

from bge_cocktail.records.beir import Judged, judge_records, read_beir, read_corpus
from bge_cocktail.records.files import read_records, records_from_beir, write_records
from bge_cocktail.records.labelled import Labelled, read_labelled
from bge_cocktail.records.record import Record, normalise, positives_by_query

__all__ = [
    "Judged",
    "Labelled",
    "Record",
    "judge_records",
    "normalise",
    "positives_by_query",
    "read_beir",
    "read_corpus",
    "read_labelled",
    "read_records",
    "records_from_beir",
    "write_records",
]
