"""stage=chains: write reasoning chains for each sample from its evidence graph, and screen them.

`chains=template` composes one draft from the graph; the other writers are language models, which
are asked for several. What they are asked, and what it costs, stands in `ledger.sqlite`: a run that
is killed, or whose budget is spent, goes on where it was by the same command.

chains.jsonl, a line a draft: sample_id, task, draft, chain, answer, kept, rejected_by (the rules
that it breaks), faithfulness, tokens_in, tokens_out. At most one draft of a sample is kept, the
best that breaks no rule. The answer is the sample's full answer.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import polars as pl
from omegaconf import OmegaConf

from ehrr1.config.schema import Config
from ehrr1.config.writers import (
    AnthropicChains,
    AnyChains,
    ModelChains,
    OpenAIChains,
    TemplateChains,
)
from ehrr1.damage import damaged, reading
from ehrr1.engines import anthropic, endpoint
from ehrr1.errors import UserError
from ehrr1.files import json_line, write_jsonl
from ehrr1.graph.evidence import answers_only, covered, from_json
from ehrr1.progress import bar, in_processes, track
from ehrr1.prompts.messages import answer_text
from ehrr1.reasoning import anthropic_messages, openai_completions
from ehrr1.reasoning.anthropic_batches import write_batches
from ehrr1.reasoning.ledger import FINISHED, Advance, Ledger
from ehrr1.reasoning.prices import cacheable_length, estimate, estimate_table
from ehrr1.reasoning.prompting import VERSIONS, Limit, Prompt, write_prompt
from ehrr1.reasoning.screening import RULES, best, screen
from ehrr1.reasoning.template import Reasons, Style, write_template
from ehrr1.records.events import Event
from ehrr1.runs import Run, data_is_open
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.terminal import plain_console

UNFINISHED = "unfinished"
"""The rule that a draft breaks which was cut off or refused, whatever it says."""

LEDGER = "ledger.sqlite"

PART = 500
"""Samples that one process writes and screens at a time."""

Place = tuple[Sample, int]
"""A sample, and the place of its line in graphs.jsonl, in bytes."""

Metrics = dict[str, float | int]


class Draft(NamedTuple):
    """A draft of a sample: its number, and whether the writer came to an end by itself."""

    number: int
    chain: str
    tokens_in: int
    tokens_out: int
    finished: bool = True


Writer = Callable[[Sample, Sequence[Event], nx.DiGraph], list[Draft]]


@dataclass
class Work:
    """The samples of graphs.jsonl to write chains for, with their graphs and contexts."""

    cfg: Config
    prepared: Prepared
    graphs: Path
    samples: dict[str, Sample] = field(init=False)
    any_graph: bool = field(init=False)
    """Whether a sample without evidence is written about too: there are no graphs."""

    def __post_init__(self) -> None:
        made_with: Any = OmegaConf.load(self.graphs.parent / "config.yaml")
        self.any_graph = OmegaConf.select(made_with, "graph.evidence") == "none"
        self.samples = graphed_samples(self.prepared, self.graphs)

    def places(self) -> list[Place]:
        """Return samples with the places of their graphs, limited per task and split.

        The limit is `chains.samples_per_task`.
        """
        taken: Counter[tuple[str, str]] = Counter()
        limit = self.cfg.chains.samples_per_task
        found = []
        for sample_id, start in graph_places(self.graphs).items():
            sample = self.samples[sample_id]
            taken[sample.task, sample.split] += 1
            if limit is None or taken[sample.task, sample.split] <= limit:
                found.append((sample, start))
        return found

    def pairs(self) -> Iterator[tuple[Sample, nx.DiGraph]]:
        """Yield the samples with their graphs."""
        return graphs_at(self.graphs, self.places())

    def asked(self) -> list[str]:
        """Return the ids of the samples that a language model writes about."""
        return [s.sample_id for s, graph in self.pairs() if self.any_graph or covered(graph) > 0]

    def prompts(
        self, wanted: Collection[str], limits: Sequence[Limit]
    ) -> Iterator[tuple[str, Prompt]]:
        """Yield the prompts of these samples one after the other."""
        chains = self.cfg.chains
        for sample, graph in self.pairs():
            if sample.sample_id in wanted:
                yield (
                    sample.sample_id,
                    write_prompt(
                        sample,
                        self.prepared.context(sample),
                        answers_only(graph),
                        sections=chains.sections,
                        show_graph=chains.show_graph,
                        limits=limits,
                    ),
                )


def run(cfg: Config, run: Run) -> Metrics:
    """Write chains.jsonl; return the metrics of the run.

    `chains/<task>` counts written drafts, `kept/<task>` samples with a kept chain,
    `rejected/<rule>` drafts that break a rule, `no_evidence/<task>` samples without anything to
    write about; `faithfulness` is the mean over all drafts. Language models add what `ask` returns.
    """
    if cfg.chains.writer == "template":
        work = Work(cfg, Prepared(run.input("prepare")), run.input("graph") / "graphs.jsonl")
        return screen_all(work, template(cfg), run.folder, workers=None)
    write = choose_writer(cfg, run)
    work = Work(cfg, Prepared(run.input("prepare")), run.input("graph") / "graphs.jsonl")
    with Ledger(run.folder / LEDGER) as ledger:
        try:
            asked = ask(work, ledger, write)
        finally:
            # drafts that were paid for outlive an error that a setting caused
            run.resuming |= ledger.states()["done"] > 0 or bool(ledger.batches())
        return screen_all(work, written(ledger), run.folder, workers=1) | asked


def template(cfg: Config) -> Writer:
    """Return the offline writer: one draft, none where the graph has no reasons."""
    settings = cfg.chains
    assert isinstance(settings, TemplateChains)
    return partial(write_from_graph, settings.max_evidence, settings.style, settings.reasons)


def write_from_graph(
    max_evidence: int,
    style: Style,
    reasons: Reasons,
    sample: Sample,
    context: Sequence[Event],
    graph: nx.DiGraph,
) -> list[Draft]:
    """Return the template's draft on a sample, with its number."""
    drafts = write_template(sample, context, graph, max_evidence, style, reasons)
    return [Draft(number, *draft) for number, draft in enumerate(drafts)]


