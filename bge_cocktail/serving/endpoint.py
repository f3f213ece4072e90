"""An HTTP server with OpenAI's embeddings, Cohere-like reranking and classification, and a page to try models on.

Responses have OpenAI's form, errors too: https://platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import orjson

from bge_cocktail.core.errors import CocktailError, DataError, MissingExtra, UsageError, nearest
from bge_cocktail.core.outputs import read_object
from bge_cocktail.core.runs import hash_path
from bge_cocktail.core.version import __version__
from bge_cocktail.models.cache import Embeddings
from bge_cocktail.models.folder import is_classifier, model_folder
from bge_cocktail.models.plug import served_name
from bge_cocktail.models.prompts import Role
from bge_cocktail.options import ServeOptions
from bge_cocktail.search.exact import top_k
from bge_cocktail.serving.backends import Backend
from bge_cocktail.serving.batching import Batcher, TooBusyError
from bge_cocktail.serving.runtime import BackendEncoder, is_exported, open_backend

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, Response
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from pydantic import BaseModel, ConfigDict, Field
    from starlette.exceptions import HTTPException
except ImportError:
    raise MissingExtra("fastapi, uvicorn and prometheus-client", "serve") from None

log = logging.getLogger(__name__)
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("query", "search_query"), "query"),
    **dict.fromkeys(("document", "passage", "search_document"), "document"),
    **dict.fromkeys(("text", "classification", "clustering"), "text"),
}
# more than this many characters are tokenised outside the loop that answers everybody
_INLINE_CHARACTERS = 20_000
PAGE = Path(__file__).parent / "page.html"


# --- what is served ----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Served:
    """An encoder under a name.

    Attributes:
        folder: Where it lies.
        batcher: Its batches.
        documents: Embeddings of the documents that the page searches, shape (documents, dimensions).
    """

    folder: Path
    batcher: Batcher
    documents: Embeddings | None = None

    @property
    def backend(self) -> Backend:
        """What computes."""
        return self.batcher.backend


@dataclass(eq=False)
class Served:
    """All that a server answers with.

    Attributes:
        options: Limits and how models compute.
        encoders: By name.
        rerankers: Functions of pairs by name.
        classifiers: By name.
        corpus: Documents that the page searches.
        api_key: What clients must send; None lets all in.
        created: When the server began, in seconds since 1970.
    """

    options: ServeOptions
    encoders: dict[str, _Served] = field(default_factory=dict)
    rerankers: dict[str, Any] = field(default_factory=dict)
    classifiers: dict[str, Any] = field(default_factory=dict)
    corpus: Sequence[str] = ()
    api_key: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    ready: bool = True
    executor: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "compute"))
    metrics: _Metrics = field(default_factory=lambda: _Metrics())

    def names(self) -> list[str]:
        """Return all models by name."""
        return [*self.encoders, *self.rerankers, *self.classifiers]


class _Metrics:
    """What /metrics shows, in Prometheus' form."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        more = {"registry": self.registry}
        self.requests = Counter("requests", "Requests by path and status", ["path", "status"], **more)  # type: ignore[arg-type]
        self.seconds = Histogram("request_seconds", "Seconds to the answer", ["path"], **more)  # type: ignore[arg-type]
        self.texts = Counter("texts", "Texts computed", **more)  # type: ignore[arg-type]
        self.tokens = Counter("tokens", "Tokens computed, padding left out", **more)  # type: ignore[arg-type]
        self.padding = Counter("padding_tokens", "Tokens of padding computed", **more)  # type: ignore[arg-type]
        self.waiting = Gauge("waiting_tokens", "Tokens that wait", ["model"], **more)  # type: ignore[arg-type]
        self.batch = Histogram(
            "batch_texts", "Texts in a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), registry=self.registry
        )

    def on_batch(self, texts: int, tokens: int, whole: int) -> None:
        """Count a batch."""
        self.batch.observe(texts)
        self.texts.inc(texts)
        self.tokens.inc(tokens)
        self.padding.inc(whole - tokens)


