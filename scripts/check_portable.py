"""Do older sentence-transformers read our folders, with the same vectors?

    .venv/bin/python scripts/check_portable.py MODEL_FOLDER [VERSION ...]

Makes an environment for each version (default 3.4.1 and 5.3.0) in a temporary folder, embeds the same texts there and
here, and prints the largest difference. For comparison it also saves the model as the installed sentence-transformers
does by itself, and tries to read that. Takes minutes and about 1 GB a version; not part of the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = ["How do I reset the machine?", "the kiln cools for a day", "x", "längere Sätze gehen auch " * 40]
OLDER = {"3.4.1": "transformers<4.50", "5.3.0": "transformers<5"}
READ = """
import json, sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
print(json.dumps({"length": model.max_seq_length, "prompts": model.prompts,
                  "vectors": model.encode(json.loads(sys.argv[2])).tolist()}))
"""


def read_with(python: str, folder: Path) -> dict[str, Any] | str:
    """What a Python with some sentence-transformers reads; the last line of its error if it can't."""
    result = subprocess.run(
        [python, "-c", READ, str(folder), json.dumps(TEXTS)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        return result.stderr.strip().splitlines()[-1][:160]
    read: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return read


def main() -> None:
    """Read with each version and print."""
    folder, versions = Path(sys.argv[1]), sys.argv[2:] or list(OLDER)
    expected = read_with(sys.executable, folder)
    if isinstance(expected, str):
        sys.exit(f"not even this version reads {folder}: {expected}")
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        from sentence_transformers import SentenceTransformer

        theirs = Path(scratch) / "as-written-by-default"
        SentenceTransformer(str(folder), device="cpu").save_pretrained(str(theirs), create_model_card=False)
        for number in versions:
            environment = Path(scratch) / number
            venv.create(environment, with_pip=True)
            python = str(environment / "bin/python")
            packages = ["torch==2.13.0", f"sentence-transformers=={number}", OLDER.get(number, "transformers")]
            subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
            read = read_with(python, folder)
            if isinstance(read, str):
                line, failed = f"can't read it: {read}", True
            else:
                difference = float(np.abs(np.subtract(read["vectors"], expected["vectors"])).max())
                same = read["length"] == expected["length"] and difference < 1e-5
                failed |= not same
                line = f"largest difference {difference:.1e}, length {read['length']}" + ("" if same else "  WRONG")
            by_default = read_with(python, theirs)
            note = by_default if isinstance(by_default, str) else "reads it"
            print(f"sentence-transformers {number}: {line}\n    the default layout instead: {note}", flush=True)
            if not isinstance(read, str):
                before = {key: value for key, value in expected["prompts"].items() if value}
                after = {key: value for key, value in read["prompts"].items() if value}
                if before != after:
                    failed = True
                    print(f"    prompts differ: {after} against {before}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
