"""Predictions of Claude through Anthropic's API (`engine=anthropic`).

The API returns no log-probabilities. A yes/no question is answered by a word; with several draws
(`eval.draws`), the share of yes among them is the probability. Sampling uses the API's defaults, as
newer models accept no temperature. One coroutine sends the questions on one record one after the
other: the first request writes the record into the prompt cache, the others read it there.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ehrr1.config.schema import Config
from ehrr1.config.writers import AnthropicEngineConfig
from ehrr1.engines import anthropic as claude
from ehrr1.engines import endpoint
from ehrr1.errors import UserError
from ehrr1.evaluation.baselines.bags import of_kind
from ehrr1.evaluation.predict import Rows, Writing
from ehrr1.evaluation.predictions import WrittenAnswer, YesProbability, prediction_row, risk_row
from ehrr1.evaluation.prompt_mode import PromptMode
from ehrr1.evaluation.targets import Target
from ehrr1.prompts.messages import THINK_CLOSE, THINK_OPEN, broken, mended
from ehrr1.prompts.wording import style_of
from ehrr1.reasoning.prompting import Limit, fitting_record
from ehrr1.runs import data_is_open
from ehrr1.scoring.answers import read_answer
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import by_context

GROUP = "engine"

DIRECT = "Write nothing but the answer."
THINK = f"Think first, between {THINK_OPEN} and {THINK_CLOSE}; write nothing but the answer behind."

PROBLEMS = {
    "refusal": "refused by the model",
    "max_tokens": "cut off at the longest answer",
    "model_context_window_exceeded": "cut off at the model's context",
}
"""Problem by the API's stop reason; answers with any other stop reason are complete."""

TOO_LONG = "prompt too long for the model"
OVERLONG = ("too long", "exceed context limit")
"""Parts of the API's message for a prompt that is too long.

Such an error concerns one prompt; other bad requests are due to the settings.
"""

ATTEMPTS = 3
"""Attempts for a response that cannot be parsed; the SDK retries transport errors itself."""

LOOK_SECONDS = 1.0
"""Interval in seconds at which finished rows are yielded, even if no record is complete."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer's text, and why it cannot be used, or None."""

    text: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Missed:
    """A request without an answer after all retries, with the reason."""

    reason: str


def check(settings: AnthropicEngineConfig, open_data: bool) -> None:
    """Raise UserError if the API must not or cannot be used; nothing is sent.

    That is the case if the records must not leave this machine, or if the API key or the SDK is
    missing. `settings` are those of `engine=anthropic`.
    """
    here = "ask a model on this machine (engine=vllm or engine=transformers)"
    endpoint.check(claude.API, settings, open_data, group=GROUP, here=here)


def predict(
    cfg: Config, prepared: Prepared, result: Target, samples: Sequence[Sample]
) -> Iterator[Rows]:
    """Yield the rows of `samples` as they are answered.

    Whether the records are open is read from the prepared folder, not from the command's settings.
    Raises UserError as `check` and `ChatPredictor.rows` do.
    """
    engine = cfg.engine
    assert isinstance(engine, AnthropicEngineConfig)
    check(engine, data_is_open(prepared.folder))
    limits = cfg.eval.max_new_tokens
    predictor = ChatPredictor(
        engine,
        prepared,
        Writing(limits.think, limits.direct, cfg.eval.draws),
        Candidates.of(prepared, cfg.seed) if cfg.candidates == "list" else None,
    )
    for mode, kind in ((result.risk, "risk"), (result.decision, "decision")):
        if mode is not None:
            yield from predictor.rows(of_kind(samples, kind), mode)


@dataclass(frozen=True)
class ChatPredictor:
    """A model behind the Messages API, with the records that it reads.

    `writing` gives the maximum lengths and the number of draws; its sampling settings are not used.
    """

    settings: AnthropicEngineConfig
    prepared: Prepared
    writing: Writing
    candidates: Candidates | None = None

    def rows(self, samples: Sequence[Sample], mode: PromptMode) -> Iterator[Rows]:
        """Yield the rows of each sample as they are answered.

        Rows of samples without an answer come last, so that a run that ends early repeats their
        requests when it resumes. Raises UserError if the endpoint refuses the requests or does not
        answer; no further request is sent then.
        """
        groups = iter(by_context(samples).values())
        waiting: set[asyncio.Task[None]] = set()
        with asyncio.Runner() as runner:
            client = claude.async_client(self.settings)
            asking = ChatRequests(self, client, mode)
            try:
                while True:
                    for group in islice(groups, self.settings.concurrency - len(waiting)):
                        waiting.add(runner.get_loop().create_task(asking.record(group)))
                    if not waiting:
                        break
                    done, waiting = runner.run(_some(waiting))
                    for task in done:
                        task.result()  # raises the task's exception
                    yield from asking.taken()
                    if asking.stop is not None:
                        raise asking.stop
            finally:
                runner.run(client.close())
        yield from asking.held()

    def question(self, sample: Sample, mode: PromptMode) -> str:
        """Return the question on a record, with the instruction to think or to answer directly.

        Chat markers within the question are broken, so that the model reads them as text.
        """
        own = mode.words(sample, self.candidates)
        text = (own or ALL_TASKS[sample.task].instruction).rstrip()
        return f"{broken(text)} {THINK if mode.thinks else DIRECT}"

    def requests(self, group: Sequence[Sample], mode: PromptMode) -> list[dict[str, Any]]:
        """Return the request bodies for the questions on one record.

        The record is cut to the same events for all of them.
        """
        questions = [self.question(sample, mode) for sample in group]
        system = style_of(mode.wording, "eval").system
        room = self.settings.max_prompt_chars - len(system) - max(map(len, questions))
        record, _ = fitting_record(self.prepared.context(group[0]), [Limit(len, room)])
        answer = self.writing.think if mode.thinks else self.writing.direct
        most = answer + self.settings.thinking_tokens
        shared = len(group) * self.writing.draws > 1
        return [
            claude.request_body(
                str(self.settings.model),
                most,
                system,
                (broken(record), text),
                int(shared),
                thinking=self.settings.thinking,
                effort=self.settings.effort,
            )
            for text in questions
        ]