def open_served(
    models: Mapping[str, str],
    options: ServeOptions | None = None,
    *,
    corpus: Sequence[str] = (),
    api_key: str | None = None,
) -> Served:
    """Load models to be served; each is told by its folder: encoder, export, classifier or reranker.

    Args:
        models: Folders or hub names by the names that clients use; see `served_names`.
        options: Limits and how models compute.
        corpus: Documents that the page searches, embedded by each encoder.
        api_key: What clients must send.

    Raises:
        DataError, UsageError, CocktailError: A model that can't be served.
    """
    options = options or ServeOptions()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    served = Served(options, corpus=corpus, api_key=api_key)
    for name, path in models.items():
        folder = Path(path) if is_exported(Path(path)) else model_folder(path)
        if is_exported(folder) or (not is_classifier(folder) and (folder / "modules.json").is_file()):
            served.encoders[name] = _open_encoder(served, folder)
        else:
            _open_headed(served, name, path, folder)
    return served


def _open_headed(served: Served, name: str, path: str, folder: Path) -> None:
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    labels = config.get("num_labels") or len(config.get("id2label") or {}) or 2
    if is_classifier(folder) and not (labels == 1 and not (folder / "classifier.json").is_file()):
        from bge_cocktail.training.classifier.model import load_classifier

        served.classifiers[name] = load_classifier(path, device=served.options.device)
        return
    if not is_classifier(folder):
        raise DataError(
            f"{path} is a plain transformers folder (no modules.json), so its pooling is unknown; write it with "
            "bge-cocktail merge NAME --pooling cls -o OUT (cls, mean or lasttoken)"
        )
    from bge_cocktail.models.reranker import load_reranker

    served.rerankers[name] = load_reranker(path, device=served.options.device)


def _open_encoder(served: Served, folder: Path) -> _Served:
    backend = open_backend(folder, served.options)
    batcher = Batcher(backend, served.executor, served.options.max_waiting_tokens, served.metrics.on_batch)
    documents = BackendEncoder(backend).encode_document(list(served.corpus)) if served.corpus else None
    return _Served(folder, batcher, documents)


def served_names(models: Sequence[str]) -> dict[str, str]:
    """Return models by the name that clients use: NAME=FOLDER, else the folder's own.

    Raises:
        UsageError: A name that comes twice, or holds a colon, which comes before a role.
    """
    named: dict[str, str] = {}
    for given in models:
        name, equals, path = given.partition("=")
        if not equals or Path(given).exists():
            name, path = served_name(given), given
        if not name or ":" in name:
            raise UsageError(f"'{name}' can't be a model's name here (a role follows a colon); give NAME={path}")
        if name in named:
            raise UsageError(f"two models would be called '{name}'; give NAME=FOLDER")
        named[name] = path
    return named


async def reload(served: Served) -> list[str]:
    """Take in encoders whose folders were replaced; what is being answered ends with the model that it began with.

    Returns:
        The names of the models that are new.
    """
    fresh = []
    for name, current in list(served.encoders.items()):
        try:
            if await asyncio.to_thread(hash_path, current.folder) == current.backend.hash:
                continue
            served.encoders[name] = await asyncio.to_thread(_open_encoder, served, current.folder)
        except (CocktailError, OSError) as error:  # the one that is loaded goes on
            log.warning("%s was replaced by what can't be served, and stays as it was: %s", name, error)
            continue
        log.info("%s was replaced, and the new one is taken in", name)
        fresh.append(name)
    return fresh


# --- what is asked -----------------------------------------------------------------------------------------------

TokenIds = list[Annotated[int, Field(ge=0, le=1 << 31)]]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class EmbeddingsRequest(_Asked):
    """OpenAI's request; `input_type` says the role, if the model's name doesn't (``name:query``)."""

    model: str
    input: str | list[str] | TokenIds | list[TokenIds]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    input_type: str | None = None
    user: str | None = None


