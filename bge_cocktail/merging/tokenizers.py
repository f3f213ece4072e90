"""Whether two models read texts alike: the same vocabulary, cut and normalised in the same way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bge_cocktail.errors import DataError
from bge_cocktail.layout import read_object
from bge_cocktail.provenance import hash_file, hash_value

# of tokenizer.json, what decides which numbers a text becomes; padding and truncation are set anew by whoever loads it
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "model", "added_tokens")
VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
SETTINGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_bos_token", "add_eos_token")


def tokenizer_differences(one: Path, other: Path) -> list[str]:
    """In what the tokenizers of two model folders differ.

    Args:
        one: A folder with tokenizer files.
        other: Another one.

    Returns:
        A line for each difference; none if every text becomes the same numbers.
    """
    fast = [folder / "tokenizer.json" for folder in (one, other)]
    if all(path.is_file() for path in fast):
        if hash_file(fast[0]) == hash_file(fast[1]):
            return []
        first, second = (_parts(path) for path in fast)
        lines = [f"tokenizer: its {part} differs" for part in PARTS if not alike(first.get(part), second.get(part))]
        words = _vocabulary_differences(vocabulary(one), vocabulary(other))
        # a vocabulary is told in a better way
        return [line for line in lines if not words or ("model" not in line and "added" not in line)] + words
    with_files = [
        any((folder / name).is_file() for name in ("tokenizer.json", *VOCABULARIES)) for folder in (one, other)
    ]
    if with_files[0] != with_files[1]:
        return [f"tokenizer: {(one, other)[with_files.index(False)]} has none"]
    lines = []
    if any(path.is_file() for path in fast):
        known = [vocabulary(folder) for folder in (one, other)]
        lower = [_lowers(folder) for folder in (one, other)]
        if None not in lower and lower[0] != lower[1]:
            lines.append(f"tokenizer: lowercase {lower[0]} against {lower[1]}")
        return lines + (_vocabulary_differences(*known) if all(known) else [])
    for name in VOCABULARIES:
        files = [folder / name for folder in (one, other)]
        if all(file.is_file() for file in files) and hash_file(files[0]) != hash_file(files[1]):
            lines.append(f"tokenizer: {name} differs")
    settings = [_settings(folder) for folder in (one, other)]
    lines += [
        f"tokenizer: {name} {settings[0][name]} against {settings[1][name]}"
        for name in SETTINGS
        if name in settings[0] and name in settings[1] and settings[0][name] != settings[1][name]
    ]
    return lines


def alike(one: Any, other: Any) -> bool:
    """Whether two JSON values say the same; names that only one of them has are defaults that the other leaves out."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(alike(one[name], other[name]) for name in one.keys() & other.keys())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(alike(*pair) for pair in zip(one, other, strict=True))
    # merges of byte pairs are written "a b" by older versions, ["a", "b"] by newer
    if isinstance(one, str) and isinstance(other, list):
        one, other = other, one
    return bool(one == other or (isinstance(other, str) and isinstance(one, list) and one == other.split(" ")))


def vocabulary(folder: Path) -> dict[str, int]:
    """The number of each token, added tokens too; empty where no file tells it in plain."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        words = folder / "vocab.txt"
        if words.is_file():
            return {word.rstrip("\n"): row for row, word in enumerate(words.open(encoding="utf-8"))}
        return (
            {str(word): int(row) for word, row in read_object(folder / "vocab.json").items()}
            if (folder / "vocab.json").is_file()
            else {}
        )
    parts = _parts(path)
    try:
        content = parts["model"].get("vocab") or {}
        # unigram models list pairs of token and score, in order
        words_by = {word: row for row, (word, _) in enumerate(content)} if isinstance(content, list) else dict(content)
        return {**words_by, **{token["content"]: token["id"] for token in parts.get("added_tokens") or []}}
    except (TypeError, KeyError, ValueError):
        raise DataError(f"{path}: not a tokenizer as the library writes it") from None


def tokenizer_hash(folder: Path) -> str:
    """A hash of the vocabulary alone, for people to compare."""
    return hash_value(sorted(vocabulary(folder).items()))[:12]


def _vocabulary_differences(one: dict[str, int], other: dict[str, int]) -> list[str]:
    if one == other:
        return []
    moved = [word for word in one if word in other and one[word] != other[word]]
    missing = [word for word in one if word not in other] + [word for word in other if word not in one]
    example = next(iter(moved or missing))
    return [
        f"tokenizer: vocabularies differ ({len(one)} and {len(other)} tokens, {len(moved)} with another number, "
        f"{len(missing)} in only one; such as {json.dumps(example, ensure_ascii=False)})"
    ]


def _lowers(folder: Path) -> bool | None:
    """Whether texts are lowercased first; None where nothing says it."""
    path = folder / "tokenizer.json"
    if path.is_file():
        normaliser = _parts(path).get("normalizer")
        return bool(normaliser.get("lowercase")) if isinstance(normaliser, dict) and "lowercase" in normaliser else None
    lower = _settings(folder).get("do_lower_case")
    return None if lower is None else bool(lower)


def _parts(path: Path) -> dict[str, Any]:
    content = read_object(path)
    if not isinstance(content.get("model"), dict):
        raise DataError(f"{path}: not a tokenizer as the library writes it")
    return {part: content.get(part) for part in PARTS}


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_object(path) if path.is_file() else {}
