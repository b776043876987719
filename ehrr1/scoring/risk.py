"""Compute the probability of yes from next-token log-probabilities."""

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ehrr1.errors import UserError

YES_SPELLINGS = ("yes", "Yes", "YES", " yes", " Yes")
NO_SPELLINGS = ("no", "No", "NO", " no", " No")


class Encoder(Protocol):
    """The part of the interface of a Hugging Face tokenizer that is used here."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a text."""
        ...


class AnswerTokens(NamedTuple):
    """Ids of tokens that begin "yes" and "no"; the lists are disjoint and not empty."""

    yes: list[int]
    no: list[int]


def answer_tokens(tokenizer: Encoder) -> AnswerTokens:
    """Return the ids of all spellings of yes and no that are a single token.

    If no spelling of a word is a single token, the first token of its plain spelling is used.
    Raises UserError if the two words begin with the same token, since one prefill cannot
    distinguish them.
    """
    yes, no = _ids(tokenizer, YES_SPELLINGS), _ids(tokenizer, NO_SPELLINGS)
    if set(yes) & set(no):
        raise UserError(
            "model.path: its tokenizer begins yes and no with the same token, so that their "
            "probabilities cannot be read; ask decisions only (data without risk tasks), or "
            "another model"
        )
    return AnswerTokens(yes, no)


def _ids(tokenizer: Encoder, spellings: tuple[str, ...]) -> list[int]:
    encoded = [tokenizer.encode(word, add_special_tokens=False) for word in spellings]
    whole = sorted({ids[0] for ids in encoded if len(ids) == 1})
    return whole or [encoded[0][0]]


def probability_of_yes(logprobs: NDArray[np.floating], tokens: AnswerTokens) -> NDArray[np.float64]:
    """Return P(yes) / (P(yes) + P(no)), each summed over its spellings.

    logprobs: [..., vocabulary], natural logarithms (unnormalised logits are equally valid, since
    the normaliser cancels). The result has shape [...], in [0, 1]. It is always the probability of
    *yes*, never of the chosen word, so that it can be used for ranking. It is computed in float64
    from differences of logarithms, so that it stays accurate when both probabilities are tiny.
    """
    values = np.asarray(logprobs, dtype=np.float64)
    yes = np.logaddexp.reduce(values[..., tokens.yes], axis=-1)
    no = np.logaddexp.reduce(values[..., tokens.no], axis=-1)
    difference = np.clip(no - yes, -700.0, 700.0)
    return np.asarray(1.0 / (1.0 + np.exp(difference)))
