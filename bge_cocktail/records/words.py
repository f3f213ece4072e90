"""Words of texts in any script."""

from __future__ import annotations

import unicodedata

import regex

# scripts that put no spaces between words
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_RUNS = regex.compile(
    rf"[{UNSPACED}\p{{M}}]*[{UNSPACED}][{UNSPACED}\p{{M}}]*|[\p{{L}}\p{{N}}\p{{M}}_--[{UNSPACED}]]+", regex.V1
)
_IS_UNSPACED = regex.compile(rf"[{UNSPACED}]")


def search_words(text: str) -> list[str]:
    """Words in lower case; of scripts without spaces between words, pairs of neighbouring characters.

    The usual index of such scripts: bigrams overlap, so every word of two characters is one of them.
    """
    words: list[str] = []
    for run in _RUNS.findall(unicodedata.normalize("NFC", text).lower()):
        if len(run) > 1 and _IS_UNSPACED.search(run):
            words += [run[start : start + 2] for start in range(len(run) - 1)]
        else:
            words.append(run)
    return words
