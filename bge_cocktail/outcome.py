"""What a run gave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_cocktail.evaluation import ModelScores


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave.

    Attributes:
        folder: The run's folder.
        results: The scores of base, tuned and cocktails.
        tradeoff: Share of the tuned model, mean target score, mean general score.
        picture: The trade-off picture, if there is one.
    """

    folder: Path
    results: list[ModelScores]
    tradeoff: list[tuple[float, float, float]]
    picture: Path | None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "run": str(self.folder),
            "models": [result.to_json() for result in self.results],
            "tradeoff": [dict(zip(("share", "target", "general"), point, strict=True)) for point in self.tradeoff],
            "picture": str(self.picture) if self.picture else None,
        }
