"""Decide whether a fact is stated as present: a drug that was given, a finding of this patient.

The rules are few and need no package, because they run on every completion of reinforcement
learning. `graph.text.assertion` (ConText) finds the mentions that are evidence; the rules here only
refuse what is plainly negated, about a relative, or an allergy.
"""

import re
from typing import Literal

from ehrr1.graph.states import NOT_DONE, administration

Status = Literal["present", "absent", ""]
"""Whether a fact holds: "absent" if it is negated, not the patient's, or not given; "" if unknown.
"""

_END = re.compile(r"[.;!?](?=\s|$)|\n\s*\n|\n(?=\s*(?:[-*•]|\d+[.)]|[A-Z][\w /]*:))")
_HEADING = re.compile(r"^\s*([A-Z][A-Za-z /]{1,40}):", re.MULTILINE)
_TURN = re.compile(
    r"\b(?:but|however|except|although|yet|now|reports?|presents?|presented|complains?|complained"
    r"|developed|admitted)\b"
    r"|(?:,|\band)\s+(?:(?:he|she|who|the patient)\s+)?(?:has|have|had|with)\b",
    re.IGNORECASE,
)
_BEFORE = re.compile(
    r"\b(?:no(?! (?:change|increase|decrease|improvement)\b)|not(?! only\b)|never|denie[sd]|denying"
    r"|without(?! (?:change|improvement)\b)|negative for|free of|absence of|rules? out"
    r"|ruled out for|resolved|resolution of)\b",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"\s*(?:\(-\)|:? ?(?:(?:was|were|is|are|has been|have been)\s+)?"
    r"(?:not (?:seen|present|identified|detected|noted|found)|absent|denied|ruled out|excluded"
    r"|resolved|negative)\b)",
    re.IGNORECASE,
)
_KIN = r"(?:mother|father|brother|sister|aunt|uncle|cousin|grandmother|grandfather|parent|sibling)"
_FAMILY = re.compile(
    rf"\bfamily history\b|\bFH[xX]?\b|\b{_KIN}s?\b(?: who)? (?:with|had|has|have|died|diagnosed)\b"
    rf"|\b{_KIN}s?\s*:|\bin (?:(?:his|her|the|patient's) )*{_KIN}",
    re.IGNORECASE,
)
_OTHERS = re.compile(r"family history|family|fh|allerg(?:y|ies)|social history", re.IGNORECASE)
_ALLERGY = re.compile(r"\ballerg(?:y|ic|ies)\b", re.IGNORECASE)
_IF = re.compile(r"\b(?:return|call|come back|seek)\b.*\b(?:if|for)\b|\bif you\b", re.IGNORECASE)


def administered(event_txt: str) -> Status:
    """Return "present" for a drug that was given, "absent" for one that was not."""
    state = administration(event_txt)
    if not state:
        return ""
    return "absent" if state in NOT_DONE else "present"


def mentioned(text: str, start: int, end: int) -> Status:
    """Return whether `text[start:end]` is stated as present in this patient.

    It is "absent" if its sentence negates it, if it is about a relative, an allergy or what to do
    in the future, or if it stands in a section of family history or allergies.
    """
    section = ""
    for heading in _HEADING.finditer(text, 0, start):
        section = heading[1]
    if _OTHERS.fullmatch(section):
        return "absent"
    first = max((found.end() for found in _END.finditer(text, 0, start)), default=0)
    last = _END.search(text, end)
    lead, tail = text[first:start], text[end : last.start() if last else len(text)]
    if _FAMILY.search(lead + text[start:end] + tail) or _IF.search(lead):
        return "absent"
    if _AFTER.match(tail) or _ALLERGY.search(lead) or _ALLERGY.match(tail.lstrip()):
        return "absent"
    negated = [found.end() for found in _BEFORE.finditer(lead)]
    turned = [found.start() for found in _TURN.finditer(lead)]
    return "absent" if negated and not any(turn > negated[-1] for turn in turned) else "present"
