"""One run of the whole flow: mine, train, merge, judge, report; steps that are done are not done again."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bge_cocktail.core.errors import CocktailError, DataError, UsageError
from bge_cocktail.core.outputs import new_folder, read_object, refuse_to_replace, write_json
from bge_cocktail.core.progress import Advance, progress
from bge_cocktail.core.runs import (
    RUN_FILE,
    describe_run,
    files_under,
    finished_key,
    hash_path,
    hash_value,
    step_key,
)
from bge_cocktail.data.record import Record
from bge_cocktail.data.record_files import read_records
from bge_cocktail.evaluating.evaluate import (
    evaluate_models,
    evaluation_inputs,
    open_tasks,
    put_into_cards,
    scorer,
)
from bge_cocktail.evaluating.scores import ModelScores
from bge_cocktail.evaluating.store import read_evaluation, write_evaluation
from bge_cocktail.evaluating.tasks.task import Task, task_path
from bge_cocktail.flow.steps import (
    AS_TUNED,
    COMMAND,
    PICTURE_FILE,
    Point,
    Preparation,
    RunData,
    begin_run,
    check_judging,
    measure_tradeoff,
    mine_step,
    mining_key,
    read_tradeoff,
    refuse_other_folder,
)
from bge_cocktail.flow.timings import expected_seconds, timed
from bge_cocktail.merging.checkpoints import read_checkpoint
from bge_cocktail.merging.compatible import check_alike
from bge_cocktail.merging.merge import merge
from bge_cocktail.mining.miner import check_mining
from bge_cocktail.models.folder import model_folder, sentence_transformers_folder
from bge_cocktail.options import PREPARED, RunOptions, TrainOptions, read_run_file
from bge_cocktail.report.build import build_report, write_report
from bge_cocktail.report.collect import collect
from bge_cocktail.training.encoder.checks import check_training
from bge_cocktail.training.encoder.train import train, training_key
from bge_cocktail.training.encoder.training_pairs import TrainingPairs
from bge_cocktail.training.encoder.validation import open_watched
from bge_cocktail.training.engine.checkpoints import last_checkpoint, step_of


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave.

    Attributes:
        folder: The run's folder.
        results: The scores of base, tuned and cocktails.
        tradeoff: Share of the tuned model, mean target score, mean general score.
        picture: The trade-off picture, if there is one.
        report: The page that shows all of it; None where it couldn't be written.
    """

    folder: Path
    results: list[ModelScores]
    tradeoff: list[tuple[float, float, float]]
    picture: Path | None
    report: Path | None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "run": str(self.folder),
            "models": [result.to_json() for result in self.results],
            "tradeoff": [dict(zip(("share", "target", "general"), point, strict=True)) for point in self.tradeoff],
            "picture": str(self.picture) if self.picture else None,
        }


class PlannedStep(NamedTuple):
    """A step of a run before it is done.

    Attributes:
        name: Of the step.
        state: Whether it is done.
        seconds: How long it will take by the last such steps on this machine; None where there were none.
    """

    name: str
    state: str
    seconds: float | None = None


log = logging.getLogger(__name__)
PAGE_FILE = "report.html"
_LAST = ("merge", "evaluate", "trade-off")


def run(file: str | Path | RunOptions, settings: Sequence[str] = (), preset: str | None = None) -> RunResult:
    """Do a whole run; what is finished already, with the same inputs and options, is kept.

    Args:
        file: A run file, or its content.
        settings: Changes of the form ``section.name=value``.
        preset: The name of options that the file goes before.
    """
    return Flow(file if isinstance(file, RunOptions) else read_run_file(Path(file), settings, preset)).run()


