"""Search, measures and the report, beside mteb, sentence-transformers, FAISS alone and pytrec_eval.

    .venv/bin/python scripts/bench_evaluate.py [--quick]

5,000 queries over 20,000 documents (--quick: 1,000 over 5,000) whose embeddings are known, each tool in a process of
its own: CPU seconds and growth of peak memory of search and measures. Then measures alone, 10,000 queries of 1,000
documents (--quick: 1,000 of 1,000), and a report over 20 evaluations. Ends with one JSON line. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measuring import Figures
from pyarrow import parquet

from bge_cocktail.evaluating.measures import measure_run
from bge_cocktail.evaluating.store import MAP_FILE
from bge_cocktail.report.build import build_report, html_page
from bge_cocktail.report.collect import collect

WAY = Path(__file__).parent / "evaluators/retrieving.py"
NAMES = ["nDCG@10", "MRR", "MAP", "Recall@100", "P@10"]
THEIRS = {"ndcg_cut.10", "recip_rank", "map", "recall.100", "P.10"}


def made_data(folder: Path, queries: int, documents: int) -> Path:
    """A BEIR folder whose texts are numbers; the document of a query's number is relevant, and two others."""
    (folder / "qrels").mkdir(parents=True)
    for name, count in (("corpus", documents), ("queries", queries)):
        lines = (json.dumps({"_id": f"{name[0]}{number}", "text": str(number)}) for number in range(count))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    generator = np.random.default_rng(1)
    rows = ["query-id\tcorpus-id\tscore"]
    for number in range(queries):
        others = {int(one) for one in generator.integers(documents, size=2)} - {number}
        rows += [f"q{number}\tc{number}\t2", *(f"q{number}\tc{other}\t1" for other in sorted(others))]
    (folder / "qrels/test.tsv").write_text("\n".join(rows) + "\n")
    return folder


def measured(way: str, folder: Path, queries: int, documents: int, repeats: int) -> dict[str, float]:
    """A way of `retrieving.py`: the least seconds, the most memory."""
    runs: list[dict[str, float]] = []
    for _ in range(repeats):
        command = [sys.executable, str(WAY), way, str(folder), str(queries), str(documents)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{way} failed:\n{done.stderr[-2000:]}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        "seconds": min(run["seconds"] for run in runs),
        "megabytes": max(run["megabytes"] for run in runs),
        "nDCG@10": runs[0]["nDCG@10"],
    }


def measures(queries: int, hits: int) -> tuple[float, float, float]:
    """CPU seconds of our measures and of pytrec_eval's own, and the largest difference."""
    import pytrec_eval

    generator = np.random.default_rng(2)
    # all of them others in float32, by which trec_eval orders
    scores = np.linspace(1, 0, hits).tolist()
    names = [f"d{number}" for number in range(hits)]
    run = {f"q{query}": dict(zip(names, scores, strict=True)) for query in range(queries)}
    qrels: dict[str, dict[str, int]] = {
        f"q{query}": {f"d{int(one)}": 1 + int(one) % 3 for one in generator.integers(2 * hits, size=20)}
        for query in range(queries)
    }
    ranked = {query: list(found) for query, found in run.items()}
    started = time.process_time()
    ours = measure_run(ranked, qrels, NAMES)
    seconds = time.process_time() - started
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, THEIRS)
    started = time.process_time()
    theirs = evaluator.evaluate(run)
    peer = time.process_time() - started
    keys = dict(zip(NAMES, ("ndcg_cut_10", "recip_rank", "map", "recall_100", "P_10"), strict=True))
    apart = max(
        abs(value - theirs[query][keys[name]]) for name, found in ours.items() for query, value in found.items()
    )
    return seconds, peer, apart


