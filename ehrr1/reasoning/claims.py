"""Check every claim of a chain against the context: what is cited, argued and derived.

`check` is used by screening, which refuses a chain for any claim that does not hold, and by the
faithfulness reward of reinforcement learning, which is the share of claims that hold.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ehrr1.graph.reasons import EVERYBODY
from ehrr1.reasoning.chain import ALL_EVIDENCE, ARROW, BAR, Chain
from ehrr1.reasoning.facts import Citable, Fact, number, value_splits
from ehrr1.reasoning.names import Named, Names, find_names, key_of
from ehrr1.reasoning.statements import Statement, in_cells, in_prose, times_of

MEASURED = frozenset(
    {"labevents", "chartevents", "omr", "outputevents", "vitalsign", "triage", "meds"}
)
"""Tables whose values are measurements. The amount of a drug is written in too many ways."""

COMMON_UNITS = frozenset(
    ["mg/dl", "g/dl", "meq/l", "mmol/l", "mg/l", "ng/ml", "iu/l", "u/l", "mmhg", "bpm", "ml", "kg"]
)
"""Units in lower case that are wrong for an item if the record shows another."""

SHORTEST_PART = 5
"""Minimum length of a word of a cited name that stands for the name ("dyspnea")."""

_NOT_BEFORE = re.compile(
    r"\b(?:no|not|never|without|rather than|instead of|no longer|against|avoid(?:s|ed|ing)?"
    r"|contraindicat\w+)\s+"
    r"(?:(?!(?:and|so|but|hence|thus|therefore|which|that|only)\b)\w+\s+){0,3}$",
    re.IGNORECASE,
)
_NOT_AFTER = re.compile(
    r"\s*(?:(?:is|was|are|were)\s+)?(?:not|no longer|never|contraindicated|unnecessary)\b",
    re.IGNORECASE,
)
_STATED_ABSENT = re.compile(
    r"(?:no|not|denies|denied|without|negative)\b|.*\b(?:absent|negative|denied|ruled out)$",
    re.IGNORECASE | re.DOTALL,
)
_OF_ALL = {key_of(EVERYBODY), key_of(ALL_EVIDENCE)}
_LONG_WORD = re.compile(rf"[^\W\d_]{{{SHORTEST_PART},}}")
_PIECES = re.compile(r"(?<=[.;!?])\s+")


@dataclass
class Findings:
    """The claims of a chain, and those that do not hold, by the rule that they break.

    claims counts each citation, each statement that can be checked, and each result; what is
    repeated or missing counts as a claim that does not hold.
    """

    claims: int = 0
    broken: dict[str, list[str]] = field(default_factory=dict)

    def note(self, rule: str, text: str, holds: bool) -> None:
        """Count a claim, and keep it under `rule` if it does not hold."""
        self.claims += 1
        if not holds:
            self.broken.setdefault(rule, []).append(text)

    @property
    def faithfulness(self) -> float:
        """Return the share of claims that hold; 0 if there are none."""
        failed = sum(map(len, self.broken.values()))
        return (self.claims - failed) / self.claims if self.claims else 0.0


def faithfulness(chain: Chain, context: Citable) -> float:
    """Return the share of a chain's claims that hold; 0 for a chain without any."""
    return check(chain, context).faithfulness


def check(chain: Chain, context: Citable) -> Findings:
    """Check every claim of a chain by these rules.

    - empty: no section is empty, except for an extraction without which what is routine for all
      patients, or what all evidence calls for, is argued;
    - citations: each extraction line cites an item of the context, with its value and unit if it
      gives them, at its event and time;
    - status: what is cited or stated as present is so, and what is stated as absent is absent;
    - directions: "high", "low", "normal", "abnormal", "rising" and "falling" agree with reference
      range, flag and earlier values;
    - values: a number, unit or time that reasoning gives to an item is the item's;
    - derivation: an earlier line of reasoning names each result, and with it an item that was
      cited, a result that was derived before, "All patients", for whom it is routine, or "All
      evidence", which calls for it;
    - repetition: no line, and no sentence of four words or more, occurs twice in a section.
    """
    found = Findings()
    for section in chain.sections:
        if not section and (section is not chain.sections[0] or not _cites_nothing(chain)):
            found.note("empty", "", holds=False)
        for line in repeated(section):
            found.note("repetition", line, holds=False)
    reader = _Reader(chain, context)
    reader.check_citations(found)
    for line in chain.reasoning:
        reader.check_line(line, found)
    for result in chain.results:
        found.note("derivation", result, key_of(result) in reader.derived)
    return found


