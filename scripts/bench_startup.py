"""CPU seconds of --help and of a merge of two MiniLMs, beside what importing the peers' libraries alone costs.

    .venv/bin/python scripts/bench_startup.py [--quick]

Ends with one JSON line for each figure: name, ours, peer, ratio, target, met. The peer of --help is importing
sentence-transformers, which a command that loads it at start pays before it answers; the peer of the merge is a loop
over two state dicts in torch. Needs the extra `demo`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

BARE_LOOP = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
one, two = load_file(sys.argv[1] + "/model.safetensors"), load_file(sys.argv[2] + "/model.safetensors")
mixed = {name: 0.5 * value + 0.5 * two[name] if value.is_floating_point() else value for name, value in one.items()}
save_file(mixed, sys.argv[3], metadata={"format": "pt"})
"""


def cpu_seconds(command: list[str], repeats: int) -> float:
    """The least user + system time of a command over some repeats, after one to warm the caches."""
    times = []
    for _ in range(repeats + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times[1:])


def main() -> None:
    """Measure and print."""
    repeats = 2 if "--quick" in sys.argv else 5
    python = sys.executable
    ours = str(Path(python).parent / "bge-cocktail")
    from bge_cocktail.flow.demo import demo_model

    with tempfile.TemporaryDirectory() as folder:
        model, copy = str(demo_model()), os.path.join(folder, "copy")  # noqa: PTH118
        out, bare = os.path.join(folder, "out"), os.path.join(folder, "bare.safetensors")  # noqa: PTH118
        subprocess.run(["cp", "-r", model, copy], check=True)
        merge = [ours, "merge", model, copy, "-o", out]
        subprocess.run(merge, check=True, stdout=subprocess.DEVNULL)
        figures = [
            (
                "help",
                cpu_seconds([ours, "--help"], repeats),
                cpu_seconds([python, "-c", "import sentence_transformers"], repeats),
                0.3,
            ),
            (
                "merge 2 MiniLM",
                cpu_seconds([*merge, "--overwrite"], repeats),
                cpu_seconds([python, "-c", BARE_LOOP, model, copy, bare], repeats),
                1.0,
            ),
        ]
    for name, mine, peer, target in figures:
        figure = {
            "name": name,
            "ours": round(mine, 3),
            "peer": round(peer, 3),
            "ratio": round(peer / mine, 1),
            "target": target,
            "met": mine <= target,
        }
        print(json.dumps(figure))


if __name__ == "__main__":
    main()
