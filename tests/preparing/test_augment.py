"""Varied copies of train records: EDA's laws, and where synonyms come from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_cocktail.core.errors import DataError, UsageError
from bge_cocktail.data.record import Record
from bge_cocktail.data.record_files import read_records
from bge_cocktail.data.sources import Source
from bge_cocktail.options import PrepareOptions
from bge_cocktail.preparing.augment import _TOKEN, DEBIAN_FOLDER, _joined, augment, augmentations, thesauri
from bge_cocktail.preparing.prepare import prepare

SYNONYMS = {"quick": ["fast", "rapid"], "dog": ["hound"], "big": ["large"]}


def thesaurus(word: str) -> list[str]:
    return SYNONYMS.get(word, [])


@pytest.fixture
def small_wordnet(tmp_path: Path) -> Path:
    """Files in the form of WordNet's own (wndb): a licence, then a line for each synset."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    licence = "  1 This line belongs to the licence\n"
    (folder / "data.noun").write_text(
        licence + "00000100 05 n 02 dog 0 domestic_dog 0 001 @ 00000200 n 0000 | an animal\n"
        "00000150 05 n 01 Dog 0 000 | a name\n"
    )
    (folder / "data.verb").write_text(
        licence + "00000100 38 v 03 run 0 dash 0 race 1 001 @ 00000300 v 0000 | go fast\n"
    )
    (folder / "data.adj").write_text(licence + "00000100 00 s 02 quick(p) 0 fast 0 001 & 00000200 a 0000 | speedy\n")
    (folder / "data.adv").write_text(licence)
    return folder


words = st.lists(st.sampled_from(["quick", "dog", "big", "the", "runs", ",", "42"]), min_size=1, max_size=40)


@settings(deadline=None, max_examples=100)
@given(words, st.integers(1, 5), st.integers(0, 99), st.sampled_from(sorted(augmentations)))
def test_laws(before: list[str], count: int, seed: int, name: str) -> None:
    after = augmentations[name](list(before), count, np.random.default_rng(seed), thesaurus)
    assert after == augmentations[name](list(before), count, np.random.default_rng(seed), thesaurus)
    assert after
    if name in ("swap", "shuffle"):
        assert sorted(after) == sorted(before)
    if name == "delete":
        rest = iter(before)
        assert all(word in rest for word in after)  # in order, some left out
        assert len(before) - len(after) <= count
    if name == "insert":
        assert not Counter(before) - Counter(after)
        assert len(after) - len(before) <= count
    if name == "synonym":
        changed = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
        assert len(changed) <= count
        assert all(other in thesaurus(one) for one, other in changed)


TEXTS = [
    "Plain, with commas (and brackets)!",
    "中文，没有空格。",
    "हिन्दी में",
    "a 3.5 at http://a.b/c?d=1",
    "it's well-known",
]


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_put_together_as_they_were(text: str) -> None:
    assert _joined(_TOKEN.findall(text)) == text


def test_punctuation_stays_around_a_synonym() -> None:
    words = augmentations["synonym"](["(Quick),", "dog!"], 2, np.random.default_rng(0), thesaurus)
    assert words[0] in ("(Fast),", "(Rapid),")
    assert words[1] == "hound!"


def test_copies_are_marked_and_the_originals_stay() -> None:
    records = [Record(f"the quick dog runs {n}", (f"the big answer {n}",), ("no",), id=f"r{n}") for n in range(200)]
    options = PrepareOptions(augment=["delete", "swap"], augment_share=0.3)
    counted: Counter[str] = Counter()
    made = list(augment(records, options, counted))
    assert [one for one in made if "augmented" not in one.extra] == records
    copies = [one for one in made if "augmented" in one.extra]
    assert 35 < len(copies) < 85
    assert {one.extra["augmented"] for one in copies} == {"delete", "swap"}
    assert sum(count for name, count in counted.items() if name.startswith("copies")) == len(copies)
    originals = {record.id: record for record in records}
    for copy in copies:
        original = originals[str(copy.id).split("+")[0]]
        assert copy.query != original.query
        assert copy.neg == original.neg
        assert (copy.pos == original.pos) or copy.extra["augmented"] == "delete"
    assert made == list(augment(records, options, Counter()))
    assert made != list(augment(records, options.model_copy(update={"seed": 1}), Counter()))


