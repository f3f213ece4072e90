"""The lines by which other programs use a model as it was tuned: with its prompts, length, norm and dimensions.

Without them, the frameworks load the folder and leave the prompts out, and nothing warns.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from bge_cocktail.core.registry import Registry
from bge_cocktail.models.profile import ModelProfile

Plug = Callable[[ModelProfile], str]
"""Takes the profile of a model; returns lines to paste."""
plugs = Registry[Plug]("plugs")


def _text(value: str) -> str:
    """Return a text as Python writes it, on one line."""
    return json.dumps(value, ensure_ascii=False)


@plugs("sentence-transformers")
def sentence_transformers(model: ModelProfile) -> str:
    """Python: the folder's own prompts, by encode_query and encode_document."""
    document = ""
    if model.prompts.document:
        # as said in the call: version 5 and 6 take an empty 'document' prompt before one named 'passage'
        document = f", prompt={_text(model.prompts.document)}"
    return f"""\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({_text(model.name)})
queries = model.encode_query(["how is a cocktail made?"], normalize_embeddings=True)
documents = model.encode_document(["Shake the parts with ice and strain."]{document}, normalize_embeddings=True)
print(queries @ documents.T)
"""


@plugs("langchain", package="langchain-huggingface sentence-transformers")
def langchain(model: ModelProfile) -> str:
    """LangChain's HuggingFaceEmbeddings."""
    return f"""\
from langchain_huggingface import HuggingFaceEmbeddings

embeddings = HuggingFaceEmbeddings(
    model_name={_text(model.name)},
    encode_kwargs={{"prompt": {_text(model.prompts.document)}, "normalize_embeddings": True}},
    query_encode_kwargs={{"prompt": {_text(model.prompts.query)}, "normalize_embeddings": True}},
)
query = embeddings.embed_query("how is a cocktail made?")
documents = embeddings.embed_documents(["Shake the parts with ice and strain."])
"""


@plugs("llama-index", package="llama-index-embeddings-huggingface sentence-transformers")
def llama_index(model: ModelProfile) -> str:
    """LlamaIndex's HuggingFaceEmbedding."""
    length = "" if model.max_length is None else f"    max_length={model.max_length},\n"
    return f"""\
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

embeddings = HuggingFaceEmbedding(
    model_name={_text(model.name)},
    query_instruction={_text(model.prompts.query)},
    text_instruction={_text(model.prompts.document)},
{length}    normalize=True,
)
query = embeddings.get_query_embedding("how is a cocktail made?")
documents = embeddings.get_text_embedding_batch(["Shake the parts with ice and strain."])
"""


@plugs("haystack", package="sentence-transformers-haystack sentence-transformers")
def haystack(model: ModelProfile) -> str:
    """Haystack's embedders, one for queries and one for documents."""
    return f"""\
from haystack import Document
from haystack_integrations.components.embedders.sentence_transformers import (
    SentenceTransformersDocumentEmbedder,
    SentenceTransformersTextEmbedder,
)

of_queries = SentenceTransformersTextEmbedder(
    model={_text(model.name)}, prefix={_text(model.prompts.query)}, normalize_embeddings=True
)
of_documents = SentenceTransformersDocumentEmbedder(
    model={_text(model.name)}, prefix={_text(model.prompts.document)}, normalize_embeddings=True
)
of_queries.warm_up()
of_documents.warm_up()
query = of_queries.run("how is a cocktail made?")["embedding"]
embedded = of_documents.run([Document(content="Shake the parts with ice and strain.")])["documents"]
documents = [document.embedding for document in embedded]
"""


@plugs("chroma", package="chromadb sentence-transformers")
def chroma(model: ModelProfile) -> str:
    """Chroma: an embedding function that knows queries from documents."""
    return f"""\
import chromadb
from chromadb import Documents, EmbeddingFunction, Embeddings
from sentence_transformers import SentenceTransformer


class Embed(EmbeddingFunction[Documents]):
    def __init__(self) -> None:
        self.model = SentenceTransformer({_text(model.name)})

    def __call__(self, input: Documents) -> Embeddings:
        return list(self.model.encode(input, prompt={_text(model.prompts.document)}, normalize_embeddings=True))

    def embed_query(self, input: Documents) -> Embeddings:
        return list(self.model.encode(input, prompt={_text(model.prompts.query)}, normalize_embeddings=True))

    @staticmethod
    def name() -> str:
        return "bge-cocktail"

    def get_config(self) -> dict:
        return {{}}

    @staticmethod
    def build_from_config(config: dict) -> "Embed":
        return Embed()


embed = Embed()
client = chromadb.PersistentClient("chroma")
collection = client.get_or_create_collection(
    "documents", embedding_function=embed, configuration={{"hnsw": {{"space": "cosine"}}}}
)
collection.upsert(ids=["1"], documents=["Shake the parts with ice and strain."])
print(collection.query(query_texts=["how is a cocktail made?"], n_results=1))
query = embed.embed_query(["how is a cocktail made?"])[0]
documents = embed(["Shake the parts with ice and strain."])
"""


