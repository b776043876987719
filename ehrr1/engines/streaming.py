"""Stream generated text to a callback."""

from collections.abc import Callable, Iterable, Iterator

from transformers import PreTrainedTokenizerBase

Watch = Callable[[str], None]
Step = tuple[list[int], list[int], list[float]]
"""Unfinished rows, their new tokens, and the tokens' log-probabilities."""


def watched(
    steps: Iterable[Step], watch: Watch, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Step]:
    """Yield the steps of one completion and pass its text to `watch` piece by piece."""
    pieces = Pieces(tokenizer)
    for step in steps:
        for token in step[1]:
            if piece := pieces.add(token):
                watch(piece)
        yield step
    if rest := pieces.rest():
        watch(rest)


class Pieces:
    """A growing list of tokens, cut into pieces of text that add up to the whole.

    A token may be part of a character, or decode with a blank only behind another token. Each piece
    is what the text gains over that of the tokens before, returned once its last character is
    complete.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.begin = self.end = 0
        """Tokens from `begin` on are decoded; the text of those before `end` was returned."""

    def add(self, token: int) -> str:
        """Add a token and return the text that is complete now, often none."""
        self.tokens.append(token)
        piece = self.rest()
        if not piece or piece.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self.begin, self.end = self.end, len(self.tokens)
        return piece

    def rest(self) -> str:
        """Return the text that was not returned yet."""
        before = self._text(self.tokens[self.begin : self.end])
        return self._text(self.tokens[self.begin :])[len(before) :]

    def _text(self, tokens: list[int]) -> str:
        [text] = self.tokenizer.batch_decode(
            [tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
