"""A server that implements OpenAI's completions API, such as `vllm serve NAME`: `engine=server`.

Prompts are sent to /completions as token ids, so that every engine reads the same tokens. The SDK
retries overload, server errors and broken connections. A prompt that the server refuses (one that
is too long) becomes an empty result, which callers count; finished results are never lost.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import openai
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ehrr1.config.writers import ServerSettings
from ehrr1.engines.base import Completion, Engine, SamplingParams, branch_prompts, by_tree
from ehrr1.engines.endpoint import NO_KEY, is_local
from ehrr1.engines.vllm_process import spread
from ehrr1.errors import UserError
from ehrr1.prompts.chat_format import chat_format
from ehrr1.prompts.markers import Markers
from ehrr1.prompts.trees import Tree

START_SECONDS = 30
"""Timeout of requests that a running server answers at once."""

REFUSED_AT_FIRST = 20
"""After this many refused requests without one answer, the settings are wrong, not the prompts."""

MALFORMED_ATTEMPTS = 3
"""Attempts per response that cannot be read; the SDK retries everything else."""

TOP_LOGPROBS = 20
"""Tokens whose log-probabilities a server other than vLLM is asked for, its API's maximum."""


class Served(NamedTuple):
    """A model that a server offers.

    `name` is what requests name, `root` what it was loaded from; `max_length` bounds prompt and
    completion together, in tokens (None: not stated).
    """

    name: str
    root: str
    max_length: int | None


def served(settings: ServerSettings, group: str = "engine") -> Served:
    """Ask the server for the model that `settings` name.

    `group` is the group of settings that errors name. Raises UserError if the server does not
    answer or does not offer the model.
    """
    with open_client(settings, group) as client:
        try:
            quick = client.with_options(timeout=START_SECONDS, max_retries=0)
            reply: Any = quick.models.with_raw_response.list().http_response.json()
            models = reply["data"]
            names = [str(model["id"]) for model in models]
        except openai.APIStatusError as error:
            reason = f"/models was answered by {error.status_code}: {message_of(error)}"
            raise down(settings, reason, group) from error
        except openai.APIConnectionError as error:
            raise down(settings, f"no answer ({describe(error)})", group) from error
        except (ValueError, KeyError, TypeError) as error:
            raise down(settings, "its list of models cannot be read", group) from error
    name = settings.model or (names[0] if len(names) == 1 else None)
    if name is None or name not in names:
        raise UserError(
            f"{group}.model={settings.model}: the server at {settings.url} has {', '.join(names)}"
        )
    found = models[names.index(name)]
    return Served(name, found.get("root") or name, found.get("max_model_len"))


def open_client(settings: ServerSettings, group: str = "engine") -> openai.OpenAI:
    """Return the SDK's client; close it after use.

    Proxies are bypassed for this machine. Redirects are not followed, as they could carry records
    to another host. Raises UserError for a malformed address or a missing key.
    """
    parts = urlsplit(settings.url)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        raise UserError(f"{group}.url={settings.url}: give it as http://HOST:PORT/v1")
    if settings.key_variable is not None and settings.key_variable not in os.environ:
        raise UserError(
            f"{group}.key_variable={settings.key_variable}: this environment variable is not set"
        )
    return openai.OpenAI(
        api_key=os.environ[settings.key_variable] if settings.key_variable else NO_KEY,
        base_url=settings.url,
        timeout=settings.timeout_seconds,
        max_retries=settings.max_retries,
        http_client=openai.DefaultHttpxClient(
            trust_env=not is_local(settings.url), follow_redirects=False
        ),
    )


def down(settings: ServerSettings, reason: str, group: str = "engine") -> UserError:
    """Return the error for a server that cannot be used."""
    return UserError(
        f"{group}.url={settings.url}: {reason}; start the server (`vllm serve NAME --port 8000`), "
        "or point to where it runs. Finished answers are saved: the same command continues"
    )


def message_of(error: openai.APIStatusError) -> str:
    """Return the beginning of an error response, on one line."""
    return " ".join(error.response.text.split())[:500]


def describe(error: openai.APIConnectionError) -> str:
    """Return the cause of a failed connection."""
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}"


