"""Rewards: f(completions, **columns) -> list[float | None], sync or async; None: does not apply.

`completions` are texts. The columns are lists with one entry a completion: `sample_id`, `task`,
`kind` ("decision" or "risk"), `think` ("none", "chain" or "both"), `target`, `prompt`, `tokens`,
`max_tokens`, `truncated`, `must_close` (`rl.require_closed_think`, where thinking was asked for),
`yes_probability`, `citable`. A reward names those that it reads and
takes the rest as `**columns`. A sync one is called in a thread of its own: one with a model on a
GPU must name the device.

The release's defects are mended: a blank line after </think> does no harm, case does not matter,
"not sure, maybe yes" is no answer, and what cannot be read is told apart from what is wrong.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ehrr1.reasoning.chain import parse_chain
from ehrr1.reasoning.claims import faithfulness
from ehrr1.reasoning.facts import Citable
from ehrr1.scoring.answers import Kind, has_both_cases, read_answer, split_think
from ehrr1.scoring.proper import WORST_BRIER, WORST_LOG, brier, log_score
from ehrr1.scoring.sets import set_scores

Values = list[float | None]
Reward = Callable[..., Values | Awaitable[Values]]

BUFFER = 0.2
"""The share of the allowed length in which `overlong` falls: DAPO's 4,096 of 20,480 tokens."""


def accuracy_reward(
    completions: Sequence[str],
    *,
    kind: Sequence[Kind],
    target: Sequence[Sequence[str]],
    must_close: Sequence[bool] = (),
    **columns: Sequence[Any],
) -> Values:
    """Return set F1 of the answer lines for decision tasks, 1 or 0 for the label of risk tasks.

    An answer that cannot be read scores 0, and so does one without a closed think block where
    `must_close` (empty: nowhere). For risk tasks it is not proper: the likelier answer is
    right most often if it is always given, so that the probability of yes goes to 0 or 1.
    """
    closes = must_close or [False] * len(completions)
    return [_accuracy(*one) for one in zip(completions, kind, target, closes, strict=True)]


def _accuracy(text: str, kind: Kind, target: Sequence[str], must_close: bool) -> float:
    answer = read_answer(text, kind)
    if answer.problem is not None or (must_close and answer.think is None):
        return 0.0
    if kind == "risk":
        return float(answer.label == target[0])
    return set_scores(answer.items, target).f1


def set_f1_reward(
    completions: Sequence[str],
    *,
    kind: Sequence[Kind],
    target: Sequence[Sequence[str]],
    must_close: Sequence[bool] = (),
    **columns: Sequence[Any],
) -> Values:
    """Return `accuracy` for decision tasks only, for use with a proper reward for risk tasks."""
    found = accuracy_reward(completions, kind=kind, target=target, must_close=must_close)
    return [value if one == "decision" else None for value, one in zip(found, kind, strict=True)]


def format_reward(
    completions: Sequence[str],
    *,
    kind: Sequence[Kind],
    think: Sequence[str],
    **columns: Sequence[Any],
) -> Values:
    """Return 1 for a well-formed completion, else 0.

    - think=none: no think content;
    - think=chain: a closed think block that holds the three sections once each and in order;
    - think=both: one that argues for yes and then for no (`prompts.messages.CASES`).

    Always an answer that can be read (of risk tasks exactly yes or no), no line of it twice.
    """
    return [float(_well_formed(*one)) for one in zip(completions, kind, think, strict=True)]


def _well_formed(text: str, kind: Kind, think: str) -> bool:
    answer = read_answer(text, kind)
    if answer.problem is not None:
        return False
    # Names of two letter cases may be two items of a record: the score takes them for one.
    if len(set(answer.items)) < len(answer.items):
        return False
    return THOUGHTS[think](answer.think or "")


THOUGHTS: dict[str, Callable[[str], bool]] = {
    "none": lambda thought: not thought,
    "chain": lambda thought: parse_chain(thought) is not None,
    "both": has_both_cases,
}
"""Thinking mode -> whether the text of a think block has the form that it asks for."""