def _cites_nothing(chain: Chain) -> bool:
    """Return whether the reasoning begins with what is routine for all, or with all evidence."""
    return any(chain.reasoning) and any(key in key_of(chain.reasoning[0]) for key in _OF_ALL)


def repeated(section: Iterable[str]) -> list[str]:
    """Return the lines, and the sentences of four words or more, that occur before in a section."""
    lines = [" ".join(line.split()) for line in section]
    counts = Counter(lines)
    if any(". " in line for line in counts):
        pieces = [piece for line in counts for piece in _PIECES.split(line)]
        counts |= Counter(piece for piece in pieces if len(piece.split()) >= 4)
    return [line for line, count in counts.items() if count > 1]


class _Reader:
    """A reader of the reasoning of one chain, line by line, that keeps what was derived."""

    def __init__(self, chain: Chain, context: Citable):
        self.chain, self.context = chain, context
        self.cited: dict[str, list[Fact]] = {}
        self.absent: set[str] = set()
        self.derived: set[str] = set()
        self.facts = [context.find(citation) for citation in chain.citations]
        for citation, facts in zip(chain.citations, self.facts, strict=True):
            self._cite(citation.name, facts)
        self.results = {key_of(result): result for result in chain.results}
        self._names: tuple[Names, ...] = ()

    def _cite(self, written: str, facts: list[Fact]) -> None:
        splits = value_splits(written)
        bases = {fact.name for fact in facts} or {splits[-1][0] if splits else written}
        for name in {written, *bases}:
            self.cited.setdefault(key_of(name), []).extend(facts)
        if _STATED_ABSENT.match(written):  # "no pneumothorax" is cited, so that there is none
            facts = [fact._replace(status="absent" if fact.status else "") for fact in facts]
        for base in bases:
            for part in _LONG_WORD.findall(base.casefold()):
                if part != base.casefold():
                    self.cited.setdefault(part, []).extend(facts)

    def check_citations(self, found: Findings) -> None:
        """Check the citations, and the status of what they cite, against the whole reasoning."""
        found.claims += self.chain.unread
        if self.chain.unread:
            found.broken.setdefault("citations", []).extend([""] * self.chain.unread)
        self.absent = self._stated_absent()
        for citation, facts in zip(self.chain.citations, self.facts, strict=True):
            if not facts:
                found.note("citations", citation.name, holds=False)
                continue
            missing = all(fact.status == "absent" for fact in facts)
            names = {key_of(fact.name) for fact in facts}
            told = bool(names & self.absent) or self._tells_absence(citation.name, facts)
            found.note("status", citation.name, holds=not missing or told)

    def _tells_absence(self, written: str, facts: Sequence[Fact]) -> bool:
        noted = any(rest in fact.notes for _, rest in value_splits(written) for fact in facts)
        return noted or _STATED_ABSENT.match(written) is not None

    def _stated_absent(self) -> set[str]:
        """Return the keys of items that some line of reasoning states as absent."""
        return {
            key_of(statement.name)
            for line in self.chain.reasoning
            for statement in self._statements(line)[1]
            if statement.kind == "status" and statement.said == ("absent",)
        }

    def check_line(self, line: str, found: Findings) -> None:
        """Check the statements of a line of reasoning, and note the results that it derives."""
        named, statements = self._statements(line)
        times = times_of(line) if statements else []
        for statement in statements:
            holds = self._holds(statement, times)
            if holds is not None:
                rule = {"state": "directions", "status": "status"}.get(statement.kind, "values")
                found.note(rule, line, holds)
        self.derived |= set(self._derives(line, named))

    def _statements(self, line: str) -> tuple[list[Named], list[Statement]]:
        before, arrow, _ = line.partition(ARROW)
        if arrow and self._begins_with_item(before):
            return [], in_cells(before)
        named = find_names(line, *self._name_indices())
        return named, in_prose(line, named)

    def _begins_with_item(self, cells: str) -> bool:
        name, bar, _ = cells.partition(BAR)
        return bool(bar) and (self._supports(key_of(name)) or key_of(name) in self.results)

    def _name_indices(self) -> tuple[Names, ...]:
        if not self._names:
            mine = Names(
                {EVERYBODY, ALL_EVIDENCE, *self.cited, *self.results.values(), *self._cited_names()}
            )
            self._names = (mine, self.context.names)
        return self._names

    def _cited_names(self) -> set[str]:
        return {fact.name for facts in self.facts for fact in facts} | {
            citation.name for citation in self.chain.citations
        }

    def _derives(self, line: str, named: Sequence[Named]) -> Iterator[str]:
        """Yield the keys of the results that a line derives from what stands before it."""
        before, arrow, after = line.partition(ARROW)
        if arrow and not named:
            cells = before.split(BAR)
            if any(self._supports(key_of(cell.strip())) for cell in cells):
                yield from self._in_cells(after)
            return
        keys = [key_of(one.name) for one in named]
        bare = sum(len(line[one.start : one.end]) for one in named) + 3 > len(line.strip())
        for one, key in zip(named, keys, strict=True):
            others = any(self._supports(other) for other in keys if other != key)
            argued = key in self.results and not bare and (others or key in self.cited)
            lead, tail = line[: one.start], line[one.end :]
            if argued and not (_NOT_BEFORE.search(lead) or _NOT_AFTER.match(tail)):
                yield key

    def _supports(self, key: str) -> bool:
        return key in self.cited or key in self.derived or key in _OF_ALL

    def _in_cells(self, cells: str) -> Iterator[str]:
        keys = {key_of(cell.strip()) for cell in cells.split("|")}
        yield from keys & self.results.keys()
        left = [name for key, name in self.results.items() if key not in keys and name in cells]
        yield from (key_of(name) for name in left)

    def _holds(self, statement: Statement, times: Sequence[tuple[str, str]]) -> bool | None:
        cited = self.cited.get(key_of(statement.name), [])
        if statement.kind == "status":
            return _status_holds(statement, cited)
        if statement.kind == "state":
            return self._state_holds(statement, cited, times)
        known = cited + self.context.by_name.get(key_of(statement.name), [])
        if statement.kind == "time":
            return any(self._is_at(fact, statement.said) for fact in known) if known else None
        at = [fact for fact in known if any(self._is_at(fact, time) for time in times)]
        return _value_holds(statement, at or known)

    def _state_holds(
        self, statement: Statement, cited: list[Fact], times: Sequence[tuple[str, str]]
    ) -> bool | None:
        every = cited + self.context.by_name.get(key_of(statement.name), [])
        valued = [fact for fact in every if _same_number(fact.value, statement.beside)]
        at = [fact for fact in every if any(self._is_at(fact, time) for time in times)]
        facts = valued or at or cited or every
        answers = {self.context.holds(state, fact) for state in statement.said for fact in facts}
        if statement.negated:
            answers = {None if answer is None else not answer for answer in answers}
        return True if True in answers else None if None in answers or not answers else False

    def _is_at(self, fact: Fact, time: Sequence[str]) -> bool:
        when, (date, hour) = self.context.events[fact.event].time, time
        if when is None:
            return False
        return date in ("", when.strftime("%Y-%m-%d")) and hour in ("", when.strftime("%H:%M"))


def _status_holds(statement: Statement, cited: Sequence[Fact]) -> bool | None:
    known = [fact.status for fact in cited if fact.status]
    return statement.said[0] in known if known else None


def _value_holds(statement: Statement, facts: Sequence[Fact]) -> bool | None:
    """Return whether a number, with its unit, is a value of the item; None if it cannot be told."""
    measured = [fact for fact in facts if number(fact.value) is not None]
    if not measured or any(fact.table not in MEASURED for fact in facts):
        return None
    said, unit = statement.said
    fitting = [
        fact
        for fact in measured
        if any(_same_number(cell, said) for cell in (fact.value, fact.lower, fact.upper))
    ]
    units = {fact.unit.casefold() for fact in fitting}
    wrong = unit.casefold() in COMMON_UNITS and bool(units) and not units & {"", unit.casefold()}
    return bool(fitting) and not wrong


def _same_number(cell: str, said: str) -> bool:
    return bool(said) and number(cell) is not None and number(cell) == number(said)
