"""Varied copies of train records (EDA: Wei and Zou, arXiv:1901.11196), and where synonyms come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import regex

from bge_cocktail.core.errors import DataError
from bge_cocktail.core.registry import Registry
from bge_cocktail.data.record import Record, normalise, text_key
from bge_cocktail.options import AugmentOptions, PrepareOptions
from bge_cocktail.search.bm25 import UNSPACED

Thesaurus = Callable[[str], list[str]]
"""The synonyms of a word in lower case, without the word itself; empty if it knows none."""
thesauri: Registry[Callable[[AugmentOptions], Thesaurus]] = Registry("thesauri")
DEBIAN_FOLDER = Path("/usr/share/wordnet")
_PARTS = ("noun", "verb", "adj", "adv")


@thesauri("wordnet")
def wordnet(options: AugmentOptions) -> Thesaurus:
    """WordNet's database files, as Debian's wordnet-base installs them or from `wordnet_dir`.

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
            "wordnet-base), give its folder with `wordnet_dir`, or a list of your own with `thesaurus=file` "
            "`thesaurus_file=FILE`"
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
def from_file(options: AugmentOptions) -> Thesaurus:
    """A list of your own (`thesaurus_file`): on each line words that mean the same, with tabs between.

    Raises:
        DataError: No such file, or a line with fewer than two words.
    """
    path = options.thesaurus_file
    if path is None:
        raise DataError("`thesaurus=file` needs `thesaurus_file=FILE`")
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


Item = TypeVar("Item")
Words = list[str]
Vary = Callable[[Words, int, np.random.Generator, Thesaurus], Words]
"""The words of a text and how many shall change in; other words out (the same ones if it can't)."""
augmentations: Registry[Vary] = Registry("augmentations")
# where words aren't spaced (Chinese, Japanese, Thai), a character is a word; elsewhere all between two spaces is,
# so that numbers, addresses and vowel signs stay whole
_TOKEN = regex.compile(rf"[{UNSPACED}]\p{{M}}*|[^\s{UNSPACED}]+")


_TIGHT = regex.compile(rf"[{UNSPACED}。，、；：！？（）「」『』《》]")
_CORE = regex.compile(r"^(\P{L}*)(.*?)(\P{L}*)$", regex.DOTALL)
_WORD = regex.compile(r"\w")
CHUNKS = 3
LEAST_SHUFFLED = 30


@augmentations("synonym", thesaurus=True)
def synonym(words: Words, count: int, generator: np.random.Generator, thesaurus: Thesaurus) -> Words:
    """Some words replaced by a synonym."""
    words = list(words)
    known = [row for row, word in enumerate(words) if thesaurus(_core(word))]
    for row in generator.permutation(len(known))[:count].tolist():
        place = known[row]
        words[place] = _as_written(words[place], _draw(thesaurus(_core(words[place])), generator))
    return words


@augmentations("insert", thesaurus=True)
def insert(words: Words, count: int, generator: np.random.Generator, thesaurus: Thesaurus) -> Words:
    """Synonyms of some words put in at random places."""
    words = list(words)
    known = [_core(word) for word in words if thesaurus(_core(word))]
    for row in generator.permutation(len(known))[:count].tolist():
        words.insert(int(generator.integers(len(words) + 1)), _draw(thesaurus(known[row]), generator))
    return words


@augmentations("delete")
def delete(words: Words, count: int, generator: np.random.Generator, _thesaurus: Thesaurus) -> Words:
    """Some words left out, never all."""
    places = [row for row, word in enumerate(words) if _WORD.search(word)]
    gone = {places[row] for row in generator.permutation(len(places))[: min(count, len(places) - 1)].tolist()}
    return [word for row, word in enumerate(words) if row not in gone]


@augmentations("swap")
def swap(words: Words, count: int, generator: np.random.Generator, _thesaurus: Thesaurus) -> Words:
    """Some pairs of words exchanged."""
    words = list(words)
    places = [row for row, word in enumerate(words) if _WORD.search(word)]
    for _ in range(count if len(places) > 1 else 0):
        one, other = (places[row] for row in generator.choice(len(places), 2, replace=False).tolist())
        words[one], words[other] = words[other], words[one]
    return words


