"""Predictions by Claude, through Anthropic's API: `engine=anthropic`.

It tells no log-probabilities. A yes/no question is answered by a word; with `eval.draws` answers to
it, the share of yes among them is its probability. Answers are drawn as the API does by itself, as
newer models take no temperature. A coroutine takes a record and asks its questions in turn: the
first writes the record into the cache, the others read it there.
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
"""By the reason why the model stopped; other answers are whole."""

TOO_LONG = "prompt too long for the model"
OVERLONG = ("too long", "exceed context limit")
"""How the API says so; it concerns one prompt, other bad requests the settings."""

ATTEMPTS = 3
"""So often an answer is asked for that cannot be read at all; the SDK itself repeats the rest."""

LOOK_SECONDS = 1.0
"""What was answered is handed on after so long, whether its record is done or not."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered, and what is wrong with it."""

    text: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Missed:
    """Why there is no answer, after all retries."""

    reason: str


def check(settings: AnthropicEngineConfig, open_data: bool) -> None:
    """Raise UserError, before anything is sent, where records must not leave this machine, or there
    is no key or no SDK; `settings` are those of `engine=anthropic`."""
    here = "ask a model on this machine (engine=vllm or engine=transformers)"
    endpoint.check(claude.API, settings, open_data, group=GROUP, here=here)


def predict(
    cfg: Config, prepared: Prepared, result: Target, samples: Sequence[Sample]
) -> Iterator[Rows]:
    """The rows of `samples`, as they are answered. Raises UserError as `check` and `ChatPredictor`;
    it is the records that were prepared which must be open, whatever the command says of them."""
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
    """A model behind the Messages API, with what it reads. `writing` says how much is written and
    how many draws there are; its temperature is not used."""

    settings: AnthropicEngineConfig
    prepared: Prepared
    writing: Writing
    candidates: Candidates | None = None

    def rows(self, samples: Sequence[Sample], mode: PromptMode) -> Iterator[Rows]:
        """The rows of each sample, as they are answered.

        Raises UserError where the endpoint refuses or does not answer: then it is not asked again.
        Samples without an answer have rows only at the end: a run that ends before asks again.
        """
        from anthropic import AsyncAnthropic

        groups = iter(by_context(samples).values())
        waiting: set[asyncio.Task[None]] = set()
        with asyncio.Runner() as runner:
            client = AsyncAnthropic(**claude.client_settings(self.settings))
            asking = ChatRequests(self, client, mode)
            try:
                while True:
                    for group in islice(groups, self.settings.concurrency - len(waiting)):
                        waiting.add(runner.get_loop().create_task(asking.record(group)))
                    if not waiting:
                        break
                    done, waiting = runner.run(_some(waiting))
                    for task in done:
                        task.result()  # raises what it raised
                    yield from asking.taken()
                    if asking.stop is not None:
                        raise asking.stop
            finally:
                runner.run(client.close())
        yield from asking.held()

    def question(self, sample: Sample, mode: PromptMode) -> str:
        """What is asked of a record: the question, and whether to think.

        Text reaches the model as text: what looks like a marker in record and question is broken.
        """
        own = mode.words(sample, self.candidates)
        text = (own or ALL_TASKS[sample.task].instruction).rstrip()
        return f"{broken(text)} {THINK if mode.thinks else DIRECT}"

    def requests(self, group: Sequence[Sample], mode: PromptMode) -> list[dict[str, Any]]:
        """The bodies for the questions on one record, which is cut alike for all of them."""
        questions = [self.question(sample, mode) for sample in group]
        system = style_of(mode.wording, "eval").system
        room = self.settings.max_prompt_chars - len(system) - max(map(len, questions))
        record, _ = fitting_record(self.prepared.context(group[0]), [Limit(len, room)])
        most = self.writing.think if mode.thinks else self.writing.direct
        shared = len(group) * self.writing.draws > 1
        return [
            claude.request_body(
                str(self.settings.model), most, system, (broken(record), text), int(shared)
            )
            for text in questions
        ]


@dataclass
class ChatRequests:
    """What is under way for one way of asking."""

    predictor: ChatPredictor
    client: Any
    mode: PromptMode
    ready: list[Rows] = field(default_factory=list)
    missed: list[Rows] = field(default_factory=list)
    stop: UserError | None = None
    reason: str = ""
    unanswered: int = 0
    """Requests in a row."""
    answered: bool = False

    async def record(self, group: Sequence[Sample]) -> None:
        """Ask the questions on one record in turn."""
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
        """What has come since the last time."""
        rows, self.ready = self.ready, []
        return rows

    def held(self) -> list[Rows]:
        """The rows of samples without an answer. Raises UserError where there is no other row."""
        if self.missed and not self.answered:
            raise endpoint.unreachable(claude.API, self.reason, GROUP)
        return self.missed

    async def _reply(self, body: dict[str, Any]) -> Reply | Missed:
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
        """One request, repeated where its answer is no message."""
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
            except ValueError:  # no JSON, or no message
                continue
            return Reply(mended(answer.text), PROBLEMS.get(answer.stop_reason))
        return Missed("malformed answer")


async def _some(tasks: set[asyncio.Task[None]]) -> tuple[set[Any], set[Any]]:
    """Tasks that are done and those that are not, after LOOK_SECONDS or when one is."""
    return await asyncio.wait(tasks, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)


def is_overlong(status: int, message: str) -> bool:
    """Whether a request was refused for its own length."""
    return status == 413 or (status == 400 and any(words in message for words in OVERLONG))


def rows_of(sample: Sample, replies: Sequence[Reply], mode: PromptMode) -> Rows:
    """The rows of a sample: one, or one a draw for a decision."""
    if ALL_TASKS[sample.task].kind == "risk":
        return [_risk_row(sample, replies, mode)]
    return [_decision_row(sample, reply, mode, n) for n, reply in enumerate(replies)]


def _risk_row(sample: Sample, replies: Sequence[Reply], mode: PromptMode) -> dict[str, Any]:
    """The word of one reply, or the share of yes among several that could be read."""
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
    answer = read_answer(reply.text, "decision")
    problem = reply.problem or answer.problem
    written = WrittenAnswer(() if problem else answer.items, reply.text, problem)
    return prediction_row(sample, mode, written, draw=draw)
