#!/usr/bin/env python3
"""Run the lines that `bge-cocktail plug` prints in the frameworks themselves, and compare embeddings and search.

Each framework has an environment of its own, made once. For a model with prompts: the least cosine to what
`encode_query` and `encode_document` give, and how many of the first ten documents are the same.
Servers (TEI, vLLM, Ollama) are not run here.

    scripts/check_frameworks.py [--model FOLDER] [--only langchain chroma]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from peers import peer_environment

from bge_cocktail.flow.demo import demo_data, demo_model
from bge_cocktail.models.encoder import CachedEncoder
from bge_cocktail.models.plug import plugs
from bge_cocktail.models.profile import model_profile
from bge_cocktail.models.prompts import set_prompts
from bge_cocktail.options import EncodeOptions

FRAMEWORKS = ("langchain", "llama-index", "haystack", "chroma", "qdrant", "lancedb", "milvus")
PACKAGES = {"milvus": "pymilvus milvus-lite sentence-transformers", "langchain": "langchain-huggingface==1.2.3"}
PROMPTS = {"query": "Represent this sentence for searching relevant passages: ", "document": "passage: "}
TARGET = 0.9999
QUERY, DOCUMENT = "how is a cocktail made?", "Shake the parts with ice and strain."
# the lines' own texts are replaced by these, read from a file
PROBE = """
import json, sys
import numpy as np
texts = json.load(open(sys.argv[1]))
source = open(sys.argv[2]).read()
source = source.replace('["Shake the parts with ice and strain."]', "DOCUMENTS")
source = source.replace('[Document(content="Shake the parts with ice and strain.")]',
                        "[Document(content=text) for text in DOCUMENTS]")
queries = []
for number, text in enumerate(texts["queries"]):
    space = {"DOCUMENTS": texts["documents"] if number == 0 else texts["documents"][:1], "__name__": "pasted"}
    space["QUERY"] = text
    one = source.replace('"how is a cocktail made?"', "QUERY")
    one = one.replace("ids=[\\"1\\"]", "ids=list(map(str, range(len(DOCUMENTS))))")
    if number:  # models are loaded once: only the line of the query is run again
        space = kept
        space["QUERY"] = text
        one = "\\n".join(line for line in one.splitlines() if line.startswith("query = "))
    exec(compile(one, "pasted", "exec"), space)
    if number == 0:
        kept = space
        documents = np.asarray([np.asarray(row) for row in space["documents"]], np.float32)
    queries.append(np.asarray(space["query"], np.float32).ravel())
np.savez(sys.argv[3], queries=np.asarray(queries), documents=documents)
"""


def main() -> None:
    """Run all frameworks and print one line each, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=demo_model())
    parser.add_argument("--only", nargs="+", choices=FRAMEWORKS, default=FRAMEWORKS)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in (demo_data() / "handbook/corpus.jsonl").read_text().splitlines()]
    documents = [row["text"] for row in rows][:200]
    lines = (demo_data() / "handbook/queries.jsonl").read_text().splitlines()
    queries = [json.loads(line)["text"] for line in lines][:20]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = shutil.copytree(arguments.model, folder / "model")
        set_prompts(model, PROMPTS)
        profile = model_profile(model)
        (folder / "texts.json").write_text(json.dumps({"queries": queries, "documents": documents}))
        (folder / "probe.py").write_text(PROBE)
        encoder = CachedEncoder(model, EncodeOptions(cache=False, precision="fp32"))
        expected = encoder.encode_query(queries), encoder.encode_document(documents)
        best = np.argsort(-expected[0] @ expected[1].T, axis=1)[:, :10]
        results: dict[str, dict[str, float] | None] = {}
        for name in arguments.only:
            packages = PACKAGES.get(name) or plugs.trait(name, "package")
            environment = peer_environment(name, [*packages.split(), "sentence-transformers"])
            (folder / "lines.py").write_text(plugs[name](profile))
            work = folder / name
            work.mkdir()
            command = [environment / "bin/python", folder / "probe.py", folder / "texts.json", folder / "lines.py"]
            quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "HAYSTACK_TELEMETRY_ENABLED": "False"}
            done = subprocess.run(
                [*map(str, command), str(work / "out.npz")],
                cwd=work,
                env=quiet,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                print(f"{name}: failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                results[name] = None
                continue
            seen = np.load(work / "out.npz")
            cosines = [
                float((one * two).sum(1).min())
                for one, two in zip(expected, (seen["queries"], seen["documents"]), strict=True)
            ]
            first = np.argsort(-seen["queries"] @ seen["documents"].T, axis=1)[:, :10]
            same = float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(best, first, strict=True)]))
            results[name] = {"queries": cosines[0], "documents": cosines[1], "first_ten": same}
            print(f"{name:12} queries {cosines[0]:.6f}, documents {cosines[1]:.6f}, first ten {same:.3f}")
    worst = min((min(one["queries"], one["documents"]) for one in results.values() if one), default=0.0)
    met = worst >= TARGET and all(results.values())
    print(
        json.dumps({"name": "plug in the real frameworks, least cosine", "ours": worst, "target": TARGET, "met": met})
    )


if __name__ == "__main__":
    main()