def evaluations(folder: Path, count: int, queries: int) -> list[Path]:
    """Folders as `evaluate` writes them, of models that differ by chance."""
    generator = np.random.default_rng(3)
    tasks = ("handbook", "everyday", "questions")
    base = {task: generator.random(queries) for task in tasks}
    made = []
    for number in range(count):
        run = folder / f"run-{number}"
        run.mkdir()
        models: list[dict[str, Any]] = []
        lines, answers = [], []
        for model in ("base", f"model {number}"):
            scores = []
            for task in tasks:
                moved = base[task] if model == "base" else np.clip(base[task] + generator.normal(0, 0.1, queries), 0, 1)
                value = {f"q{row}": float(one) for row, one in enumerate(moved)}
                role = "target" if task == tasks[0] else "general"
                mean = float(moved.mean())
                one = {"task": task, "kind": "retrieval", "role": role, "metric": "nDCG@10", "value": mean,
                       "interval": [mean - 0.02, mean + 0.02], "count": queries, "main": True}  # fmt: skip
                scores.append(one)
                lines.append({"model": model, **one, "per_query": value})
                found = {query: {"found": {f"d{row}": 0.9 - row / 100 for row in range(10)}, "ranks": {"d1": 2}}
                         for query in value}  # fmt: skip
                answers.append({"model": model, "task": task, "answers": found})
            models.append({"model": model, "path": model, "target": 0.5, "general": 0.5, "scores": scores})
        asked = {f"q{row}": {"text": f"question {row} " * 8, "wanted": {"d1": 1}} for row in range(queries)}
        documents = {f"d{row}": f"document {row} " * 30 for row in range(10)}
        texts = [{"task": task, "kind": "retrieval", "asked": asked, "documents": documents} for task in tasks]
        (run / "scores.json").write_text(json.dumps({"models": models}))
        for name, rows in (("per_query", lines), ("answers", answers), ("texts", texts)):
            (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_maps(run / MAP_FILE, ("base", f"model {number}"), tasks, generator)
        inputs = {"base": "0", f"model {number}": str(number), **{f"general {task}": task for task in tasks}}
        (run / "run.json").write_text(json.dumps({"command": "evaluate", "options": {}, "inputs": inputs}))
        made.append(run)
    return made


def write_maps(path: Path, models: Sequence[str], tasks: Sequence[str], generator: np.random.Generator) -> None:
    """Embeddings of 200 texts of each task under each model, as `evaluate` keeps them."""
    rows = [(model, task, f"text {number} of {task}") for model in models for task in tasks for number in range(200)]
    columns = dict(zip(("model", "task", "text"), map(list, zip(*rows, strict=True)), strict=True))
    vectors = generator.standard_normal((len(rows), 384)).astype(np.float16)
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 384).cast(pa.list_(pa.float16()))
    groups = [f"label {number % 4}" for number in range(len(rows))]
    parquet.write_table(pa.table({**columns, "group": groups, "embedding": embeddings}), path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/")
    arguments = parser.parse_args()
    queries, documents = (1000, 5000) if arguments.quick else (5000, 20_000)
    figures = Figures("evaluate")
    what = f"{queries} queries, {documents} documents"
    with tempfile.TemporaryDirectory(prefix="bench-evaluate-") as scratch:
        data = made_data(Path(scratch) / "data", queries, documents)
        found = {
            way: measured(way, data, queries, documents, repeats=1 if way == "mteb" else 3)
            for way in ("ours", "faiss", "sentence-transformers", "mteb")
        }
        ours = found["ours"]
        name = "search and measures"
        figures.note(f"{name}, CPU s against mteb", ours["seconds"], found["mteb"]["seconds"], 5, what, least=True)
        peer = found["sentence-transformers"]["seconds"]
        figures.note(f"{name}, CPU s against sentence-transformers", ours["seconds"], peer, 1, what, least=True)
        alone = found["faiss"]["seconds"]
        # 1.2 s where FAISS alone took 1.0 s
        figures.note(f"{name}, times FAISS alone", ours["seconds"] / alone, None, 1.2, f"FAISS {alone:.2f} s")
        figures.note(f"{name}, MB beyond the embeddings", ours["megabytes"], found["mteb"]["megabytes"], 250, what)
        apart = abs(ours["nDCG@10"] - found["sentence-transformers"]["nDCG@10"])
        mean = f"ours {ours['nDCG@10']:.4f}, sentence-transformers, which knows no grades, differs by {apart:.4f}"
        figures.note("nDCG@10, ours less mteb's", abs(ours["nDCG@10"] - found["mteb"]["nDCG@10"]), None, 1e-4, mean)
        count = 1000 if arguments.quick else 10_000
        seconds, peer, apart = measures(count, 1000)
        what = f"{count} queries of 1,000 documents"
        figures.note("measures alone, times pytrec_eval's own time", seconds / peer, None, 1.2, f"{what}, {peer:.2f} s")
        figures.note("measures alone, largest difference from pytrec_eval", apart, None, 1e-6, what)
        runs = evaluations(Path(scratch), 20, 300)
        started = time.process_time()
        page = html_page(build_report(collect(runs), "twenty"))
        figures.note("report over 20 evaluations, CPU s", time.process_time() - started, None, 10, "21 models, 3 tasks")
        figures.note("report over 20 evaluations, MB", len(page.encode()) / 1e6, None, 8, "21 models, 3 tasks")
    figures.finish(write=arguments.write)


if __name__ == "__main__":
    main()
