"""CPU seconds and peak memory of mining, beside sentence-transformers and FlagEmbedding, same texts, same run.

    .venv/bin/python scripts/bench_mine.py [--quick] [--data DIR] [--folder DIR] [--without-peers]

5,000 queries over 20,000 documents with MiniLM on the CPU (--quick: 600 over 2,400). The texts are passages of 25
words of the retrieval sets in --data (BEIR folders), or made of the built-in ones' sentences. Every figure is user +
system time of a whole command, start-up too. FlagEmbedding's hn_mine runs in an environment under .peers/, at its batch
of 256 and at 64. Then: what mining costs beside embedding, against FAISS alone; and the peak memory of mining 20,000
queries over two million made embeddings (--quick: 2,000 over 200,000). Ends with one JSON line. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Figures, measure
from peers import FLAGEMBEDDING, peer_environment

from bge_cocktail.data.beir import read_beir, read_corpus
from bge_cocktail.data.record import Record
from bge_cocktail.data.record_files import read_records, write_records
from bge_cocktail.flow.demo import demo_data, demo_model

NEGATIVES, DEPTH, WORDS = 7, 60, 25
THEIRS = """
import json, sys
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives
rows = [json.loads(line) for line in open(sys.argv[1])]
corpus = [json.loads(line)["text"] for line in open(sys.argv[2])]
pairs = Dataset.from_list([{"query": row["query"], "answer": row["pos"][0]} for row in rows])
mine_hard_negatives(
    pairs, SentenceTransformer(sys.argv[3], device="cpu"), corpus=corpus, num_negatives=7, range_max=60,
    relative_margin=0.05, use_faiss=True, batch_size=32, verbose=False, output_format="labeled-list",
)
"""
FLAG = """
import sys
from FlagEmbedding import FlagModel
from FlagEmbedding.baai_general_embedding.finetune import hn_mine
batch = int(sys.argv[5])
class Model(FlagModel):
    def encode(self, texts, batch_size=256, **more):
        return super().encode(texts, batch_size=batch, **more)
    def encode_queries(self, texts, batch_size=256, **more):
        return super().encode_queries(texts, batch_size=batch, **more)
hn_mine.model = Model(sys.argv[3], use_fp16=False)
hn_mine.find_knn_neg(hn_mine.model, sys.argv[1], sys.argv[2], sys.argv[4], [0, 60], 7, False)
"""
APART = """
import json, sys, time
import faiss
import numpy as np
from bge_cocktail import mine, read_records
from bge_cocktail.data.beir import read_corpus
from bge_cocktail.options import MineOptions
from pathlib import Path
records, corpus = read_records(sys.argv[1]), read_corpus(Path(sys.argv[2]))
texts = list(dict.fromkeys([record.query for record in records])), corpus
rows = np.random.default_rng(0).standard_normal((len(corpus) + 50_000, 384)).astype(np.float32)
rows /= np.linalg.norm(rows, axis=1, keepdims=True)
class Given:
    # similar to real ones in that a query is nearest to its own documents
    def encode_query(self, texts, prompt=None):
        return rows[: len(texts)]
    def encode_document(self, texts):
        return rows[: len(texts)]
    encode_text = encode_document
start = time.process_time()
faiss.knn(rows[: len(records)], rows[: len(corpus)], 60, metric=faiss.METRIC_INNER_PRODUCT)
alone = time.process_time() - start
start = time.process_time()
mine(records, Given(), MineOptions(), corpus=corpus)
print(json.dumps([time.process_time() - start, alone]))
"""
VECTORS = """
import sys, tempfile
from pathlib import Path
import numpy as np
from bge_cocktail.search.exact import StoredEmbeddings, top_k
queries, documents = map(int, sys.argv[1:])
generator = np.random.default_rng(0)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "rows"
    with path.open("wb") as file:
        for start in range(0, documents, 100_000):
            rows = generator.standard_normal((min(100_000, documents - start), 384), np.float32)
            file.write((rows / 20).astype(np.float16).data)
    asked = generator.standard_normal((queries, 384), np.float32)
    top_k(asked, StoredEmbeddings(path, 384, dtype=np.float16), 60)