class ServerEngine(Engine):
    """The server at `settings.url`; `tokenizer` is that of its model.

    Raises UserError if the server stays unreachable through all retries, or refuses every request.
    """

    def __init__(
        self, settings: ServerSettings, tokenizer: PreTrainedTokenizerBase, group: str = "engine"
    ):
        self.settings, self.group = settings, group
        self.served = served(settings, group)
        self.client = open_client(settings, group)
        self.tokenizer, self.end_id = tokenizer, tokenizer.eos_token_id
        self.markers = Markers(tokenizer, chat_format(tokenizer))
        self.answered = False
        self.refused = 0

    def stream(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        *,
        group_size: int = 1,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `Engine`; one request per prompt."""
        chosen = range(len(prompts)) if seeds is None else seeds
        bodies = [
            generation_body(self.served.name, prompt, sampling, group_size, seed, self.end_id)
            # override the model's own generation settings: every engine samples alike
            | {"min_p": 0.0, "repetition_penalty": 1.0}
            for prompt, seed in zip(prompts, chosen, strict=True)
        ]
        for number, answer in self._all(bodies):
            yield number, [self._completion(one) for one in answer["choices"]] if answer else []

    def answers(
        self, trees: Sequence[Tree], ids: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """See `Engine`.

        vLLM returns log-probabilities for the requested token ids. Other servers return only the
        top 20 tokens, matched by text; missing tokens get -inf.
        """
        texts = self.tokenizer.batch_decode([[one] for one in ids])
        bodies = [self._next_token(prompt, ids) for prompt in branch_prompts(trees)]
        replies = (
            (number, first_token(answer["choices"][0], ids, texts) if answer else None)
            for number, answer in self._all(bodies)
        )
        yield from by_tree(trees, len(ids), replies)

    def logprobs(self, tokens: list[int]) -> list[float]:
        """See `Engine`; vLLM only."""
        body = {"model": self.served.name, "prompt": tokens, "max_tokens": 1, "prompt_logprobs": 0}
        [(_, answer)] = self._all([body])
        if answer is None or "prompt_logprobs" not in answer["choices"][0]:
            raise down(self.settings, "it returns no log-probabilities of prompts", self.group)
        return prompt_logprobs(answer["choices"][0], tokens)

    def close(self) -> None:
        """Close the connections; the server keeps running."""
        self.client.close()

    def _completion(self, choice: dict[str, Any]) -> Completion:
        """Return a choice as a `Completion`.

        Servers other than vLLM return text only; it is tokenised again, since only the text is
        used. A think tag in it counts as the special token.
        """
        if "token_ids" in choice:
            return completion(choice)
        tokens = self.markers.written(choice["text"])
        return Completion(tokens, [], choice["finish_reason"] == "length")

    def _next_token(self, prompt: list[int], ids: Sequence[int]) -> dict[str, Any]:
        return {
            "model": self.served.name,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": TOP_LOGPROBS,
            **({"logprob_token_ids": list(ids)} if ids else {}),
            "return_tokens_as_token_ids": True,
        }

    def _all(self, bodies: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Yield the index of each request and its response, None for one that is refused."""
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            waiting = {pool.submit(self._ask, body): n for n, body in enumerate(bodies)}
            try:
                for done in as_completed(waiting):
                    yield waiting[done], done.result()
            except BaseException:
                self.client.close()  # requests under way end instead of being retried
                raise
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return one response, None for a request that is refused."""
        for _ in range(MALFORMED_ATTEMPTS):
            try:
                create = self.client.completions.with_raw_response.create
                raw = create(model=body["model"], prompt=body["prompt"], extra_body=body)
                answer: dict[str, Any] = raw.http_response.json()
                if all("text" in choice for choice in answer["choices"]):
                    self.answered = True
                    return answer
            except openai.APITimeoutError as error:
                seconds = f"{self.group}.timeout_seconds={self.settings.timeout_seconds:g}"
                raise down(self.settings, f"no answer within {seconds}", self.group) from error
            except openai.APIConnectionError as error:
                reason = f"no answer ({describe(error)})"
                raise down(self.settings, reason, self.group) from error
            except openai.APIStatusError as error:
                reason = f"/completions was answered by {error.status_code}: {message_of(error)}"
                if error.status_code not in (400, 413, 422):
                    raise down(self.settings, reason, self.group) from error
                self._refuse(reason)
                return None
            except (ValueError, KeyError, TypeError):  # no JSON, or no completion
                continue
        raise down(self.settings, "its responses cannot be read", self.group)

    def _refuse(self, reason: str) -> None:
        """Count a refused request; raise UserError if the server has refused all so far."""
        self.refused += 1
        if not self.answered and self.refused >= REFUSED_AT_FIRST:
            reason = f"it has refused all of {self.refused} requests, {reason}"
            raise down(self.settings, reason, self.group)


def generation_body(
    model: str,
    prompt: list[int],
    sampling: SamplingParams,
    group_size: int,
    seed: int,
    end_id: int,
) -> dict[str, Any]:
    """Return the body of a request for the completions of one prompt, with vLLM's extensions."""
    return {
        "model": model,
        "prompt": prompt,
        "n": group_size,
        "seed": spread(seed),
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "logprobs": 0,
        "return_token_ids": True,
        "stop_token_ids": [end_id],
    }


def completion(choice: dict[str, Any]) -> Completion:
    """Return a choice of /completions with token ids as a `Completion`."""
    return Completion(
        choice["token_ids"],
        choice["logprobs"]["token_logprobs"],
        choice["finish_reason"] == "length",
    )


def first_token(
    choice: dict[str, Any], ids: Sequence[int], texts: Sequence[str]
) -> NDArray[np.float64]:
    """Return the log-probabilities of `ids`, decoded as `texts`, at the first token, [ids].

    Tokens that the server does not return get -inf.
    """
    top = ((choice.get("logprobs") or {}).get("top_logprobs") or [{}])[0]
    pairs = zip(ids, texts, strict=True)
    found = [top.get(f"token_id:{one}", top.get(text, -np.inf)) for one, text in pairs]
    return np.array(found, dtype=np.float64)


def prompt_logprobs(choice: dict[str, Any], tokens: Sequence[int]) -> list[float]:
    """Return vLLM's log-probability of each prompt token but the first."""
    pairs = zip(choice["prompt_logprobs"][1:], tokens[1:], strict=True)
    return [at[str(token)]["logprob"] for at, token in pairs]
