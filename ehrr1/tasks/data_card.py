"""Data cards: what a finished `prepare` holds, as Markdown, for those who get what was made of it.

`export_card` stands beside exports, `model_data_card` in the hf/ of a model. Both have source,
licence, access, what the records must not be used for, settings, splits and counts. `sections` are
also those of `stage=card`, where counts are exact.

A model may go where its records may not. Of closed records its data card therefore tells no number
of fewer than `FEWEST` patients, and nothing of answers or single records. An export holds the
records themselves: its card is exact.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ehrr1 import __version__
from ehrr1.files import read_yaml
from ehrr1.records import openness
from ehrr1.runs.paths import decision
from ehrr1.tasks.card_sections import FEWEST, HIDDEN, counted_sections, sections
from ehrr1.tasks.samples import STORE, Prepared

CREDENTIALED = (
    "PhysioNet Credentialed Health Data License 1.5.0. Access: everyone's own, after a training in "
    "research with human subjects and a signed data use agreement; no sharing of access; research "
    "only"
)

TERMS = {
    "mimic": f"if these are MIMIC-IV's tables: {CREDENTIALED}",
    "release": f"records of MIMIC-IV: {CREDENTIALED}",
    "mimiciv_cdm": f"records of MIMIC-IV: {CREDENTIALED}",
    "ehrshot": "Stanford's research use agreement for EHRSHOT. Access: everyone's own",
}
"""Licence and access of closed records by `data`; others have those of whoever gave them."""

OF_GIVER = "those under which whoever gave them has given them"

TERMS_OPEN = {
    openness.INVENTED: "Apache-2.0; ehrr1 has generated them. Access: free",
    openness.OF_DEMO: "Open Database License 1.0: name the MIMIC-IV demo of PhysioNet as the "
    "source. Access: free",
}
"""Licence and access of open records, by the reason why they are open."""

USE = """## Use

Research only, not for clinical use. Do not use the records, or what was made of them,

- to identify anyone, alone or together with other records;
- to decide or support decisions about patients, including triage, insurance and staffing;
- to say how frequent something is elsewhere: these are the patients of one source, whose questions
  were chosen by the protocol;
- to train models for purposes that the licence of the records does not allow."""

SHARED_OPEN = """The records are open ({why}): their licence says how they may be shared."""

SHARED_CLOSED = """The records are closed, and these files hold them: share them only with those who
may have the records, by the agreement under which you have them. Of datasets derived from MIMIC,
PhysioNet's guidelines of 24 April 2024 say that they should be treated as containing sensitive
information, and shared on PhysioNet under the agreement of the source data. This card holds counts
only; names of items are left out."""


def export_card(prepared: Prepared, layout: str, seed: int) -> str:
    """Return the card of an export: what it holds, what may be shared, and what was prepared.

    Of a benchmark's own rows no tables are known.
    """
    decided = decision(prepared.folder)
    front = {
        **licence_of(decided),
        "language": ["en"],
        "tags": ["ehrr1", "electronic-health-records", "medical"],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        "# Data card",
        f"Records exported by `stage=export export.layout={layout}` of ehrr1 {__version__}. "
        "Research only, not for clinical use. Do not try to identify anyone in them.",
        *source_section(prepared.folder),
        USE,
        "## What may be shared",
        SHARED_OPEN.format(why=decided["why"]) if decided["open"] else SHARED_CLOSED,
        *(sections(prepared, seed, []) if (prepared.folder / STORE).exists() else []),
    ]
    return "\n\n".join(parts) + "\n"


def model_data_card(prepared: Prepared, stage: str) -> str:
    """Return the data card of a model that `stage` trains.

    The index of a large hospital is not read into memory for it.
    """
    is_open = decision(prepared.folder)["open"]
    hides = f"`{HIDDEN}` stands for numbers that would tell of fewer than {FEWEST} patients."
    parts = [
        "# Data card",
        f"The records that `stage={stage}` of ehrr1 {__version__} had for training. None of them "
        "is here; what may be shared of the model is in its card, [README.md](README.md). The "
        "stage learns from samples of the training split, is checked on the validation split, "
        "and reads nothing of the test split. The stages before it are named in the model card.",
        *source_section(prepared.folder),
        USE,
        *([] if is_open else [hides]),
    ]
    if (prepared.folder / STORE).exists():
        parts += counted_sections(prepared, 1 if is_open else FEWEST)
    return "\n\n".join(parts) + "\n"


def source_section(folder: Path) -> list[str]:
    """Return whose records a finished `prepare` holds, by which protocol, and their terms."""
    data, decided = read_yaml(folder / "config.yaml")["data"], decision(folder)
    terms = TERMS.get(data["name"], OF_GIVER)
    if decided["open"]:
        terms = TERMS_OPEN.get(decided["why"], OF_GIVER)
    lines = [
        f"- Records: `data={data['name']}`, {'open' if decided['open'] else 'closed'} "
        f"({decided['why']})",
        f"- Protocol: `{data['protocol']}`, a window of {data['window_hours']:g} hours",
        f"- Licence and access: {terms}.",
    ]
    return ["## Source, licence and access", "\n".join(lines)]


def licence_of(decided: Mapping[str, Any]) -> dict[str, str]:
    """Return the licence of records, as the Hub's front matter states it."""
    if decided["why"] == openness.OF_DEMO:
        return {"license": "odbl"}
    name = "to-be-decided" if decided["open"] else "as-the-records"
    return {"license": "other", "license_name": name}