def written(ledger: Ledger) -> Writer:
    """Return a writer that reads the drafts of language models from the ledger."""

    def write(sample: Sample, context: Sequence[Event], graph: nx.DiGraph) -> list[Draft]:
        return [
            Draft(one.draft, one.text, one.tokens_in, one.tokens_out, one.stop_reason in FINISHED)
            for one in ledger.drafts(sample.sample_id)
        ]

    return write


@dataclass(frozen=True)
class Asker:
    """A language model: what fills the ledger, and how long its prompts may be."""

    write: Callable[..., None]
    limits: tuple[Limit, ...]


def choose_writer(cfg: Config, run: Run) -> Asker:
    """Return the language model that `chains.writer` names.

    Raises UserError, before anything is sent, if it must not or cannot write.
    """
    settings = cfg.chains
    assert not isinstance(settings, TemplateChains)
    chars = Limit(len, settings.max_prompt_chars)
    if isinstance(settings, AnthropicChains):
        endpoint.check(anthropic.API, settings, data_is_open(run.input("prepare")))
        write = write_batches if settings.batches else anthropic_messages.write_messages
        return Asker(write, (chars,))
    if isinstance(settings, OpenAIChains):
        openai_completions.check(settings, data_is_open(run.input("prepare")))
        return Asker(openai_completions.write_completions, (chars,))
    from ehrr1.reasoning import local  # with torch

    tokenizer = local.check(settings, data_is_open(run.input("prepare")))
    write_here = partial(local.write_local, tokenizer=tokenizer, seed=cfg.seed, folder=run.folder)
    return Asker(write_here, (chars, local.limit_of(settings, tokenizer)))