class RerankRequest(_Asked):
    """Cohere's request; a reranker scores pairs, an encoder compares embeddings."""

    model: str
    query: str
    documents: list[str | dict[str, Any]]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False


class ClassifyRequest(_Asked):
    """Texts, or pairs of texts, to be labelled."""

    model: str
    inputs: list[str | Annotated[list[str], Field(min_length=2, max_length=2)]]


class SearchRequest(_Asked):
    """A query of the page."""

    model: str
    query: str
    count: Annotated[int, Field(ge=1, le=100)] = 10


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: Of HTTP.
        message: For the client; nothing of this machine.
        code: OpenAI's kind of code.
        param: The field of the request.
    """

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


def _error(error: ApiError) -> Response:
    kind = "invalid_request_error" if error.status < 500 and error.status != 429 else "server_error"
    kind = "rate_limit_error" if error.status == 429 else kind
    content = {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
    headers = {"Retry-After": "1"} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(orjson.dumps(content), error.status, headers, "application/json")


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


# --- the application ---------------------------------------------------------------------------------------------


def make_app(served: Served) -> FastAPI:
    """Return the ASGI application; `serve` runs it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watcher = asyncio.create_task(_watch(served)) if served.options.watch else None
        yield
        served.ready = False
        if watcher is not None:
            watcher.cancel()
        served.executor.shutdown(wait=True)

    app = FastAPI(title="bge-cocktail", version=__version__, lifespan=lifespan, docs_url="/docs", redoc_url=None)
    app.add_middleware(_Guard, served=served)
    app.add_exception_handler(ApiError, lambda _, error: _error(error))
    app.add_exception_handler(RequestValidationError, _on_invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _on_http)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _on_unforeseen)
    _add_routes(app, served)
    return app


