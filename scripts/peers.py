"""Environments of their own for the tools that scripts compare with."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".peers"
# transformers 5 no longer has what LM_Cocktail 0.0.4 imports
LM_COCKTAIL = ["LM_Cocktail==0.0.4", "transformers<5", "sentence-transformers<5.2"]
MERGEKIT = ["mergekit"]
# its `merge` calls mergekit
SENTENCE_TRANSFORMERS_MERGE = ["sentence-transformers[merge]>=6.2"]
# the last version whose package holds hn_mine
FLAGEMBEDDING = ["FlagEmbedding==1.2.11", "faiss-cpu", "transformers<5", "sentence-transformers<5.2"]
# as it was tested: transformers 5 no longer has what SetFit 1.1 imports
SETFIT = ["setfit==1.1.3", "transformers<5", "sentence-transformers<5.2"]
# its trainer, which imports what transformers 5 no longer has
FLAGEMBEDDING_TRAIN = ["FlagEmbedding==1.4.2", "transformers<5"]


def peer_environment(name: str, packages: list[str]) -> Path:
    """The environment of a peer, made if it isn't there; torch is taken in our own version.

    Args:
        name: Of its folder under .peers/.
        packages: What pip installs.

    Returns:
        Its folder; the interpreter is bin/python in it.
    """
    folder = FOLDER / name
    done = folder / ".made"
    if done.is_file() and done.read_text() == "\n".join(packages):
        return folder
    print(f"making the environment of {name} (once)", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    torch = next(line for line in constraints if line.startswith("torch=="))
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for wanted in ([torch], packages):
        subprocess.run([*pip, *wanted], check=True)
    done.write_text("\n".join(packages))
    return folder
