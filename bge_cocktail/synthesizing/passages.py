"""Documents as passages: cut at sentences where they are long, and chosen to cover the corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import regex

from bge_cocktail.core.errors import DataError
from bge_cocktail.data.beir import CORPUS_FILE
from bge_cocktail.data.readers import BadRows, kind_of, read_lines, required_text, rows_of_file
from bge_cocktail.data.record import exact_key
from bge_cocktail.data.record_files import spread
from bge_cocktail.models.encoder import Encoder

# an end of a sentence: after a full stop of Chinese or Japanese at once, else before a space
_ENDS = regex.compile(r"(?<=[。！？])|(?<=[.!?][\"')\]]?)\s+(?=[\p{Lu}\p{N}\"'(\[])|\n+")


@dataclass(frozen=True, slots=True)
class Passage:
    """What queries are written for.

    Attributes:
        id: The document's, and of a document that was cut, the number of the part behind ``#``.
        document: The document's.
        title: May be empty.
        text: Without the title.
    """

    id: str
    document: str
    title: str
    text: str

    @property
    def whole(self) -> str:
        """Title and text with a space between, as BEIR joins them."""
        return f"{self.title} {self.text}".strip()


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text."""
    return [part.strip() for part in _ENDS.split(text) if part and part.strip()]


def read_passages(path: Path, longest: int, limit: int | None = None) -> tuple[list[Passage], dict[str, int]]:
    """Return the passages of a corpus, and how many documents were read and left out, by reason.

    Args:
        path: A BEIR folder, a file (JSON Lines, CSV, TSV, Parquet) with ``text`` and perhaps ``_id`` (or ``id``) and
            ``title``, or a folder of .txt and .md files, each a document.
        longest: Characters of a passage.
        limit: Only so many documents, evenly spread over all.

    Raises:
        DataError: With file and line of what is wrong; or nothing is left.
    """
    counts = {"documents": 0, "empty": 0, "the same text again": 0, "cut into passages": 0}
    kept: list[Passage] = []
    seen: set[bytes] = set()
    names: set[str] = set()
    for where, document in _documents(path):
        counts["documents"] += 1
        if document.id in names:
            raise DataError(f"{where}: the id '{document.id}' stands here a second time")
        names.add(document.id)
        if not document.text.strip():
            counts["empty"] += 1
            continue
        key = exact_key(document.whole)
        if key in seen:
            counts["the same text again"] += 1
            continue
        seen.add(key)
        kept.append(document)
    if not kept:
        raise DataError(f"{path} holds no document with a text")
    passages: list[Passage] = []
    for document in spread(kept, limit):
        parts = _parts(document.text, longest)
        counts["cut into passages"] += len(parts) > 1
        many = len(parts) > 1
        passages += [
            Passage(f"{document.id}#{number}" if many else document.id, document.id, document.title, part)
            for number, part in enumerate(parts, start=1)
        ]
    return passages, counts


def cover(passages: Sequence[Passage], encoder: Encoder, count: int, seed: int) -> list[int]:
    """Return rows of passages that cover the corpus: of each of `count` clusters of embeddings the one at its centre.

    Where clusters are empty (passages that embed alike), rows are drawn from the others until there are enough.
    """
    from sklearn.cluster import MiniBatchKMeans

    if count >= len(passages):
        return list(range(len(passages)))
    embeddings = np.asarray(encoder.encode_document([passage.whole for passage in passages]), np.float32)
    clusters = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=4096).fit(embeddings)
    distances = ((embeddings - clusters.cluster_centers_[clusters.labels_]) ** 2).sum(axis=1)
    nearest: dict[int, int] = {}
    for row in np.argsort(distances, kind="stable").tolist():
        nearest.setdefault(int(clusters.labels_[row]), row)
    chosen = set(nearest.values())
    others = [row for row in np.random.default_rng(seed).permutation(len(passages)).tolist() if row not in chosen]
    return sorted([*chosen, *others[: count - len(chosen)]])


def _documents(path: Path) -> Iterator[tuple[str, Passage]]:
    """Each document with its place."""
    if path.is_dir() and not (path / CORPUS_FILE).is_file():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in (".txt", ".md") and file.is_file())
        if not files:
            raise DataError(f"{path} holds neither {CORPUS_FILE} nor .txt or .md files")
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
            name = file.relative_to(path).as_posix()
            yield str(file), Passage(name, name, "", text.strip())
        return
    file = path / CORPUS_FILE if path.is_dir() else path
    rows = rows_of_file(file, BadRows()) if kind_of(file) else read_lines(file)
    for number, (where, value) in enumerate(rows, start=1):
        text = required_text(value, "text", where, may_be_empty=True)
        title = required_text(value, "title", where, may_be_empty=True) if value.get("title") else ""
        name = str(value.get("_id") or value.get("id") or f"d{number}")
        yield where, Passage(name, name, title.strip(), text.strip())


def _parts(text: str, longest: int) -> list[str]:
    """A text cut at sentences; one that is longer than a part is cut where it has to be."""
    if len(text) <= longest:
        return [text]
    # lines stay lines: headings are told by them
    pieces = [piece for piece in regex.split(r"(?<=[。！？\n])|(?<=[.!?])(?= )", text) if piece]
    parts: list[str] = []
    for piece in pieces:
        if parts and len(parts[-1]) + len(piece) <= longest:
            parts[-1] += piece
        else:
            parts += [piece[start : start + longest] for start in range(0, len(piece), longest)]
    return [part.strip() for part in parts if part.strip()]
