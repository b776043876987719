"""Phrases that a chain must not contain: that it saw the answer, that it doubts, that it decides.

They are grouped by what they mean. Each group has counterparts that mean something else and are
allowed, which `tests/data/screening` lists beside them: "in May", "the patient was given heparin",
"problem list".
"""

import re

_ANSWER = r"(?:answers?|labels?|solutions?)"
_END = r"(?:answers?|labels?|solutions?|targets?|results?|outcomes?|outputs?|lists?|items?)"

_GIVEN_ANSWER = (
    rf"(?:correct|given|provided|expected|reference|true|known|actual|listed|final|right|desired"
    rf"|intended|required|requested|predefined|predetermined|stated) {_ANSWER}\b"
    r"|(?:correct|given|provided|expected|reference|true|known|actual|listed|final|right)"
    r" outcomes?\b"
    r"|(?:desired|expected|target|intended|requested|correct|reference|predetermined)"
    r" (?:outputs?(?! of)|lists?|results?|items?|prediction)\b"
    r"|ground[\s-]*truth|gold[\s-]*(?:standard|label|answer)|answer[\s-]*(?:key|list|sheet)"
    r"|(?:answers?|outcomes?|solutions?) (?:(?:that )?(?:is|are|was|were) )?(?:already )?"
    r"(?:given|provided|known|told|listed|shown)"
    rf"|(?:the|these|those|this|that) {_ANSWER}"
    r" (?:is|are|must|should|will|says?|shows?|has|includes?)\b"
    r"|the (?:(?:final|next) )?answers?\b|(?:so|therefore|thus|hence),? the answer"
)
_TOLD = (
    r"\b(?:we|I) (?:were|was|are|am|have been|had been|'ve been)(?: already)?"
    r" (?:told|given|provided|informed|shown|handed|asked|instructed|supposed|meant|required)\b"
    r"|\b(?:we|I) (?:already )?know (?:that )?(?:the|what|how|which|where)\b"
    r"|\bwhat (?:actually )?(?:happened|comes?|came|was (?:ordered|given|done)) next\b"
    r"|\bas (?:listed|shown|given|provided|stated|specified|requested|instructed|required)"
    r" (?:above|below|here|by the (?:user|prompt|task)"
    r"|in the (?:prompt|question|task|instructions?|input))\b"
    r"|according to the (?:answers?|labels?|lists?|hints?|graph|solution|prompt|instructions|task)"
    r"|\b(?:in|per|by|from) (?:the|this|my|your) prompt(?=[.,;:\n)]|$)|\b(?:the|this) prompt"
    r" (?:says|asks|states|lists|gives|requires|tells|mentions|includes)\b|\bthe user\b"
    r"|\blanguage model\b|\bas an AI\b|\bthe hints?\b|\bhints? (?:given|provided)\b"
    r"|\b(?:the|this|given|provided) list"
    r" (?:says?|contains?|names?|requires?|demands?|above|below)\b"
)
_BACKWARDS = (
    r"\b(?:in|with) hindsight\b|\bwork(?:ing|ed|s)? backwards?\b|\breverse[\s-]engineer"
    rf"|\bto (?:justify|match|fit) (?:the|this|that|these|those) (?:\w+ )?{_END}\b"
    r"|\bto (?:reach|arrive at|lead to) (?:the|this|that|these|those)"
    r" (?:\w+ )?(?:answers?|labels?|solutions?|outputs?|lists?|items?)\b"
    r"|\b(?:required|asked|instructed|supposed|meant|(?:I|we) (?:must|have|need)) (?:to )?"
    r"(?:arrive|conclude|derive|reach|justify)\b"
    r"|\b(?:leads?|leading|points?|pointing) to the"
    r" (?:\w+ )?(?:answers?|targets?|labels?|solution)\b"
    r"|\bknowing (?:the|how|what|that the) (?:\w+ )?"
    r"(?:answers?|labels?|solution|outcome|ends|comes next|happened)\b"
    r"|\btarget[\s-]+(?:items?|lists?|outputs?|answers?|results?|set|labels?)\b"
)
_STATISTICS = (
    r"\b(?:knowledge|evidence|thinking|provided|given|relation) graph\b|\bthe graph\b|\bco-?occur"
    r"|\b(?:the|high|higher|highest|its|their|by) lift\b|\blift (?:of|=|\d)|\(lift\b"
    r"|\bother (?:patients|samples|records|cases)\b|\bsimilar (?:patients|records)\b"
    r"|\btraining (?:data|set|samples|records)\b|\bstatistic(?:s|ally)\b|\bdata ?set\b"
    r"|\b(?:times|x) (?:as|more) often\b"
)

