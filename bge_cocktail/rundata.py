"""The data of a run, read when it is needed."""

from __future__ import annotations

from functools import cached_property

from bge_cocktail.options import Data
from bge_cocktail.provenance import hash_path, hash_value
from bge_cocktail.records import Judged, Record, corpus_of, read_corpus, read_judged, read_records


class RunData:
    """What the section ``[data]`` of a run file names."""

    def __init__(self, options: Data) -> None:
        self._options = options

    @cached_property
    def records(self) -> list[Record]:
        """The records to tune on."""
        return read_records(self._options.train)

    @cached_property
    def corpus(self) -> list[str] | None:
        """The documents to mine from, if `train` is a folder that holds a corpus."""
        corpus = corpus_of(self._options.train)
        return read_corpus(corpus) if corpus else None

    @cached_property
    def dev_records(self) -> list[Record]:
        """The dev records; none without dev."""
        return read_records(self._options.dev, split="dev") if self._options.dev else []

    @cached_property
    def dev(self) -> Judged | None:
        """Dev as a retrieval task."""
        path = self._options.dev
        if path is None:
            return None
        return read_judged(path, "dev")

    @cached_property
    def hash(self) -> str:
        """Hash of all of it."""
        return hash_value([hash_path(path) for path in (self._options.train, self._options.dev) if path])
