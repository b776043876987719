"""stage=adapt: the model learns to answer directly, many questions on each record.

Starts from `model.path` or, where that is null, from nothing: then a tokenizer is trained on the
training patients' records first. Leaves hf/, train.jsonl, tb/ and checkpoints/ in the run folder.
"""

from collections.abc import Sequence

from omegaconf import DictConfig
from transformers import PreTrainedTokenizerBase

from ehrr1.errors import UserError
from ehrr1.files import replacing
from ehrr1.graph.chain import ARROW, BAR, SECTIONS
from ehrr1.models.loading import export, load_model
from ehrr1.models.sizes import check_memory
from ehrr1.prompts.corpus import corpus
from ehrr1.prompts.dataset import choose
from ehrr1.prompts.forest import Question
from ehrr1.prompts.messages import answer_text
from ehrr1.prompts.tokenizer import load_tokenizer, train_tokenizer
from ehrr1.runs import Run
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.training.sft import Material, train


def run(cfg: DictConfig, run: Run) -> dict[str, float | int]:
    check_memory(cfg.model, cfg.trainer.accelerator)
    prepared = Prepared(run.input("prepare"))
    training = training_samples(prepared, cfg.adapt.samples_per_task, cfg.seed)
    if not training:
        raise UserError(
            f"data.tasks={cfg.data.tasks}: no training sample in {prepared.folder}; "
            "prepare more patients or tasks"
        )
    tokenizer = make_tokenizer(cfg, run, prepared, training)
    model = load_model(cfg.model, None, tokenizer, cfg.seed)
    validation = choose(
        learnable(prepared.samples("validation")), cfg.adapt.eval_samples_per_task, cfg.seed
    )
    material = Material(prepared, training, validation, ask)
    metrics = train(material, model, tokenizer, run.folder, cfg, "adapt")
    export(model, tokenizer, run.folder / "hf")
    return metrics | {"vocabulary": len(tokenizer)}


def ask(sample: Sample) -> list[Question]:
    """Each sample once, answered without thinking."""
    return [Question(sample.sample_id, sample.task, False, answer_text(sample.target))]


def learnable(samples: Sequence[Sample]) -> list[Sample]:
    """Samples of tasks that EHR-Ins trains on (not the writing of discharge notes)."""
    return [sample for sample in samples if TASKS[sample.task].ehr_ins_cap > 0]


def training_samples(prepared: Prepared, per_task: int | None, seed: int) -> list[Sample]:
    """Training samples, at most `per_task` of each task; null: as many as EHR-Ins holds."""
    samples = learnable(prepared.samples("train"))
    chosen = []
    for task in sorted({sample.task for sample in samples}):
        limit = TASKS[task].ehr_ins_cap if per_task is None else per_task
        chosen += choose([sample for sample in samples if sample.task == task], limit, seed)
    return chosen


def make_tokenizer(
    cfg: DictConfig, run: Run, prepared: Prepared, training: Sequence[Sample]
) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, or one trained on the training samples, kept for a resume."""
    if not cfg.model.tokenizer.train:
        return load_tokenizer(cfg.model.path)
    folder = run.folder / "tokenizer"
    if not folder.exists():
        headings = ["\n".join(SECTIONS) + "\n", f"{BAR}{ARROW}{BAR}"]
        texts = corpus(prepared, training, headings, seed=cfg.seed)
        tokenizer = train_tokenizer(texts, cfg.model.tokenizer.vocab_size)
        with replacing(folder) as temporary:
            tokenizer.save_pretrained(temporary)
    return load_tokenizer(folder)
