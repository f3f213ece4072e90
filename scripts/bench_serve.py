"""Requests a second of `bge-cocktail serve` beside a plain FastAPI loop over `encode` and LitServe's embeddings.

    .venv/bin/python scripts/bench_serve.py [--quick] [--model FOLDER] [--clients 16]

All three are asked the same short texts by the same clients, one server at a time, on this machine. Without --quick
ours is asked for ten minutes, for lost requests and memory. LitServe has an environment of its own. Ends with one JSON
line: name, ours, peer, ratio, target, met. Needs the extras `demo` and `serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from measuring import Figures
from peers import peer_environment

from bge_cocktail.flow.demo import demo_data, demo_model

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
LITSERVE = ["litserve==0.2.19", "sentence-transformers"]
NAIVE = """
import sys
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], device="cpu")
app = FastAPI()


class Asked(BaseModel):
    model: str
    input: list[str]


@app.post("/v1/embeddings")
def embeddings(asked: Asked):
    rows = model.encode(asked.input, normalize_embeddings=True)
    return {"data": [{"index": number, "embedding": row.tolist()} for number, row in enumerate(rows)]}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""
LIT = """
import sys
import litserve as ls
from litserve.specs import OpenAIEmbeddingSpec
from sentence_transformers import SentenceTransformer


class Api(ls.LitAPI):
    def setup(self, device):
        self.model = SentenceTransformer(sys.argv[1], device="cpu")

    def predict(self, inputs):
        # batched: a list of the requests' lists of texts
        flat = [text for one in inputs for text in (one if isinstance(one, list) else [one])]
        rows = self.model.encode(flat, normalize_embeddings=True)
        split, place = [], 0
        for one in inputs:
            count = len(one) if isinstance(one, list) else 1
            split.append(rows[place : place + count])
            place += count
        return split


if __name__ == "__main__":
    api = Api(max_batch_size=16, batch_timeout=0.005, spec=OpenAIEmbeddingSpec())
    ls.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[2]), log_level="error", generate_client_file=False
    )
"""


class Asked:
    """What clients saw.

    Attributes:
        seconds: Of each answer.
        failed: Answers that are no 200, or lost.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.failed = 0

    def quantile(self, share: float) -> float:
        """Milliseconds that so many of the answers took at most."""
        return 1000 * float(np.quantile(self.seconds, share))


async def ask(port: int, texts: list[str], clients: int, seconds: float) -> Asked:
    """Ask from several connections at once, each for its next text as soon as it has its answer."""
    asked = Asked()
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = number
        while time.perf_counter() < end:
            body = json.dumps({"model": "mini", "input": [texts[turn % len(texts)]]}).encode()
            turn += clients
            started = time.perf_counter()
            writer.write(f"{HEAD}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            try:
                answer = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in answer.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                await reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError, StopIteration):
                asked.failed += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                continue
            asked.failed += b" 200 " not in answer[:20]
            asked.seconds.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    return asked


@contextmanager
def server(command: list[str], port: int) -> Iterator[psutil.Process]:
    """A server that answers, until the end of the block."""
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    process = subprocess.Popen(command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                if asyncio.run(ask(port, ["ready"], 1, 0.01)).failed == 0:
                    break
            except OSError:
                pass
            time.sleep(0.2)
        else:
            raise SystemExit(f"{command[:3]} didn't answer")
        yield psutil.Process(process.pid)
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.terminate()
        process.wait(30)


def memory(process: psutil.Process) -> float:
    """Resident megabytes of a process and those that it started."""
    return float(sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])) / 1e6


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def main() -> None:
    """Run the servers one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", type=Path, default=demo_model())
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    seconds, long = (10.0, 20.0) if arguments.quick else (30.0, 600.0)
    lines = (demo_data() / "handbook/queries.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    figures = Figures("serve")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "naive.py").write_text(NAIVE)
        (Path(scratch) / "lit.py").write_text(LIT)
        model, ours = str(arguments.model), str(Path(sys.executable).parent / "bge-cocktail")
        lit = str(peer_environment("litserve", LITSERVE) / "bin/python")
        commands: dict[str, Any] = {
            "naive": lambda port: [sys.executable, f"{scratch}/naive.py", model, str(port)],
            "litserve": lambda port: [lit, f"{scratch}/lit.py", model, str(port)],
            "ours": lambda port: [ours, "serve", f"mini={model}", "--port", str(port)],
        }
        rates: dict[str, float] = {}
        for name, command in commands.items():
            port = free_port()
            with server(command(port), port) as process:
                asyncio.run(ask(port, texts, arguments.clients, 3))
                asked = asyncio.run(ask(port, texts, arguments.clients, seconds))
                rates[name] = len(asked.seconds) / seconds
                p50, p99 = asked.quantile(0.5), asked.quantile(0.99)
                print(f"{name}: {rates[name]:.1f} a second, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
                if name == "ours":
                    before = memory(process)
                    asked = asyncio.run(ask(port, texts, arguments.clients, long))
                    after = memory(process)
    what = f"{arguments.clients} clients, one short text a request"
    each = {name: 1000 / rate for name, rate in rates.items()}
    figures.note("ms a request, FastAPI and encode", each["ours"], each["naive"], 2, what, least=True)
    figures.note("ms a request, LitServe", each["ours"], each["litserve"], 1, what, least=True)
    figures.note("p99 / p50", asked.quantile(0.99) / asked.quantile(0.5), None, 3, f"over {long:g} s")
    figures.note("requests lost", asked.failed, None, 0, f"of {len(asked.seconds):,} in {long:g} s")
    figures.note("memory grown, MB", after - before, None, 50, f"over {long:g} s")
    figures.finish(write=arguments.write)


if __name__ == "__main__":
    main()
