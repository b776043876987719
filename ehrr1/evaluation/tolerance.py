"""Scores of decisions that tolerate spelling, synonyms and, for drugs, the same ATC class.

They stand beside the exact scores (`f1_tolerant` beside `f1`). The rules of spelling are those of
`scoring.tolerant`; synonyms and ATC classes need a dictionary (`concepts=open` or `umls`).
"""

from collections.abc import Iterable, Mapping

import polars as pl

from ehrr1.config.records import Concepts
from ehrr1.graph.same_names import Meanings, read_meanings
from ehrr1.scoring.sets import normalise, reduce
from ehrr1.scoring.tolerant import Keys, Speller, singular, tolerant_f1
from ehrr1.tasks.catalog import ALL_TASKS

TOLERANT = "tolerant"
"""Additional column of the predictions: the tolerant F1 of a decision answer, null for others."""

DRUG_TASKS = frozenset({"prescriptions", "emar", "medrecon", "pyxis"})
"""Tasks whose items are drugs: doses and dosage forms are ignored, and ATC classes compared."""


def with_tolerance(predictions: pl.DataFrame, concepts: Concepts, atc_level: int) -> pl.DataFrame:
    """Return the predictions with the column `TOLERANT`.

    The right answers of a task are the known names that misspelled ones are compared with. Raises
    UserError if the dictionary of `concepts` cannot be read.
    """
    tasks = [
        t for t, task in ALL_TASKS.items() if task.kind == "decision" and task.target != "text"
    ]
    rows = predictions.select("task", "prediction", "target").with_row_index("place")
    rows = rows.filter(pl.col("task").is_in(tasks))
    said = [normalise(text.split("\n")) for text in rows["prediction"]]
    right = [normalise(text.split("\n")) for text in rows["target"]]
    items: dict[str, set[str]] = {}
    names: dict[str, set[str]] = {}
    for task, one, other in zip(rows["task"], said, right, strict=True):
        items.setdefault(task, set()).update(one, other)
        names.setdefault(task, set()).update(other)
    drugs = {name for task in DRUG_TASKS for name in items.get(task, ())}
    every = {name for some in items.values() for name in some}
    spellers = {task: Speller(some) for task, some in names.items()}
    words = {word for task, some in items.items() for word in unknown_words(some, spellers[task])}
    meanings = read_meanings(concepts, every, drugs, words)
    for speller in spellers.values():
        speller.learn(meanings.words)
    keys = {
        task: item_keys(task, some, spellers[task], meanings, atc_level)
        for task, some in items.items()
    }
    scores = [
        tolerant_f1(one, other, keys[task])
        for task, one, other in zip(rows["task"], said, right, strict=True)
    ]
    found = pl.DataFrame({"place": rows["place"], TOLERANT: pl.Series(scores, dtype=pl.Float64)})
    whole = predictions.with_row_index("place").join(found, on="place", how="left")
    return whole.sort("place").drop("place")


def unknown_words(items: Iterable[str], speller: Speller) -> set[str]:
    """Return the words of items that may be misspellings, as they are written."""
    words = {word for item in items for word in reduce(item).split()}
    return {word for word in words if speller.is_unknown(singular(word))}


def item_keys(
    task: str, items: Iterable[str], speller: Speller, meanings: Meanings, atc_level: int
) -> Mapping[str, Keys]:
    """Return the keys of each item of a task; items with a common key match."""
    is_drug = task in DRUG_TASKS
    found = {}
    for item in items:
        keys = {f"name {speller.key(item)}"}
        keys |= {f"concept {one}" for one in meanings.of(item, is_drug)}
        if is_drug:
            keys |= {f"ATC {one}" for one in meanings.atc_classes(item, atc_level)}
        found[item] = frozenset(keys)
    return found
