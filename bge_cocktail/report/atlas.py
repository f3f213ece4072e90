"""The maps as a table that embedding-atlas opens: ``embedding-atlas maps.parquet --text text --x x --y y``."""

from __future__ import annotations

from pathlib import Path

from bge_cocktail.errors import UsageError
from bge_cocktail.report.material import Material
from bge_cocktail.report.sections.maps import planes


def write_atlas(material: Material, path: Path) -> None:
    """One row a text and model: where it lies, what it is.

    Raises:
        UsageError: No evaluation keeps embeddings.
    """
    import pyarrow as pa
    from pyarrow import parquet

    tables = []
    for group in material.evaluated:
        points = group.details.points
        found = planes(points, [model.model for model in group.models], material.reduce, material.seed)
        for (model, task), plane in found.items():
            texts, groups, _ = points[model, task]
            same = {"model": [model] * len(texts), "task": [task] * len(texts)}
            tables.append(pa.table({**same, "text": texts, "group": groups, "x": plane[:, 0], "y": plane[:, 1]}))
    if not tables:
        raise UsageError("no evaluation here keeps embeddings for a map; evaluate with --map-texts above 0")
    parquet.write_table(pa.concat_tables(tables), path, compression="zstd")
