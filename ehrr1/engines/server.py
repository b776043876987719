"""A server that speaks OpenAI's protocol, such as `vllm serve NAME`: `engine=server`.

Prompts go as token ids to /completions, so that every engine reads the same tokens. Overload,
server errors and broken connections are asked again; what the server refuses for itself (a prompt
that is too long) is an empty answer, which is counted, and nothing that was answered is lost.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ehrr1.config.writers import ServerEngine
from ehrr1.engines.base import Answerer, Completion, Sampling, by_tree, questions
from ehrr1.engines.http import FAILURES, call
from ehrr1.engines.vllm_engine import spread
from ehrr1.errors import UserError
from ehrr1.prompts.chat_format import chat_format
from ehrr1.prompts.markers import Markers
from ehrr1.prompts.trees import Tree

START_SECONDS = 30
"""For what a server that is there answers at once."""

REFUSED_AT_FIRST = 20
"""So many requests refused and none answered: the settings are wrong, not the prompts."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before a request is repeated; doubled each time."""


class Served(NamedTuple):
    """What a server has: the name it serves, where the model is from, and prompt and completion
    together in tokens (None where it does not say)."""

    name: str
    root: str
    max_length: int | None


def served(settings: ServerEngine) -> Served:
    """Ask the server what it serves. Raises UserError where it is down or has no `engine.model`."""
    parts = urlsplit(settings.url)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        raise UserError(f"engine.url={settings.url}: give it as http://HOST:PORT/v1")
    try:
        reply = call("GET", f"{settings.url}/models", None, START_SECONDS, _key(settings))
        models = json.loads(reply.content)["data"] if reply.ok else []
        names = [str(model["id"]) for model in models]
    except FAILURES as error:
        raise down(settings, f"no answer ({type(error).__name__}: {error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise down(settings, "what it says of its models cannot be read") from error
    if not reply.ok:
        raise down(settings, f"/models was answered by {reply.status}: {reply.said}")
    name = settings.model or (names[0] if len(names) == 1 else None)
    if name is None or name not in names:
        raise UserError(
            f"engine.model={settings.model}: the server at {settings.url} has {', '.join(names)}"
        )
    found = models[names.index(name)]
    return Served(name, found.get("root") or name, found.get("max_model_len"))


def down(settings: ServerEngine, reason: str) -> UserError:
    return UserError(
        f"engine.url={settings.url}: {reason}; start the server (`vllm serve NAME --port 8000`), "
        "or point to where it runs. What was answered is saved: the same command goes on"
    )


class OpenAIServer(Answerer):
    """The server at `engine.url`; `tokenizer` is that of its model.

    Raises UserError where it is down for longer than the retries, or refuses everything.
    """

    def __init__(self, settings: ServerEngine, tokenizer: PreTrainedTokenizerBase):
        self.settings, self.served = settings, served(settings)
        self.tokenizer, self.end_id = tokenizer, tokenizer.eos_token_id
        self.markers = Markers(tokenizer, chat_format(tokenizer))
        self.answered = False
        self.refused = 0

    def stream(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        *,
        group_size: int = 1,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `Answerer`. A group is empty where the server refuses the prompt."""
        chosen = range(len(prompts)) if seeds is None else seeds
        bodies = [
            self._body(prompt, sampling, group_size, seed)
            for prompt, seed in zip(prompts, chosen, strict=True)
        ]
        for number, answer in self._all(bodies):
            yield number, [self._completion(one) for one in answer["choices"]] if answer else []

    def answers(
        self, trees: Sequence[Tree], ids: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """See `Answerer`. vLLM tells the tokens that are asked for; other servers the likeliest
        twenty by their text, and -inf stands for what is not among them."""
        texts = self.tokenizer.batch_decode([[one] for one in ids])
        bodies = [self._question(prompt, ids) for prompt in questions(trees)]
        replies = (
            (number, told(answer["choices"][0], ids, texts) if answer else None)
            for number, answer in self._all(bodies)
        )
        yield from by_tree(trees, len(ids), replies)

    def close(self) -> None:
        """Nothing: who started the server ends it."""

    def _body(
        self, prompt: list[int], sampling: Sampling, group_size: int, seed: int
    ) -> dict[str, Any]:
        return {
            "model": self.served.name,
            "prompt": prompt,
            "n": group_size,
            "seed": spread(seed),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            # not what the model's own settings say: every engine draws alike
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "logprobs": 0,
            "return_token_ids": True,
            "stop_token_ids": [self.end_id],
        }

    def _completion(self, choice: dict[str, Any]) -> Completion:
        """A server that is not vLLM tells a text: its tokens are as good, where only it is read.
        Whether a think tag in it was set or quoted is not told: it counts as set."""
        if "token_ids" in choice:
            return completion(choice)
        tokens = self.markers.written(choice["text"])
        return Completion(tokens, [], choice["finish_reason"] == "length")

    def _question(self, prompt: list[int], ids: Sequence[int]) -> dict[str, Any]:
        return {
            "model": self.served.name,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": 20,
            **({"logprob_token_ids": list(ids)} if ids else {}),
            "return_tokens_as_token_ids": True,
        }

    def _all(self, bodies: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """The number of each request and its answer as they come, None for one that is refused."""
        stop = Event()
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            waiting = {pool.submit(self._ask, body, stop): n for n, body in enumerate(bodies)}
            try:
                for done in as_completed(waiting):
                    yield waiting[done], done.result()
            except BaseException:
                stop.set()
                raise
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, body: dict[str, Any], stop: Event) -> dict[str, Any] | None:
        """One answer; what may pass is asked again, what is refused is None."""
        settings, reason = self.settings, ""
        for attempt in range(settings.max_retries + 1):
            if attempt and stop.wait(min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT)):
                break
            try:
                url = f"{settings.url}/completions"
                reply = call("POST", url, body, settings.timeout_seconds, _key(settings))
                if reply.ok:
                    answer = json.loads(reply.content)
                    if all("text" in choice for choice in answer["choices"]):
                        self.answered = True
                        return answer
                    raise KeyError("text")
            except TimeoutError:
                reason = f"no answer within engine.timeout_seconds={settings.timeout_seconds}"
                continue
            except FAILURES as error:
                reason = f"no answer ({type(error).__name__}: {error})"
                continue
            except (ValueError, KeyError, IndexError, TypeError):
                reason = "its answers cannot be read"
                continue
            reason = f"/completions was answered by {reply.status}: {reply.said}"
            if reply.status in (400, 413, 422):
                self._refuse(reason)
                return None
            if reply.status < 500 and reply.status not in (408, 409, 429):
                break
        raise down(settings, reason)

    def _refuse(self, reason: str) -> None:
        """A prompt that is too long concerns itself; a server that refuses all is no server."""
        self.refused += 1
        if not self.answered and self.refused >= REFUSED_AT_FIRST:
            raise down(self.settings, f"it has refused all of {self.refused} requests, {reason}")


def completion(choice: dict[str, Any]) -> Completion:
    """A `Completion` of one choice of /completions, where the server tells its token ids."""
    return Completion(
        choice["token_ids"],
        choice["logprobs"]["token_logprobs"],
        choice["finish_reason"] == "length",
    )


def told(choice: dict[str, Any], ids: Sequence[int], texts: Sequence[str]) -> NDArray[np.float64]:
    """The log-probabilities of `ids`, which read `texts`, at the first token; -inf for those that
    are not told."""
    top = ((choice.get("logprobs") or {}).get("top_logprobs") or [{}])[0]
    pairs = zip(ids, texts, strict=True)
    found = [top.get(f"token_id:{one}", top.get(text, -np.inf)) for one, text in pairs]
    return np.array(found, dtype=np.float64)


def _key(settings: ServerEngine) -> str | None:
    if settings.key_variable is None:
        return None
    if settings.key_variable not in os.environ:
        raise UserError(
            f"engine.key_variable={settings.key_variable}: this environment variable is not set"
        )
    return os.environ[settings.key_variable]
