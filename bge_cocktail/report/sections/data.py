"""What models learned from and are served by, and where numbers come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bge_cocktail.core.outputs import json_of
from bge_cocktail.report.blocks import Block, Code, Section, Table, Words, report_sections
from bge_cocktail.report.collect import ReportInput, Step
from bge_cocktail.report.text import shortened, text_table

SHOWN = 10


@report_sections("data", order=70)
def data(collected: ReportInput) -> Section | None:
    """Prepared data: what came in, what went and why, leaks; mined negatives."""
    blocks: list[Block] = []
    for step in collected.of("prepare"):
        report = _read(step, "report.json")
        if report:
            blocks.append(Words(f"{step.name}: {flow_of(report)}."))
            blocks += [
                Table(header, rows, f"{step.name}: {title.lower()}", folded=title not in ("Splits", "What went"))
                for title, header, rows in data_tables(report)
            ]
    for step in collected.of("mine"):
        counts = [(name.replace("_", " "), value) for name, value in step.described.items() if isinstance(value, int)]
        dropped: Mapping[str, int] = step.described.get("dropped") or {}
        rows = [[name, str(value)] for name, value in counts]
        rows += [[f"dropped: {reason}", str(count)] for reason, count in dropped.items()]
        blocks.append(Table(["mined", "count"], rows, f"{step.name}: hard negatives"))
    return Section("Data", blocks) if blocks else None


@report_sections("classifiers", order=54)
def classifiers(collected: ReportInput) -> Section | None:
    """Judgements of classifiers: scores, confusions, doubtful labels."""
    blocks: list[Block] = []
    for step in collected.of("classify evaluate"):
        judged = _read(step, "judgement.json")
        if not judged:
            continue
        rows = [
            [score["metric"], f"{score['value']:.4f}", f"{score['interval'][0]:.4f} to {score['interval'][1]:.4f}"]
            for score in judged["scores"]
        ]
        for accuracy in judged.get("frozen", []):
            interval = f"{accuracy['interval'][0]:.4f} to {accuracy['interval'][1]:.4f}"
            rows.append([f"accuracy of the {accuracy['way']}", f"{accuracy['accuracy']:.4f}", interval])
        blocks.append(Table(["score", "value", "interval"], rows, f"{step.name}: {judged['count']} texts"))
        worst = sorted(judged["classes"], key=lambda one: one["F1"])[:SHOWN]
        blocks.append(
            Table(
                ["class", "precision", "recall", "F1", "count"],
                [
                    [
                        label["label"],
                        *(f"{label[name]:.4f}" for name in ("precision", "recall", "F1")),
                        str(label["count"]),
                    ]
                    for label in worst
                ],
                "Hardest classes",
                folded=True,
            )
        )
        for title, key, last in (
            ("Surest mistakes", "mistakes", "predicted"),
            ("Labels that are likely wrong", "label_errors", "likely"),
        ):
            if judged.get(key):
                texts = [[_text(text["text"]), str(text["label"]), str(text[last])] for text in judged[key][:SHOWN]]
                blocks.append(Table(["text", "label", last], texts, title, folded=True))
    return Section("Classifiers", blocks) if blocks else None


@report_sections("indexes", order=56)
def indexes(collected: ReportInput) -> Section | None:
    """Approximate indexes: recall, size, speed."""
    blocks: list[Block] = []
    for step in collected.of("indexes"):
        entries: Sequence[Mapping[str, Any]] = step.described.get("indexes") or []
        if entries:
            header = [name.replace("_", " ") for name in entries[0]]
            rows = [[_number(value) for value in index.values()] for index in entries]
            blocks.append(Table(header, rows, f"{step.name}: indexes"))
    return Section("Indexes", blocks) if blocks else None


def _read(step: Step, name: str) -> dict[str, Any]:
    try:
        content = json_of(step.folder / name)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _text(text: Any) -> str:
    return shortened(text if isinstance(text, str) else " / ".join(text), 200)


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@report_sections("provenance", order=90)
def provenance(collected: ReportInput) -> Section | None:
    """Every run: its command, time, versions, and the hashes of what it read."""
    finished = [step for step in collected.steps if step.finished]
    if not finished:
        return None
    rows = [
        [
            step.name,
            step.command,
            str(step.described.get("finished", "-")),
            f"{step.described.get('seconds') or 0:.0f} s",
        ]
        for step in finished
    ]
    blocks: list[Block] = [Table(["run", "command", "finished", "time"], rows, "Runs")]
    # a command needs what those before it made
    in_order = sorted(finished, key=lambda step: str(step.described.get("finished", "")))
    commands = list(
        dict.fromkeys(str(step.described["started_as"]) for step in in_order if "started_as" in step.described)
    )
    if commands:
        blocks.append(Code("\n".join(commands), "The commands that repeat these numbers"))
    if not all("started_as" in step.described for step in finished):
        blocks.append(Words("Runs without a command were started from Python or by an older version."))
    blocks += _versions(finished)
    inputs = [
        [step.name, str(name), str(value)[:16]]
        for step in finished
        for name, value in (step.described.get("inputs") or {}).items()
    ]
    if inputs:
        blocks.append(Table(["run", "input", "hash (xxh3-128, first half)"], inputs, "What runs read", folded=True))
    return Section("Provenance", blocks)


def _versions(steps: Sequence[Step]) -> list[Block]:
    names = list(dict.fromkeys(name for step in steps for name in step.described.get("versions") or {}))
    versions = {name: {step.described.get("versions", {}).get(name, "-") for step in steps} for name in names}
    rows = [[name, ", ".join(sorted(map(str, own)))] for name, own in versions.items()]
    blocks: list[Block] = [Table(["package", "version"], rows, "Versions", folded=True)] if rows else []
    several = [name for name, own in versions.items() if len(own) > 1]
    if several:
        said = f"Runs were made with other versions of {', '.join(several)}: numbers may differ by that."
        blocks.append(Words(said, warns=True))
    return blocks


DataTable = tuple[str, Sequence[str], list[list[str]]]
"""A title, a header and rows."""
LABELS_SHOWN = 30


def data_tables(report: Mapping[str, Any]) -> list[DataTable]:
    """Return the tables of a report on data, in the order they are read."""
    splits: Mapping[str, Mapping[str, Any]] = report["splits"]
    tables: list[DataTable] = [
        ("Splits", ("split", "examples", "share"), _sizes(splits)),
        ("What went", ("what", "reason", "count"), _went(report)),
        ("Lengths", ("split", "texts", "count", "mean", "median", "95 %", "longest", "cut"), _lengths(splits)),
        ("Labels", ("label", *splits), _labels(splits)),
        ("Cleaning", ("step", "distinct texts changed"), _counts(report.get("cleaned_texts"))),
        ("Augmentation", ("what", "count"), _counts(report.get("augmented"))),
        ("Corpus", ("documents", "count"), _counts(report.get("corpus"))),
        ("Corpus texts that cleaning changed", ("before", "after"), _changes(report.get("corpus_changes") or [])),
        ("Leaks", ("held-out set", "what", "count", "for example"), _leaks(report.get("leaks") or {})),
    ]
    return [(title, header, rows) for title, header, rows in tables if rows]


def _changes(changes: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return rows of texts before and after, each around the place where they begin to differ."""
    rows = []
    for before, after in changes:
        same = next((row for row, (one, two) in enumerate(zip(before, after, strict=False)) if one != two), 0)
        start = max(0, same - CHANGE_SHOWN // 3)
        rows.append([shortened(text[start:].replace("\n", " "), CHANGE_SHOWN) for text in (before, after)])
    return rows


CHANGE_SHOWN = 60


def flow_of(report: Mapping[str, Any]) -> str:
    """Return one line: what came in, what went, what came out."""
    dropped, rejected = sum(report["dropped"].values()), sum(report["rejected"].values())
    out = ", ".join(f"{one['examples']:,} {name}" for name, one in report["splits"].items())
    bad = f" ({rejected:,} bad rows left out)" if rejected else ""
    copies = sum(split.get("augmented", 0) for split in report["splits"].values())
    more = f" (of which {copies:,} are varied copies)" if copies else ""
    return f"{report['read']:,} examples read{bad}, {dropped:,} dropped: {out}{more}"


def data_text(report: Mapping[str, Any]) -> str:
    """Return the report for a terminal."""
    parts = [f"{title}\n{text_table(header, rows)}" for title, header, rows in data_tables(report)]
    return "\n\n".join([flow_of(report), *parts])


def _sizes(splits: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    total = max(1, sum(split["examples"] for split in splits.values()))
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
    labels = list(dict.fromkeys(label for counted in counts.values() for label in counted))
    rows = [[label, *(str(counted.get(label, 0)) for counted in counts.values())] for label in labels[:LABELS_SHOWN]]
    if len(labels) > LABELS_SHOWN:
        rows.append([f"... and {len(labels) - LABELS_SHOWN} more", *("" for _ in counts)])
    return rows


def _counts(counts: Mapping[str, int] | None) -> list[list[str]]:
    return [[name, str(count)] for name, count in (counts or {}).items()]


def _leaks(leaks: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [
        [name, kind, str(one["count"]), " = ".join(repr(one["examples"][0][side][:60]) for side in ("other", "train"))]
        for name, kinds in leaks.items()
        for kind, one in kinds.items()
    ]
