"""Text while it is written, for somebody who looks on."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ehrr1.engines.base import Sampling
from ehrr1.engines.transformers import TransformersRollout

Watch = Callable[[str], None]


class LiveRollout(TransformersRollout):
    """Tells `watch`, where one is set, the text of a single completion piece by piece."""

    watch: Watch | None = None

    def _steps(
        self,
        prompts: Sequence[list[int]],
        group_size: int,
        sampling: Sampling,
        levels: Tensor,
    ) -> Iterator[tuple[list[int], list[int], list[float]]]:
        steps = super()._steps(prompts, group_size, sampling, levels)
        watch = self.watch
        if watch is None or len(prompts) * group_size > 1:
            yield from steps
            return
        pieces = Pieces(self.tokenizer)
        for step in steps:
            for token in step[1]:
                if piece := pieces.add(token):
                    watch(piece)
            yield step
        if rest := pieces.rest():
            watch(rest)


class Pieces:
    """Cuts a growing list of tokens into pieces of text that together are the whole.

    A token may be part of a character, or be written with a blank only behind another: each piece
    is what the text gains over that of the tokens before, told when its last character is whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.begin = self.end = 0
        """Tokens from `begin` on are decoded; those before `end` are told already."""

    def add(self, token: int) -> str:
        """The text that can be told now, often none."""
        self.tokens.append(token)
        piece = self.rest()
        if not piece or piece.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self.begin, self.end = self.end, len(self.tokens)
        return piece

    def rest(self) -> str:
        """What is not told yet."""
        before = self._text(self.tokens[self.begin : self.end])
        return self._text(self.tokens[self.begin :])[len(before) :]

    def _text(self, tokens: list[int]) -> str:
        [text] = self.tokenizer.batch_decode(
            [tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
