"""The engines that answer: Transformers in this process, and a server with faults."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ehrr1.config.writers import ServerEngineConfig
from ehrr1.engines.base import SamplingParams
from ehrr1.engines.server import ServerEngine, served
from ehrr1.engines.transformers import TransformersEngine, batches
from ehrr1.errors import UserError
from ehrr1.evaluation.predict import NOT_TOLD, REFUSED, Predictor, Writing
from ehrr1.evaluation.predictions import DIRECT
from ehrr1.models.loading import load_model
from ehrr1.prompts.trees import Branch, PromptBuilder, Tree
from ehrr1.scoring.risk import answer_tokens
from tests.openai_server import CompletionsServer, logprob
from tests.settings import changed, composed
from tests.test_graph import sample
from tests.test_predict import MODEL, QUESTIONS, Records, tokenizer

__all__ = ["tokenizer"]  # the fixture

IDS = [140, 7, 93]
ALL_FAULTS = ("overloaded", "broken", "restarting", "cut", "malformed", "wrong", "slow")


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    return load_model(MODEL, None, tokenizer, seed=3).eval()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


def trees(count: int = 5) -> list[Tree]:
    """Trunks of several lengths with one to three questions, no two prompts alike."""
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> list[int]:
        return torch.randint(10, 250, (length,), generator=generator).tolist()

    return [
        Tree(ids(5 + 11 * n % 40), [Branch(f"{n}/{b}", ids(3 + b), []) for b in range(n % 3 + 1)])
        for n in range(count)
    ]


def settings(server: CompletionsServer, **changes: Any) -> ServerEngineConfig:
    engine = composed("engine=server").engine
    made: ServerEngineConfig = changed(engine, url=server.url, **{"timeout_seconds": 0.5} | changes)
    return made


def expected(some: Sequence[Tree]) -> list[np.ndarray]:
    """Return the server's log-probabilities of IDS behind each prompt."""
    return [
        np.array([[logprob(tree.trunk + b.prompt, one) for one in IDS] for b in tree.branches])
        for tree in some
    ]


def test_batches_hold_items_of_like_length_longest_first() -> None:
    lengths = [3, 10, 1, 9, 40, 2]
    found = list(batches(lengths, 20))
    assert found == [[4], [1, 3], [0, 5, 2]]  # one that is too long goes alone
    assert list(batches(lengths, 20, size=1)) == [[4], [1], [3], [0], [5], [2]]
    assert list(batches([], 20)) == []


@pytest.mark.parametrize("tokens", [1, 60, 10_000])
def test_answers_are_those_of_one_prompt_at_a_time(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: int
) -> None:
    some = trees()
    found = dict(TransformersEngine(model, tokenizer, batch_tokens=tokens).answers(some, IDS))
    assert sorted(found) == list(range(len(some)))
    for number, tree in enumerate(some):
        assert found[number].shape == (len(tree.branches), len(IDS))
        for row, branch in zip(found[number], tree.branches, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([tree.trunk + branch.prompt])).logits[0, -1]
            alone = logits.double().log_softmax(-1)[IDS]
            assert np.abs(row - alone.numpy()).max() < 1e-5


