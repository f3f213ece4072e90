"""Adapters give a framework what encode_query and encode_document give; the pasted lines run; cards and uploads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result

from bge_cocktail.core.errors import CocktailError, DataError, UsageError
from bge_cocktail.merging.merge import merge
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.models.plug import plugs
from bge_cocktail.models.profile import model_profile
from bge_cocktail.models.prompts import set_prompts
from bge_cocktail.options import EncodeOptions
from bge_cocktail.serving import as_chroma, as_haystack, as_langchain, as_llama_index
from bge_cocktail.serving.push import plan_push, push

Cli = Callable[..., Result]
QUERIES = ["where is the red fox", "a blue car"]
DOCUMENTS = ["the fox is under the tree", "cars are in the street", "boat"]
PROMPTS = {"query": "what is ", "document": "the text: "}


@pytest.fixture(scope="module")
def prompted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("plug") / "prompted")
    set_prompts(folder, PROMPTS)
    return folder


@pytest.fixture(scope="module")
def expected(prompted: Path) -> tuple[Any, Any]:
    encoder = CachedEncoder(prompted, EncodeOptions(cache=False, precision="fp32"))
    return encoder.encode_query(QUERIES), encoder.encode_document(DOCUMENTS)


def agree(found: Any, expected: Any) -> None:
    assert (np.asarray(found, np.float64) * expected).sum(axis=1).min() >= 0.9999


def test_langchain(prompted: Path, expected: Any) -> None:
    embeddings = as_langchain(prompted)
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import InMemoryVectorStore

    assert isinstance(embeddings, Embeddings)
    agree([embeddings.embed_query(text) for text in QUERIES], expected[0])
    agree(embeddings.embed_documents(DOCUMENTS), expected[1])
    assert embeddings.embed_documents([]) == []
    store = InMemoryVectorStore.from_texts(DOCUMENTS, embeddings)
    order = [document.page_content for document in store.similarity_search(QUERIES[0], k=3)]
    assert order == [DOCUMENTS[row] for row in np.argsort(-expected[0][0] @ expected[1].T)]


def test_llama_index(prompted: Path, expected: Any) -> None:
    embeddings = as_llama_index(prompted)
    agree([embeddings.get_query_embedding(text) for text in QUERIES], expected[0])
    agree(embeddings.get_text_embedding_batch(DOCUMENTS), expected[1])


def test_haystack(prompted: Path, expected: Any) -> None:
    of_queries, of_documents = as_haystack(prompted)
    from haystack import Document, Pipeline

    pipeline = Pipeline()
    pipeline.add_component("embed", of_queries)
    agree([pipeline.run({"embed": {"text": text}})["embed"]["embedding"] for text in QUERIES], expected[0])
    documents = of_documents.run([Document(content=text) for text in DOCUMENTS])["documents"]
    agree([document.embedding for document in documents], expected[1])


def test_chroma(prompted: Path, expected: Any) -> None:
    import chromadb

    function = as_chroma(prompted)
    agree(function(DOCUMENTS), expected[1])
    agree(function.embed_query(QUERIES), expected[0])
    client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
    collection = client.create_collection(
        "texts", embedding_function=function, configuration={"hnsw": {"space": "cosine"}}
    )
    collection.add(ids=list("abc"), documents=DOCUMENTS)
    found = collection.query(query_texts=QUERIES, n_results=3)
    for row, ids in enumerate(found["ids"]):
        assert ids == ["abc"[place] for place in np.argsort(-expected[0][row] @ expected[1].T)]


@pytest.mark.parametrize("name", sorted(plugs))
def test_lines_are_python_or_shell_with_the_models_own_numbers(cli: Cli, prompted: Path, name: str) -> None:
    text = cli("plug", prompted, name).stdout
    if plugs.trait(name, "shell"):
        assert "curl" in text
    else:
        compile(text, name, "exec")
    assert not re.search(r"\{(model|_text|length|query|document)", text), "a place that was not filled"
    if name in ("langchain", "llama-index", "haystack", "chroma", "qdrant", "lancedb", "milvus"):
        assert '"what is "' in text
        assert '"the text: "' in text
    if name in ("tei", "vllm", "ollama"):
        assert '"what is how is a cocktail made?"' in text
    if name in ("qdrant", "milvus"):
        assert re.search(r"(size|dimension)=32\b", text)


def test_pasted_lines_of_sentence_transformers(prompted: Path, tmp_path: Path) -> None:
    """Also where the documents' prompt is stored under another name, which the library passes over."""
    other = shutil.copytree(prompted, tmp_path / "other")
    settings = json.loads((other / "config_sentence_transformers.json").read_text())
    settings["prompts"] = {"query": "what is ", "document": "", "passage": "the text: "}
    (other / "config_sentence_transformers.json").write_text(json.dumps(settings))
    space: dict[str, Any] = {}
    exec(plugs["sentence-transformers"](model_profile(other)), space)
    text = "Shake the parts with ice and strain."
    encoder = CachedEncoder(prompted, EncodeOptions(cache=False, precision="fp32"))
    agree(space["documents"], encoder.encode_document([text]))
    agree(space["queries"], encoder.encode_query(["how is a cocktail made?"]))


def test_wrong_names_are_usage_errors(cli: Cli, prompted: Path, tmp_path: Path) -> None:
    assert "Did you mean 'langchain'?" in cli("plug", prompted, "langchan", code=2).stderr
    assert "no model folder" in cli("plug", tmp_path / "nowhere", "chroma", code=2).stderr