def _add_routes(app: FastAPI, served: Served) -> None:
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": words}
        for status, words in {
            400: "Wrong request",
            401: "Wrong key",
            404: "No such model",
            408: "Too slow",
            413: "Too large",
            422: "Wrong request",
            429: "Too busy",
        }.items()
    }

    @app.post("/v1/embeddings", responses=errors)
    async def embeddings(asked: EmbeddingsRequest) -> Response:
        """Embed texts, as OpenAI does."""
        return _json(await _embeddings(served, asked))

    @app.post("/v1/rerank", responses=errors)
    @app.post("/rerank", responses=errors)
    async def rerank(asked: RerankRequest) -> Response:
        """Order documents by their relevance to a query, as Cohere does."""
        return _json(await _rerank(served, asked))

    @app.post("/v1/classify", responses=errors)
    @app.post("/classify", responses=errors)
    async def classify(asked: ClassifyRequest) -> Response:
        """Label texts."""
        return _json(await _classify(served, asked))

    @app.get("/v1/models")
    async def models() -> Response:
        """List the models, and the roles of encoders."""
        names = [*served.names(), *(f"{name}:{role}" for name in served.encoders for role in ("query", "document"))]
        data = [
            {"id": name, "object": "model", "created": served.created, "owned_by": "bge-cocktail"} for name in names
        ]
        return _json({"object": "list", "data": data})

    @app.get("/v1/models/{name:path}", responses=errors)
    async def model(name: str) -> Response:
        """Describe one model."""
        encoder, _ = _encoder(served, name, None) if name not in served.names() else (served.encoders.get(name), None)
        described: dict[str, Any] = {"id": name, "object": "model", "created": served.created}
        if encoder is not None:
            backend = encoder.backend
            described |= {"dimensions": [*backend.smaller, backend.dimensions], "max_length": backend.max_length}
        return _json({**described, "owned_by": "bge-cocktail"})

    @app.get("/health")
    async def health() -> Response:
        """Say that the process lives."""
        return _json({"status": "ok"})

    @app.get("/ready", responses={503: {"description": "Not ready"}})
    async def ready() -> Response:
        """Say whether requests are taken."""
        if not served.ready:
            raise ApiError(503, "the server is stopping", "not_ready")
        return _json({"status": "ready", "models": served.names()})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Show numbers in Prometheus' form."""
        for name, encoder in served.encoders.items():
            served.metrics.waiting.labels(name).set(encoder.batcher.waiting_tokens)
        return Response(generate_latest(served.metrics.registry), media_type="text/plain; version=0.0.4")

    @app.post("/search", responses=errors)
    async def search(asked: SearchRequest) -> Response:
        """Find documents of the corpus that the server was given."""
        return _json(await _search(served, asked))

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        """Show a page on which two models can be compared."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))


def _encoder(served: Served, name: str, input_type: str | None) -> tuple[_Served, Role]:
    """Return an encoder and the role of texts, by the model's name and the request's `input_type`."""
    bare, colon, suffix = name.rpartition(":")
    if name in served.encoders or not colon:
        bare, suffix = name, ""
    if bare not in served.encoders:
        other = "a classifier" if bare in served.classifiers else "a reranker" if bare in served.rerankers else ""
        if other:
            raise ApiError(400, f"'{bare}' is {other}; it embeds nothing", "wrong_kind", "model")
        raise ApiError(404, f"no model '{bare}'.{nearest(bare, served.names())}", "model_not_found", "model")
    roles: list[Role] = []
    for word, param in ((suffix, "model"), (input_type or "", "input_type")):
        if word and word not in _ROLES:
            raise ApiError(400, f"no role '{word}'.{nearest(word, _ROLES)}", "unknown_role", param)
        roles += [_ROLES[word]] if word else []
    if len(set(roles)) > 1:
        raise ApiError(400, f"the model's name says {roles[0]}, input_type says {roles[1]}", "two_roles", "input_type")
    return served.encoders[bare], roles[0] if roles else "text"


async def _embeddings(served: Served, asked: EmbeddingsRequest) -> dict[str, Any]:
    encoder, role = _encoder(served, asked.model, asked.input_type)
    backend = encoder.backend
    size = asked.dimensions
    if size is not None and size not in (*backend.smaller, backend.dimensions):
        known = ", ".join(map(str, (*backend.smaller, backend.dimensions)))
        raise ApiError(
            400, f"dimensions {size} is none that this model gives: {known}", "wrong_dimensions", "dimensions"
        )
    batch = await _ids(served, backend, asked.input, role)
    embeddings = await _embed(encoder.batcher, batch, role)
    if size is not None and size < backend.dimensions:
        embeddings = embeddings[:, :size]
        embeddings = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    if asked.encoding_format == "base64":
        shown: Any = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in embeddings]
    else:
        shown = list(np.ascontiguousarray(embeddings, np.float32))
    tokens = sum(map(len, batch))
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": row, "embedding": one} for row, one in enumerate(shown)],
        "model": asked.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def _ids(served: Served, backend: Backend, given: Any, role: Role) -> list[list[int]]:
    """Return the ids of texts, whether they came as texts or as ids."""
    many: list[Any] = [given] if isinstance(given, str) else given
    if many and isinstance(many[0], int):
        many = [many]
    if not many:
        raise ApiError(400, "'input' is empty", "empty_input", "input")
    if len(many) > served.options.max_texts:
        said = f"{len(many)} texts in one request; at most {served.options.max_texts} are taken"
        raise ApiError(400, said, "too_many_texts", "input")
    if any(not one for one in many):
        raise ApiError(400, "'input' holds an empty text", "empty_input", "input")
    if isinstance(many[0], str):
        # lone surrogates are no text that could be tokenised
        texts = [text.encode("utf-8", "replace").decode() for text in many]
        if sum(map(len, texts)) > _INLINE_CHARACTERS:
            return await asyncio.to_thread(backend.tokenize, texts, role)
        return backend.tokenize(texts, role)
    try:
        return [backend.wrap(ids, role) for ids in many]
    except UsageError as error:
        raise ApiError(400, str(error), "unknown_token", "input") from None


async def _embed(batcher: Batcher, batch: Sequence[Sequence[int]], role: Role) -> Embeddings:
    try:
        return await batcher.embed(batch, role)
    except TooBusyError:
        raise ApiError(429, "too much is waiting; try again in a second", "too_busy") from None


async def _rerank(served: Served, asked: RerankRequest) -> dict[str, Any]:
    documents = [_document(one) for one in asked.documents]
    if not documents:
        raise ApiError(400, "'documents' is empty", "empty_input", "documents")
    if len(documents) > served.options.max_texts:
        said = f"{len(documents)} documents in one request; at most {served.options.max_texts} are taken"
        raise ApiError(400, said, "too_many_texts", "documents")
    if not asked.query:
        raise ApiError(400, "'query' is empty", "empty_input", "query")
    if asked.model in served.rerankers:
        score = served.rerankers[asked.model]
        pairs = [(asked.query, document) for document in documents]
        scores = await asyncio.get_running_loop().run_in_executor(served.executor, score, pairs)
    else:
        encoder, _ = _encoder(served, asked.model, None)
        backend = encoder.backend
        queries = await _ids(served, backend, [asked.query], "query")
        texts = await _ids(served, backend, documents, "document")
        query, found = await asyncio.gather(
            _embed(encoder.batcher, queries, "query"), _embed(encoder.batcher, texts, "document")
        )
        scores = found @ query[0]
    order = np.argsort(-np.asarray(scores), kind="stable")[: asked.top_n]
    results = [
        {
            "index": int(row),
            "relevance_score": float(scores[row]),
            **({"document": {"text": documents[row]}} if asked.return_documents else {}),
        }
        for row in order
    ]
    return {"model": asked.model, "results": results}


def _document(given: str | dict[str, Any]) -> str:
    text = given if isinstance(given, str) else given.get("text")
    if not isinstance(text, str) or not text:
        raise ApiError(400, "each of 'documents' is a text, or an object with 'text'", "empty_input", "documents")
    return text.encode("utf-8", "replace").decode()


async def _classify(served: Served, asked: ClassifyRequest) -> dict[str, Any]:
    if asked.model not in served.classifiers:
        known = nearest(asked.model, served.classifiers) if served.classifiers else ""
        raise ApiError(404, f"no classifier '{asked.model}'.{known}", "model_not_found", "model")
    if not asked.inputs or len(asked.inputs) > served.options.max_texts:
        said = f"between 1 and {served.options.max_texts} texts are taken, {len(asked.inputs)} came"
        raise ApiError(400, said, "too_many_texts" if asked.inputs else "empty_input", "inputs")
    from bge_cocktail.options import PredictOptions
    from bge_cocktail.training.classifier.predict import predict

    classifier = served.classifiers[asked.model]
    texts = [one if isinstance(one, str) else (one[0], one[1]) for one in asked.inputs]
    pairs = classifier.settings.pairs
    if any(isinstance(text, tuple) != pairs for text in texts):
        raise ApiError(
            400, f"this classifier reads {'pairs of texts' if pairs else 'single texts'}", "wrong_kind", "inputs"
        )
    options = PredictOptions(device=served.options.device)
    predictions = await asyncio.get_running_loop().run_in_executor(
        served.executor, lambda: predict(classifier, texts, options)
    )
    labels = classifier.settings.labels
    data = [
        {
            "labels": list(one.labels),
            "probabilities": dict(zip(labels, (float(value) for value in one.probabilities), strict=True)),
        }
        for one in predictions
    ]
    return {"model": asked.model, "classifications": data}


async def _search(served: Served, asked: SearchRequest) -> dict[str, Any]:
    encoder, _ = _encoder(served, asked.model, None)
    if encoder.documents is None:
        raise ApiError(400, "this server was given no corpus to search", "no_corpus")
    if not asked.query:
        raise ApiError(400, "'query' is empty", "empty_input", "query")
    ids = await _ids(served, encoder.backend, [asked.query], "query")
    query = await _embed(encoder.batcher, ids, "query")
    similarities, rows = await asyncio.to_thread(top_k, query, encoder.documents, min(asked.count, len(served.corpus)))
    found = [
        {"document": served.corpus[row], "row": int(row), "similarity": float(similarity)}
        for row, similarity in zip(rows[0], similarities[0], strict=True)
    ]
    return {"model": asked.model, "found": found}


# --- errors and limits -------------------------------------------------------------------------------------------


async def _on_invalid(_: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:]) or "body"
    return _error(ApiError(400, f"{place}: {first['msg']}", "invalid_request", place))


async def _on_http(_: Request, error: HTTPException) -> Response:
    answer = _error(ApiError(error.status_code, str(error.detail), None))
    answer.headers.update(error.headers or {})
    return answer


async def _on_unforeseen(_: Request, error: Exception) -> Response:
    log.error("a request failed: %s: %s", type(error).__name__, error)
    return _error(ApiError(500, "the server failed on this request", "server_error"))


class _Guard:
    """Looks at the key, at the size of a body and at how slowly it comes, before anything is parsed; and counts.

    Args:
        app: What comes next.
        served: Key and limits.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], served: Served) -> None:
        self.app = app
        self.served = served

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer one request; see ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            body = await self._checked(scope, receive)
        except ApiError as error:
            await _error(error)(scope, receive, counted)
        else:
            given = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def replay() -> Any:
                return next(given, None) or await receive()

            await self.app(scope, replay, counted)
        route = scope.get("route")
        path = getattr(route, "path", "other")  # not the client's own words: they could be anything
        self.served.metrics.requests.labels(path, str(status)).inc()
        self.served.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    async def _checked(self, scope: dict[str, Any], receive: Any) -> bytes:
        options = self.served.options
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self.served.api_key is not None and scope["path"] not in ("/health", "/ready", "/"):
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not hmac.compare_digest(given, self.served.api_key.encode()):
                raise ApiError(401, "wrong or missing API key", "invalid_api_key")
        said = headers.get(b"content-length", b"0")
        if said.isdigit() and int(said) > options.max_bytes:
            raise ApiError(413, f"the body is larger than {options.max_bytes:,} bytes", "too_large")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(options.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the client hung up", "disconnected")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > options.max_bytes:
                        raise ApiError(413, f"the body is larger than {options.max_bytes:,} bytes", "too_large")
                    more = message.get("more_body", False)
        except TimeoutError:
            raise ApiError(408, f"the body had not come after {options.body_seconds:g} s", "too_slow") from None
        return b"".join(parts)


# --- running it --------------------------------------------------------------------------------------------------


async def _watch(served: Served) -> None:
    while True:
        await asyncio.sleep(served.options.watch)
        await reload(served)


def server_config(served: Served) -> Any:
    """Return how uvicorn runs the app of models."""
    import uvicorn

    from bge_cocktail.serving.connections import protocol

    return uvicorn.Config(
        make_app(served),
        http=protocol(served.options.body_seconds),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=60,
        server_header=False,
    )


def serve(served: Served, on_ready: Callable[[str], None] = lambda _: None) -> None:
    """Run a server until it is told to stop; requests that are being answered are answered first.

    Args:
        served: From `open_served`.
        on_ready: Told the address once it listens.

    Raises:
        CocktailError: The address can't be listened on.
    """
    import socket

    import uvicorn

    options = served.options
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host, options.port))
    except OSError as error:
        listening.close()
        raise CocktailError(f"can't listen on {options.host}:{options.port}: {error.strerror or error}") from None
    server = uvicorn.Server(server_config(served))
    listening.listen(2048)  # from now on clients wait instead of being refused
    port = listening.getsockname()[1]
    on_ready(f"http://{options.host}:{port}")
    server.run(sockets=[listening])
