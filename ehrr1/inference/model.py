"""Ask a model about one record, or many: `from ehrr1 import EHRModel`.

Prompts, answers and probabilities are those of evaluation: the same code asks (`Predictor`).
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Event as Flag
from types import TracebackType
from typing import Any

import torch
from pydantic import ValidationError
from transformers import PretrainedConfig, PreTrainedModel

from ehrr1.config.complaints import problems
from ehrr1.config.names import WordingName, usual_wording
from ehrr1.config.training import Attention, ModelSettings
from ehrr1.config.types import AnswerMode, Section
from ehrr1.config.writers import (
    ServerEngineConfig,
    TransformersEngineConfig,
    VllmEngineConfig,
    VllmSettings,
)
from ehrr1.engines.base import Engine, SamplingParams
from ehrr1.engines.endpoint import check_url
from ehrr1.engines.factory import open_engine
from ehrr1.engines.streaming import Watch
from ehrr1.engines.transformers import TransformersEngine
from ehrr1.errors import UserError
from ehrr1.evaluation.opening import LONGEST
from ehrr1.evaluation.predict import Predictor, Writing, chunks
from ehrr1.evaluation.prompt_mode import PromptMode
from ehrr1.inference.query import (
    Answer,
    AnswerStream,
    CountingBuilder,
    GivenRecords,
    Query,
    Record,
    events,
    read_row,
)
from ehrr1.models.gguf import model_folder
from ehrr1.models.loading import folder_of, load_model
from ehrr1.models.sizes import GIB, TRAINED_TOKENS, count_parameters, memory_bytes, read_folder
from ehrr1.prompts.chat_format import load_chat_tokenizer
from ehrr1.prompts.messages import asking_for_both
from ehrr1.prompts.trees import Question
from ehrr1.prompts.wording import style_of
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.catalog import NAMED_TASKS, TASKS
from ehrr1.tasks.samples import Sample

BATCH: dict[str, Any] = {"batch_size": 32}
"""Completions generated side by side."""

ENGINES: dict[str, dict[str, Any]] = {
    "transformers": BATCH | {"batch_tokens": 32_768},
    "vllm": BATCH | {"tensor_parallel": 1, "gpu_memory_utilization": 0.9, "kv_cache_gib": 1.0},
    "server": {
        **{"url": "http://127.0.0.1:8000/v1", "model": None, "tokenizer": None},
        **{"key_variable": None, "compliant_endpoint": False, "concurrency": 16},
        **{"timeout_seconds": 600, "max_retries": 8},
    },
}
"""Engines and their settings, as in conf/engine/."""

LONGEST_PROMPT = 32_000
"""Maximum tokens of a prompt for a model whose folder does not tell what it was trained on."""

AT_ONCE = 64
"""Queries per batch in think mode; an interrupted batch loses its chains."""


@dataclass(frozen=True)
class AnswerDrawing(Writing):
    """One answer, drawn at `temperature`; 0 takes the likeliest token."""

    def sampling(self, mode: PromptMode) -> SamplingParams:
        """Return the sampling parameters of a prompt mode."""
        return SamplingParams(self.think if mode.thinks else self.direct, self.temperature)


def engine_settings(
    settings: dict[str, Any],
) -> TransformersEngineConfig | VllmEngineConfig | ServerEngineConfig:
    """Return an engine's settings, checked like the command line's; raise UserError if wrong."""
    kinds: dict[str, type[Section]] = {
        "transformers": TransformersEngineConfig,
        "vllm": VllmEngineConfig,
        "server": ServerEngineConfig,
    }
    kind = kinds[settings["name"]]
    try:
        made = kind.model_validate(settings)
    except ValidationError as error:
        raise UserError("; ".join(problems(error, settings, kind))) from None
    assert isinstance(made, TransformersEngineConfig | VllmEngineConfig | ServerEngineConfig)
    return made


class EHRModel:
    """A model that answers questions on records.

        model = EHRModel("outputs/demo/rl/hf")
        answer = model.ask(record, "Will the patient die in hospital?", answer="think")
        answer.probability, answer.text, answer.chain

    `source` is a Hugging Face folder or a name on the hub; any size and any chat template. `engine`
    is `transformers` (in this process, on one device), `vllm` (`tensor_parallel=N` divides a model
    over N GPUs) or `server` (`url=...`: what `vllm serve` serves; `source` then is its tokenizer,
    None: what the server says it has loaded). `dtype` is bfloat16 on a GPU and float32 elsewhere
    unless given. `max_prompt_tokens` bounds record and question, as does the room beside what the
    model writes (`think_tokens`, `direct_tokens`); None: what it was trained on, if its folder
    tells, else 32,000. `wording` is the style of the prompts
    (`prompts.wording`; None: the release's for its own models). A server on another machine gets
    records only with `open_data` (they may be shown to anyone) or `compliant_endpoint=True`. Raises
    UserError for what cannot be read or does not fit, and for such a server.
    """

    def __init__(
        self,
        source: Path | str | None = None,
        *,
        engine: str = "transformers",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        attention: Attention = "auto",
        max_prompt_tokens: int | None = None,
        think_tokens: int = 4096,
        direct_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        wording: WordingName | None = None,
        open_data: bool = False,
        **settings: Any,
    ):
        if engine not in ENGINES or settings.keys() - ENGINES[engine].keys():
            given = ", ".join(settings)
            raise UserError(
                f"engine={engine} with {given or 'no settings'}: choose one of "
                + "; ".join(f"{name} ({', '.join(has)})" for name, has in ENGINES.items())
            )
        self.settings = engine_settings({"name": engine, **ENGINES[engine], **settings})
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        half = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.dtype, self.attention = dtype or half, attention
        self.seed, usual = seed, LONGEST_PROMPT
        self.writing = AnswerDrawing(think_tokens, direct_tokens, temperature=temperature)
        if isinstance(self.settings, ServerEngineConfig):
            from ehrr1.engines.server import served  # the SDK is slow to import

            url, compliant = self.settings.url, self.settings.compliant_endpoint
            check_url("engine", "server", url, open_data=open_data, compliant=compliant)
            found = served(self.settings)
            self.source = str(self.settings.tokenizer or source or found.root)
            self.positions = found.max_length or LONGEST
        elif source is None:
            raise UserError(f"source=None: engine={engine} needs a model's folder or name")
        else:
            self.source = model_folder(str(source))
            config = read_folder(self.source)
            self.positions = config.max_position_embeddings
            usual = config.to_dict().get(TRAINED_TOKENS, usual)
        self.max_prompt_tokens = max_prompt_tokens or usual
        self.tokenizer = load_chat_tokenizer(self.source)
        self.wording = wording or usual_wording("", self.source, str(source or ""))
        self.folder = TemporaryDirectory(prefix="ehrr1-engine-")
        self._builders: dict[bool, CountingBuilder] = {}

    @cached_property
    def engine(self) -> Engine:
        """The engine, loaded with the first question."""
        assert isinstance(self.tokenizer.eos_token_id, int)
        folder, most = Path(self.folder.name), max(self.writing.think, self.writing.direct)
        on_vllm = isinstance(self.settings, VllmSettings)
        return open_engine(
            self.settings,
            self.tokenizer,
            group="engine",
            load=self._load,
            source=folder_of(self.source) if on_vllm else None,
            max_length=min(self.positions, self.max_prompt_tokens + most),
            device=self.device,
            dtype=self.dtype,
            exchange=folder / "exchange",
            log=folder / "vllm.log",
        )

    def load(self) -> None:
        """Load the engine now, and not with the first question."""
        assert self.engine

    def _load(self) -> PreTrainedModel:
        check_fits(self.source, read_folder(self.source), self.dtype, self.device)
        model = ModelSettings.of_folder(None, self.attention)
        loaded = load_model(model, self.source, self.tokenizer, dtype=self.dtype)
        return loaded.eval().to(self.device)

    def ask(
        self,
        record: Record,
        question: str | None = None,
        *,
        task: str | None = None,
        answer: AnswerMode = "direct",
        yes_no: bool | None = None,
        time: datetime | None = None,
        candidates: Candidates | None = None,
        watch: Watch | None = None,
    ) -> Answer:
        """Answer a question in words, or one of `tasks.catalog.NAMED_TASKS`.

        `answer`: at once, after thinking, or after a case for each outcome (yes/no questions;
        others are thought about). `yes_no` None: as the words say. `time`: the question says that
        it is then, for models that were trained with `data.tell_time=true`. `watch` is told the
        text of chain and answer while it is written (engine=transformers; others tell it at the
        end).
        Raises UserError for an empty record, and a question that leaves it no room.
        """
        query = Query("", "", partial(events, record), question, task, yes_no, time)
        if problem := self.problem(query, answer):
            raise UserError(problem)
        query.record()  # a wrong record fails before a model is loaded
        if watch is None:
            [(_, found)] = self.answers([query], answer, candidates)
            return found
        shown = AnswerStream(watch, closes=query.has_label)
        live = (
            self.engine
            if isinstance(self.engine, TransformersEngine) and answer != "both"
            else None
        )
        if live is not None:
            live.watch = shown
            if answer == "think":
                shown(self.prompt_builder(thinks=True).chat.opened)
        try:
            [(_, found)] = self.answers([query], answer, candidates)
        finally:
            if live is not None:
                live.watch = None
        shown.finish(found)
        return found

    def probabilities(
        self, record: Record, questions: Sequence[str], *, answer: AnswerMode = "direct"
    ) -> list[float | None]:
        """Return the probability of yes for each question; None where a server withholds it.

        The record is computed once for all of them.
        """
        read = partial(events, record)
        queries = [Query(str(n), "", read, q, yes_no=True) for n, q in enumerate(questions)]
        for query in queries:
            if problem := self.problem(query, answer):
                raise UserError(problem)
        found = dict(self.answers(queries, answer))
        return [found[query.id].probability for query in queries]

    def stream(
        self, record: Record, question: str | None = None, **how: Any
    ) -> Generator[str, None, Answer]:
        """Yield chain and answer piece by piece as they are generated; `how` as in `ask`.

        Closing the generator stops generation. The generator returns the `Answer`.
        """
        pieces: SimpleQueue[str | None] = SimpleQueue()
        stopped = Flag()

        def tell(piece: str) -> None:
            if stopped.is_set():
                raise StopWriting
            pieces.put(piece)

        with ThreadPoolExecutor(1) as writer:
            written = writer.submit(self.ask, record, question, watch=tell, **how)
            written.add_done_callback(lambda _: pieces.put(None))
            try:
                while (piece := pieces.get()) is not None:
                    yield piece
            finally:
                stopped.set()
        return written.result()

    def answers(
        self, queries: Sequence[Query], answer: AnswerMode, candidates: Candidates | None = None
    ) -> Iterator[tuple[str, Answer]]:
        """Yield the `id` of each query and its answer, in the order in which they are finished.

        Yes/no questions on one record share its computation. `candidates` list answers to the
        decision questions among the tasks.
        """
        records = GivenRecords({query.context_id: query.record for query in queries})
        groups: dict[tuple[bool, bool], list[Sample]] = {}
        for query in queries:
            listed = candidates is not None and query.task in TASKS and not query.has_label
            groups.setdefault((query.has_label, listed), []).append(query.sample)
        for (has_label, listed), samples in groups.items():
            mode: AnswerMode = answer if has_label or answer == "direct" else "think"
            how = PromptMode(mode, "list" if listed else "none", self.wording)
            prompt_builder = self.prompt_builder(how.thinks)
            predictor = Predictor(self.engine, prompt_builder, records, self.writing, candidates)
            for some in chunks(samples, AT_ONCE if how.thinks else len(samples)):
                if has_label:
                    found = predictor.risk(some, how)
                else:
                    found = predictor.decisions(some, how, self.seed)
                for row in chain.from_iterable(found):
                    yield row["sample_id"], read_row(row, prompt_builder)

    def problem(self, query: Query, answer: AnswerMode) -> str | None:
        """Return what is wrong with a query, None if it can be asked."""
        if (query.question is None) == (query.task is None):
            return "question: give a question in words or a task, one of the two"
        if query.question is not None and not query.question.strip():
            return "question: it is empty; ask something"
        if query.task is not None and query.task not in NAMED_TASKS:
            return f"task={query.task}: no such task; there are {', '.join(NAMED_TASKS)}"
        words, thinks = query.words, answer != "direct"
        if answer == "both" and query.has_label:
            words = asking_for_both(query.task or "", words)
        prompt_builder = self.prompt_builder(thinks)
        put = Question(query.id, query.task or "", thinks, instruction=words)
        if not prompt_builder.fits(put):
            return (
                f"question: it has {len(prompt_builder.branch(put)):,} tokens, and with the record "
                f"{prompt_builder.max_tokens:,} fit; shorten it, or raise infer.max_prompt_tokens"
            )
        return None

    def prompt_builder(self, thinks: bool) -> CountingBuilder:
        """Return the prompt builder, which leaves room for the completion.

        Raises UserError if that leaves none for a record.
        """
        if thinks not in self._builders:
            name, most = (
                ("think", self.writing.think) if thinks else ("direct", self.writing.direct)
            )
            room = min(self.max_prompt_tokens, self.positions - most)
            if room < 1:
                raise UserError(
                    f"infer.max_new_tokens.{name}={most}: {self.source} has {self.positions:,} "
                    "positions, which leaves no room for a record; lower it"
                )
            style = style_of(self.wording, "infer")
            self._builders[thinks] = CountingBuilder(self.tokenizer, room, style)
        return self._builders[thinks]

    def close(self) -> None:
        """End the engine, and remove what it left."""
        if "engine" in self.__dict__:
            self.engine.close()
        self.folder.cleanup()

    def __enter__(self) -> "EHRModel":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class StopWriting(Exception):  # noqa: N818 (it is none)
    """Nobody reads what is written any more."""


def check_fits(
    source: str, config: PretrainedConfig, dtype: torch.dtype, device: torch.device
) -> None:
    """Raise UserError where the device cannot hold the weights."""
    gpu = device.type == "cuda"
    have = torch.cuda.get_device_properties(device).total_memory if gpu else memory_bytes()
    need = count_parameters(config) * dtype.itemsize
    if need > have:
        raise UserError(
            f"model={source}: its weights take {need / GIB:.1f} GiB as "
            f"{str(dtype).removeprefix('torch.')}, and {'the GPU' if gpu else 'this machine'} has "
            f"{have / GIB:.1f}; engine=vllm engine.tensor_parallel=N divides it over N GPUs, and "
            "engine=server asks one that runs elsewhere"
        )