@dataclass
class ChatRequests:
    """State of the concurrent requests in one prompt mode.

    `ready` are the rows of answered samples that have not been yielded, `missed` those of samples
    without an answer. `stop` is the error that ends the run, `reason` why the last request failed,
    `answered` whether any request succeeded.
    """

    predictor: ChatPredictor
    client: Any
    mode: PromptMode
    ready: list[Rows] = field(default_factory=list)
    missed: list[Rows] = field(default_factory=list)
    stop: UserError | None = None
    reason: str = ""
    unanswered: int = 0
    """Number of consecutive requests without an answer."""
    answered: bool = False

    async def record(self, group: Sequence[Sample]) -> None:
        """Send the questions on one record one after the other."""
        bodies = self.predictor.requests(group, self.mode)
        for sample, body in zip(group, bodies, strict=True):
            replies = [await self._reply(body) for _ in range(self.predictor.writing.draws)]
            if self.stop is not None:
                return
            missing = next((one.reason for one in replies if isinstance(one, Missed)), None)
            if missing is None:
                whole = [one for one in replies if isinstance(one, Reply)]
                self.ready.append(rows_of(sample, whole, self.mode))
            else:
                nothing = WrittenAnswer([], None, f"no answer ({missing})")
                self.missed.append([prediction_row(sample, self.mode, nothing)])

    def taken(self) -> list[Rows]:
        """Return the rows that have become ready since the last call."""
        rows, self.ready = self.ready, []
        return rows

    def held(self) -> list[Rows]:
        """Return the rows of samples without an answer.

        Raises UserError if there are such samples and no request was answered.
        """
        if self.missed and not self.answered:
            raise endpoint.unreachable(claude.API, self.reason, GROUP)
        return self.missed

    async def _reply(self, body: dict[str, Any]) -> Reply | Missed:
        """Send a request unless the run is to stop; set `stop` after too many failures in a row."""
        if self.stop is not None:
            return Missed("")
        found = await self._ask(body)
        if isinstance(found, Reply):
            self.unanswered, self.answered = 0, True
            return found
        self.unanswered, self.reason = self.unanswered + 1, found.reason
        if self.unanswered >= max(endpoint.OUTAGE, 2 * self.predictor.settings.concurrency):
            self.stop = self.stop or endpoint.unreachable(claude.API, found.reason, GROUP)
        return found

    async def _ask(self, body: dict[str, Any]) -> Reply | Missed:
        """Send one request; repeat it if the response is not a message."""
        import anthropic

        for _ in range(ATTEMPTS):
            try:
                raw = await self.client.messages.with_raw_response.create(**body)
                answer = claude.read_message(raw.http_response.json())
            except anthropic.APIStatusError as error:
                if is_overlong(error.status_code, error.message):
                    return Reply("", TOO_LONG)
                if not endpoint.may_pass(error.status_code):
                    refused = endpoint.refused(claude.API, error.status_code, error.message, GROUP)
                    self.stop = self.stop or refused
                return Missed(f"status {error.status_code}")
            except anthropic.APIConnectionError as error:
                return Missed(type(error).__name__)
            except ValueError:  # not JSON, or not a message
                continue
            return Reply(mended(answer.text), PROBLEMS.get(answer.stop_reason))
        return Missed("malformed answer")


async def _some(tasks: set[asyncio.Task[None]]) -> tuple[set[Any], set[Any]]:
    """Return the finished and the pending tasks, after one finishes or LOOK_SECONDS pass."""
    return await asyncio.wait(tasks, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)


def is_overlong(status: int, message: str) -> bool:
    """Return whether a request was refused because its prompt is too long."""
    return status == 413 or (status == 400 and any(words in message for words in OVERLONG))


def rows_of(sample: Sample, replies: Sequence[Reply], mode: PromptMode) -> Rows:
    """Return the rows of a sample: one for a risk task, one per draw for a decision task."""
    if ALL_TASKS[sample.task].kind == "risk":
        return [_risk_row(sample, replies, mode)]
    return [_decision_row(sample, reply, mode, n) for n, reply in enumerate(replies)]


def _risk_row(sample: Sample, replies: Sequence[Reply], mode: PromptMode) -> dict[str, Any]:
    """Return the row of a risk sample.

    With one reply it has the answer only, with several also a probability: the share of yes among
    the replies that could be read. If none could be read, the row has the first reply's problem.
    """
    answers = [read_answer(reply.text, "risk") for reply in replies]
    problems = [r.problem or a.problem for r, a in zip(replies, answers, strict=True)]
    labels = [a.label for a, problem in zip(answers, problems, strict=True) if problem is None]
    completion = "\n\n".join(reply.text for reply in replies)
    if not labels:
        return prediction_row(sample, mode, WrittenAnswer([], completion, problems[0]))
    if len(replies) == 1:
        return prediction_row(sample, mode, WrittenAnswer([str(labels[0])], completion))
    return risk_row(sample, YesProbability(labels.count("yes") / len(labels)), mode, completion)


def _decision_row(sample: Sample, reply: Reply, mode: PromptMode, draw: int) -> dict[str, Any]:
    """Return the row of one draw of a decision sample."""
    answer = read_answer(reply.text, "decision")
    problem = reply.problem or answer.problem
    written = WrittenAnswer(() if problem else answer.items, reply.text, problem)
    return prediction_row(sample, mode, written, draw=draw)