class Flow:
    """The steps of one run, each knowing whether it is done."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.folder = options.output
        self.base = model_folder(options.base)
        self.preparation = Preparation(options) if options.prepare.sources else None
        self.data = RunData(options.data)
        prompts = {
            role: getattr(options.train, role) if getattr(options.train, role) is not None else default
            for role, default in (
                ("query_prompt", options.encode.query_prompt),
                ("document_prompt", options.encode.document_prompt),
            )
        }
        # what the base is judged with is what the tuned model is trained with
        self.training: TrainOptions = options.train.model_copy(update=prompts)
        self.done: list[str] = []
        self._advance: Advance = lambda _steps, _now="", /: None
        self._begun = 0

    def run(self) -> RunResult:
        """Do all steps, and return what they gave."""
        merge = self.options.merge
        steps = 2 * self.options.rounds + merge.slices + 4 + bool(merge.others or merge.slices)
        with progress("run", steps) as self._advance:
            return self._run()

    def _run(self) -> RunResult:
        started = time.monotonic()
        if self.preparation is not None and not self._is_done(PREPARED, self.preparation.key):
            self.refuse_other_folder()
            begin_run(self.folder)
            self._begin("prepare")
            self.preparation.do(self.folder / PREPARED)
        elif self.preparation is not None:
            self._skip("prepare")
        self.check()
        begin_run(self.folder)
        model: str | Path = self.options.base
        for number in range(1, self.options.rounds):
            self.mine(f"rounds/{number}/mined", model)
            records = read_records(self.folder / f"rounds/{number}/mined")
            model = self.train_model(f"rounds/{number}/tuned", records)
        self.mine("mined", model)
        tuned = self.train_model("tuned", self.records)
        slices = self.options.merge.slices
        variants = [
            self.train_model(f"variants/slice-{number + 1}", self.records[number::slices]) for number in range(slices)
        ]
        models: dict[str, str | Path] = {"base": self.options.base, "tuned": tuned}
        share = self.options.merge.share
        models[f"cocktail of 2 (share {share:g})"] = self.blend("cocktail", [tuned, self.base], "uniform")
        others: list[str | Path] = [*variants, *self.options.merge.others]
        if others:
            name = f"cocktail of {2 + len(others)} (share {share:g})"
            weights: Literal["uniform", "cocktail"] = "cocktail" if self.examples else "uniform"
            if not self.examples:
                log.info("no dev records to find weights on: the models of the %s weigh the same", name)
            models[name] = self.blend(f"cocktail-{2 + len(others)}", [tuned, self.base, *others], weights)
        if (chosen := self.choose([tuned, *others, self.base])) is not None:
            models["chosen (auto)"] = chosen
        results = self.judge("evaluation", models)
        put_into_cards(results, under=self.folder)
        tradeoff, picture = self.tradeoff(tuned)
        write_json(
            self.folder / RUN_FILE,
            describe_run(
                COMMAND,
                options=self.options.model_dump(mode="json"),
                inputs={"base": hash_path(self.base), "data": self.data.hash},
                seconds=time.monotonic() - started,
                steps_found_done=self.done,
            ),
        )
        return RunResult(self.folder, results, tradeoff, picture, self.report())

    def report(self) -> Path | None:
        """Write the page about the run; a run is whole without it."""
        page = self.folder / PAGE_FILE
        judging = self.options.evaluate
        try:
            collected = collect([self.folder], confidence=judging.confidence, seed=judging.seed)
            write_report(build_report(collected, f"Report: {self.folder.resolve().name}"), collected, page)
        except (CocktailError, OSError) as error:
            log.warning("no report (bge-cocktail report %s -o FILE tries again): %s", self.folder, error)
            return None
        return page

    def plan(self) -> list[PlannedStep]:
        """Return the steps and whether each is done, as far as that can be known before the ones that come first."""
        first: list[PlannedStep] = []
        if self.preparation is not None:
            prepared = self._is_done(PREPARED, self.preparation.key)
            first = [PlannedStep("prepare", "done" if prepared else "to do")]
            if not prepared:
                self.refuse_other_folder()
                self.preparation.check()
                data = self.options.data
                open_tasks([], [path for path in (*data.target, *data.general) if self.folder not in path.parents])
                return [*first, *(PlannedStep(name, "to do") for name in ("mine", "train tuned", *_LAST))]
        self.check()
        slices = self.options.merge.slices
        mined, rounds = self._rounds_done()
        parts = {"tuned": slice(None), **{f"variants/slice-{n + 1}": slice(n, None, slices) for n in range(slices)}}
        trained = [
            self._planned_training(name, self.records[part] if mined else None, len(self.data.records[part]))
            for name, part in parts.items()
        ]
        later = "checked when reached" if all(step.state == "done" for step in trained) else "to do"
        last = [
            PlannedStep("merge", later),
            PlannedStep("evaluate", later, self._expected("evaluate", self._judged_work * self._models)),
            PlannedStep("trade-off", later, self._expected("evaluate", self._judged_work * len(self._shares))),
        ]
        return [*first, *rounds, self._planned("mine", "mine", mined, self._mining_work), *trained, *last]

    def _planned(self, name: str, step: str, done: bool, work: float) -> PlannedStep:
        return PlannedStep(name, "done") if done else PlannedStep(name, "to do", self._expected(step, work))

    def _planned_training(self, name: str, records: list[Record] | None, count: int) -> PlannedStep:
        """What is to be done of a training.

        Args:
            name: Of its output.
            records: None while their negatives aren't mined.
            count: How many there will be.
        """
        shown = f"train {name}"
        seconds = self._expected("train", self._training_work(count))
        if records is None:
            return PlannedStep(shown, "to do", seconds)
        key = self._training_key(records)
        if self._is_done(name, key):
            return PlannedStep(shown, "done")
        unfinished = self.folder / f"{name}.unfinished"
        saved = last_checkpoint(unfinished / "checkpoints") if finished_key(unfinished) == key else None
        if saved is None:
            return PlannedStep(shown, "to do", seconds)
        step, steps = step_of(saved), int(read_object(saved / "trainer_state.json")["max_steps"])
        left = None if seconds is None else seconds * (steps - step) / steps
        return PlannedStep(shown, f"saved at step {step} of {steps}, goes on", left)

    def _expected(self, step: str, work: float) -> float | None:
        return expected_seconds(step, self.base, self.options.train.device, work)

    def _timed(self, step: str, work: float) -> AbstractContextManager[None]:
        return timed(step, self.base, self.options.train.device, work)

    @property
    def _mining_work(self) -> float:
        return len(self.data.records) + len(self.data.corpus or ())

    def _training_work(self, records: int) -> float:
        return records * self.training.epochs

    @property
    def _judged_work(self) -> float:
        return sum(file.stat().st_size for task in self.tasks for file in files_under(task.path))

    @property
    def _models(self) -> int:
        merge = self.options.merge
        return 3 + bool(merge.others or merge.slices)

    @property
    def _shares(self) -> list[float]:
        """The shares of the tuned model that the trade-off shows; none without them."""
        merge = self.options.merge
        return sorted({0.0, 1.0, merge.share, *merge.shares}) if merge.shares else []

    def _rounds_done(self) -> tuple[bool, list[PlannedStep]]:
        """Return whether the last mining is done, and each step of the rounds before it."""
        steps: list[PlannedStep] = []
        model: Path = self.base
        done = True
        for number in range(1, self.options.rounds + 1):
            last = number == self.options.rounds
            name = "mined" if last else f"rounds/{number}/mined"
            done = done and self._is_done(name, mining_key(self.options, self.data, model))
            if not last:
                steps.append(self._planned(f"round {number}: mine", "mine", done, self._mining_work))
                tuned = f"rounds/{number}/tuned"
                done = done and self._is_done(tuned, self._training_key(read_records(self.folder / name)))
                work = self._training_work(len(self.data.records))
                steps.append(self._planned(f"round {number}: train", "train", done, work))
                model = self.folder / tuned
        return done, steps

    def check(self) -> None:
        """Look for what would stop a later step, before hours of an earlier one.

        Raises:
            DataError, UsageError: Something is wrong with data, tasks, models or options.
        """
        names = [str(self.base), *self.options.merge.others]
        folders = {name: sentence_transformers_folder(name) for name in names}
        check_alike([read_checkpoint(*item) for item in folders.items()], AS_TUNED)
        self.refuse_other_folder()
        check_training(self.base, self.training, self.watched)
        check_mining(self.options.mine, self.options.mine.teacher is not None)
        for name in self.options.mine.also:
            sentence_transformers_folder(name)
        slices = max(1, self.options.merge.slices)
        few = self.training.model_copy(update={"too_few_negatives": "fewer"})  # they are mined later
        rows = min(len(TrainingPairs(self.data.records[number::slices], few)) for number in range(slices))
        if rows < self.training.batch_size:
            part = f" in one of {slices} slices" if slices > 1 else ""
            raise UsageError(f"batch_size={self.training.batch_size} is larger than the data: {rows} pairs{part}")
        self.data.dev  # noqa: B018  (reads it)
        check_judging(self.base, self.options.encode, self.options.evaluate)
        for task in self.tasks:
            task.data(self.options.evaluate.split)

    def refuse_other_folder(self) -> None:
        """Raise unless the folder is one that this run may be written to."""
        data = self.options.data
        tasks = [task_path(str(path))[1] for path in (*data.target, *data.general, *data.watch)]
        refuse_other_folder(self.folder, [self.base, data.train, *([data.dev] if data.dev else []), *map(Path, tasks)])

    @cached_property
    def tasks(self) -> list[Task]:
        """What the models are judged on."""
        data = self.options.data
        return open_tasks(data.target, data.general, limit=self.options.evaluate.limit)

    @cached_property
    def watched(self) -> list[Task]:
        """What is watched while training."""
        return open_watched(self.options.data.watch)

    def mine(self, name: str, model: str | Path) -> None:
        """Hard negatives for the train records, and for dev records as examples for cocktail weights."""
        self._begin("mine")
        if self._is_done(name, mining_key(self.options, self.data, model_folder(model))):
            self._skip(name.replace("mined", "mine"))
        else:
            with self._timed("mine", self._mining_work):
                mine_step(self.options, self.data, model, self.folder / name)

    def train_model(self, name: str, records: list[Record]) -> Path:
        """Return a tuned model."""
        self._begin(f"train {name}")
        output = self.folder / name
        if self._is_done(name, self._training_key(records)):
            self._skip(f"train {name}")
            return output
        log.info("train %s: %d records", name, len(records))
        unfinished = output.with_name(output.name + ".unfinished")
        resume = finished_key(unfinished) == self._training_key(records)
        # what goes on says nothing of how long a whole training takes
        with nullcontext() if resume else self._timed("train", self._training_work(len(records))):
            return train(
                self.base,
                records,
                output,
                self.training,
                dev=self.data.dev,
                general=self.watched,
                datasets=[str(self.options.data.train)],
                resume=resume,
                overwrite=True,
            )

    def blend(self, name: str, models: Sequence[str | Path], weights: Literal["uniform", "cocktail"]) -> Path:
        """Return a cocktail: the share for the first model, the rest among the others."""
        self._begin(f"merge {name}")
        options = AS_TUNED.model_copy(update={"weights": weights, "share": self.options.merge.share})
        examples = {}
        if weights == "cocktail":
            what = [hash_path(self.folder / "mined/examples.jsonl"), self.options.encode.what_counts()]
            examples = {"examples and how they are embedded": hash_value(what)}
        hashes = {str(model): hash_path(model_folder(model)) for model in models}
        if self._is_done(name, step_key("merge", options.model_dump(mode="json"), {**hashes, **examples})):
            self._skip(f"merge {name}")
            return self.folder / name

        merged = merge(
            models,
            self.folder / name,
            options,
            examples=self.examples if examples else (),
            encoding=self.options.encode,
            more_inputs=examples,
            overwrite=True,
        )
        names = ["base" if model == str(self.base) else Path(model).name for model in merged.models]
        shares = ", ".join(f"{one} {weight:.3f}" for one, weight in zip(names, merged.weights, strict=True))
        log.info("merge %s: %s", name, shares)
        return merged.folder

    def choose(self, models: Sequence[str | Path]) -> Path | None:
        """Return the merge of the best target score that does no harm, by dev; None where dev can't say it."""
        if not self.options.merge.auto or {task.role for task in self.tasks} != {"target", "general"}:
            return None
        for task in self.tasks:
            try:
                task.data("dev")
            except DataError:
                log.info("no merge is chosen (`merge.auto`): %s has no dev split to choose by", task.name)
                return None
        self._begin("merge chosen")
        options = AS_TUNED.model_copy(update={"weights": "auto", "epsilon": self.options.merge.epsilon})
        judging = self.options.evaluate.model_copy(update={"split": "dev", "map_texts": 0})
        what = [judging.model_dump(mode="json"), self.options.encode.what_counts()]
        more = {"how dev is judged": hash_value(what), **{f"dev of {task.name}": task.hash for task in self.tasks}}
        hashes = {str(model): hash_path(model_folder(model)) for model in models}
        output = self.folder / "chosen"
        if self._is_done("chosen", step_key("merge", options.model_dump(mode="json"), {**hashes, **more})):
            self._skip("merge chosen")
            return output
        by_role = {role: [task for task in self.tasks if task.role == role] for role in ("target", "general")}
        merged = merge(
            models,
            output,
            options,
            encoding=self.options.encode,
            score=scorer(by_role["target"], by_role["general"], judging),
            more_inputs=more,
            overwrite=True,
        )
        log.info("merge chosen: %s", merged.found.note)
        return merged.folder

    def judge(self, name: str, models: dict[str, str | Path]) -> list[ModelScores]:
        """Return the scores of models on all tasks."""
        self._begin("evaluate")
        output = self.folder / name
        options = self._judging
        inputs = evaluation_inputs(models, self.tasks, self.options.evaluate)
        if self._is_done(name, step_key("evaluate", options, inputs)):
            self._skip("evaluate")
            return read_evaluation(output)
        log.info("evaluate: %d models on %d tasks", len(models), len(self.tasks))
        with self._timed("evaluate", self._judged_work * len(models)):
            return write_evaluation(
                output,
                lambda: evaluate_models(models, self.tasks, self.options.encode, self.options.evaluate),
                options,
                inputs,
                self.tasks,
                overwrite=True,
            )

    def tradeoff(self, tuned: Path) -> tuple[list[Point], Path | None]:
        """Target and general scores at several shares of the tuned model, and their picture."""
        roles = {task.role for task in self.tasks}
        shares = self._shares
        if not shares or roles != {"target", "general"}:
            return [], None
        self._begin("trade-off")
        output = self.folder / "tradeoff"
        options = {"shares": shares, "share": self.options.merge.share, **self._judging}
        options["evaluate"] = {name: value for name, value in options["evaluate"].items() if name != "map_texts"}
        inputs = evaluation_inputs({"base": self.base, "tuned": tuned}, self.tasks, self.options.evaluate)
        if self._is_done("tradeoff", step_key("tradeoff", options, inputs)):
            self._skip("trade-off")
            return read_tradeoff(output), output / PICTURE_FILE
        # another share, or more of them: those that were measured of the same models stay
        measured = {name: value for name, value in options.items() if name not in ("shares", "share")}
        known = {}
        if (output / RUN_FILE).is_file():
            described = read_object(output / RUN_FILE)
            before = {name: described.get("options", {}).get(name) for name in measured}
            if step_key("", before, described.get("inputs", {})) == step_key("", measured, inputs):
                known = {point[0]: point for point in read_tradeoff(output)}
        log.info("trade-off: %d of %d shares to measure", len(set(shares) - set(known)), len(shares))
        started = time.monotonic()
        with new_folder(output, overwrite=True) as new:
            cocktail = self.folder / "cocktail"
            points = measure_tradeoff(self.options, self.tasks, shares, self.base, tuned, cocktail, new, known)
            seconds = time.monotonic() - started
            write_json(new / RUN_FILE, describe_run("tradeoff", options=options, inputs=inputs, seconds=seconds))
        return points, output / PICTURE_FILE

    @cached_property
    def records(self) -> list[Record]:
        """The records with mined negatives."""
        return read_records(self.folder / "mined")

    @cached_property
    def examples(self) -> list[Record]:
        """Dev records with mined negatives, for cocktail weights."""
        path = self.folder / "mined/examples.jsonl"
        return read_records(path) if path.stat().st_size else []

    @property
    def _judging(self) -> dict[str, Any]:
        tasks = [f"{task.role} {task.kind} {task.name}" for task in self.tasks]
        evaluate = self.options.evaluate.model_dump(mode="json")
        return {"tasks": tasks, "evaluate": evaluate, "encode": self.options.encode.what_counts()}

    def _training_key(self, records: list[Record]) -> str:
        return training_key(self.base, records, self.training, self.data.dev)

    def _is_done(self, name: str, key: str) -> bool:
        folder = self.folder / name
        if finished_key(folder) == key:
            return True
        if folder.exists():
            try:
                refuse_to_replace(folder, overwrite=True)
            except UsageError as error:
                raise UsageError(f"{error}; choose another output for the run") from None
        return False

    def _begin(self, step: str) -> None:
        """Say which step is being done; the one before it is over."""
        self._advance(min(self._begun, 1), step)
        self._begun += 1

    def _skip(self, step: str) -> None:
        self.done.append(step)
        log.info("%s: done already", step)