def test_answers_come_a_batch_at_a_time(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    some: list[Tree] = trees()
    computed: list[int] = []
    hook = model.get_decoder().register_forward_hook(lambda *_: computed.append(1))
    try:
        answers = TransformersEngine(model, tokenizer, batch_tokens=1).answers(some, IDS)
        next(answers)
        assert len(computed) == 1
        list(answers)
        assert len(computed) == len(some)
    finally:
        hook.remove()


def test_completions_do_not_depend_on_their_neighbours(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = [tree.trunk for tree in trees()]
    drawn = SamplingParams(6, temperature=1.0)
    engine = TransformersEngine(model, tokenizer, batch_size=4, batch_tokens=100)
    came = list(engine.stream(prompts, drawn, group_size=2))
    assert sorted(number for number, _ in came) == list(range(len(prompts)))
    whole = engine.generate(prompts, drawn, group_size=2)
    for number, group in came:
        [alone] = engine.generate([prompts[number]], drawn, group_size=2, seeds=[number])
        tokens = [one.tokens for one in group]
        assert tokens == [one.tokens for one in alone] == [one.tokens for one in whole[number]]


@pytest.mark.slow
def test_a_server_answers_through_all_faults(tokenizer: PreTrainedTokenizerBase) -> None:
    some = trees()
    with CompletionsServer(ALL_FAULTS) as server:
        engine = ServerEngine(settings(server, concurrency=3), tokenizer)
        found = dict(engine.answers(some, IDS))
        for number, values in enumerate(expected(some)):
            assert np.array_equal(found[number], values)
        prompts = {tuple(t.trunk + b.prompt) for t in some for b in t.branches}
        assert server.asked == dict.fromkeys(prompts, len(ALL_FAULTS) + 1)
        assert server.most_at_once <= 3 + 3  # those that are slow are given up, not ended


def test_a_server_completes(tokenizer: PreTrainedTokenizerBase) -> None:
    with CompletionsServer(["cut"]) as server:
        engine = ServerEngine(settings(server), tokenizer)
        groups = engine.generate([[1, 2], [3]], SamplingParams(9, temperature=0.7), group_size=2)
        assert [[one.tokens for one in group] for group in groups] == [[[5, 6, 7]] * 2] * 2
        assert groups[0][0].logprobs == [logprob([1, 2], one) for one in (5, 6, 7)]
        assert not groups[0][0].truncated
        body = server.bodies[0]
        assert body["model"] == "some/model" and body["stop_token_ids"] == [tokenizer.eos_token_id]
        assert body["max_tokens"] == 9 and body["temperature"] == 0.7 and body["top_k"] == 0


def test_a_server_that_tells_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    words = answer_tokens(tokenizer)
    ids = [words.yes[0], words.no[0]]
    tree = Tree([20, 21], [Branch("s", [22], [])])
    only_yes = CompletionsServer(
        tells="texts", text_of=lambda one: tokenizer.decode([one]), likeliest=ids[:1]
    )
    with only_yes as server:
        engine = ServerEngine(settings(server), tokenizer)
        [(_, [values])] = engine.answers([tree], ids)
        assert values.tolist() == [logprob([20, 21, 22], ids[0]), -np.inf]
        [[written]] = engine.generate([[20]], SamplingParams(4, temperature=0))
        assert tokenizer.decode(written.tokens) == "Heparin"


def test_what_is_refused_is_counted_and_the_rest_is_scored(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Records of growing length: the server refuses the longest."""
    with CompletionsServer(longest=1400) as server:
        prompt_builder = PromptBuilder(tokenizer, 2000)
        predictor = Predictor(
            ServerEngine(settings(server), tokenizer), prompt_builder, Records(), Writing(6, 5)
        )
        rows = [row for some in predictor.risk(QUESTIONS, DIRECT) for row in some]
        lengths = [len(body["prompt"]) for body in server.bodies]
        refused = sum(length > 1400 for length in lengths)
        assert len(rows) == len(QUESTIONS) == 9 and 0 < refused < 9
        assert [row["problem"] for row in rows].count(NOT_TOLD) == refused
        assert sum(row["probability"] is None for row in rows) == refused
        decisions = [sample(number, "emar", context=f"c{number}") for number in (0, 2)]
        [first], [last] = sorted(
            predictor.decisions(decisions, DIRECT), key=lambda some: some[0]["sample_id"]
        )
        assert first["problem"] is None and last["problem"] == REFUSED


def test_tokens_that_a_server_does_not_tell_are_a_counted_problem(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    with CompletionsServer(tells="nothing") as server:
        engine = ServerEngine(settings(server), tokenizer)
        predictor = Predictor(engine, PromptBuilder(tokenizer, 2000), Records(), Writing(6, 5))
        rows = [row for some in predictor.risk(QUESTIONS, DIRECT) for row in some]
        assert {row["problem"] for row in rows} == {NOT_TOLD} and len(rows) == len(QUESTIONS)


def test_a_server_that_goes_down_ends_the_run_after_what_it_has_answered(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    with CompletionsServer(answers=4) as server:
        engine = ServerEngine(settings(server, concurrency=1, max_retries=2), tokenizer)
        came = []
        with pytest.raises(UserError, match=r"engine\.url=http://127.*no answer.*continues"):
            for number, _ in engine.answers(trees(), IDS):
                came.append(number)
        assert came == [0, 1]  # 1 + 2 questions; of the third only one


def test_a_slow_server_is_told_by_its_setting(tokenizer: PreTrainedTokenizerBase) -> None:
    with CompletionsServer(["slow"] * 9, slow_seconds=0.6) as server:
        cfg = settings(server, timeout_seconds=0.2, max_retries=1)
        begin = time.monotonic()
        with pytest.raises(UserError, match=r"within engine\.timeout_seconds=0\.2"):
            ServerEngine(cfg, tokenizer).generate([[1]], SamplingParams(4))
        assert time.monotonic() - begin < 5


def test_a_server_that_refuses_everything(tokenizer: PreTrainedTokenizerBase) -> None:
    many = [[number] for number in range(50)]
    with CompletionsServer(longest=0) as server:
        engine = ServerEngine(settings(server), tokenizer)
        with pytest.raises(UserError, match=r"refused all of 20 requests.*told so"):
            engine.generate(many, SamplingParams(4))
    refusing = CompletionsServer(status=401)
    with refusing as server, pytest.raises(UserError, match="/models was answered by 401"):
        served(settings(server))
    with CompletionsServer() as server:
        engine = ServerEngine(settings(server), tokenizer)
        server.status = 403
        with pytest.raises(UserError, match="answered by 403"):
            engine.generate(many, SamplingParams(4))
        assert max(server.asked.values()) == 1 and server.asked.total() < 50


def test_a_server_that_is_not_there() -> None:
    with CompletionsServer() as server:
        cfg = settings(server)
    with pytest.raises(UserError, match=r"engine\.url=.*no answer.*vllm serve"):
        served(cfg)
    cfg.url = "127.0.0.1:8000"
    with pytest.raises(UserError, match="give it as http://HOST:PORT/v1"):
        served(cfg)


def test_the_name_that_is_served() -> None:
    with CompletionsServer(models=["a/one", "b/two"]) as server:
        with pytest.raises(UserError, match=r"engine\.model=None: .* has a/one, b/two"):
            served(settings(server))
        with pytest.raises(UserError, match=r"engine\.model=c"):
            served(settings(server, model="c"))
        assert served(settings(server, model="b/two")) == ("b/two", "b/two", 1000)


def test_a_key(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", "secret")
    with CompletionsServer() as server:
        engine = ServerEngine(settings(server, key_variable="SERVER_KEY"), tokenizer)
        engine.generate([[1]], SamplingParams(4))
        assert server.keys == {"Bearer secret"}
        monkeypatch.delenv("SERVER_KEY")
        with pytest.raises(UserError, match=r"engine\.key_variable=SERVER_KEY"):
            served(settings(server, key_variable="SERVER_KEY"))
