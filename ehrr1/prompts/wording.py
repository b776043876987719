"""How a sample is put to a model: the system's sentence, what stands between record, question and
thinking switch, and how a record is printed.

    file      our style; a sample's own question, where it has one
    ours      our style and our questions
    release   the EHR-R1 release's style, for its weights and its rows; a sample's own question

A style is part of a result's name: scores of different ones cannot be compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ehrr1.config.names import WordingName
from ehrr1.prompts.messages import EMPTY_THOUGHT, NO_THINK, SYSTEM, THINK
from ehrr1.records.events import Event
from ehrr1.records.markdown import event_markdown, released_markdown
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Sample

BETWEEN = "\n\n"
"""Between two events."""

RELEASED_SYSTEM = "You are a helpful assistant."


@dataclass(frozen=True, slots=True)
class Wording:
    """One style. Every text is what stands there, letter by letter."""

    name: WordingName = "file"
    system: str = SYSTEM
    joint: str = "\n\n"
    """Between the record's last event and the question."""
    think: str = f" {THINK}"
    direct: str = f" {NO_THINK}"
    """Behind the question, as the answer is thought about or not."""
    closed: str = EMPTY_THOUGHT
    """Closes thinking in the prompt of a direct answer, where the chat template does not."""
    printed: Callable[[Event], str] = event_markdown
    """Prints one event."""

    def asked(self, task: str, *, think: bool, own: str | None = None) -> str:
        """The question, the sample's `own` or the task's, with the thinking switch."""
        return (own or ALL_TASKS[task].instruction) + (self.think if think else self.direct)

    def chat(
        self, task: str, record: str, *, think: bool, own: str | None = None
    ) -> list[dict[str, str]]:
        """The chat of one sample: the record comes first, so that questions on it share their
        start."""
        question = self.asked(task, think=think, own=own)
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": record + self.joint + question},
        ]

    def record(self, events: Sequence[Event]) -> str:
        """A record as it is shown, without what follows it."""
        return BETWEEN.join(map(self.printed, events))

    def own(self, sample: Sample) -> str | None:
        """The sample's own question; None where the task's is asked."""
        return sample.instruction if self.name != "ours" or sample.time_told else None


OURS = Wording()

DIRECT_SWITCH = {"reason": NO_THINK, "rl": f"\n{NO_THINK}"}
"""Behind the question of a direct answer in the release, by stage: its script for `reason` sets the
switch without a line break. `adapt` and evaluation have none."""


def style_of(name: WordingName, stage: str) -> Wording:
    """The style of this name for a stage."""
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
