"""Markers of turns, think blocks and calls, which only we write: in text from data they are text.

A record, a question or an answer may hold anything, a tokenizer's own markers too (`<|im_end|>`,
`</think>`, `<tool_call>`). There each is cut behind its first character before it is tokenised, so
that its letters become ordinary tokens; a text without any has the tokens that it has in one.
Where a marker has no token of its own, and in text for servers, it is broken by a blank.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from ehrr1.prompts.chat_format import ChatFormat
from ehrr1.prompts.messages import THINK_TAGS, broken, mended

_WRITTEN = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""What looks like a marker in a chat template."""


class Part(NamedTuple):
    """A piece of a prompt or an answer; `ours`: we wrote it, and its markers are markers."""

    text: str
    ours: bool


def ours(text: str) -> Part:
    return Part(text, True)


def given(text: str) -> Part:
    """A record's, a question's or an answer's words."""
    return Part(text, False)


class Markers:
    """The markers of one tokenizer and of its chat: `encode` makes none of what was given, and
    `decode` tells those that are tokens from those that were spelled out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat):
        self.tokenizer, self.chat = tokenizer, chat
        self._own: dict[str, int] = {}

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Id -> marker. Added words, line breaks and blanks are none."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {number: token.content for number, token in added if _is_marker(token)}

    def encode(self, texts: Iterable[Sequence[Part]]) -> list[list[int]]:
        """The ids of each text, which is given in parts, as of one string."""
        texts = [[part if part.ours else self._without_words(part) for part in t] for t in texts]
        found = self._ids(["".join(part.text for part in parts) for parts in texts])
        return [
            ids if self._count(ids) == self._meant(parts) else self._cut(parts)
            for ids, parts in zip(found, texts, strict=True)
        ]

    def written(self, text: str) -> list[int]:
        """The ids of what a model wrote, as `decode` gives it: its think tags are tags, any other
        marker in it is text."""
        parts = re.split(f"({'|'.join(THINK_TAGS)})", text)
        return self.encode([[ours(p) if p in THINK_TAGS else given(mended(p)) for p in parts]])[0]

    def decode(self, completions: Sequence[Sequence[int]]) -> list[str]:
        """The texts that a model wrote: a think tag in it is one that the model set, also where the
        tokenizer counts it as special; one that it spelled letter by letter, as it stands in a
        record, is broken by a blank."""
        texts = self._texts(completions)
        return [
            self._quoting(ids)
            if any(text.count(tag) != list(ids).count(one) for tag, one in self._think.items())
            else text
            for ids, text in zip(completions, texts, strict=True)
        ]

    @cached_property
    def _think(self) -> dict[str, int]:
        return {content: n for n, content in self.tokens.items() if content in THINK_TAGS}

    @cached_property
    def _words(self) -> re.Pattern[str]:
        """Markers of the chat that this tokenizer has no token for."""
        chat = self.chat
        told = _WRITTEN.findall(" ".join((chat.head, chat.think, chat.direct, chat.next, chat.end)))
        return _any_of({*THINK_TAGS, *told} - set(self.tokens.values()))

    @cached_property
    def _starts(self) -> re.Pattern[str]:
        return re.compile(f"(?={_any_of(self.tokens.values()).pattern})")  # they may overlap

    def _without_words(self, part: Part) -> Part:
        return given(self._words.sub(lambda found: found[0][:1] + " " + found[0][1:], part.text))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def _count(self, ids: Sequence[int]) -> int:
        if self.tokens.keys().isdisjoint(ids):
            return 0
        return sum(one in self.tokens for one in ids)

    def _meant(self, parts: Sequence[Part]) -> int:
        """Count the markers that are ours."""
        for part in parts:
            if part.ours and part.text not in self._own:
                self._own[part.text] = self._count(self._ids([part.text])[0])
        return sum(self._own[part.text] for part in parts if part.ours)

    def _cut(self, parts: Sequence[Part]) -> list[int]:
        """Cut what was given within each marker; letter by letter, where a tokenizer that
        rewrites letters still finds one."""
        for every in (False, True):
            pieces = [""]
            for part in parts:
                first, *others = [part.text] if part.ours else self._pieces(part.text, every)
                pieces[-1] += first
                pieces += others
            ids = [one for found in self._ids(list(filter(None, pieces))) for one in found]
            # the token of unknown letters may stand for any
            known = [one for one in ids if one != self.tokenizer.unk_token_id]
            if self._count(known) == self._meant(parts):
                break
        return ids

    def _pieces(self, text: str, every: bool) -> list[str]:
        if every:
            return list(text) or [""]
        places = [0, *(found.start() + 1 for found in self._starts.finditer(text)), len(text)]
        return [text[a:b] for a, b in pairwise(places)]

    def _texts(self, completions: Sequence[Sequence[int]]) -> list[str]:
        return self.tokenizer.batch_decode([list(c) for c in completions], skip_special_tokens=True)

    def _quoting(self, ids: Sequence[int]) -> str:
        """The text with its set tags whole and its spelled ones broken."""
        tags = {one: tag for tag, one in self._think.items()}
        parts: list[str] = []
        run: list[int] = []
        for one in ids:
            if one in tags:
                parts += [broken(self._texts([run])[0]), tags[one]]
                run = []
            else:
                run.append(one)
        return "".join([*parts, broken(self._texts([run])[0])])


def _is_marker(token: AddedToken) -> bool:
    """Tell whether an added token means more than its letters: what is special, and what begins
    with a bracket or another sign."""
    text = token.content.strip(" \n\r\t\N{LOWER ONE EIGHTH BLOCK}")
    return len(token.content) > 1 and (token.special or (bool(text) and not text[0].isalnum()))


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