def test_without_a_synonym_the_next_variation_is_taken(small_wordnet: Path) -> None:
    records = [Record("今天天气很好", ("是的",)), Record("a quick dog", ("yes",))]
    options = PrepareOptions(augment=["synonym", "swap"], augment_share=1, wordnet_dir=small_wordnet, seed=3)
    counted: Counter[str] = Counter()
    made = list(augment(records * 20, options, counted))
    assert len(made) >= 76  # a swap of two equal characters changes nothing
    chinese = [one for one in made if "augmented" in one.extra and "天" in one.query]
    assert {one.extra["augmented"] for one in chinese} == {"swap"}
    assert counted["not varied by synonym: no synonym known"] > 0
    only = PrepareOptions(augment=["synonym"], augment_share=1, wordnet_dir=small_wordnet)
    counted.clear()
    assert len(list(augment(records[:1], only, counted))) == 1
    assert counted == {"not varied by synonym: no synonym known": 1}


def test_wordnet_files(small_wordnet: Path) -> None:
    look_up = thesauri["wordnet"](PrepareOptions(wordnet_dir=small_wordnet))
    assert look_up("dog") == ["domestic dog"]
    assert look_up("quick") == ["fast"]
    assert look_up("race") == ["run", "dash"]
    assert look_up("nothing") == []
    (small_wordnet / "data.adv").write_text("00000100 00 s\n")
    with pytest.raises(DataError, match=r"data.adv:1: not a line of WordNet's data files"):
        thesauri["wordnet"](PrepareOptions(wordnet_dir=small_wordnet))
    (small_wordnet / "data.adv").unlink()
    with pytest.raises(DataError, match=r"holds no WordNet \(data.adv missing\); install it .* `wordnet_dir`"):
        thesauri["wordnet"](PrepareOptions(wordnet_dir=small_wordnet))


@pytest.mark.skipif(not (DEBIAN_FOLDER / "data.noun").is_file(), reason="WordNet is not installed")
def test_the_whole_of_wordnet() -> None:
    look_up = thesauri["wordnet"](PrepareOptions())
    assert "automobile" in look_up("car")
    assert "rapid" in look_up("quick") or "speedy" in look_up("quick")


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.tsv"
    path.write_text("Laptop\tnotebook\tportable computer\nfan\tblower\n")
    look_up = thesauri["file"](PrepareOptions(thesaurus="file", thesaurus_file=path))
    assert look_up("notebook") == ["laptop", "portable computer"]
    path.write_text("a\tb\nalone\n")
    with pytest.raises(DataError, match=r"synonyms.tsv:2: expected two words or more with tabs between, got 'alone'"):
        thesauri["file"](PrepareOptions(thesaurus="file", thesaurus_file=path))


def test_only_train_is_varied(cli: Any, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "d.jsonl", [{"query": f"what is thing {n}", "pos": [f"it is {n}"]} for n in range(100)]
    )
    options = ["--augment", "swap", "--augment-share", "1", "--duplicates", "exact"]
    cli("prepare", path, "-o", tmp_path / "o", *options)
    train, dev, test = (read_records(tmp_path / "o", split=split) for split in ("train", "dev", "test"))
    assert sum("augmented" in record.extra for record in train) == len(train) / 2
    assert not any("augmented" in record.extra for record in [*dev, *test])
    assert "copies by swap" in (tmp_path / "o/report.html").read_text()


def test_unknown_names_say_the_nearest(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"query": "a b c", "pos": ["b"]}])
    for options, message in (
        (PrepareOptions(augment=["synonim"]), r"no 'synonim' among the augmentations. Did you mean 'synonym'\?"),
        (PrepareOptions(weigh=["tusk"]), r"no 'tusk' among the record-weightings. Did you mean 'task'\?"),
        (PrepareOptions(duplicates=["nearly"]), r"no 'nearly' among the duplicate-finders. Did you mean 'near'\?"),
        (PrepareOptions(languages=["en"], language_detector="x"), r"no 'x' among the language-detectors"),
    ):
        with pytest.raises(UsageError, match=message):
            prepare([Source(str(path))], tmp_path / "o", options)
