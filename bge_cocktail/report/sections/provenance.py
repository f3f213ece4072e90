"""Where numbers come from: the command that repeats each, versions, hashes of inputs."""

from __future__ import annotations

from collections.abc import Sequence

from bge_cocktail.report.content import Block, Code, Section, Table, Words
from bge_cocktail.report.material import Material, Step
from bge_cocktail.report.sections.registry import report_sections


@report_sections("provenance", order=90)
def provenance(material: Material) -> Section | None:
    """Every run: its command, time, versions, and the hashes of what it read."""
    finished = [step for step in material.steps if step.finished]
    if not finished:
        return None
    rows = [
        [
            step.name,
            step.command,
            str(step.described.get("finished", "-")),
            f"{step.described.get('seconds') or 0:.0f} s",
        ]
        for step in finished
    ]
    blocks: list[Block] = [Table(["run", "command", "finished", "time"], rows, "Runs")]
    commands = list(
        dict.fromkeys(str(step.described["started_as"]) for step in finished if "started_as" in step.described)
    )
    if commands:
        blocks.append(Code("\n".join(commands), "The commands that repeat these numbers"))
    if not all("started_as" in step.described for step in finished):
        blocks.append(Words("Runs without a command were started from Python or by an older version."))
    blocks += _versions(finished)
    inputs = [
        [step.name, str(name), str(value)[:16]]
        for step in finished
        for name, value in (step.described.get("inputs") or {}).items()
    ]
    if inputs:
        blocks.append(Table(["run", "input", "hash (xxh3-128, first half)"], inputs, "What runs read", folded=True))
    return Section("Provenance", blocks)


def _versions(steps: Sequence[Step]) -> list[Block]:
    names = list(dict.fromkeys(name for step in steps for name in step.described.get("versions") or {}))
    found = {name: {step.described.get("versions", {}).get(name, "-") for step in steps} for name in names}
    rows = [[name, ", ".join(sorted(map(str, own)))] for name, own in found.items()]
    blocks: list[Block] = [Table(["package", "version"], rows, "Versions", folded=True)] if rows else []
    several = [name for name, own in found.items() if len(own) > 1]
    if several:
        said = f"Runs were made with other versions of {', '.join(several)}: numbers may differ by that."
        blocks.append(Words(said, warns=True))
    return blocks