def ask(work: Work, ledger: Ledger, asker: Asker) -> Metrics:
    """Fill the ledger; return the metrics of the requests.

    `asked` counts drafts, `failed` those without an answer, `prompt/<version>` answers by version
    of the prompt, `cut_samples` the records that lost `cut_events` to fit; `tokens_in`,
    `tokens_out`, `cache_write`, `cache_read` and `cost_usd` are what was spent, `unsure_tokens` and
    `unsure_usd` what requests without an answer may have cost at most. Raises UserError if
    not one draft was written.
    """
    refuse_other_prompts(ledger)
    asked = work.asked()
    settings = work.cfg.chains
    assert isinstance(settings, ModelChains)
    ledger.begin(asked, settings.drafts)
    states = ledger.states()
    with bar() as progress:
        task = progress.add_task(
            "writing chains", total=sum(states.values()), completed=states["done"]
        )
        advance: Advance = partial(progress.advance, task)
        asker.write(settings, ledger, lambda wanted: work.prompts(wanted, asker.limits), advance)
    states = ledger.states()
    if states["failed"] == sum(states.values()) > 0:
        raise UserError(
            f"chains.writer={work.cfg.chains.writer}: not one of {states['failed']} drafts was "
            f"written ({'; '.join(ledger.errors())}); check chains.model and "
            "chains.max_prompt_chars"
        )
    for reason, count in ledger.errors().items():
        plain_console(stderr=True).print(f"chains: {count} drafts failed: {reason}")
    versions = {f"prompt/{version}": count for version, count in sorted(ledger.prompts().items())}
    found = {"asked": sum(states.values()), "failed": states["failed"], **versions}
    return found | ledger.cut() | ledger.spent()


def refuse_other_prompts(ledger: Ledger) -> None:
    """Raise UserError if the run was begun with prompts that this version no longer writes."""
    if others := ledger.prompts().keys() - VERSIONS:
        raise UserError(
            f"{LEDGER} holds drafts of prompts that have changed since ({', '.join(others)}): set "
            "variant=NAME to write anew, or remove the folder by hand to replace them"
        )


class Screened(NamedTuple):
    """The lines of chains.jsonl for some samples, and what they add to the metrics."""

    rows: list[dict[str, Any]]
    tally: Counter[str]
    faithful: list[float]


@dataclass(frozen=True)
class Screening:
    """The writing and screening of chains, in a form that can be sent to other processes.

    A `write` that reads a ledger stays in this process.
    """

    prepared: Path
    graphs: Path
    settings: AnyChains
    any_graph: bool
    write: Writer

    def __call__(self, part: Sequence[Place]) -> Screened:
        """Return the drafts of some samples, screened."""
        found = Screened([], Counter(), [])
        for sample, graph in graphs_at(self.graphs, part):
            self._add(found, sample, graph)
        return found

    def _add(self, found: Screened, sample: Sample, graph: nx.DiGraph) -> None:
        context = _prepared(self.prepared).context(sample)
        drafts = self.write(sample, context, graph)
        bounds = self.settings.coverage, self.settings.sections
        likely = graph.graph.get("candidates", ())
        verdicts = [screen(draft.chain, sample, context, *bounds, likely) for draft in drafts]
        for place, draft in enumerate(drafts):
            if not draft.finished:
                verdict = verdicts[place]
                verdicts[place] = replace(verdict, rejected_by=(UNFINISHED, *verdict.rejected_by))
        kept = best(verdicts)
        nothing = not (drafts or self.any_graph or covered(graph) > 0)
        found.tally[f"no_evidence/{sample.task}"] += nothing
        found.tally[f"chains/{sample.task}"] += len(drafts)
        found.tally[f"kept/{sample.task}"] += kept is not None
        for place, (draft, verdict) in enumerate(zip(drafts, verdicts, strict=True)):
            found.faithful.append(verdict.faithfulness)
            found.tally.update(f"rejected/{rule}" for rule in verdict.rejected_by)
            found.rows.append(
                {
                    "sample_id": sample.sample_id,
                    "task": sample.task,
                    "draft": draft.number,
                    "chain": draft.chain,
                    "answer": answer_text(sample.target),
                    "kept": place == kept,
                    "rejected_by": list(verdict.rejected_by),
                    "faithfulness": round(verdict.faithfulness, 6),
                    "tokens_in": draft.tokens_in,
                    "tokens_out": draft.tokens_out,
                }
            )