def brier_reward(
    completions: Sequence[str],
    *,
    sample_id: Sequence[str],
    kind: Sequence[Kind],
    target: Sequence[Sequence[str]],
    yes_probability: Sequence[float | None],
    **columns: Sequence[Any],
) -> Values:
    """Return the Brier score of risk tasks as a reward in [0, 2]; 0 for an unreadable answer.

    Its expected policy gradient is that of the expected score 1 - (y - p)^2, so that it is best
    where p, the probability of yes, is the frequency of the label (`scoring.proper` derives it).
    Exact only if the rest of the training agrees:

    - `rl.scale=none`. Divided by their standard deviation in the group, the rewards of direct
      answers are those of `accuracy`: they have two values, one for yes and one for no;
    - `rl.top_p=1 rl.top_k=0`: they never show the rare answer, and its group then has no signal;
    - `yes_probability` is that which the answer was sampled with. Read at another temperature, it
      still becomes the frequency of direct answers' labels; but the chains of think=both are paid
      S'(p) (p as sampled - p) too much: sample them at that temperature;
    - no other reward for the same tasks depends on which of the two was answered.

    Raises ValueError for an answer that was read but whose probability is not known.
    """
    found = zip(completions, sample_id, kind, target, yes_probability, strict=True)
    return [_proper(brier, WORST_BRIER, *one) for one in found]


def log_reward(
    completions: Sequence[str],
    *,
    sample_id: Sequence[str],
    kind: Sequence[Kind],
    target: Sequence[Sequence[str]],
    yes_probability: Sequence[float | None],
    **columns: Sequence[Any],
) -> Values:
    """Return the logarithmic score of risk tasks as a reward, under the terms of `brier_reward`.

    Being right with a small probability pays up to 1 / `proper.EDGE`: its gradient is noisier than
    Brier's, and stronger where the policy is sure and wrong.
    """
    found = zip(completions, sample_id, kind, target, yes_probability, strict=True)
    return [_proper(log_score, WORST_LOG, *one) for one in found]


def _proper(
    rule: Callable[[bool, bool, float], float],
    worst: float,
    text: str,
    sample_id: str,
    kind: Kind,
    target: Sequence[str],
    p: float | None,
) -> float | None:
    if kind != "risk":
        return None
    answer = read_answer(text, kind)
    if answer.problem is not None:
        return worst
    if p is None or not 0 <= p <= 1:
        raise ValueError(f"sample {sample_id} was answered, with yes_probability={p}")
    return rule(target[0] == "yes", answer.label == "yes", p)


def overlong_reward(
    completions: Sequence[str],
    *,
    tokens: Sequence[int],
    max_tokens: Sequence[int],
    **columns: Sequence[Any],
) -> Values:
    """Return the soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13).

    It is 0 up to a buffer below `max_tokens`, falls to -1 at the end of the buffer, and is -1
    beyond.
    """
    return [_overlong(*one) for one in zip(tokens, max_tokens, strict=True)]


def _overlong(tokens: int, most: int) -> float:
    buffer = BUFFER * most
    return min(0.0, max(-1.0, (most - buffer - tokens) / buffer))


def faithfulness_reward(
    completions: Sequence[str],
    *,
    think: Sequence[str],
    citable: Sequence[Citable | None],
    **columns: Sequence[Any],
) -> Values:
    """Return the share of a chain's claims that hold, by the function that screens chains.

    Claims are the citations, what the reasoning states of cited items, and the results, which need
    a reason (`reasoning.claims.check`). `citable` has the facts of the context. None where no chain
    of three sections was asked for, and where nothing can be cited, as in a context that came as
    text; 0 where no chain can be read.
    """
    return [_faithful(*one) for one in zip(completions, think, citable, strict=True)]


def _faithful(text: str, think: str, allowed: Citable | None) -> float | None:
    if think != "chain" or not allowed:
        return None
    thought, _, problem = split_think(text)
    chain = parse_chain(thought or "")
    return 0.0 if problem is not None or chain is None else faithfulness(chain, allowed)


REWARDS: dict[str, Reward] = {
    "accuracy": accuracy_reward,
    "set_f1": set_f1_reward,
    "format": format_reward,
    "brier": brier_reward,
    "log": log_reward,
    "overlong": overlong_reward,
    "faithfulness": faithfulness_reward,
}
"""What `rl.rewards` can name; other names are dotted paths to functions of the user's own."""
