"""Wording of prompts: the system message, separators, the thinking switch, and the record's format.

    file      this project's style; a sample's own question, if it has one
    ours      this project's style and questions
    release   the EHR-R1 release's style, for its weights and rows; a sample's own question

A style is part of a result's name, since scores of different styles cannot be compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ehrr1.config.names import WordingName
from ehrr1.prompts.messages import EMPTY_THOUGHT, NO_THINK, SYSTEM, THINK
from ehrr1.records.events import Event
from ehrr1.records.markdown import event_markdown, released_markdown
from ehrr1.tasks.catalog import ALL_TASKS, OWN

if TYPE_CHECKING:  # forests, which import this module, need no tables
    from ehrr1.tasks.samples import Sample

BETWEEN = "\n\n"
"""Separator of two events."""

RELEASED_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True, slots=True)
class Wording:
    """One style; every text is used verbatim."""

    name: WordingName = "file"
    system: str = SYSTEM
    joint: str = "\n\n"
    """Separator of the record's last event and the question."""
    think: str = f" {THINK}"
    direct: str = f" {NO_THINK}"
    """Texts after the question, for an answer with thinking (`think`) and without (`direct`)."""
    closed: str = EMPTY_THOUGHT
    """Text that closes thinking in the prompt of a direct answer, if the chat template does not."""
    printed: Callable[[Event], str] = event_markdown
    """Function that prints one event."""

    def asked(self, task: str, *, think: bool, own: str | None = None) -> str:
        """Return the question, the sample's `own` or the task's, with the thinking switch."""
        return (own or ALL_TASKS[task].instruction) + (self.think if think else self.direct)

    def chat(
        self, task: str, record: str, *, think: bool, own: str | None = None
    ) -> list[dict[str, str]]:
        """Return the chat of one sample.

        The record comes first, so that questions on it share a prefix.
        """
        question = self.asked(task, think=think, own=own)
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": record + self.joint + question},
        ]

    def record(self, events: Sequence[Event]) -> str:
        """Return a record as it is shown, without the text that follows it."""
        return BETWEEN.join(map(self.printed, events))

    def own(self, sample: "Sample") -> str | None:
        """Return the sample's own question, or None if the task's is used."""
        always = sample.time_told or sample.task == OWN
        return sample.instruction if self.name != "ours" or always else None


OURS = Wording()

DIRECT_SWITCH = {"reason": NO_THINK, "rl": f"\n{NO_THINK}"}
"""Text after the question of a direct answer in the release, by stage.

Its script for `reason` sets the switch without a line break. `adapt` and evaluation have none.
"""


def style_of(name: WordingName, stage: str) -> Wording:
    """Return the style of this name for a stage."""
    if name != "release":
        return Wording(name)
    return Wording(
        name,
        system=RELEASED_SYSTEM,
        joint="\n",
        think=f"\n{THINK}",
        direct=DIRECT_SWITCH.get(stage, ""),
        closed="<think>\n\n</think>\n",
        printed=released_markdown,
    )
