"""The names of metrics that docs/metrics.md has, to compare with those that a run writes."""

import re
from collections.abc import Iterable
from functools import cache

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "metrics.md"


def not_on_the_page(stage: str, names: Iterable[str]) -> list[str]:
    """Return the names that no table of the stage's section has, of metrics.json or train.jsonl."""
    known = patterns(stage)
    plain = {name: of_a_result(name) if stage == "eval" else name for name in names}
    return sorted(n for n, one in plain.items() if not any(p.fullmatch(one) for p in known))


@cache
def patterns(stage: str) -> tuple[re.Pattern[str], ...]:
    """Return patterns of the names in a stage's section, with any name for each `<word>`.

    A line of rl's train.jsonl has what one of adapt has, too."""
    sections = {
        part.split("\n")[0]: part for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    }
    own = [text for names, text in sections.items() if stage in names.split(", ")]
    if stage == "rl":
        own.append(sections["adapt, reason"].split("`train.jsonl`")[1])
    cells = [line.split("|")[1] for text in own for line in text.splitlines() if line[:3] == "| `"]
    found = [name for cell in cells for name in re.findall("`([^`]+)`", cell)]
    assert found, f"{PAGE} has no names of {stage}"
    return tuple(re.compile(re.sub(r"<\w+>", "[^/]+", re.escape(name))) for name in found)


def of_a_result(name: str) -> str:
    """Return a score without the result in front of it and the end of its interval."""
    mode = r"(:\w+)*"
    one = rf"(untrained|base|adapt|reason|rl){mode}"
    name = re.sub(rf"^(baseline/\w+|{one}|[\w:]+-[\w:]+)/", "", name)
    return re.sub(r"/(low|high)$", "", name)
