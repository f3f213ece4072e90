"""What can be known to go wrong in a training before it begins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from bge_cocktail.devices import choose_device, resolve_precision
from bge_cocktail.errors import UsageError
from bge_cocktail.layout import check_length, refuse_unportable
from bge_cocktail.options import Training
from bge_cocktail.records import Record

log = logging.getLogger(__name__)


def check_training(base: Path, options: Training) -> None:
    """Look for options that the device or the base can't follow, and a base that can't be saved again.

    Raises:
        UsageError: Device, precision or length are out of reach.
        DataError: The base has settings that the portable layout can't say.
    """
    refuse_unportable(base)
    check_length(base, options.max_length)
    device = choose_device(options.device)
    if device.startswith("cuda:") and device != "cuda:0":
        raise UsageError(
            f"training takes the first GPU that it sees, not {device}; choose one with "
            f"CUDA_VISIBLE_DEVICES={device.removeprefix('cuda:')} and device auto"
        )
    resolve_precision(options.precision, device)


def check_rows(rows: Sequence[Record], options: Training) -> None:
    """Refuse too few rows, and say how many negatives are missing or unused.

    Raises:
        UsageError: There are fewer rows than a batch.
    """
    if len(rows) < options.batch_size:
        raise UsageError(
            f"batch_size={options.batch_size} is larger than the data: {len(rows)} pairs of query and positive"
        )
    short = sum(len(row.neg) < options.negatives for row in rows)
    if short:
        log.info(
            "%d of %d rows have fewer than %d negatives; they are trained with those that they have",
            short,
            len(rows),
            options.negatives,
        )
    unused = sum(len(row.neg) > options.negatives for row in rows)
    if unused:
        log.info("%d of %d rows have more than %d negatives; the first are used", unused, len(rows), options.negatives)