"""
LARGE = """
import sys
import numpy as np
from bge_cocktail import Record, mine
from bge_cocktail.options import MineOptions
queries, documents = int(sys.argv[1]), int(sys.argv[2])
class Made:
    # a vector that depends on the number of the text alone
    def encode_document(self, texts):
        seeds = np.array([int(text[1:]) for text in texts], np.uint64)
        rows = np.random.default_rng(int(seeds[0])).standard_normal((len(texts), 384), np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
    encode_text = encode_document
    def encode_query(self, texts, prompt=None):
        return self.encode_document(texts)
records = [Record(f"q{number}", (f"d{number}",)) for number in range(queries)]
mined = mine(records, Made(), MineOptions(relative_margin=None), corpus=(f"d{number}" for number in range(documents)))
assert len(mined.records) == queries and mined.short == 0
"""


def real_texts(data: Path, queries: int, documents: int) -> tuple[list[Record], list[str]]:
    """Queries of the English retrieval sets in a folder, and passages of 25 words of their documents."""
    records: list[Record] = []
    texts: dict[str, None] = {}
    for name in ("medquad", "scifact", "squad", "pubmedqa"):
        records += read_records(data / "retrieval" / name)
        texts.update(dict.fromkeys(read_corpus(data / "retrieval" / name)))
    order = np.random.default_rng(0).permutation(len(records))[:queries]
    chosen = [Record(records[row].query, tuple(passages(records[row].pos[0])[:1])) for row in sorted(order.tolist())]
    needed = dict.fromkeys(text for record in chosen for text in record.pos)
    needed.update(dict.fromkeys(passage for text in texts for passage in passages(text)))
    return chosen, list(needed)[:documents]


def passages(text: str) -> list[str]:
    """A text cut after every 25 words."""
    words = text.split()
    return [" ".join(words[start : start + WORDS]) for start in range(0, len(words), WORDS)]


def made_texts(queries: int, documents: int) -> tuple[list[Record], list[str]]:
    """Records and documents put together from the built-in sentences, of varied lengths."""
    names = ("handbook", "everyday")
    joined = " ".join(text for name in names for text in read_beir(demo_data() / name).corpus.values())
    sentences = [part.strip() + "." for part in joined.split(".") if part.strip()]
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(0.5, 0.6, documents), 1, 8).astype(int)
    texts = [" ".join(sentences[row] for row in generator.integers(0, len(sentences), length)) for length in lengths]
    texts = [f"{number}. {text}" for number, text in enumerate(texts)]
    asked = generator.integers(0, documents, queries)
    words = [texts[row].split() for row in asked]
    starts = [int(generator.integers(0, max(1, len(one) - 12))) for one in words]
    records = [
        Record(f"{number} " + " ".join(one[start : start + 12]), (texts[row],))
        for number, (one, start, row) in enumerate(zip(words, starts, asked.tolist(), strict=True))
    ]
    return records, texts


def cosine(texts: list[str]) -> float:
    """The least cosine between embeddings in bf16 and in fp32."""
    from bge_cocktail.models.encoder import CachedEncoder
    from bge_cocktail.options import EncodeOptions

    one, other = (
        CachedEncoder(demo_model(), EncodeOptions(precision=precision, cache=False)).encode_document(texts)
        for precision in ("fp32", "auto")
    )
    return float((one * other).sum(axis=1).min())


def bench_alone(figures: Figures, folder: Path, label: str, corpus: list[str]) -> None:
    """How far bf16 is from fp32, and what mining costs beside embedding."""
    sample = corpus[:: max(1, len(corpus) // 300)]
    figures.note(
        "least cosine of auto precision to fp32", cosine(sample), None, 0.9998, f"{len(sample)} texts", high=True
    )
    code = [sys.executable, "-c", APART, str(folder / "records.jsonl"), str(folder / "corpus.jsonl")]
    beside, alone = json.loads(subprocess.run(code, capture_output=True, text=True, check=True).stdout)
    what = f"mining {beside:.2f} s, FAISS alone {alone:.2f} s"
    figures.note(f"{label}, all but embedding, times FAISS", beside / alone, None, 1.5, what)


def bench_large(figures: Figures, queries: str, documents: str) -> None:
    """The peak memory of mining over embeddings that don't fit in memory."""
    start = time.monotonic()
    peak = measure([sys.executable, "-c", LARGE, queries, documents], None, 1)[1]
    figures.note(
        f"{queries} queries, {documents} documents, peak MB", peak, None, 3000, f"{time.monotonic() - start:.0f} s"
    )


def bench_vectors(figures: Figures, queries: str, documents: str) -> None:
    """The peak memory of an exact search over made embeddings in a file of half precision."""
    start = time.monotonic()
    peak = measure([sys.executable, "-c", VECTORS, queries, documents], None, 1)[1]
    what = f"{time.monotonic() - start:.0f} s"
    figures.note(f"search of {queries} queries in {documents} vectors on disk, peak MB", peak, None, 3000, what)


def bench_commands(figures: Figures, folder: Path, label: str, with_peers: bool) -> None:
    """Whole commands: ours cold, ours again, theirs."""
    records, corpus, model = folder / "records.jsonl", folder / "corpus.jsonl", str(demo_model())
    command = [str(Path(sys.executable).parent / "bge-cocktail"), "mine", str(records), "--corpus", str(corpus)]
    command += ["-m", model, "--cache-dir", str(folder / "cache"), "-o", str(folder / "ours"), "--overwrite"]
    shutil.rmtree(folder / "cache", ignore_errors=True)
    command += ["--negatives", str(NEGATIVES), "--depth", str(DEPTH)]
    exact = measure([*command, "--no-cache"], None, 1)
    ours = measure([*command, "--precision", "auto"], None, 1)
    again = measure([*command, "--precision", "auto"], None, 1)
    peers: dict[str, Any] = {}
    if with_peers:
        theirs = [sys.executable, "-c", THEIRS, str(records), str(corpus), model]
        peers["mine_hard_negatives"] = measure(theirs, None, 1)
        python = str(peer_environment("flagembedding", FLAGEMBEDDING) / "bin/python")
        for batch in (256, 64):
            theirs = [python, "-c", FLAG, str(records), str(corpus), model, str(folder / "theirs.jsonl"), str(batch)]
            peers[f"hn_mine at batch {batch}"] = measure(theirs, None, 1)
    for name, (cpu, peak) in peers.items():
        figures.note(f"{label}, CPU s against {name}", ours[0], cpu, 2.5, "auto precision, cold", least=True)
        figures.note(f"{label}, fp32, CPU s against {name}", exact[0], cpu, 1, "same arithmetic", least=True)
        figures.note(f"{label}, peak MB against {name}", ours[1], peak, 1, "peak memory", least=True)
    first = peers.get("mine_hard_negatives", (None, None))[0]
    figures.note(f"{label}, second run, CPU s", again[0], first, 50, "embeddings from the cache", least=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, help="a folder with retrieval/{medquad,scifact,squad,pubmedqa}")
    parser.add_argument("--only", choices=["alone", "large", "vectors", "commands"], help="one part of it")
    parser.add_argument("--folder", type=Path, help="where texts and the cache are kept; else a temporary one")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/")
    arguments = parser.parse_args()
    queries, documents = (600, 2400) if arguments.quick else (5000, 20_000)
    figures = Figures("mine")
    with tempfile.TemporaryDirectory(prefix="bench-mine-") as scratch:
        folder = (arguments.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        records, corpus = (
            real_texts(arguments.data, queries, documents) if arguments.data else made_texts(queries, documents)
        )
        label = f"{len(records)} queries, {len(corpus)} documents"
        write_records(records, folder / "records.jsonl")
        (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in corpus))
        parts = [arguments.only] if arguments.only else ["alone", "large", "vectors", "commands"]
        if "alone" in parts:
            bench_alone(figures, folder, label, corpus)
        if "large" in parts:
            bench_large(figures, *(("2000", "200000") if arguments.quick else ("20000", "2000000")))
        if "vectors" in parts:
            bench_vectors(figures, *(("2000", "200000") if arguments.quick else ("20000", "1000000")))
            if not arguments.quick:
                bench_vectors(figures, "1000", "10000000")
        if "commands" in parts:
            bench_commands(figures, folder, label, not arguments.without_peers)
    figures.finish(write=arguments.write)


if __name__ == "__main__":
    main()
