"""The report on prepared data: tables for the terminal, and one page of HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bge_cocktail.report.text import columns_of_numbers, text_table

Table = tuple[str, Sequence[str], list[list[str]]]
"""A title, a header and rows."""
LABELS_SHOWN = 30
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; } .flow { font-size: 1.1rem; }
.bar { display: flex; height: 1.6rem; border-radius: .4rem; overflow: hidden; }
.bar span { color: #fff; padding: 0 .5rem; font-size: .85rem; line-height: 1.6rem; white-space: nowrap; }
.bar span { overflow: hidden; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .25rem 1.4rem .25rem 0; border-bottom: 1px solid #8883; vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; } th { font-weight: 600; }
td { overflow-wrap: anywhere; } li { margin: .2rem 0; }
</style></head><body>
<h1>{{ title }}</h1>
<p class="flow">{{ flow }}</p>
<div class="bar">{% for name, count, colour in parts %}
<span style="flex: {{ count }}; background: {{ colour }}" title="{{ name }}: {{ count }}">{{ name }}</span>
{% endfor %}</div>
{% for name, header, rows, right in tables %}<h2>{{ name }}</h2>
<table><tr>{% for cell in header %}
<th{{ ' class="number"'|safe if right[loop.index0] }}>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}
<td{{ ' class="number"'|safe if right[loop.index0] }}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endfor %}
{% for name, texts in samples %}<h2>Dropped: {{ name }}</h2>
<ul>{% for text in texts %}<li>{{ text }}</li>{% endfor %}</ul>
{% endfor %}</body></html>
"""
COLOURS = {"train": "#2563eb", "dev": "#0891b2", "test": "#7c3aed", "dropped": "#9ca3af"}


def data_tables(report: Mapping[str, Any]) -> list[Table]:
    """The tables of a report on data, in the order they are read."""
    splits: Mapping[str, Mapping[str, Any]] = report["splits"]
    tables: list[Table] = [
        ("Splits", ("split", "examples", "share"), _sizes(splits)),
        ("What went", ("what", "reason", "count"), _went(report)),
        ("Lengths", ("split", "texts", "count", "mean", "median", "95 %", "longest", "cut"), _lengths(splits)),
        ("Labels", ("label", *splits), _labels(splits)),
        ("Cleaning", ("step", "distinct texts changed"), _counts(report.get("cleaned_texts"))),
        ("Augmentation", ("what", "count"), _counts(report.get("augmented"))),
        ("Corpus", ("documents", "count"), _counts(report.get("corpus"))),
        ("Leaks", ("held-out set", "what", "count", "for example"), _leaks(report.get("leaks") or {})),
    ]
    return [(title, header, rows) for title, header, rows in tables if rows]


def flow_of(report: Mapping[str, Any]) -> str:
    """One line: what came in, what went, what came out."""
    dropped, rejected = sum(report["dropped"].values()), sum(report["rejected"].values())
    out = ", ".join(f"{one['examples']:,} {name}" for name, one in report["splits"].items())
    bad = f" ({rejected:,} bad rows left out)" if rejected else ""
    copies = sum(one.get("augmented", 0) for one in report["splits"].values())
    more = f" (of which {copies:,} are varied copies)" if copies else ""
    return f"{report['read']:,} examples read{bad}, {dropped:,} dropped: {out}{more}"


def data_text(report: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    parts = [f"{title}\n{text_table(header, rows)}" for title, header, rows in data_tables(report)]
    return "\n\n".join([flow_of(report), *parts])


def data_page(report: Mapping[str, Any], title: str) -> str:
    """The report as a page of HTML that needs nothing else."""
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
    sizes = {name: one["examples"] for name, one in report["splits"].items()}
    sizes["dropped"] = sum(report["dropped"].values())
    return template.render(
        title=title,
        flow=flow_of(report),
        parts=[(name, count, COLOURS[name]) for name, count in sizes.items() if count],
        tables=[(name, header, rows, columns_of_numbers(header, rows)) for name, header, rows in data_tables(report)],
        samples=list(report.get("samples", {}).items()),
    )


def _sizes(splits: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    total = max(1, sum(one["examples"] for one in splits.values()))
    return [[name, str(one["examples"]), f"{one['examples'] / total:.3f}"] for name, one in splits.items()]


def _went(report: Mapping[str, Any]) -> list[list[str]]:
    kinds = {"rejected": "bad row", "dropped": "example", "texts_that_went": "text", "negatives_that_went": "negative"}
    return [
        [said, reason, str(count)] for key, said in kinds.items() for reason, count in (report.get(key) or {}).items()
    ]


def _lengths(splits: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for name, one in splits.items():
        for key, spread in one.items():
            role, _, unit = key.rpartition("_")
            if unit not in ("chars", "tokens"):
                continue
            cut = one.get(f"{role}_cut")
            shown = "-" if unit == "chars" or cut is None else f"{cut['share']:.1%}"
            numbers = [f"{spread[which]:g}" for which in ("texts", "mean", "median", "p95", "most")]
            rows.append([name, f"{role} in {'characters' if unit == 'chars' else unit}", *numbers, shown])
    return rows


def _labels(splits: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    counts = {name: one.get("labels", {}) for name, one in splits.items()}
    labels = list(dict.fromkeys(label for found in counts.values() for label in found))
    rows = [[label, *(str(found.get(label, 0)) for found in counts.values())] for label in labels[:LABELS_SHOWN]]
    if len(labels) > LABELS_SHOWN:
        rows.append([f"... and {len(labels) - LABELS_SHOWN} more", *("" for _ in counts)])
    return rows


def _counts(found: Mapping[str, int] | None) -> list[list[str]]:
    return [[name, str(count)] for name, count in (found or {}).items()]


def _leaks(leaks: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [
        [name, kind, str(one["count"]), " = ".join(repr(one["examples"][0][side][:60]) for side in ("other", "train"))]
        for name, kinds in leaks.items()
        for kind, one in kinds.items()
    ]
