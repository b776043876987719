"""Trees of tokens: a record is the trunk, the questions or completions on it are the branches.

This module builds them from events. A record that is too long loses its oldest events, never the
system message, the demographics, the question or the answer; the cut events and tokens are counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from ehrr1.errors import UserError
from ehrr1.prompts.chat_format import ChatFormat, chat_format
from ehrr1.prompts.markers import Markers, Part, given, ours
from ehrr1.prompts.messages import CLOSED
from ehrr1.prompts.wording import BETWEEN, OURS, Wording
from ehrr1.records.events import Event

HISTORY_SHARE = 1 / 3
"""Maximum share of the room for a record that the preamble takes before it is shortened.

Its longest text then loses its end: a discharge note of an earlier stay must not displace the
current events.
"""

FOLLOWING = "#"
"""One-token suffix that is appended before an event is tokenised, and dropped afterwards.

In a record, the next event or the question follows. By GPT-2's pattern, the split of trailing line
ends depends on whether text follows.
"""

EVENTS_AT_ONCE = 8
"""Maximum number of events that are tokenised together, newest first, until the room is full."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question on a record; `answer` is None if a model is to generate it.

    `instruction` is the sample's own wording, None for the task's.
    """

    sample_id: str
    task: str
    think: bool
    answer: str | None = None
    chain: str | None = None
    weight: float = 1.0
    instruction: str | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    """Token ids: the question (seen, not learnt) and the completion (learnt), either may be empty.

    `weight` multiplies the loss of each completion token.
    """

    sample_id: str
    prompt: list[int]
    completion: list[int]
    weight: float = 1.0
    task: str = ""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True, slots=True)
class Tree:
    """A trunk and its branches, with counts of what was cut from the record to make it fit."""

    trunk: list[int]
    branches: list[Branch]
    cut_events: int = 0
    cut_tokens: int = 0
    """Tokens cut from the preamble; events that were cut as a whole are not tokenised."""

    def __len__(self) -> int:
        return len(self.trunk) + sum(len(branch) for branch in self.branches)


@dataclass
class PromptBuilder:
    """Builder that tokenises records event by event, so that too long ones lose whole events.

    `max_tokens` bounds the trunk with its longest branch. Events recur in the contexts of one stay:
    the tokens of up to `remember` events are cached.
    """

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    wording: Wording = OURS
    remember: int = 100_000
    _known: dict[tuple[Event, str], list[int]] = field(default_factory=dict, repr=False)
    _texts: dict[tuple[Part, ...], list[int]] = field(default_factory=dict, repr=False)

    @cached_property
    def chat(self) -> ChatFormat:
        """Return the texts around record, question and answer."""
        return chat_format(self.tokenizer, self.wording)

    @cached_property
    def markers(self) -> Markers:
        """Return the markers of the tokenizer and its chat."""
        return Markers(self.tokenizer, self.chat)

    @property
    def _opening(self) -> tuple[Part, ...]:
        return (ours(self.chat.opening),) if self.chat.opening else ()

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text of this project, whose markers are encoded as markers."""
        return self.markers.encode([[ours(text)]])[0]

    def _remembered(self, *parts: Part) -> list[int]:
        if parts not in self._texts:
            if len(self._texts) >= self.remember:
                self._texts.clear()
            [self._texts[parts]] = self.markers.encode([parts])
        return self._texts[parts]

    def branch(self, question: Question) -> Branch:
        """Return the branch of a question, with an empty completion if it has no answer."""
        words = self.wording.asked(question.task, think=question.think, own=question.instruction)
        behind = self.chat.think if question.think else self.chat.direct
        prompt = self._remembered(given(words), ours(behind))
        answer: list[int] = []
        if question.answer is not None:
            chain = question.chain
            thought = () if chain is None else (*self._opening, given(chain), ours(CLOSED))
            answer = self._remembered(*thought, given(question.answer), ours(self.chat.end))
        return Branch(question.sample_id, prompt, answer, question.weight, question.task)

    def fits(self, question: Question) -> bool:
        """Return whether question and answer, which are never cut, leave room for a record."""
        return (
            len(self.branch(question)) + len(self._remembered(ours(self.chat.head)))
            < self.max_tokens
        )

    def tree(
        self,
        events: Sequence[Event],
        preamble: int,
        questions: Sequence[Question],
        head: list[int] | None = None,
    ) -> Tree:
        """Return the tree of `questions` on one record, with `events` oldest first.

        `head` holds the ids that precede the record: the system message, or that and examples.

        The first `preamble` events (demographics, earlier stays, this admission) are never left
        out; of the others the oldest are left out first. A preamble that takes more than
        `HISTORY_SHARE` of the room loses the end of its longest event (the discharge note). Raises
        UserError if not even the questions fit.
        """
        branches = [self.branch(question) for question in questions]
        head = self._remembered(ours(self.chat.head)) if head is None else head
        room = self.max_tokens - len(head) - max(len(branch) for branch in branches)
        if room < 0:
            raise UserError(
                f"max_tokens={self.max_tokens}: question and answer of a sample of task "
                f"{questions[0].task} alone need {self.max_tokens - room}; raise it"
            )
        fixed = self._event_tokens(events[:preamble], last=preamble >= len(events))
        whole = sum(map(len, fixed))
        fixed = self._shortened(fixed, int(room * HISTORY_SHARE))
        used = sum(map(len, fixed))
        newest = self._newest(events[preamble:], room - used)
        trunk = head + [token for text in (*fixed, *newest) for token in text]
        return Tree(trunk, branches, len(events) - preamble - len(newest), whole - used)

    def prompt(self, events: Sequence[Event], preamble: int, question: Question) -> list[int]:
        """Return one prompt as a flat list of ids, for generation."""
        tree = self.tree(events, preamble, [replace(question, answer=None, chain=None)])
        return tree.trunk + tree.branches[0].prompt

    def _newest(self, window: Sequence[Event], room: int) -> list[list[int]]:
        """Return the tokens of the latest events that fit into `room`, oldest first."""
        kept: list[list[int]] = []
        end, size = len(window), EVENTS_AT_ONCE
        while end:
            some = self._event_tokens(window[max(end - size, 0) : end], last=end == len(window))
            for text in reversed(some):
                if len(text) > room:
                    return kept[::-1]
                kept.append(text)
                room -= len(text)
            end -= len(some)
            # about as many as still fit: those beyond would be tokenised for nothing
            size = min(EVENTS_AT_ONCE, 1 + room * len(some) // max(1, sum(map(len, some))))
        return kept[::-1]

    def _event_tokens(self, events: Sequence[Event], last: bool) -> list[list[int]]:
        """Return the tokens of each event with its separator; with `last`, a question follows."""
        ends = [BETWEEN] * len(events)
        if last and ends:
            ends[-1] = self.wording.joint
        printed = list(zip(events, ends, strict=True))
        new = [one for one in dict.fromkeys(printed) if one not in self._known]
        if new:
            texts = [self.wording.printed(event) + end + FOLLOWING for event, end in new]
            ids = self.markers.encode([given(text)] for text in texts)
            self._known.update(zip(new, (tokens[:-1] for tokens in ids), strict=True))
        found = [self._known[one] for one in printed]
        while len(self._known) > self.remember:
            del self._known[next(iter(self._known))]
        return found

    def _shortened(self, fixed: list[list[int]], room: int) -> list[list[int]]:
        """Cut the longest text's end, then the next longest's, until all fit into `room` tokens."""
        fixed = list(fixed)
        end = self._remembered(ours(BETWEEN)) if sum(map(len, fixed)) > room else []
        while (excess := sum(map(len, fixed)) - room) > 0:
            longest = max(range(len(fixed)), key=lambda index: len(fixed[index]))
            keep = max(len(fixed[longest]) - excess - len(end), 0)
            fixed[longest] = fixed[longest][:keep] + (end if keep else [])
        return fixed
