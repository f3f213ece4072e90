"""Keep a model in use up to date: tune the base on what is new and a core of what is old, and merge the two."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bge_cocktail.core.errors import UsageError
from bge_cocktail.core.outputs import new_folder, read_object, refuse_to_replace, write_json
from bge_cocktail.core.runs import RUN_FILE, describe_run, finished_key, hash_path, hash_value
from bge_cocktail.data.beir import RetrievalData
from bge_cocktail.data.record import Record, normalise
from bge_cocktail.evaluating.evaluate import TaskPath
from bge_cocktail.merging.checkpoints import read_checkpoint
from bge_cocktail.merging.compatible import check_alike
from bge_cocktail.merging.merge import merge
from bge_cocktail.models.folder import model_folder, sentence_transformers_folder
from bge_cocktail.options import MergeOptions, TrainOptions
from bge_cocktail.training.encoder.repeated_runs import draw_of_tasks
from bge_cocktail.training.encoder.train import train, training_key
from bge_cocktail.training.encoder.training_pairs import hash_records
from bge_cocktail.training.engine.processes import refuse_several
from bge_cocktail.training.engine.run import work_folder

log = logging.getLogger(__name__)
CORE, SHARE = 0.4, 0.5
TUNED, UPDATED = "tuned", "updated"


def update(
    in_use: str | Path,
    base: str | Path,
    new_records: Sequence[Record],
    old_records: Sequence[Record],
    output: Path,
    options: TrainOptions | None = None,
    *,
    core: float = CORE,
    share: float = SHARE,
    dev: RetrievalData | None = None,
    general: Sequence[TaskPath] = (),
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Tune the base on new records and a core of the old ones, and merge it on the sphere with the model in use.

    After BOOM (arXiv:2602.05787), which finds it as good as tuning on everything anew, at about half of the steps.
    Writes a folder with ``tuned/``, ``updated/`` (the model to use) and run.json. A training that was cut off is kept
    in ``<output>.unfinished`` for `resume`.

    Args:
        in_use: The model that was tuned from the base on the old records.
        base: Folder or hub name of that base.
        new_records: What has come since; those that stand among the old ones count once.
        old_records: What the model in use was tuned on.
        output: The folder to write.
        options: How to tune; their seed draws the core.
        core: Share of each task's old records that is tuned on again.
        share: Of the new model in the merge.
        dev: See `train`.
        general: See `train`.
        resume: Go on with what was cut off.
        overwrite: Replace an older output of this tool.

    Returns:
        What run.json says.

    Raises:
        UsageError: Nothing is new, a share is out of bounds, or an output that exists.
        DataError: The model in use doesn't go with the base.
    """
    options = options or TrainOptions()
    if not 0 <= core <= 1 or not 0 < share <= 1:
        raise UsageError(f"`core` lies between 0 and 1, `share` above 0 and at most at 1; got {core:g} and {share:g}")
    refuse_to_replace(output, overwrite, [in_use, base])
    refuse_several("an update")
    folders = [sentence_transformers_folder(one) for one in (in_use, base)]
    merging = MergeOptions(method="karcher", share=share, prompts_from=1, length_from=1)
    check_alike([read_checkpoint(str(folder), folder) for folder in folders], merging)
    known = {_key(record) for record in old_records}
    fresh = [record for record in new_records if _key(record) not in known]
    if not fresh:
        raise UsageError(f"nothing is new: all {len(new_records)} records stand among the old ones")
    if len(fresh) < len(new_records):
        log.info("%d of %d new records stand among the old ones", len(new_records) - len(fresh), len(new_records))
    records = [*fresh, *(old_records[place] for place in draw_of_tasks(old_records, core, options.seed))]
    log.info("update: %d new records and %d of %d old ones", len(fresh), len(records) - len(fresh), len(old_records))
    started = time.monotonic()
    tuned_key = training_key(base, records, options, dev)
    given = {"core": core, "share": share}
    key = hash_value([tuned_key, hash_path(model_folder(in_use)), given])
    working = output.with_name(output.name + ".unfinished")
    with work_folder(working, "update", key, resume=resume, overwrite=overwrite):
        tuned = working / TUNED
        if finished_key(tuned) != tuned_key:
            again = finished_key(tuned.with_name(f"{TUNED}.unfinished")) == tuned_key
            train(base, records, tuned, options, dev=dev, general=general, resume=again, overwrite=True)
        with new_folder(output, overwrite=overwrite) as new:
            merge([tuned, in_use], new / UPDATED, merging)
            shutil.copytree(tuned, new / TUNED, copy_function=os.link)
            described = describe_run(
                "update",
                options={**options.model_dump(mode="json"), **given},
                inputs={
                    f"in use: {in_use}": hash_path(model_folder(in_use)),
                    str(base): hash_path(model_folder(base)),
                    "new records": hash_records(new_records),
                    "old records": hash_records(old_records),
                },
                seconds=time.monotonic() - started,
                records={"new": len(fresh), "old": len(records) - len(fresh), "all_old": len(old_records)},
                steps=read_object(tuned / RUN_FILE)["steps"],
            )
            write_json(new / RUN_FILE, described)
        shutil.rmtree(working)
    return described


def _key(record: Record) -> tuple[str, frozenset[str]]:
    return normalise(record.query), frozenset(map(normalise, record.pos))
