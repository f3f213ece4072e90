"""Cleaning: what goes, what must survive, and that twice is once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_cocktail.core.errors import UsageError
from bge_cocktail.options import PrepareOptions
from bge_cocktail.preparing.clean import Cleaner, cleaning_steps

EVERY = PrepareOptions(clean=list(cleaning_steps))


def clean(text: str, **options: object) -> str | None:
    return Cleaner(PrepareOptions(**options))(text, "text")  # type: ignore[arg-type]


CHANGED = [
    ("schÃ¶n", "schön"),
    ("It was â€œgoodâ€\x9d", "It was “good”"),
    ("e\u0301te\u0301", "été"),
    ("one<br />two", "one\ntwo"),
    ("<p>A <b>bo</b>ld</p><p>word</p>", "A bold\n\nword"),
    ("<script>alert(1)</script>text<style>p{}</style>", "text"),
    ("<!-- gone -->here", "here"),
    ("salt &amp; pepper &lt; 3 &#8364;", "salt & pepper < 3 €"),
    ("&amp;lt;br&amp;gt;two", "two"),  # an entity that hides an entity that hides a tag
    ("<a href='x'>li\u200bnk</a>", "link"),
    ("  a \t b\u00a0c\u3000d \r\n\n\n\n e\ufeff", "a b c d\n\ne"),
    ("nul\x00 and bell\x07", "nul and bell"),
    ("right\u202eto left", "rightto left"),
]
KEPT = [
    "if a < b and c > d",
    "use <NAME> and List<String>",
    "AT&T; R&D",
    "“curled” ‘quotes’ and 'straight' \"ones\"",
    "中文，全角标点！“引号”（括号）。",
    "日本語のテキスト、カタカナ。ﾊﾝｶｸ",
    "한국어 텍스트입니다.",
    "می‌خواهم",  # with a zero-width non-joiner, which Persian needs
    "क्‍ष हिन्दी",  # with a zero-width joiner
    "👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ❤️",
    "ภาษาไทย",
    "עברית",
    "ﬁne ligature",
    "x² + ½",
    "first\nsecond\n\nthird",
]


@pytest.mark.parametrize(("text", "expected"), CHANGED)
def test_what_goes(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize("text", KEPT)
def test_what_survives(text: str) -> None:
    assert clean(text) == text


def test_optional_steps() -> None:
    assert clean("Ｆｕｌｌ ﬁne ①", clean=["nfkc", "lowercase"]) == "full fine 1"
    assert clean("<b>as it is</b>  ", clean=[]) == "<b>as it is</b>  "
    with pytest.raises(UsageError, match=r"no 'htlm' among the cleaning-steps. Did you mean 'html'\?"):
        clean("x", clean=["htlm"])


TAGS = ["<b>", "</b>", "<br/>", "<p", ">", "<", "<x y>", "<!--", "-->", "<script>"]
ENTITIES = ["&amp;", "&lt;", "&#60;", "&", ";"]
OTHERS = [
    "\u200b",
    "\u200d",
    "Ã¤",
    "é",
    "e\u0301",
    "中",
    "，",
    " ",
    "\n",
    "\t",
    "\x00",
    "a",
    "Z",
    "\u2028",
    "ﬁ",
    "İ",
    "ß",
    "\ufeff",
]
pieces = st.sampled_from([*TAGS, *ENTITIES, *OTHERS])


@settings(deadline=None, max_examples=300)
@given(st.lists(pieces | st.text(max_size=3), max_size=12).map("".join), st.booleans())
def test_twice_is_once(text: str, every: bool) -> None:
    options = EVERY if every else PrepareOptions()
    once = Cleaner(options)(text, "text")
    if once is not None:
        assert Cleaner(options)(once, "text") == once


def test_limits_are_counted_with_examples() -> None:
    cleaner = Cleaner(PrepareOptions(min_chars=3, max_chars=5), None)
    assert [cleaner(text, "query") for text in ("ab", "abc", "abcdef", "  ")] == [None, "abc", None, None]
    assert cleaner.dropped == {
        "query shorter than 3 characters": 1,
        "query longer than 5 characters": 1,
        "query empty after cleaning": 1,
    }
    assert cleaner.samples["query longer than 5 characters"] == ["abcdef"]


def test_limits_in_tokens(tiny: Path) -> None:
    from bge_cocktail.models.embed import TokenCounter

    counter = TokenCounter(tiny)
    assert counter.limit == 48
    assert counter("red apple") == 4  # with [CLS] and [SEP]
    cleaner = Cleaner(PrepareOptions(min_tokens=4, max_tokens=5), counter)
    texts = ("red", "red apple", "the red apple", "the red apple sleeps")
    assert [cleaner(text, "text") for text in texts] == [None, texts[1], texts[2], None]


def test_other_languages_go_and_short_texts_stay() -> None:
    cleaner = Cleaner(PrepareOptions(languages=["en", "zh"]))
    english = "The weather was cold and nobody went out of the house."
    german = "Das Wetter war kalt und niemand ging aus dem Haus hinaus."
    chinese = "今天天气很冷，所以没有人愿意离开家到外面去散步或者买东西。"
    assert [cleaner(text, "document") for text in (english, german, chinese, "Haus")] == [
        english,
        None,
        chinese,
        "Haus",
    ]
    assert cleaner.dropped == {"document in another language than en, zh": 1}
