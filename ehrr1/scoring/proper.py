"""Proper scores as rewards of a sampled yes/no answer.

A policy writes a chain c and samples the answer a in {0, 1} with P(a = 1 | c) = p. We want the p
that maximises the expected score S(p, y) of the label y: S is proper where that is the label's true
frequency (Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation", 2007).
The reward for it is

    r = S(p, y) + S'(p, y) (a - p)            S': the derivative in p

because E[a - p | c] = 0 and E[(a - p) grad log P(a | c) | c] = grad p, so that

    E[r grad log P(c, a)] = E[S grad log P(c)] + E[S' grad p] = grad E[S].

The first part pays the chain, the second the answer. S alone teaches a direct answer nothing: all
completions of its prompt have the same p. Being right (a = y) is not proper: its expectation is
linear in p, and best at 0 or 1.

The same holds where something else than yes and no can be sampled and earns a constant, with p the
probability of yes among the two: the policy then climbs P(yes or no) S + P(neither) constant.
"""

import math

EDGE = 0.01
"""Nearer than this to 0 or 1 the logarithm goes on as a straight line: its slope has no bound."""

WORST_BRIER = 0.0
WORST_LOG = math.log(EDGE) - 1
"""The least that each reward can be: a wrong answer that was certain."""


def brier(label: bool, answer: bool, p: float) -> float:
    """The reward of S = 1 - (y - p)^2; p in [0, 1] is the probability of yes. In [0, 2]."""
    error = label - p
    return 1 - error**2 + 2 * error * (answer - p)


def log_score(label: bool, answer: bool, p: float) -> float:
    """The reward of S = log of the label's probability. In [WORST_LOG, WORST_LOG + 1 / EDGE].

    The clipped p in both parts is no approximation: it is the reward of S continued by its
    tangents, which is proper for frequencies from EDGE to 1 - EDGE.
    """
    p = min(max(p, EDGE), 1 - EDGE)
    return math.log(p if label else 1 - p) + (label - p) * (answer - p) / (p * (1 - p))
