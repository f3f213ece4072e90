"""Training records, BEIR folders and labelled texts: reading, checking, writing."""

from bge_cocktail.records.beir import Judged, corpus_of, judge_records, read_beir, read_corpus, read_judgements
from bge_cocktail.records.files import read_records, write_records
from bge_cocktail.records.judged import holds_records, read_judged
from bge_cocktail.records.labelled import Labelled, read_labelled
from bge_cocktail.records.record import Record, normalise, positives_by_query
from bge_cocktail.records.store import open_records

__all__ = [
    "Judged",
    "Labelled",
    "Record",
    "corpus_of",
    "holds_records",
    "judge_records",
    "normalise",
    "open_records",
    "positives_by_query",
    "read_beir",
    "read_corpus",
    "read_judged",
    "read_judgements",
    "read_labelled",
    "read_records",
    "write_records",
]
