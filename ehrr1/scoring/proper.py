"""Proper scoring rules as rewards of a sampled yes/no answer.

A policy writes a chain c and samples the answer a in {0, 1} with P(a = 1 | c) = p. The desired p
maximises the expected score S(p, y) of the label y. S is proper if this p is the label's true
frequency (Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation", 2007).
The reward is

    r = S(p, y) + S'(p, y) (a - p)            S': the derivative in p

because E[a - p | c] = 0 and E[(a - p) grad log P(a | c) | c] = grad p, so that

    E[r grad log P(c, a)] = E[S grad log P(c)] + E[S' grad p] = grad E[S].

The first term rewards the chain, the second the answer. S alone gives no gradient for a direct
answer, since all completions of its prompt have the same p. Correctness (a = y) is not a proper
score: its expectation is linear in p and maximal at 0 or 1.

The same holds if tokens other than yes and no can be sampled and earn a constant, where p is the
probability of yes among the two: the policy gradient then ascends P(yes or no) S + P(neither)
constant.
"""

import math

EDGE = 0.01
"""Distance from 0 and 1 below which the logarithm is continued linearly.

The slope of the logarithm is unbounded there.
"""

WORST_BRIER = 0.0
WORST_LOG = math.log(EDGE) - 1
"""The minimum of each reward: a confident wrong answer."""


def brier(label: bool, answer: bool, p: float) -> float:
    """Return the reward of S = 1 - (y - p)^2, in [0, 2].

    p in [0, 1] is the probability of yes.
    """
    error = label - p
    return 1 - error**2 + 2 * error * (answer - p)


def log_score(label: bool, answer: bool, p: float) -> float:
    """Return the reward of S = log of the label's probability.

    It is in [WORST_LOG, WORST_LOG + 1 / EDGE]. Clipping p in both terms is not an approximation: it
    is the reward of S continued by its tangents, which is proper for frequencies from EDGE to 1 -
    EDGE.
    """
    p = min(max(p, EDGE), 1 - EDGE)
    return math.log(p if label else 1 - p) + (label - p) * (answer - p) / (p * (1 - p))
