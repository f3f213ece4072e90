"""Cleaning texts: named steps, each counted, and limits."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache

from bge_cocktail.core.errors import MissingExtra
from bge_cocktail.core.registry import Registry
from bge_cocktail.options import PrepareOptions

cleaning_steps: Registry[Callable[[str], str]] = Registry("cleaning-steps")
language_detectors: Registry[Callable[[str], str]] = Registry("language-detectors")
SAMPLES = 3
ROUNDS = 100
# of shorter texts no detector tells the language
LANGUAGE_CHARS = 20


_BLOCK = (
    "address article aside blockquote br div dd dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 head"
)
_BLOCK += " header hr html body li main nav ol p pre section table tbody td tfoot th thead title tr ul"
_INLINE = "a abbr acronym b bdi bdo big button center cite code col colgroup data del details dfn em font i iframe img"
_INLINE += " input ins kbd label link mark meta meter noscript object optgroup option output param picture progress q"
_INLINE += " rp rt ruby s samp script select small source span strike strong style sub summary sup svg template"
_INLINE += " textarea time tt u var video wbr"
# only tags that HTML knows, with attributes in its form: "<NAME>", "a < b" and "p<s and q>r" are text
_NAMES = "|".join(sorted([*_BLOCK.split(), *_INLINE.split()], key=len, reverse=True))


_SET = r"[\w:-]+\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>=]+)"
_BARE = "async|autofocus|checked|controls|defer|disabled|hidden|multiple|open|readonly|required|reversed|selected"
_ATTRIBUTES = rf"(?:\s+(?:{_SET}|(?:{_BARE})\b))*"
_NO_COMMENT = rf"<(/?)({_NAMES})({_ATTRIBUTES})\s*/?>|<!doctype[^<>]*>"
_TAG = re.compile(rf"{_NO_COMMENT}|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_BEHIND_COMMENTS = re.compile(_NO_COMMENT, re.IGNORECASE)
# tags that need no end; any other is one only with its end or with attributes, or else somebody writes about it
_ENDLESS = "br hr img meta wbr p li dt dd tr td th option"


_ALONE = frozenset(_ENDLESS.split())
_BLOCKS = frozenset(_BLOCK.split())
_HIDDEN = ["script", "style", "template", "noscript", "iframe", "object", "svg"]
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
# one that is spoken of: "&nbsp;", the entity &amp;
_E = _ENTITY.pattern
_QUOTED_ENTITY = re.compile(rf"([\"'`]){_E}\1|\bentit(?:y|ies)\s+{_E}|{_E}\s+entit(?:y|ies)\b", re.IGNORECASE)
# joiners (U+200C, U+200D), which Persian, Indic scripts and emoji need, and variation selectors stay
_CONTROL = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
    "\ufff9-\ufffb]"
)


_ODD_SPACE = re.compile(r"[^\S \n]| {2}|\n{3}| \n|\n |^[ \n]|[ \n]$")
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


@cleaning_steps("unicode")
def repair_unicode(text: str) -> str:
    """Mojibake and broken encodings repaired (ftfy), NFC; quotes, ligatures and full-width forms stay."""
    if text.isascii():
        return text
    import ftfy

    return str(ftfy.fix_text(text, _ftfy_settings()))


@cleaning_steps("html")
def strip_html(text: str) -> str:
    """HTML tags and entities to plain text (selectolax); tags that HTML doesn't know are text."""
    if "<" in text and (tags := _tags(text)) and not _quotes_tags(text):
        ends = {match[2].lower() for match in tags if match[1]}
        pieces, last = [], 0
        for match in tags:
            name = (match[2] or "").lower()
            if match[2] and not (match[1] or match[3] or name in _ALONE or name in ends):
                continue  # no tag of the text's own, so it stays
            line = "\n" if name in _BLOCKS else ""
            pieces += [text[last : match.start()].replace("<", "&lt;"), line, match[0], line if match[1] else ""]
            last = match.end()
        if last:
            from selectolax.lexbor import LexborHTMLParser

            tree = LexborHTMLParser("".join([*pieces, text[last:].replace("<", "&lt;")]))
            tree.strip_tags([name for name in _HIDDEN if name in ends])
            return tree.body.text(separator="") if tree.body is not None else ""
    if "&" in text and _ENTITY.search(text) and not _QUOTED_ENTITY.search(text):
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    return text


def _tags(text: str) -> list[re.Match[str]]:
    # behind the last end of a comment none is sought: each beginning would be sought to the end of the text
    last = text.rfind("-->") + len("-->") if "-->" in text else 0
    return [*_TAG.finditer(text, 0, last), *_BEHIND_COMMENTS.finditer(text, last)]