def _encoders(model: ModelProfile) -> str:
    """Return the lines that the stores of vectors share, which embed nothing themselves."""
    return f"""\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({_text(model.name)})


def embed_queries(texts):
    return model.encode(texts, prompt={_text(model.prompts.query)}, normalize_embeddings=True)


def embed_documents(texts):
    return model.encode(texts, prompt={_text(model.prompts.document)}, normalize_embeddings=True)


documents = embed_documents(["Shake the parts with ice and strain."])
query = embed_queries(["how is a cocktail made?"])[0]
"""


@plugs("qdrant", package="qdrant-client sentence-transformers")
def qdrant(model: ModelProfile) -> str:
    """Qdrant: a collection of the right size and distance."""
    return f"""\
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams
{_encoders(model)}
client = QdrantClient(path="qdrant")  # or url="http://localhost:6333"
client.create_collection("documents", VectorParams(size={model.dimensions}, distance=Distance.COSINE))
points = [PointStruct(id=number, vector=vector.tolist()) for number, vector in enumerate(documents)]
client.upsert("documents", points)
print(client.query_points("documents", query=query.tolist(), limit=1))
"""


@plugs("lancedb", package="lancedb sentence-transformers")
def lancedb(model: ModelProfile) -> str:
    """LanceDB: a table of vectors, searched by cosine."""
    return f"""\
import lancedb
{_encoders(model)}
database = lancedb.connect("lancedb")
rows = [{{"id": number, "vector": vector.tolist()}} for number, vector in enumerate(documents)]
table = database.create_table("documents", rows, mode="overwrite")
print(table.search(query.tolist()).distance_type("cosine").limit(1).to_list())
"""


@plugs("milvus", package="pymilvus sentence-transformers")
def milvus(model: ModelProfile) -> str:
    """Milvus: a collection of the right size and metric."""
    return f"""\
from pymilvus import MilvusClient
{_encoders(model)}
client = MilvusClient("milvus.db")  # or uri="http://localhost:19530"
client.create_collection("documents", dimension={model.dimensions}, metric_type="COSINE")
client.insert("documents", [{{"id": number, "vector": vector.tolist()}} for number, vector in enumerate(documents)])
print(client.search("documents", data=[query.tolist()], limit=1))
"""


def _posted(model: ModelProfile) -> tuple[str, str]:
    """Return a query and a document with their prompts, as JSON, for servers that put none before them."""
    return _text(f"{model.prompts.query}how is a cocktail made?"), _text(
        f"{model.prompts.document}Shake the parts with ice and strain."
    )


def _after_prompt(model: ModelProfile, address: str, name: str) -> str:
    query, document = _posted(model)
    return f"""\
from openai import OpenAI

client = OpenAI(base_url="{address}", api_key="none")
# this server knows no prompts: they stand before the texts
query = client.embeddings.create(model={_text(name)}, input=[{query}])
documents = client.embeddings.create(model={_text(name)}, input=[{document}])
"""


@plugs("tei", shell=True)
def tei(model: ModelProfile) -> str:
    """text-embeddings-inference: reads the folder; the prompts stand before the texts."""
    query, document = _posted(model)
    pooling = model.poolings[0] if model.poolings else "mean"
    pooling = {"lasttoken": "last-token"}.get(pooling, pooling)
    return f"""\
text-embeddings-router --model-id {_quoted(model.name)} --pooling {pooling} --auto-truncate --port 8080 &

# this server's prompts have to be chosen in each call; here they stand before the texts
curl http://127.0.0.1:8080/embed -H 'Content-Type: application/json' \\
  -d {_quoted(f'{{"inputs": [{query}], "normalize": true}}')}
curl http://127.0.0.1:8080/embed -H 'Content-Type: application/json' \\
  -d {_quoted(f'{{"inputs": [{document}], "normalize": true}}')}
"""


@plugs("vllm")
def vllm(model: ModelProfile) -> str:
    """vLLM's OpenAI-compatible server; the prompts stand before the texts."""
    length = "" if model.max_length is None else f" --max-model-len {model.max_length}"
    return f"""\
# vllm serve {_quoted(model.name)} --runner pooling{length} --port 8000
{_after_prompt(model, "http://127.0.0.1:8000/v1", model.name)}"""


@plugs("ollama")
def ollama(model: ModelProfile) -> str:
    """Ollama, from a GGUF file; the prompts stand before the texts."""
    return f"""\
# bge-cocktail export {_quoted(model.name)} --to gguf -o exported
# echo 'FROM ./exported/model.gguf' > Modelfile && ollama create tuned -f Modelfile
{_after_prompt(model, "http://127.0.0.1:11434/v1", "tuned")}"""


@plugs("openai")
def openai(model: ModelProfile) -> str:
    """The official OpenAI client, with bge-cocktail serve, which puts the prompts itself."""
    name = served_name(model.name)
    return f"""\
# bge-cocktail serve {_quoted(model.name)}
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
query = client.embeddings.create(model={_text(name + ":query")}, input=["how is a cocktail made?"])
documents = client.embeddings.create(
    model={_text(name + ":document")}, input=["Shake the parts with ice and strain."]
)
"""


def served_name(name: str) -> str:
    """Return what a server calls a model unless told otherwise: a hub name, else the last part of its path."""
    from pathlib import Path

    is_path = Path(name).exists() or name.count("/") != 1
    return Path(name).resolve().name if is_path else name


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
