"""One way to judge a retrieval whose embeddings are known: ours, mteb's, sentence-transformers', FAISS alone.

    python retrieving.py WAY FOLDER QUERIES DOCUMENTS

FOLDER is a BEIR folder whose texts are numbers; each stands for a row of embeddings drawn by its number. Prints the CPU
seconds and the growth of peak memory (MB) of search and measures, and nDCG@10; reading and importing are left out.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_cocktail.data.retrieval import read_retrieval
from bge_cocktail.evaluating.evaluate import evaluate
from bge_cocktail.evaluating.tasks.task import open_task
from bge_cocktail.options import EvaluateOptions

DIMENSIONS = 384
K = 100


class Known:
    """An encoder whose embeddings are there: of queries, near the document of the same number."""

    def __init__(self, queries: int, documents: int) -> None:
        generator = np.random.default_rng(0)
        self.documents = _unit(generator.standard_normal((documents, DIMENSIONS)))
        noise = generator.standard_normal((queries, DIMENSIONS))
        self.queries = _unit(self.documents[:queries] + 0.13 * noise)

    def encode_query(self, texts: Sequence[str], prompt: str | None = None) -> NDArray[np.float32]:
        """The rows that texts name."""
        return self.queries[[int(text) for text in texts]]

    def encode_document(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The rows that texts name."""
        return self.documents[[int(text) for text in texts]]

    encode_text = encode_document


def ours(encoder: Known, folder: Path) -> Callable[[], float]:
    """Our task, all default measures and intervals; what it keeps for reading, too."""
    task = open_task(folder, "target")
    task.data("test")  # reading is left out for all
    options = EvaluateOptions()
    return lambda: evaluate(encoder, [task], options)[0].value


def faiss_alone(encoder: Known, _folder: Path) -> Callable[[], float]:
    """The search, and no measure."""
    import faiss

    def search() -> float:
        faiss.knn(encoder.queries, encoder.documents, K, metric=faiss.METRIC_INNER_PRODUCT)
        return float("nan")

    return search


def sentence_transformers(encoder: Known, folder: Path) -> Callable[[], float]:
    """Its evaluator of retrieval at the same ranks."""
    import torch
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    judged = read_retrieval(folder, "test")
    relevant = {query: {one for one, grade in grades.items() if grade > 0} for query, grades in judged.qrels.items()}
    way = InformationRetrievalEvaluator(
        dict(judged.queries),
        dict(judged.corpus),
        relevant,
        mrr_at_k=[10],
        ndcg_at_k=[10],
        accuracy_at_k=[10],
        precision_recall_at_k=[10, K],
        map_at_k=[K],
        score_functions={"cosine": lambda one, other: one @ other.T},
        main_score_function="cosine",
    )

    class Model:
        similarity_fn_name = "cosine"

        @staticmethod
        def encode(texts: Sequence[str], **_: Any) -> Any:
            return torch.from_numpy(encoder.encode_document(texts))

        encode_document = encode

        @staticmethod
        def encode_query(texts: Sequence[str], **_: Any) -> Any:
            return torch.from_numpy(encoder.encode_query(texts))

    return lambda: float(way.compute_metrices(Model())["cosine"]["ndcg@k"][10])


def mteb(encoder: Known, folder: Path) -> Callable[[], float]:
    """Its retrieval task on the same data."""
    import mteb as library
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.similarity_functions import cos_sim

    from bge_cocktail.evaluating.mteb import as_mteb_task

    task = as_mteb_task(open_task(folder, "target"))

    class Model:
        mteb_model_meta = ModelMeta.create_empty(
            {"name": "local/known", "revision": "1", "similarity_fn_name": ScoringFunction.COSINE}
        )

        @staticmethod
        def encode(inputs: Any, *, prompt_type: Any = None, **_: Any) -> NDArray[np.float32]:
            texts = [text for batch in inputs for text in batch["text"]]
            role = getattr(prompt_type, "value", prompt_type)
            return encoder.encode_query(texts) if role == "query" else encoder.encode_document(texts)

        @staticmethod
        def similarity(one: Any, other: Any) -> Any:
            return cos_sim(one, other)

        similarity_pairwise = similarity

    def judge() -> float:
        result = library.evaluate(Model(), task, cache=None, show_progress_bar=False, co2_tracker=False)
        return float(result.task_results[0].get_score())

    return judge


WAYS = {"ours": ours, "faiss": faiss_alone, "sentence-transformers": sentence_transformers, "mteb": mteb}


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def main() -> None:
    """Measure one way."""
    name, folder, queries, documents = sys.argv[1:]
    encoder = Known(int(queries), int(documents))
    work = WAYS[name](encoder, Path(folder))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    value = work()
    seconds = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": seconds, "megabytes": grown, "nDCG@10": value}))


if __name__ == "__main__":
    main()