# a tag behind a quote, a bar or a backtick, or before signs of a pattern, is spoken of: sed 's|<b>.*</b>||', "<a>"
_BEHIND, _BEFORE = r"[\"'`|/\\^(\[{=,]\s?", r"(?:[.\\]?[*+?|]|\\|\[\^|`)"
# as are those that are named: "the <b> tag", "<s> and </s>"
_NAMED = rf"</?(?:{_NAMES})>\s+(?:tags?|elements?)\b|(?:tags?|elements?)\s+</?(?:{_NAMES})>"
_NAMED += rf"|<(?:{_NAMES})>\s+(?:and|or)\s+</|<!--\s*(?:and|or|to|\.\.\.)\s*-->"
_QUOTED = re.compile(rf"{_BEHIND}</?(?:{_NAMES})\b|</?(?:{_NAMES})>{_BEFORE}|{_NAMED}|```", re.IGNORECASE)


def _quotes_tags(text: str) -> bool:
    """Return whether a text is code or prose about tags and no HTML: it doesn't begin with a tag, and quotes one."""
    return not text.lstrip().startswith("<") and _QUOTED.search(text) is not None


@cleaning_steps("control")
def strip_control(text: str) -> str:
    """Control, zero-width and text-direction characters taken out; joiners that scripts need stay."""
    return text if text.isascii() and text.isprintable() else _CONTROL.sub("", text)


@cleaning_steps("space")
def even_space(text: str) -> str:
    """One space between words, at most one empty line, none at the ends."""
    if not _ODD_SPACE.search(text):
        return text
    text = _LINE_END.sub("\n", text)
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).strip()


@cleaning_steps("nfkc")
def compose_compatible(text: str) -> str:
    """Unicode NFKC: full-width letters, ligatures, circled digits become plain ones."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


@cleaning_steps("lowercase")
def lower(text: str) -> str:
    """Lower case."""
    return text.lower()


@language_detectors("py3langid")
def by_py3langid(text: str) -> str:
    """The language (ISO 639-1) by py3langid, a naive Bayes model over 97 languages (extra `language`)."""
    try:
        import py3langid
    except ImportError:
        raise MissingExtra("py3langid", "language") from None
    return str(py3langid.classify(text)[0])


class Cleaner:
    """Cleans texts by the chosen steps and says which texts have to go.

    Steps are repeated until nothing changes (an entity may hide a tag), so cleaning twice is cleaning once.

    Args:
        options: Steps and limits.
        count_tokens: Tokens of a text; needed for limits in tokens.
    """

    def __init__(self, options: PrepareOptions, count_tokens: Callable[[str], int] | None = None) -> None:
        self._options, self._count_tokens = options, count_tokens
        self._steps = {name: cleaning_steps[name] for name in options.clean}
        self._detect = language_detectors[options.language_detector] if options.languages else None
        self.changed: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.samples: dict[str, list[str]] = {}
        self.last_reason = ""
        """Why the last text had to go."""
        # documents come back in many records
        self._cleaned = lru_cache(1 << 15)(self._clean)

    def __call__(self, text: str, role: str) -> str | None:
        """The cleaned text; None if it has to go, which is counted by role and reason."""
        cleaned, reason = self._cleaned(text)
        if reason is None:
            return cleaned
        self.last_reason = f"{role} {reason}"
        self.dropped[self.last_reason] += 1
        samples = self.samples.setdefault(self.last_reason, [])
        if len(samples) < SAMPLES and text[:200] not in samples:
            samples.append(text[:200])
        return None

    def _clean(self, text: str) -> tuple[str, str | None]:
        for _ in range(ROUNDS):
            before = text
            for name, step in self._steps.items():
                changed = step(text)
                if changed != text:
                    self.changed[name] += 1
                    text = changed
            if text == before:
                break
        return text, self._reason_to_go(text)

    def _reason_to_go(self, text: str) -> str | None:
        options = self._options
        if not text.strip():
            return "empty after cleaning"
        if len(text) < options.min_chars:
            return f"shorter than {options.min_chars} characters"
        if options.max_chars is not None and len(text) > options.max_chars:
            return f"longer than {options.max_chars} characters"
        if self._count_tokens is not None and (options.min_tokens or options.max_tokens):
            tokens = self._count_tokens(text)
            if tokens < options.min_tokens:
                return f"shorter than {options.min_tokens} tokens"
            if options.max_tokens is not None and tokens > options.max_tokens:
                return f"longer than {options.max_tokens} tokens"
        if self._detect is not None and len(text) >= LANGUAGE_CHARS and self._detect(text) not in options.languages:
            return f"in another language than {', '.join(options.languages)}"
        return None


@cache
def _ftfy_settings() -> object:
    import ftfy

    return ftfy.TextFixerConfig(
        unescape_html=False,  # a step of its own
        remove_control_chars=False,  # a step of its own, which keeps the joiners
        fix_latin_ligatures=False,
        fix_character_width=False,  # full-width punctuation is right in Chinese and Japanese
        uncurl_quotes=False,
        fix_line_breaks=False,
        normalization="NFC",
    )
