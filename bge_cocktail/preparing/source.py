"""What is prepared, and what it is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bge_cocktail.errors import DataError
from bge_cocktail.options import Preparing
from bge_cocktail.preparing.cleaning import Cleaner
from bge_cocktail.preparing.splitting import SPLITS
from bge_cocktail.records.beir import is_beir
from bge_cocktail.records.examples import Example, with_task
from bge_cocktail.records.opening import Rejects
from bge_cocktail.records.sources import files_of_split, read_examples, splits_of


@dataclass(frozen=True)
class Source:
    """What is read.

    Attributes:
        name: A file, a folder, or a data set of the hub.
        split: Which part of it.
        config: Which configuration of a data set of the hub.
        columns: Which column is what; told from the names without it.
        labels: Names for labels.
        scale: What scores are divided by.
    """

    name: str
    split: str = "train"
    config: str | None = None
    columns: str = ""
    labels: dict[str, str] | None = None
    scale: float | None = None

    @property
    def path(self) -> Path:
        """It as a path, which need not exist."""
        return Path(self.name).expanduser()

    def examples(self, rejects: Rejects) -> Iterator[Example]:
        """Its examples."""
        return read_examples(
            self.name,
            split=self.split,
            config=self.config,
            columns=self.columns,
            labels=self.labels,
            scale=self.scale,
            rejects=rejects,
        )


def opened(sources: Sequence[Source], options: Preparing, rejects: Rejects) -> Iterator[tuple[int, Iterable[Example]]]:
    """The examples of each source, with the split that they stay in (-1: none yet)."""
    tasks = task_names([source.name for source in sources])
    for source in sources:
        task = tasks[source.name]
        if not options.keep_splits:
            yield -1, _named(source.examples(rejects), task)
            continue
        there = splits_of(source.name, source.config)
        if not set(there) & set(SPLITS):
            raise DataError(f"{source.name} has none of the splits {', '.join(SPLITS)}; it has {', '.join(there)}")
        for number, split in enumerate(SPLITS):
            if split in there:
                yield number, _named(replace(source, split=split).examples(rejects), task)


def task_names(names: Sequence[str]) -> dict[str, str | None]:
    """A task for each of several sources: the end of its path that tells it from the others; None for a single one."""
    if len(names) < 2:
        return dict.fromkeys(names)
    parts = {name: Path(name).with_name(Path(name).name.split(".")[0]).parts for name in names}
    for count in range(1, max(map(len, parts.values())) + 1):
        found: dict[str, str | None] = {name: "/".join(own[-count:]) for name, own in parts.items()}
        if len(set(found.values())) == len(found):
            break
    return found


def _named(examples: Iterator[Example], task: str | None) -> Iterator[Example]:
    for example in examples:
        yield with_task(example, task) if task else example


def held_out_texts(source: Source, cleaner: Cleaner, rejects: Rejects) -> list[tuple[str, ...]]:
    """The own texts of each example of a test set, cleaned as train is."""
    cleaned = (example.changed(cleaner) for example in source.examples(rejects))
    return [example.own_texts() for example in cleaned if example is not None]


def files_of(source: Source, options: Preparing) -> list[Path]:
    """The files that a source is read from, to be hashed."""
    if source.path.is_dir() and not is_beir(source.path) and not options.keep_splits:
        return files_of_split(source.path, source.split)
    return [source.path]