BETRAYAL = re.compile(f"{_GIVEN_ANSWER}|{_TOLD}|{_BACKWARDS}|{_STATISTICS}", re.IGNORECASE)
"""Phrases that reveal that the writer saw the answer or the graph, or argues to a given end."""

MONTH = re.compile(
    r"\b(?:[Ii]n|[Oo]f|[Oo]n|[Ss]ince|[Bb]y|[Uu]ntil|[Bb]efore|[Aa]fter|[Dd]uring|[Ee]arly|[Ll]ate"
    r"|[Mm]id|[Ll]ast|[Tt]his|[Nn]ext|\d{1,2}(?:st|nd|rd|th)?) May\b|\bMay (?:of )?(?:the )?\d"
)
"""The month, which `HEDGING` would take for a word of doubt."""

_CERTAIN = (
    r"\bas (?:\w+ )?as possible\b|\b(?:no|without(?: a)?|beyond(?: any)?) doubt\b"
    r"|\bno longer possible\b|\bno apparent distress\b"
)
CERTAIN = re.compile(_CERTAIN, re.IGNORECASE)
"""Phrases with a word of doubt that express none."""

HEDGING = re.compile(
    r"\b(?:may(?:be| be)?|might|could|possib(?:le|ly|ility|ilities)|perhaps|probab(?:le|ly|ility)"
    r"|(?:un)?likely|likelihood|potentially|presum(?:ably|ed|e|es)|supposedly|conceivabl[ey]"
    r"|arguably|plausibl[ey]|hypothetical(?:ly)?|ostensibly"
    r"|though|although|however|unclear|uncertain(?:ty)?|unsure|not (?:sure|certain)|doubt(?:ful)?"
    r"|questionable|ambiguous"
    r"|seem(?:s|ed|ing|ingly)?|apparent(?:ly)?|appears?|appeared (?:to|as)|appearing"
    r"|suspect(?:s|ed|ing)?|suspicions?|suspicious|suggest(?:s|ed|ing|ive)?"
    r"|assuming|assumption|assumed to"
    r"|consistent with|compatible with|concern(?:ing|s)? for|worrisome for|in keeping with"
    r"|(?:I|we) (?:think|believe|guess|feel|assume)|tends? to"
    r"|can ?(?:not|'t) (?:be )?(?:excluded?|ruled? out)|can not (?:be )?(?:excluded?|ruled? out)"
    r"|not (?:be )?(?:excluded|ruled out))\b",
    re.IGNORECASE,
)
"""Words of doubt.

Item names, and what `MONTH` and `CERTAIN` match, are removed before the search.
"""

VERDICT = re.compile(
    r"(?:answer|outcome|prediction|conclusion|verdict|decision)\s*(?:is|:|=|will be)"
    r"\s*\W?(?:yes|no)\b"
    r"|^\s*(?:yes|no)\W*$"
    r"|\b(?:overall|in sum|in conclusion|therefore|so|thus)[,:]? (?:yes|no)(?=[.;!]|\s*$)"
    r"|\bcase for (?:yes|no) (?:is|wins|prevails|outweighs|carries)\b|\bon balance\b|\boutweighs?\b"
    r"|\b(?:stronger|weaker|better|more convincing) (?:case|argument)\b|\bmore convincing\b"
    r"|\b(?:I|we) (?:conclude|decide|predict|choose|favou?r|expect)\b",
    re.IGNORECASE | re.MULTILINE,
)
"""A decision on a yes/no question, where a chain may only give the two cases."""


def betrays(text: str) -> bool:
    """Return whether a text reveals that its writer saw the answer or the graph."""
    return BETRAYAL.search(text) is not None


def hedges(text: str) -> bool:
    """Return whether a text expresses doubt."""
    return HEDGING.search(CERTAIN.sub(" ", MONTH.sub(" ", text))) is not None


def decides(text: str) -> bool:
    """Return whether a text decides a yes/no question."""
    return VERDICT.search(text) is not None