@augmentations("shuffle")
def shuffle(words: Words, _count: int, generator: np.random.Generator, _thesaurus: Thesaurus) -> Words:
    """A text of 30 words or more cut into three parts, which change places (FlagEmbedding's shuffle_ratio)."""
    if len(words) < LEAST_SHUFFLED:
        return words
    size = -(-len(words) // CHUNKS)
    parts = [words[start : start + size] for start in range(0, len(words), size)]
    order = generator.permutation(len(parts)).tolist()
    return [word for row in order for word in parts[row]]


def augment(
    records: Iterable[Record], options: PrepareOptions, counted: Counter[str], held_out: Container[bytes] = frozenset()
) -> Iterator[Record]:
    """Yield every record, and after some of them a varied copy, marked by ``"augmented": NAME``.

    A copy's query is varied; of `shuffle` and `delete`, its positives too.

    Args:
        records: Train records.
        options: Which variations, for which share, of how many words; the seed.
        counted: Counts copies by variation, and what could not be varied.
        held_out: Keys of texts of other splits and of test sets, which no copy may repeat.
    """

    def leaks(copy: Record) -> bool:
        return any(text_key(text) in held_out for text in (copy.query, *copy.pos))

    yield from with_copies(records, options, options.seed, _varied, leaks, counted)


def with_copies(
    items: Iterable[Item],
    options: AugmentOptions,
    seed: int,
    vary: Callable[[Item, str, Callable[[str], str]], Item | None],
    leaks: Callable[[Item], bool],
    counted: Counter[str],
) -> Iterator[Item]:
    """Yield every item, and after some of them a varied copy.

    Where no synonym is known (another language than the thesaurus's), the copy is made by the next chosen variation
    that can.

    Args:
        items: Records, or whatever has texts.
        options: Which variations, for which share, of how many words.
        seed: Of all draws.
        vary: Makes a copy from an item, the variation's name and what varies a text; None where nothing changes.
        leaks: Whether a copy repeats a text that is held out.
        counted: Counts copies by variation, and what could not be varied.
    """
    if not options.augment:
        yield from items
        return
    known = {name: augmentations[name] for name in options.augment}
    needs = any(augmentations.trait(name, "thesaurus") for name in known)
    thesaurus: Thesaurus = thesauri[options.thesaurus](options) if needs else lambda _word: []
    names = list(known)
    generator = np.random.default_rng(seed)

    def varies(name: str) -> Callable[[str], str]:
        return lambda text: _vary_text(text, known[name], options.word_share, generator, thesaurus)

    for item in items:
        yield item
        if generator.random() >= options.augment_share:
            continue
        first = int(generator.integers(len(names)))
        for name in names[first:] + names[:first]:
            copy = vary(item, name, varies(name))
            if copy is not None and leaks(copy):
                counted[f"not varied by {name}: a held-out text would come of it"] += 1
                continue
            if copy is not None:
                counted[f"copies by {name}"] += 1
                yield copy
                break
            why = "no synonym known" if augmentations.trait(name, "thesaurus") else "nothing changed"
            counted[f"not varied by {name}: {why}"] += 1


def _vary_text(text: str, vary: Vary, share: float, generator: np.random.Generator, thesaurus: Thesaurus) -> str:
    words = _TOKEN.findall(text)
    changed = vary(words, max(1, round(share * len(words))), generator, thesaurus)
    return text if changed == words else _joined(changed)


def _varied(record: Record, name: str, varied: Callable[[str], str]) -> Record | None:
    query = varied(record.query)
    pos = tuple(varied(text) for text in record.pos) if name in ("shuffle", "delete") else record.pos
    if normalise(query) == normalise(record.query) and pos == record.pos:
        return None
    positives = {normalise(text) for text in pos}
    if positives & {normalise(text) for text in record.neg}:
        return None
    name_of_copy = None if record.id is None else f"{record.id}+{name}"
    return replace(record, query=query, pos=pos, id=name_of_copy, extra={**record.extra, "augmented": name})


def _joined(words: Words) -> str:
    """Words with spaces between, but none where a script puts none."""
    text, before = "", ""
    for word in words:
        tight = not before or _TIGHT.match(word) or _TIGHT.match(before) or _TIGHT.match(before[-1])
        text += word if tight else " " + word
        before = word
    return text


def _core(word: str) -> str:
    """Return a word in lower case without the punctuation around it."""
    match = _CORE.match(word)
    return match[2].lower() if match else word.lower()


def _as_written(before: str, after: str) -> str:
    """Return the new word with the old one's capital and the punctuation around it."""
    match = _CORE.match(before)
    if match is None:
        return after
    core = match[2]
    return f"{match[1]}{after.capitalize() if core[:1].isupper() and not core.isupper() else after}{match[3]}"


def _draw(words: list[str], generator: np.random.Generator) -> str:
    return words[int(generator.integers(len(words)))]
