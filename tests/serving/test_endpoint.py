"""The server, asked by OpenAI's own client and by raw bytes: same embeddings, honest errors, nothing lost."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import uvicorn
from conftest import perturb

from bge_cocktail.core.errors import UsageError
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.models.prompts import set_prompts
from bge_cocktail.options import EncodeOptions, ServeOptions
from bge_cocktail.serving.backends import TorchBackend
from bge_cocktail.serving.batching import Batcher, TooBusyError
from bge_cocktail.serving.endpoint import Served, open_served, served_names, server_config
from bge_cocktail.serving.endpoint import reload as reload_models

# CI draws more, for a minute
FUZZ_REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "15"))
TEXTS = ["where is the red fox", "a blue car in the street", "boat", "the fox and the car are under the tree"]


@contextmanager
def running(served: Served) -> Iterator[str]:
    """The address of a server in a thread."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    server = uvicorn.Server(server_config(served))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def prompted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("serve") / "prompted")
    set_prompts(folder, {"query": "what is ", "document": "the text: "})
    return folder


@pytest.fixture(scope="module")
def encoder(prompted: Path) -> CachedEncoder:
    return CachedEncoder(prompted, EncodeOptions(cache=False))


@pytest.fixture(scope="module")
def address(
    prompted: Path, tiny: Path, reranker: Path, classifier: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    models = {"m": str(prompted), "other": str(tiny), "judge": str(reranker), "labels": str(classifier)}
    options = ServeOptions(dimensions=[8], max_texts=64, max_bytes=100_000, body_seconds=1, max_waiting_tokens=50_000)
    with running(open_served(models, options, corpus=TEXTS)) as place:
        yield place


@pytest.fixture(scope="module")
def classifier(tiny: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from click.testing import CliRunner

    from bge_cocktail.cli import main

    folder = tmp_path_factory.mktemp("classifier") / "labels"
    arguments = ["classify", "train", labelled, "-m", tiny, "--epochs", 1, "-o", folder]
    assert CliRunner().invoke(main, [str(one) for one in arguments]).exit_code == 0
    return folder


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def vectors(answer: Any) -> np.ndarray:
    return np.array([one.embedding for one in answer.data], np.float32)


@pytest.mark.parametrize("form", ["float", "base64"])
def test_openais_client_gets_what_the_model_gives(client: openai.OpenAI, encoder: CachedEncoder, form: Any) -> None:
    asked: dict[str, Any] = {"input": TEXTS}
    if form == "float":
        asked["encoding_format"] = "float"  # the client's own default is base64
    query = client.embeddings.create(model="m:query", **asked)
    assert np.allclose(vectors(query), encoder.encode_query(TEXTS), atol=1e-6)
    documents = client.embeddings.create(model="m", extra_body={"input_type": "document"}, **asked)
    assert np.allclose(vectors(documents), encoder.encode_document(TEXTS), atol=1e-6)
    plain = client.embeddings.create(model="m", **asked)
    assert np.allclose(vectors(plain), encoder.encode_text(TEXTS), atol=1e-6)
    assert [one.index for one in plain.data] == [0, 1, 2, 3]
    assert query.usage.prompt_tokens > plain.usage.prompt_tokens > 0
    assert vectors(client.embeddings.create(model="other", input="boat")).shape == (1, 32)


def test_token_arrays_are_the_models_own(client: openai.OpenAI, prompted: Path, encoder: CachedEncoder) -> None:
    tokenizer = encoder.model.tokenizer
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    answer = client.embeddings.create(model="m:query", input=ids)
    assert np.allclose(vectors(answer), encoder.encode_query(TEXTS), atol=1e-6)
    one = client.embeddings.create(model="m:document", input=ids[0])
    assert np.allclose(vectors(one), encoder.encode_document(TEXTS[:1]), atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="none of this model's"):
        client.embeddings.create(model="m", input=[100_000])  # another tokenizer's, as some clients send


def test_long_texts_are_cut_as_the_model_cuts(client: openai.OpenAI, encoder: CachedEncoder) -> None:
    long = "the red fox and a blue car " * 100
    answer = client.embeddings.create(model="m:document", input=[long])
    assert np.allclose(vectors(answer), encoder.encode_document([long]), atol=1e-6)
    assert answer.usage.prompt_tokens == encoder.model.max_seq_length
    ids = encoder.model.tokenizer(long, add_special_tokens=False)["input_ids"]
    again = client.embeddings.create(model="m:document", input=[ids])
    assert np.allclose(vectors(again), vectors(answer), atol=1e-6)


def test_fewer_dimensions_are_at_unit_norm_again(client: openai.OpenAI, encoder: CachedEncoder) -> None:
    cut = vectors(client.embeddings.create(model="m", input=TEXTS, dimensions=8))
    expected = encoder.encode_text(TEXTS)[:, :8]
    assert np.allclose(cut, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="dimensions 9 is none that this model gives: 8, 32"):
        client.embeddings.create(model="m", input=TEXTS, dimensions=9)


def test_models_are_listed_and_described(client: openai.OpenAI, address: str) -> None:
    assert {"m", "m:query", "m:document", "judge", "labels"} <= {model.id for model in client.models.list()}
    described = httpx.get(f"{address}/v1/models/m").json()
    assert described["dimensions"] == [8, 32]
    assert httpx.get(f"{address}/v1/models/labels").status_code == 200
    assert httpx.get(f"{address}/v1/models/nothing").status_code == 404


WRONG: list[tuple[Any, int, str]] = [
    ({"model": "mm", "input": "x"}, 404, "no model 'mm'"),
    ({"model": "m:quer", "input": "x"}, 400, "Did you mean 'query'?"),
    ({"model": "m:query", "input": "x", "input_type": "document"}, 400, "input_type says document"),
    ({"model": "judge", "input": "x"}, 400, "is a reranker; it embeds nothing"),
    ({"model": "m", "input": []}, 400, "'input'"),
    ({"model": "m", "input": ""}, 400, "empty text"),
    ({"model": "m", "input": ["x", ""]}, 400, "empty text"),
    ({"model": "m", "input": ["x"] * 65}, 400, "at most 64"),
    ({"model": "m", "input": [[]]}, 400, "empty"),
    ({"model": "m", "input": [1, "x"]}, 400, "input"),
    ({"model": "m", "input": {"a": 1}}, 400, "input"),
    ({"model": "m", "input": "x", "encoding_format": "hex"}, 400, "encoding_format"),
    ({"model": "m", "input": "x", "dimensions": 0}, 400, "dimensions"),
    ({"model": "m"}, 400, "input: Field required"),
    ([], 400, "body"),
    (b"{", 400, "JSON"),
    (b"\xff\xfe", 400, ""),
]


@pytest.mark.parametrize(("body", "status", "said"), WRONG)
def test_wrong_requests_get_openais_form_of_error(address: str, body: Any, status: int, said: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{address}/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert said in error["message"]
    assert "/" not in error["message"]
    assert "Traceback" not in answer.text


def test_bodies_that_are_too_large_or_too_slow(address: str) -> None:
    large = httpx.post(f"{address}/v1/embeddings", content=b"x" * 100_001)
    assert large.status_code == 413

    def pieces() -> Iterator[bytes]:  # without a length, so that it must be counted
        for _ in range(40):
            yield b"x" * 5_000

    assert httpx.post(f"{address}/v1/embeddings", content=pieces()).status_code == 413
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        slow.settimeout(5)
        assert b" 408 " in slow.recv(1000)
    # a head a byte at a time, of the first request of a connection and of a later one
    for before in (b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"):
        with socket.create_connection((host, int(port))) as slow:
            slow.settimeout(5)
            slow.sendall(before)
            assert not before or slow.recv(1000).startswith(b"HTTP/1.1 200")
            started = time.monotonic()
            with pytest.raises(OSError):  # noqa: PT011, PT012  (a pipe or a connection that is broken)
                for byte in b"GET /health HTTP/1.1\r\nX: " + b"x" * 100:
                    slow.sendall(bytes([byte]))
                    time.sleep(0.1)
            assert 0.9 < time.monotonic() - started < 4
    with socket.create_connection((host, int(port))) as gone:
        gone.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    assert httpx.get(f"{address}/ready").json()["status"] == "ready"


def test_many_at_once_get_their_own(client: openai.OpenAI, address: str, encoder: CachedEncoder) -> None:
    """A large request among small ones: everybody gets what alone it would get, and texts are put together."""
    expected = encoder.encode_text(TEXTS)

    def ask(number: int) -> float:
        rows = [row % 4 for row in range(64)] if number % 8 == 0 else [number % 4]
        answer = client.embeddings.create(model="m", input=[TEXTS[row] for row in rows])
        return float(np.abs(vectors(answer) - expected[rows]).max())

    with ThreadPoolExecutor(16) as threads:
        assert max(threads.map(ask, range(96))) < 1e-5
    numbers = dict(
        line.rsplit(" ", 1) for line in httpx.get(f"{address}/metrics").text.splitlines() if not line.startswith("#")
    )
    assert float(numbers["texts_total"]) >= 12 * 64 + 84
    assert float(numbers["batch_texts_count"]) < float(numbers["texts_total"])
    assert float(numbers['waiting_tokens{model="m"}']) == 0
    assert float(numbers['requests_total{path="/v1/embeddings",status="200"}']) >= 96


def test_rerank_and_classify(address: str, reranker: Path, encoder: CachedEncoder) -> None:
    from bge_cocktail.models.reranker import load_reranker

    documents: list[Any] = [TEXTS[1], {"text": TEXTS[3]}, TEXTS[2]]
    asked = {"model": "judge", "query": "fox", "documents": documents, "top_n": 2, "return_documents": True}
    told = httpx.post(f"{address}/rerank", json=asked).json()["results"]
    scores = load_reranker(str(reranker), device="cpu")([("fox", TEXTS[row]) for row in (1, 3, 2)])
    assert [one["index"] for one in told] == np.argsort(-scores)[:2].tolist()
    assert told[0]["relevance_score"] == pytest.approx(scores.max(), abs=1e-5)
    assert "text" in told[0]["document"]
    by_encoder = httpx.post(f"{address}/v1/rerank", json={**asked, "model": "m"}).json()["results"]
    similar = encoder.encode_document([TEXTS[row] for row in (1, 3, 2)]) @ encoder.encode_query(["fox"])[0]
    assert [one["index"] for one in by_encoder] == np.argsort(-similar)[:2].tolist()
    labelled = httpx.post(f"{address}/v1/classify", json={"model": "labels", "inputs": TEXTS}).json()
    assert len(labelled["classifications"]) == 4
    for one in labelled["classifications"]:
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert one["labels"] == [max(one["probabilities"], key=one["probabilities"].get)]
    for wrong in ({"model": "m", "inputs": TEXTS}, {"model": "labels", "inputs": [["a", "b"]]}):
        assert httpx.post(f"{address}/classify", json=wrong).status_code in (400, 404)
    assert httpx.post(f"{address}/rerank", json={**asked, "documents": []}).status_code == 400


def test_the_key_is_asked_for(prompted: Path) -> None:
    with running(open_served({"m": str(prompted)}, api_key="secret")) as place:
        asked = {"model": "m", "input": "x"}
        assert httpx.post(f"{place}/v1/embeddings", json=asked).status_code == 401
        assert (
            httpx.post(f"{place}/v1/embeddings", json=asked, headers={"Authorization": "Bearer secre"}).status_code
            == 401
        )
        client = openai.OpenAI(base_url=f"{place}/v1", api_key="secret")
        assert len(client.embeddings.create(model="m", input="x").data) == 1
        assert httpx.get(f"{place}/health").status_code == 200
        assert httpx.get(f"{place}/v1/models").status_code == 401


def test_too_much_waiting_is_refused_and_goes_on(prompted: Path) -> None:
    backend = TorchBackend(prompted, ServeOptions(device="cpu"))

    async def flood() -> tuple[int, int, int]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(backend, executor, max_waiting_tokens=200)
            ids = backend.tokenize(TEXTS, "text")
            answers = await asyncio.gather(*(batcher.embed(ids, "text") for _ in range(50)), return_exceptions=True)
            busy = sum(isinstance(one, TooBusyError) for one in answers)
            again = await batcher.embed(ids, "text")
            return busy, len(answers) - busy, len(again)

    busy, answered, again = asyncio.run(flood())
    assert busy > 0
    assert answered > 0
    assert again == 4


def test_a_batch_that_fails_is_said_and_the_next_goes_on(prompted: Path) -> None:
    backend = TorchBackend(prompted, ServeOptions(device="cpu"))
    embed = backend.embed
    calls: list[int] = []

    def failing(batch: Any, role: Any) -> Any:
        calls.append(len(batch))
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return embed(batch, role)

    backend.embed = failing  # type: ignore[method-assign]

    async def both() -> tuple[Any, int, int]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(backend, executor, 10_000)
            ids = backend.tokenize(TEXTS, "text")
            (first,) = await asyncio.gather(batcher.embed(ids, "text"), return_exceptions=True)
            second = await batcher.embed(ids, "text")
            return first, len(second), batcher.waiting_tokens

    first, second, waiting = asyncio.run(both())
    assert isinstance(first, RuntimeError)
    assert (second, waiting) == (4, 0)


def test_a_new_model_is_taken_in_without_a_request_lost(prompted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(prompted, tmp_path / "model")
    served = open_served({"m": str(folder)}, ServeOptions(device="cpu"))
    newer = perturb(prompted, tmp_path / "newer", 5)
    wrong: list[Any] = []
    stop = threading.Event()
    with running(served) as place:
        client = openai.OpenAI(base_url=f"{place}/v1", api_key="none", max_retries=0)
        before = vectors(client.embeddings.create(model="m", input=TEXTS))

        def ask() -> None:
            while not stop.is_set():
                try:
                    client.embeddings.create(model="m", input=TEXTS)
                except Exception as error:
                    wrong.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        folder.rename(tmp_path / "old")
        newer.rename(folder)
        assert asyncio.run(reload_models(served)) == ["m"]
        after = vectors(client.embeddings.create(model="m", input=TEXTS))
        # what can't be served is not taken in
        (folder / "model.safetensors").write_bytes(b"x")
        assert asyncio.run(reload_models(served)) == []
        still = vectors(client.embeddings.create(model="m", input=TEXTS))
        stop.set()
        thread.join()
    assert wrong == []
    assert np.abs(before - after).max() > 1e-3
    assert np.array_equal(after, still)


def test_search_and_the_page(address: str, encoder: CachedEncoder) -> None:
    told = httpx.post(f"{address}/search", json={"model": "m", "query": "fox", "count": 3}).json()["found"]
    similar = encoder.encode_query(["fox"])[0] @ encoder.encode_document(TEXTS).T
    assert [one["row"] for one in told] == np.argsort(-similar)[:3].tolist()
    page = httpx.get(f"{address}/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("http-equiv", "")  # nothing is fetched from elsewhere


def test_names(prompted: Path, tiny: Path) -> None:
    assert served_names([f"a={prompted}", str(tiny)]) == {"a": str(prompted), tiny.name: str(tiny)}
    with pytest.raises(UsageError, match="two models would be called"):
        served_names([str(tiny), str(tiny)])
    with pytest.raises(UsageError, match="a role follows a colon"):
        served_names([f"a:b={tiny}"])


def test_a_schema_that_describes_what_is_answered(address: str) -> None:
    """Requests drawn from the server's own OpenAPI schema: nothing but what it says, and never a 500."""
    import hypothesis
    import schemathesis

    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    seen: set[int] = set()

    @schema.parametrize()
    def _described(case: Any) -> None: ...

    for operation in schema.get_all_operations():
        case_strategy = operation.ok().as_strategy()

        @hypothesis.settings(
            max_examples=FUZZ_REQUESTS, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.seed(13)
        @hypothesis.given(case_strategy)
        def ask(case: Any) -> None:
            answer = case.call(base_url=address)
            seen.add(answer.status_code)
            assert answer.status_code < 500, answer.text

        ask()
    assert seen >= {200, 400}
    assert httpx.get(f"{address}/health").status_code == 200


def test_stopping_answers_what_was_asked(prompted: Path) -> None:
    command = [sys.executable, "-m", "bge_cocktail", "serve", f"m={prompted}", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "serving m at" in line)
        place = line.split(" at ")[1].split(" ")[0]
        with ThreadPoolExecutor(1) as threads:
            asked = {"model": "m", "input": TEXTS * 500}
            answer = threads.submit(httpx.post, f"{place}/v1/embeddings", json=asked, timeout=60)
            time.sleep(0.15)
            process.send_signal(signal.SIGTERM)
            assert len(answer.result().json()["data"]) == 2000
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()


def test_an_address_in_use(prompted: Path, cli: Callable[..., Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = cli("serve", prompted, "--port", taken.getsockname()[1], code=1)
    assert "can't listen on 127.0.0.1" in result.stderr
