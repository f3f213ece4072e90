"""Where models changed: queries gained and lost, kinds of texts, judgements that are likely missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bge_cocktail.evaluating.query_changes import QueryChange, by_bucket, likely_relevant, query_changes
from bge_cocktail.evaluating.scores import Score
from bge_cocktail.report.blocks import Block, Cell, Queries, Section, Table, Words, report_sections
from bge_cocktail.report.collect import ComparedEvaluations, ReportInput
from bge_cocktail.report.text import shortened

# of all that gained and lost, over all models and tasks: what a page of some megabytes holds
MOST_SHOWN = 1200


MOST_OF_A_TASK = 60
FOUND_SHOWN = 3
TEXT_SHOWN = 300
DOUBTFUL_SHOWN = 10


@report_sections("where it changed", order=30)
def where_it_changed(collected: ReportInput) -> Section | None:
    """Queries gained and lost with their documents, kinds of texts, judgements that are likely missing."""
    blocks: list[Block] = []
    for group in collected.evaluated:
        if group.changes:
            blocks += [*_buckets(group), *_browser(group)]
        blocks += _doubtful(group)
    return Section("Where it changed", blocks) if blocks else None


def _buckets(group: ComparedEvaluations) -> list[Block]:
    tables: list[Block] = []
    for model in group.changes:
        rows: list[list[str | Cell]] = []
        for first, second in _pairs(group, model):
            texts = group.details.texts.get(first.task, {})
            for bucket in by_bucket(first, second, texts, confidence=group.confidence):
                low, high = (100 * end for end in bucket["interval"])
                rows.append(
                    [
                        first.task,
                        f"{bucket['bucket']} words"
                        if bucket["kind"] == "words"
                        else f"{bucket['kind']}: {bucket['bucket']}",
                        str(bucket["count"]),
                        f"{bucket['before']:.4f}",
                        f"{bucket['after']:.4f}",
                        Cell(f"{100 * bucket['difference']:+.1f}", f"{low:+.1f} to {high:+.1f}"),
                    ]
                )
        if rows:
            header = ["task", "queries or texts of", "count", group.baseline.model, model, "points"]
            tables.append(Table(header, rows, f"By kind of text: {model}", folded=True))
    if tables:
        tables.append(Words("Intervals of kinds of text aren't corrected for their number: of twenty, one errs."))
    return tables


def _browser(group: ComparedEvaluations) -> list[Block]:
    pairs = [(model, *pair) for model in group.changes for pair in _pairs(group, model)]
    changed = [
        (model, query_changes((group.baseline.model, first), (model, second), group.details))
        for model, first, second in pairs
    ]
    changed = [(model, changes) for model, changes in changed if changes]
    if not changed:
        return []
    most = max(4, min(MOST_OF_A_TASK, MOST_SHOWN // len(changed))) // 2
    rows: list[dict[str, Any]] = []
    documents: dict[str, dict[str, str]] = {}
    cut = 0
    for model, changes in changed:
        gained = [change for change in changes if change.difference > 0]
        lost = [change for change in changes if change.difference < 0]
        cut += len(changes) - len(gained[:most]) - len(lost[-most:])
        for change in (*gained[:most], *lost[-most:]):
            rows.append(_row(model, change, documents.setdefault(change.task, {})))
    blocks: list[Block] = [Queries("Queries gained and lost", rows, documents, group.baseline.model)]
    if cut:
        blocks.append(
            Words(f"Of each task and model the {most} that gained and the {most} that lost most; {cut} more changed.")
        )
    return blocks


def _row(model: str, change: QueryChange, documents: dict[str, str]) -> dict[str, Any]:
    """Return a change as a row of the report's list of queries.

    Documents are named by key; their texts go into `documents`, each once, which this adds to.
    """
    relevant: Any = change.relevant
    answers: list[Any] = list(change.answers)
    if isinstance(change.relevant, list):
        for document in change.relevant[:FOUND_SHOWN]:
            documents[_key(change, document["document"])] = shortened(document["text"], TEXT_SHOWN)
        relevant = [
            [_key(change, document["document"]), *document["ranks"]] for document in change.relevant[:FOUND_SHOWN]
        ]
        answers = []
        for side in change.answers:
            for document in side[:FOUND_SHOWN]:
                documents[_key(change, document["document"])] = shortened(document["text"], TEXT_SHOWN)
            answers.append(
                [[_key(change, document["document"]), int(document["relevant"])] for document in side[:FOUND_SHOWN]]
            )
    text = change.text if isinstance(change.text, str) else " / ".join(change.text)
    # "wanted" and "said" are read by page.js
    return {
        "task": change.task,
        "model": model,
        "id": change.id,
        "text": shortened(text, TEXT_SHOWN),
        "before": round(change.before, 4),
        "after": round(change.after, 4),
        "wanted": relevant,
        "said": answers,
    }


def _key(change: QueryChange, document: str) -> str:
    """Return the id of a document; in reranking, each query has documents of its own."""
    return f"{change.id} {document}" if change.own_documents else document


def _doubtful(group: ComparedEvaluations) -> list[Block]:
    blocks: list[Block] = []
    names = [model.model for model in group.models]
    for score in group.baseline.main():
        likely = likely_relevant(names, score.task, group.details, DOUBTFUL_SHOWN) if score.kind == "retrieval" else []
        if not likely:
            continue
        rows = [
            [
                shortened(change["text"], 160),
                shortened(change["document_text"], 240),
                f"{change['models']} of {len(names)}",
                f"{change['lead']:.3f}",
            ]
            for change in likely
        ]  # fmt: skip
        header = ["query", "document", "ranked first by", "similarity above the best relevant one"]
        blocks.append(Table(header, rows, f"{score.task}: judgements that are likely missing", folded=True))
    if blocks:
        blocks.append(
            Words(
                "Documents that no judgement calls relevant, and that most models rank before every one that is: often "
                "they are relevant in truth, and the score of a better model is too low."
            )
        )
    return blocks


def _pairs(group: ComparedEvaluations, model: str) -> list[tuple[Score, Score]]:
    """Return the main scores of the baseline and of a model on the same tasks, where each query has a value."""
    other: Mapping[str, Score] = {
        score.task: score for one in group.models if one.model == model for score in one.main()
    }
    return [(score, other[score.task]) for score in group.baseline.main() if score.task in other and score.per_query]
