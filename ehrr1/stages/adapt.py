"""stage=adapt: the model learns to answer directly, many questions on each record.

Starts from `model.path` or, where that is null, from nothing: then a tokenizer is trained on the
training patients' records first. Leaves hf/, train.jsonl, tb/ and checkpoints/ in the run folder.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1 import parallel
from ehrr1.config.schema import Config
from ehrr1.config.training import Adapt
from ehrr1.errors import UserError
from ehrr1.files import replacing
from ehrr1.models.gguf import model_folder
from ehrr1.models.loading import read_config
from ehrr1.models.tiny_init import embed_by_cooccurrence
from ehrr1.prompts.chat_format import load_chat_tokenizer
from ehrr1.prompts.corpus import corpus
from ehrr1.prompts.messages import answer_text
from ehrr1.prompts.tokenizer import load_tokenizer, train_tokenizer
from ehrr1.prompts.trees import Question
from ehrr1.prompts.wording import Wording, style_of
from ehrr1.reasoning.chain import BAR, SECTIONS
from ehrr1.reasoning.template import compact_words
from ehrr1.records.schema import TABLES
from ehrr1.runs import Run
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import LEARNABLE, select
from ehrr1.training.checks import check_training
from ehrr1.training.sft import Material, builder, lay_base, tokenise, train

COUNTED = 30_000
"""Branches, evenly spaced, that co-occurrence is counted on: a bound on time and memory."""


def check(cfg: Config, inputs: dict[str, Path]) -> None:
    """Raise UserError for everything that cannot work, before anything is read."""
    own = (
        None
        if cfg.model.tokenizer.train
        else load_chat_tokenizer(model_folder(str(cfg.model.path)))
    )
    check_training(cfg, "adapt", read_config(cfg.model), own)


def run(cfg: Config, run: Run) -> dict[str, float | int]:
    """Train on direct answers; return the metrics of the run."""
    check(cfg, run.inputs)
    tokenizer, trees, evaluation = tokenised(cfg, run)
    begin = partial(embed, cfg=cfg, trees=trees) if cfg.model.start is not None else None
    parameters = parallel.from_first(lambda: lay_base(cfg, run, None, tokenizer))
    build = builder(cfg, None, tokenizer, begin if cfg.model.path is None else None)
    metrics = train(trees, evaluation, build, run.folder, cfg, "adapt")
    return metrics | {"vocabulary": len(tokenizer), "parameters": parameters}


def tokenised(cfg: Config, run: Run) -> tuple[PreTrainedTokenizerBase, Dataset, Dataset]:
    """Return the tokenizer, the trees to train on and those to evaluate on, made only once."""
    prepared = Prepared(run.input("prepare"))
    training = training_samples(prepared, cfg.adapt, cfg.seed)
    if not training:
        raise UserError(
            f"data.tasks={cfg.data.tasks}: no training sample in {prepared.folder}; "
            "prepare more patients or tasks"
        )
    tokenizer = parallel.in_turn(lambda: make_tokenizer(cfg, run, prepared, training))
    held_out = prepared.scan("validation", (*LEARNABLE, *prepared.own_tasks))
    validation = prepared.as_samples(select(held_out, cfg.adapt.eval_samples_per_task, cfg.seed))
    style = style_of(cfg.wording, "adapt")
    questions = partial(ask, risk_weight=cfg.loss.risk_weight, style=style)
    material = Material(prepared, training, validation, questions)
    limit = cfg.adapt.max_tokens
    return tokenizer, *tokenise(material, tokenizer, run.folder, limit, style, "adapt")


def embed(model: PreTrainedModel, *, cfg: Config, trees: Dataset) -> None:
    """Embeddings from which tokens of training records, questions and answers go together."""
    assert cfg.model.start is not None
    every = -(-sum(map(len, trees["sample_ids"])) // COUNTED)
    records = list(islice(branch_tokens(trees), 0, None, every))
    embed_by_cooccurrence(model, records, cfg.model.start.cooccurrence, cfg.seed)


def branch_tokens(trees: Dataset) -> Iterator[set[int]]:
    """Yield the tokens of each branch together with its record's."""
    for tree in trees.select_columns(["trunk", "prompts", "completions"]):
        for question, answer in zip(tree["prompts"], tree["completions"], strict=True):
            yield {*tree["trunk"], *question, *answer}


def ask(sample: Sample, risk_weight: float, style: Wording) -> list[Question]:
    """Each sample once, answered without thinking."""
    weight = risk_weight if ALL_TASKS[sample.task].kind == "risk" else 1.0
    answer = answer_text(sample.target)
    own = style.own(sample)
    return [Question(sample.sample_id, sample.task, False, answer, weight=weight, instruction=own)]


def training_samples(prepared: Prepared, settings: Adapt, seed: int) -> list[Sample]:
    """Training samples, capped by task; where the settings say null, as EHR-Ins is."""
    limits, tasks = {}, (*LEARNABLE, *prepared.own_tasks)
    for task in tasks:
        entry, limit = ALL_TASKS[task], settings.samples_per_task
        if entry.kind == "decision" and settings.decision_samples_per_task is not None:
            limit = settings.decision_samples_per_task
        limits[task] = entry.ehr_ins_cap if limit is None else limit
    return prepared.as_samples(select(prepared.scan_training("adapt", tasks), limits, seed))


def make_tokenizer(
    cfg: Config, run: Run, prepared: Prepared, training: Sequence[Sample]
) -> PreTrainedTokenizerBase:
    """Return the model's own tokenizer, or train one on the training samples.

    A trained tokenizer is kept in the run folder for a resume.
    """
    if not cfg.model.tokenizer.train:
        return load_chat_tokenizer(model_folder(str(cfg.model.path)))
    folder = run.folder / "tokenizer"
    if not folder.exists():
        parts = ["\n".join(SECTIONS) + "\n"]
        parts += [f"{BAR}{table.heading}{BAR}0" for table in TABLES.values()]  # as chains cite it
        parts += compact_words()
        style = style_of(cfg.wording, "adapt")
        texts = corpus(prepared, training, parts, seed=cfg.seed, style=style)
        tokenizer = train_tokenizer(texts, cfg.model.tokenizer.vocab_size or 0)
        with replacing(folder) as temporary:
            tokenizer.save_pretrained(temporary)
    return load_tokenizer(folder)
