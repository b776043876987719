"""Model cards with scores: cards/<model>.md of an evaluation.

Each is a copy of the README.md in the model's hf/, as it is when the evaluation is scored, with the
scores in their section: what the user has written into it is kept. Nothing is written into hf/, the
folder of another run, which other evaluations may read or score at the same time; the user puts the
card there by one command (docs/howto.md).

A card has counts and scores only. Where closed records were asked about, no cell tells of fewer
than `FEWEST` patients.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from ehrr1.damage import reading
from ehrr1.evaluation.aggregate import BASELINES, STARTS, names, prefix_of
from ehrr1.evaluation.tables import MAIN, SHOWN, TITLES
from ehrr1.files import remove, replacing
from ehrr1.runs import made_from
from ehrr1.tasks.card_sections import FEWEST, HIDDEN, column, table
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.training.model_card import CARD, with_scores

FOLDER = "cards"

CALIBRATION = {"risk/brier": "Brier", "risk/ece": "ECE"}

Metrics = Mapping[str, float | int]


def sources(folder: Path, inputs: Mapping[str, Path]) -> dict[str, Path]:
    """Return the card of each model of an evaluation, by its stage, that scores are added to.

    It is that in the model's hf/. Of a model that has changed since, by another run or another
    checkpoint, or is gone, it is the one that the evaluation has written before.
    """
    before = {path.stem: path for path in sorted((folder / FOLDER).glob("*.md"))}
    now = {
        stage: source / "hf" / CARD
        for stage, source in inputs.items()
        if (source / "hf" / CARD).exists() and made_from(folder, stage, source)
    }
    return before | now


def write(
    folder: Path,
    inputs: Mapping[str, Path],
    scored: pl.DataFrame,
    metrics: Metrics,
    tasks: Sequence[str],
    about: Mapping[str, str],
    is_open: bool,
) -> None:
    """Write the cards of an evaluation, all at once; `about` says of what it is.

    `scored` are the predictions of the split that is scored. Raises DamagedError for a card that is
    no text in UTF-8.
    """
    cards = {}
    for stage, source in sources(folder, inputs).items():
        shown = [name for name in names(scored) if name.partition(":")[0] == stage]
        if not shown:
            continue
        with reading(source, UnicodeDecodeError, remedy="save it in UTF-8"):
            card = source.read_text(encoding="utf-8")
        told = scores(shown, scored, metrics, tasks, about, 1 if is_open else FEWEST)
        cards[stage] = with_scores(card, told)
    if not cards:
        remove(folder / FOLDER)
        return
    with replacing(folder / FOLDER) as new:
        new.mkdir()
        for stage, text in cards.items():
            (new / f"{stage}.md").write_text(text, encoding="utf-8")


def scores(
    shown: Sequence[str],
    scored: pl.DataFrame,
    metrics: Metrics,
    tasks: Sequence[str],
    about: Mapping[str, str],
    least: int,
) -> str:
    """Return the section of scores: of the results `shown`, beside their start and the baselines.

    No cell tells of fewer than `least` patients.
    """
    own = scored.filter(pl.col("model").is_in(shown))
    patients = column([own["subject_id"].n_unique()], least)[0]
    split = ", ".join(own["split"].unique().sort())
    lines = [f"- {name.capitalize()}: {value}" for name, value in about.items()]
    parts = [
        f"From `stage=eval`, on {patients} patients of the {split} split; in brackets the 95 % "
        "intervals, by bootstrap over patients.",
        "\n".join(lines),
        *([] if least == 1 else [f"`{HIDDEN}`: of fewer than {least} patients, or not asked."]),
        "Means over tasks, beside the model before training and the baselines:",
        means(shown, names(scored), metrics),
    ]
    for kind, metric in MAIN.items():
        asked = [t for t in tasks if ALL_TASKS[t].kind == kind]
        asked = [t for t in asked if any(f"{prefix_of(n)}{t}/{metric}" in metrics for n in shown)]
        if asked:
            parts += [f"{TITLES[kind]} by task:", by_task(shown, own, metrics, asked, kind, least)]
    return "\n\n".join(parts)


def means(shown: Sequence[str], found: Sequence[str], metrics: Metrics) -> str:
    """Return the mean scores of the results `shown`, of their start, and of the baselines."""
    heads = {
        name: title
        for name, title in (SHOWN | CALIBRATION).items()
        if any(f"{prefix_of(one)}{name}/macro" in metrics for one in shown)
    }
    others = [name for name in found if name in (*STARTS, *BASELINES)]
    rows = [
        (name, *(cell(metrics, f"{prefix_of(name)}{head}/macro") for head in heads))
        for name in (*shown, *others)
    ]
    return table(["result", *heads.values()], rows)


def by_task(
    shown: Sequence[str],
    own: pl.DataFrame,
    metrics: Metrics,
    tasks: Sequence[str],
    kind: str,
    least: int,
) -> str:
    """Return a row a task: patients, samples, of risk tasks the share of yes, and the scores."""
    rows = []
    for task in tasks:
        samples = own.filter(pl.col("task") == task).unique("sample_id")
        patients = samples["subject_id"].n_unique()
        cells = [*column([patients], least)[:1], *column([len(samples)], least, [patients])[:1]]
        if kind == "risk":
            cells.append(share_of_yes(samples, least))
        keys = [f"{prefix_of(name)}{task}/{MAIN[kind]}" for name in shown]
        few = patients < least
        rows.append((task, *cells, *(HIDDEN if few else cell(metrics, key) for key in keys)))
    heads = ["task", "patients", "samples", *(["yes"] if kind == "risk" else []), *shown]
    return table(heads, rows)


def share_of_yes(samples: pl.DataFrame, least: int) -> str:
    """Return the share of yes; hidden where few patients have the one answer or the other."""
    yes = samples["target"] == "yes"
    sides = [samples.filter(side)["subject_id"].n_unique() for side in (yes, ~yes)]
    return HIDDEN if any(0 < side < least for side in sides) else f"{yes.sum() / len(yes):.1%}"


def cell(metrics: Metrics, key: str) -> str:
    """Return a score with its interval, where it has one."""
    if key not in metrics:
        return HIDDEN
    if f"{key}/low" not in metrics:
        return f"{metrics[key]:.3f}"
    return f"{metrics[key]:.3f} ({metrics[f'{key}/low']:.3f}, {metrics[f'{key}/high']:.3f})"
