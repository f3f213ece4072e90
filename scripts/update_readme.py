"""Put the demo's output into README.md and README.zh.md, or check that it still holds.

    .venv/bin/python scripts/update_readme.py           # write
    .venv/bin/python scripts/update_readme.py --check   # compare (in CI)

The demo runs into runs/demo; a finished run there is taken as it is. Processors round differently, and training
carries that on, so the check lets scores differ a little; what the demo must show is checked on the new numbers.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
READMES = (ROOT / "README.md", ROOT / "README.zh.md")
PICTURE, PAGE = ROOT / "docs/tradeoff.png", ROOT / "docs/report.png"
# the first screen of the report
BROWSER = (
    "chromium --headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1100,1060 --virtual-time-budget=4000"
)
TOLERANCE = 0.06


def main() -> None:
    """Write or check."""
    check = sys.argv[1:] == ["--check"]
    bin_folder = Path(sys.executable).parent
    command = [str(bin_folder / "bge-cocktail"), "demo"]
    table = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(
        subprocess.run([*command, "--format", "json"], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    )
    problems = what_the_demo_must_show(found)
    new = f"$ scripts/demo\n{table}"
    for readme in READMES:
        text = readme.read_text(encoding="utf-8")
        block = re.search(r"<!-- demo -->\n```console\n(.*?)```\n<!-- /demo -->", text, re.DOTALL)
        if block is None:
            sys.exit(f"{readme.name} has no demo block")
        if check:
            problems += differences(block[1], new)
        else:
            readme.write_text(text[: block.start(1)] + new + text[block.end(1) :], encoding="utf-8")
    if check:
        problems += [f"{one.relative_to(ROOT)} is missing" for one in (PICTURE, PAGE) if not one.is_file()]
    else:
        PICTURE.parent.mkdir(exist_ok=True)
        shutil.copyfile(found["picture"], PICTURE)
        take_screenshot(ROOT / found["report"])
    print(table)
    if problems:
        sys.exit("\n".join(["README does not hold:", *problems]))
    print("README's demo holds" if check else "README.md and its pictures are up to date")


def take_screenshot(page: Path) -> None:
    """The report as a reader sees it first."""
    if shutil.which("chromium") is None:
        sys.exit("docs/report.png needs chromium (Debian: chromium)")
    subprocess.run([*BROWSER.split(), f"--screenshot={PAGE}", page.as_uri()], check=True, capture_output=True)


def what_the_demo_must_show(found: dict[str, Any]) -> list[str]:
    """The claims of README: tuning helps the target, the cocktail keeps that, and general tasks keep their level."""
    base, tuned, *cocktails = found["models"]
    gain = tuned["target"] - base["target"]
    problems = []
    if gain < 0.10:
        problems.append(f"tuning raises the target by {100 * gain:.1f} points; at least 10 are claimed")
    for cocktail in cocktails:
        kept = (cocktail["target"] - base["target"]) / gain
        if kept < 0.85:
            problems.append(f"{cocktail['model']} keeps {100 * kept:.0f} % of the gain; at least 85 % are claimed")
        if cocktail["general"] < base["general"] - 0.005:
            problems.append(f"{cocktail['model']} is more than 0.5 points below base on the general tasks")
    return problems


def differences(old: str, new: str) -> list[str]:
    """Lines that differ in more than numbers, or whose scores differ by more than the tolerance."""
    number = re.compile(r"[-+]?\d+(?:\.\d+)?")
    # which of both is said, and what is measurable, is up to small differences
    kept = re.compile(r" \((?:more than tuned alone gains|\d+ % of the gain kept)\)")
    one, two = old.splitlines(), new.splitlines()
    if len(one) != len(two):
        return [f"the output has {len(two)} lines, README has {len(one)}"]
    problems = []
    for before, after in zip(one, two, strict=True):
        same_words = [re.sub(r"[\s+-]+", " ", number.sub("#", kept.sub("", line))).strip() for line in (before, after)]
        if same_words[0] != same_words[1]:
            problems.append(f"README: {before}\nnow:    {after}")
            continue
        if "%" in before or "points" in before:
            continue  # derived from the scores; what they must show is checked by itself
        values = [[float(value) for value in number.findall(line)] for line in (before, after)]
        if any(abs(x - y) > TOLERANCE for x, y in zip(*values, strict=True)):
            problems.append(f"README: {before}\nnow:    {after}")
    return problems


if __name__ == "__main__":
    main()
