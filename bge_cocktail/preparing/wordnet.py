"""Synonyms: WordNet's own files, or a list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bge_cocktail.errors import DataError
from bge_cocktail.options import Augmenting
from bge_cocktail.registry import Registry

Thesaurus = Callable[[str], list[str]]
"""The synonyms of a word in lower case, without the word itself; empty if it knows none."""
thesauri: Registry[Callable[[Augmenting], Thesaurus]] = Registry("thesauri")
DEBIAN_FOLDER = Path("/usr/share/wordnet")
_PARTS = ("noun", "verb", "adj", "adv")


@thesauri("wordnet")
def wordnet(options: Augmenting) -> Thesaurus:
    """WordNet's database files, as Debian's wordnet-base installs them or from --wordnet-dir.

    Two words are synonyms if they stand in one synset (Miller, WordNet: a lexical database for English, 1995); read
    as its manual page wndb(5) describes: a synset's line is offset, file number, type, count of words (hexadecimal),
    then each word and its lexical id.

    Raises:
        DataError: The files aren't there, or are of another form.
    """
    folder = options.wordnet_dir or DEBIAN_FOLDER
    missing = [f"data.{part}" for part in _PARTS if not (folder / f"data.{part}").is_file()]
    if missing:
        raise DataError(
            f"{folder} holds no WordNet ({', '.join(missing)} missing); install it (Debian: apt-get install "
            "wordnet-base), give its folder with --wordnet-dir, or a list of your own with --thesaurus file "
            "--thesaurus-file FILE"
        )
    synonyms: dict[str, dict[str, None]] = {}
    for part in _PARTS:
        path = folder / f"data.{part}"
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if line.startswith("  "):  # the licence
                continue
            cells = line.split(" ")
            try:
                count = int(cells[3], 16)
                words = [cells[4 + 2 * index] for index in range(count)]
            except (IndexError, ValueError):
                raise DataError(f"{path}:{number}: not a line of WordNet's data files: {line[:40]!r}") from None
            # "(p)" and the like say where an adjective may stand; joined words are written with underscores
            plain = [word.split("(")[0].replace("_", " ").lower() for word in words]
            for word in plain:
                if " " not in word:
                    synonyms.setdefault(word, {}).update(dict.fromkeys(plain))
    return lambda word: [other for other in synonyms.get(word, ()) if other != word]


@thesauri("file")
def from_file(options: Augmenting) -> Thesaurus:
    """A list of your own (--thesaurus-file): on each line words that mean the same, with tabs between.

    Raises:
        DataError: No such file, or a line with fewer than two words.
    """
    path = options.thesaurus_file
    if path is None:
        raise DataError("--thesaurus file needs --thesaurus-file FILE")
    synonyms: dict[str, dict[str, None]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    for number, line in enumerate(lines, start=1):
        words = [word.strip().lower() for word in line.split("\t") if word.strip()]
        if len(words) == 1:
            raise DataError(f"{path}:{number}: expected two words or more with tabs between, got {line[:40]!r}")
        for word in words:
            synonyms.setdefault(word, {}).update(dict.fromkeys(words))
    return lambda word: [other for other in synonyms.get(word, ()) if other != word]