def test_cards_inherit_what_agrees_and_say_what_does_not(prompted: Path, nudged: list[Path], tmp_path: Path) -> None:
    folders = [shutil.copytree(nudged[0], tmp_path / "one"), shutil.copytree(nudged[1], tmp_path / "two")]
    for folder, licence in zip(folders, ("mit", "cc-by-nc-4.0"), strict=True):
        (folder / "README.md").write_text(f"---\nlicense: {licence}\nlanguage:\n- en\n---\n# x\n")
    merge(folders, tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert "license" not in front
    assert front["language"] == ["en"]
    assert "**Licences differ** between what it was made of (one: mit, two: cc-by-nc-4.0)" in text
    for summary in ("LangChain", "LlamaIndex", "Haystack", "text-embeddings-inference"):
        assert f"<summary>{summary}" in text


def test_scores_stand_in_the_cards(cli: Cli, tiny: Path, nudged: list[Path], beir: Path, tmp_path: Path) -> None:
    """As the hub's own reader reads them, beside the base; put in again they replace the old ones."""
    from huggingface_hub import ModelCard

    base = shutil.copytree(tiny, tmp_path / "base")
    merge([base, nudged[0]], tmp_path / "merged")
    for name in ("one", "two"):
        cli("evaluate", base, tmp_path / "merged", "--target", beir, "--card", "-o", tmp_path / name)
    card = ModelCard.load(tmp_path / "merged/README.md")
    (result,) = card.data.eval_results
    scores = json.loads((tmp_path / "two/scores.json").read_text())["models"]
    (main,) = [score for score in scores[1]["scores"] if score["main"]]
    assert result.metric_value == pytest.approx(main["value"], abs=1e-6)
    assert result.task_type == "information-retrieval"
    assert "95 % interval" in result.metric_name
    text = (tmp_path / "merged/README.md").read_text()
    assert text.count("## Scores") == 1
    assert text.index("## Recipe") < text.index("## Scores") < text.index("## Use")
    (before,) = [score for score in scores[0]["scores"] if score["main"]]
    assert f"| {before['value']:.4f} | {main['value']:.4f} |" in text
    assert "## Scores" in (base / "README.md").read_text()


def test_a_trained_models_card(cli: Cli, tiny: Path, labelled: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    rows = [{"query": f"the red fox {n}", "pos": [f"a blue car {n}"]} for n in range(16)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    quick = ("--epochs", 1, "--batch-size", 8, "--negatives", 0)
    cli("train", tmp_path / "train.jsonl", "-m", tiny, "--query-prompt", "what: ", *quick, "-o", tmp_path / "tuned")
    text = (tmp_path / "tuned/README.md").read_text()
    card = ModelCard(text)
    assert card.data.pipeline_tag == "sentence-similarity"
    assert "Tuned from `" in text
    assert "on 16 records of `train.jsonl`" in text
    assert "batch_size = 8" in text
    assert "Prompt of queries: `what: `" in text
    assert str(tmp_path) not in text
    cli("classify", "train", labelled, "-m", tiny, "--epochs", 1, "-o", tmp_path / "labels")
    text = (tmp_path / "labels/README.md").read_text()
    assert ModelCard(text).data.pipeline_tag == "text-classification"
    assert "Predicts: " in text
    assert "## Use" in text


def test_what_would_go_to_the_hub(cli: Cli, prompted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(prompted, tmp_path / "model")
    with pytest.raises(DataError, match="no model card"):
        plan_push(folder, "me/model")
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(DataError, match="can't be read"):
        plan_push(folder, "me/model")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / ".env").write_text("TOKEN=1")
    (folder / "secret.txt").symlink_to(tmp_path / "outside.txt")
    (tmp_path / "outside.txt").write_text("x")
    with pytest.raises(UsageError, match="owner/name"):
        plan_push(folder, "model")
    upload = plan_push(folder, "me/model")
    assert set(upload.kept_back) == {".env", "secret.txt"}
    assert "model.safetensors" in upload.files
    shown = cli("push", folder, "me/model", "--dry-run").stdout
    assert "nothing was uploaded" in shown
    assert "kept back" in shown
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CocktailError, match="HF_HUB_OFFLINE is set"):
        push(upload)


def test_the_pages_of_frameworks_are_fresh_and_their_code_runs(
    prompted: Path, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from conftest import ROOT

    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from write_framework_pages import ADAPTERS, FOLDER, page

    assert {path.stem for path in FOLDER.glob("*.md")} == set(plugs)
    for name in plugs:
        assert (FOLDER / f"{name}.md").read_text() == page(name), "run scripts/write_framework_pages.py"
    place = tmp_path / "runs/demo"
    place.mkdir(parents=True)
    shutil.copytree(prompted, place / "cocktail")
    monkeypatch.chdir(tmp_path)
    encoder = CachedEncoder(prompted, EncodeOptions(cache=False, precision="fp32"))
    query = encoder.encode_query(["how is a cocktail made?"])
    documents = encoder.encode_document(["Shake the parts with ice and strain."])
    for name in ADAPTERS:
        code = re.findall(r"```python\n(.*?)```", (FOLDER / f"{name}.md").read_text(), re.DOTALL)[-1]
        space: dict[str, Any] = {}
        exec(compile(code, name, "exec"), space)
        agree(np.asarray(space["query"])[None], query)
        agree(np.asarray(space["documents"]), documents)
    assert "sentence_transformers" in sys.modules