def screen_all(work: Work, write: Writer, folder: Path, workers: int | None) -> Metrics:
    """Write chains.jsonl; returns the metrics of all writers."""
    screening = Screening(work.prepared.folder, work.graphs, work.cfg.chains, work.any_graph, write)
    places = work.places()
    parts = [places[first : first + PART] for first in range(0, len(places), PART)]
    tally = Counter({f"rejected/{rule}": 0 for rule in (UNFINISHED, *RULES)})
    faithful: list[float] = []

    def rows() -> Iterator[dict[str, Any]]:
        for some in in_processes(screening, parts, "screening chains", workers):
            tally.update(some.tally)
            faithful.extend(some.faithful)
            yield from some.rows

    write_jsonl(folder / "chains.jsonl", rows())
    metrics: Metrics = {name: tally[name] for name in sorted(tally)}
    return metrics | {"faithfulness": sum(faithful) / max(len(faithful), 1)}


@cache
def _prepared(folder: Path) -> Prepared:
    return Prepared(folder)


def graph_places(graphs: Path) -> dict[str, int]:
    """Return the place of each sample's line in graphs.jsonl, in bytes.

    Raises DamagedError for a line that is none, or a sample that has two.
    """
    found: dict[str, int] = {}
    start = 0
    with reading(graphs, FileNotFoundError), graphs.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            sample_id = json_line(graphs, number, line, ("sample_id", "graph"))["sample_id"]
            if sample_id in found:
                raise damaged(graphs, f"has a second graph of a sample in line {number}")
            found[sample_id] = start
            start += len(line)
    return found


def graphs_at(graphs: Path, places: Sequence[Place]) -> Iterator[tuple[Sample, nx.DiGraph]]:
    """Yield samples with the graphs at these places of graphs.jsonl."""
    with graphs.open("rb") as lines:
        for sample, start in places:
            lines.seek(start)
            yield sample, from_json(json.loads(lines.readline())["graph"])


def graphed_samples(prepared: Prepared, graphs: Path) -> dict[str, Sample]:
    """Return the samples of graphs.jsonl by id; the index is much longer than that file."""
    chosen = prepared.index().filter(pl.col("sample_id").is_in(list(graph_places(graphs))))
    return {sample.sample_id: sample for sample in prepared.as_samples(chosen)}


def dry_run(cfg: Config, inputs: dict[str, Path], folder: Path) -> None:
    """Print the requests of a run in `folder`, their expected and their maximum cost.

    Nothing is sent.
    """
    work = Work(cfg, Prepared(inputs["prepare"]), inputs["graph"] / "graphs.jsonl")
    ledger, settings = folder / LEDGER, cfg.chains
    assert isinstance(settings, ModelChains)
    limits = [Limit(len, settings.max_prompt_chars)]
    every = range(settings.drafts)
    wanted = {sample_id: list(every) for sample_id in work.asked()}
    if ledger.exists():
        with Ledger(ledger) as begun:
            refuse_other_prompts(begun)
            begun.begin(wanted, settings.drafts)
            wanted = begun.wanted()
    prompts = track(work.prompts(wanted.keys(), limits), "building prompts", len(wanted))
    asked = ((prompt, len(wanted[sample_id])) for sample_id, prompt in prompts)
    found = estimate(asked, cacheable_length(settings))
    plain_console().print(estimate_table(found, settings))
