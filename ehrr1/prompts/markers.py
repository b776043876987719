"""Encoding that keeps markers of turns, think blocks and calls apart from the same text in data.

A record, a question or an answer may contain anything, including the tokenizer's own markers
(`<|im_end|>`, `</think>`, `<tool_call>`). Such text is cut after the first character of each marker
before it is tokenised, so that its letters become ordinary tokens; a text without markers has the
same tokens as without this cut. If a marker has no token of its own, and in text for servers, it is
broken by a blank.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ehrr1.prompts.chat_format import ChatFormat
from ehrr1.prompts.messages import THINK_TAGS, broken, mended

_WRITTEN = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""Pattern of markers in a chat template."""


class Part(NamedTuple):
    """A piece of a prompt or an answer.

    `ours` is True for text of this project, whose markers are encoded as markers.
    """

    text: str
    ours: bool


def ours(text: str) -> Part:
    """Return a part of this project's own text."""
    return Part(text, True)


def given(text: str) -> Part:
    """Return a part of a record, a question or an answer."""
    return Part(text, False)


class Markers:
    """The markers of one tokenizer and of its chat.

    `encode` creates no markers from data, and `decode` distinguishes markers that are tokens from
    those that are spelled out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat):
        self.tokenizer, self.chat = tokenizer, chat
        self._own: dict[str, int] = {}

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Return id -> marker, without added words, line breaks and blanks."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {number: token.content for number, token in added if _is_marker(token)}

    def encode(self, texts: Iterable[Sequence[Part]]) -> list[list[int]]:
        """Return the ids of each text, which is given in parts, as those of one string."""
        texts = [[part if part.ours else self._without_words(part) for part in t] for t in texts]
        found = self._ids(["".join(part.text for part in parts) for parts in texts])
        return [
            ids if self._count(ids) == self._meant(parts) else self._cut(parts)
            for ids, parts in zip(found, texts, strict=True)
        ]

    def written(self, text: str) -> list[int]:
        """Return the ids of a model's output as `decode` returns it.

        Its think tags are encoded as markers, any other marker as text.
        """
        parts = re.split(f"({'|'.join(THINK_TAGS)})", text)
        return self.encode([[ours(p) if p in THINK_TAGS else given(mended(p)) for p in parts]])[0]

    def decode(self, completions: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts that a model wrote.

        A think tag in the text is a token that the model generated, even if the tokenizer considers
        it special; a tag that it spelled out, as in a record, is broken by a blank.
        """
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
        """Return a pattern of the chat's markers for which this tokenizer has no token."""
        chat = self.chat
        told = _WRITTEN.findall(" ".join((chat.head, chat.think, chat.direct, chat.next, chat.end)))
        return _any_of({*THINK_TAGS, *told} - set(self.tokens.values()))

    @cached_property
    def _starts(self) -> re.Pattern[str]:
        return re.compile(f"(?={_any_of(self.tokens.values()).pattern})")  # they may overlap

    def _without_words(self, part: Part) -> Part:
        return given(self._words.sub(lambda found: found[0][:1] + " " + found[0][1:], part.text))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if isinstance(
            self.tokenizer, PreTrainedTokenizerFast
        ):  # without offsets, which cost a third
            found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
            return [one.ids for one in found]
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def _backend(self) -> Tokenizer:
        """Return the tokenizer's own library's object, set to cut and to pad nothing."""
        self.tokenizer("", add_special_tokens=False)
        return self.tokenizer.backend_tokenizer

    def _count(self, ids: Sequence[int]) -> int:
        if self.tokens.keys().isdisjoint(ids):
            return 0
        return sum(one in self.tokens for one in ids)

    def _meant(self, parts: Sequence[Part]) -> int:
        """Count the markers in this project's own parts."""
        for part in parts:
            if part.ours and part.text not in self._own:
                self._own[part.text] = self._count(self._ids([part.text])[0])
        return sum(self._own[part.text] for part in parts if part.ours)

    def _cut(self, parts: Sequence[Part]) -> list[int]:
        """Encode with cuts within each marker of data.

        If a tokenizer that rewrites letters still finds one, the data are cut letter by letter.
        """
        for every in (False, True):
            pieces = [""]
            for part in parts:
                first, *others = [part.text] if part.ours else self._pieces(part.text, every)
                pieces[-1] += first
                pieces += others
            ids = [one for found in self._ids(list(filter(None, pieces))) for one in found]
            # the token of unknown letters may represent any letter
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
        """Return the text with think tokens as tags and spelled-out tags broken by a blank."""
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
    """Return whether an added token has a meaning beyond its letters.

    These are special tokens, and tokens that begin with a bracket or another sign.
    """
    text = token.content.strip(" \n\r\t\N{LOWER ONE EIGHTH BLOCK}")
    return len(token.content) > 1 and (token.special or (bool(text) and not text[0].isalnum()))


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
