#!/usr/bin/env python3
"""Write docs/frameworks: a page for each framework with the lines that `bge-cocktail plug` prints.

    scripts/write_framework_pages.py [--check]

The lines are those of a model with a prompt for queries and one for documents. --check compares and writes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bge_cocktail.models.plug import plugs
from bge_cocktail.models.profile import ModelProfile
from bge_cocktail.models.prompts import Prompts

FOLDER = Path(__file__).resolve().parent.parent / "docs/frameworks"
MODEL = ModelProfile(
    name="runs/demo/cocktail",
    folder=Path("runs/demo/cocktail"),
    architecture="bert",
    modules=("Transformer", "Pooling", "Normalize"),
    prompts=Prompts(query="query: ", document="passage: "),
    max_length=256,
    dimensions=384,
    poolings=("mean",),
    normalises=True,
)
TITLES = {
    "langchain": "LangChain",
    "llama-index": "LlamaIndex",
    "haystack": "Haystack",
    "chroma": "Chroma",
    "qdrant": "Qdrant",
    "lancedb": "LanceDB",
    "milvus": "Milvus",
    "tei": "text-embeddings-inference",
    "vllm": "vLLM",
    "ollama": "Ollama",
    "openai": "OpenAI's client",
    "sentence-transformers": "sentence-transformers",
}
ADAPTERS = {
    "langchain": """\
from bge_cocktail.serving import as_langchain

embeddings = as_langchain("runs/demo/cocktail")
query = embeddings.embed_query("how is a cocktail made?")
documents = embeddings.embed_documents(["Shake the parts with ice and strain."])
""",
    "llama-index": """\
from bge_cocktail.serving import as_llama_index

embeddings = as_llama_index("runs/demo/cocktail")
query = embeddings.get_query_embedding("how is a cocktail made?")
documents = embeddings.get_text_embedding_batch(["Shake the parts with ice and strain."])
""",
    "haystack": """\
from haystack import Document

from bge_cocktail.serving import as_haystack

of_queries, of_documents = as_haystack("runs/demo/cocktail")
query = of_queries.run("how is a cocktail made?")["embedding"]
embedded = of_documents.run([Document(content="Shake the parts with ice and strain.")])["documents"]
documents = [document.embedding for document in embedded]
""",
    "chroma": """\
from bge_cocktail.serving import as_chroma

embed = as_chroma("runs/demo/cocktail")  # embedding_function=embed of a collection
query = embed.embed_query(["how is a cocktail made?"])[0]
documents = embed(["Shake the parts with ice and strain."])
""",
}
NOT_RUN = ("tei", "vllm", "ollama")


def page(name: str) -> str:
    """The Markdown of a framework's page."""
    language = "sh" if plugs.trait(name, "shell") else "python"
    lines = [
        f"# {TITLES[name]}",
        "",
        f"`bge-cocktail plug MODEL {name}` prints these lines for your model: its own prompts, length and dimensions.",
        "",
    ]
    if packages := plugs.trait(name, "package"):
        lines += [f"Needs `pip install {packages}`.", ""]
    lines += [f"```{language}", plugs[name](MODEL).rstrip(), "```", ""]
    if name in ADAPTERS:
        lines += [
            f"Beside bge-cocktail (`pip install -c constraints.txt '.[{name}]'` in the checkout) an adapter does it:",
            "",
            "```python",
            ADAPTERS[name].rstrip(),
            "```",
            "",
        ]
    if name in NOT_RUN:
        lines += ["These lines follow the server's documentation; no test runs them, for it needs the server."]
    elif name == "openai":
        lines += ["`bge-cocktail serve` and this client are tested together (`tests/serving/test_endpoint.py`)."]
    else:
        lines += [
            "`scripts/check_frameworks.py` runs these lines in the framework itself, in an environment of its own, and "
            "compares with `encode_query` and `encode_document`. Without the prompts the framework loads the same "
            "folder, and nothing warns."
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write or check the pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    wrong = []
    for name in plugs:
        path = FOLDER / f"{name}.md"
        if "--check" in sys.argv:
            if not path.is_file() or path.read_text() != page(name):
                wrong.append(path.name)
        else:
            path.write_text(page(name))
    if wrong:
        sys.exit(f"stale: {', '.join(wrong)}; run scripts/write_framework_pages.py")


if __name__ == "__main__":
    main()
