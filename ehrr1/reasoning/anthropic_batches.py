"""Write chains with Claude through Message Batches, at half the price and within a day.

A batch is charged for once it is created. Each batch therefore has a key of its own, which is
stored on disk before the batch is requested and is part of every `custom_id`. If the process is
killed or the connection breaks before the batch's id is known, the batch is found again by that
key.
"""

import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from ehrr1.config.writers import AnthropicChains
from ehrr1.engines.anthropic import API, open_client, read_message
from ehrr1.engines.endpoint import MalformedError, may_pass, refused, unreachable
from ehrr1.reasoning.anthropic_messages import draft_reply, request, sampling
from ehrr1.reasoning.budget import Budget, Reservation, over_budget
from ehrr1.reasoning.draft_requests import NoReply, pause
from ehrr1.reasoning.ledger import Advance, Batch, DraftReply, Ledger, SentRequest
from ehrr1.reasoning.prices import price_of
from ehrr1.reasoning.prompting import Prompts

BATCH_CHARS = 150_000_000
"""Maximum number of characters of one batch; the API accepts 256 MB."""

SAVED_AT_ONCE = 200
"""Number of batch results written in one transaction."""

CLOCKS = timedelta(days=1)
"""Maximum difference assumed between this machine's clock and the endpoint's."""

LOOKS = 2
"""Number of times a batch of unknown id is searched for, since it may be listed with a delay."""

Value = TypeVar("Value")


class _UnansweredError(Exception):
    """No usable answer after all retries."""


def write_batches(
    settings: AnthropicChains, ledger: Ledger, prompts: Prompts, advance: Advance
) -> None:
    """Request every draft that is open in the ledger, each at most `ATTEMPTS` times.

    Raises UserError if the budget is spent, the endpoint refuses a request, or it does not answer.
    """
    import anthropic
    import httpx2

    with open_client(settings) as client:
        try:
            _Batches(client, settings, ledger, advance).write(prompts)
        except _UnansweredError as error:
            raise unreachable(API, str(error)) from error
        except (anthropic.APIConnectionError, httpx2.HTTPError) as error:
            raise unreachable(API, type(error).__name__) from error
        except anthropic.APIStatusError as error:
            if may_pass(error.status_code):
                raise unreachable(API, f"status {error.status_code}") from error
            raise refused(API, error.status_code, error.message) from error


class _Batches:
    """The batches of one run: created, awaited, and read into the ledger."""

    budget: Budget

    def __init__(self, client: Any, settings: AnthropicChains, ledger: Ledger, advance: Advance):
        self.client, self.settings, self.ledger, self.advance = client, settings, ledger, advance
        self.price = price_of(settings.price, settings.price.batch)

    def write(self, prompts: Prompts) -> None:
        """Recover earlier batches, then create and read batches until no draft is open."""
        for batch in self.ledger.batches():
            if batch.batch_id is None and not self._find(batch):
                self.ledger.batch_lost(batch.key)
        cfg = self.settings
        self.budget = Budget(self.ledger, cfg.budget_tokens, cfg.budget_usd, self.price)
        self._wait_for_all()
        while True:
            within_budget = self._submit(prompts)
            if not self.ledger.batches() and not within_budget:
                raise over_budget(self.ledger, self.settings)
            if not self.ledger.batches():
                return
            self._wait_for_all()

    def _wait_for_all(self) -> None:
        """Read the results of each batch as it ends, until no batch is left."""
        while batches := self.ledger.batches():
            ended = [batch for batch in batches if batch.batch_id and self._ended(batch.batch_id)]
            for batch in ended:
                self._take_in(batch)
            if len(ended) < len(batches):
                time.sleep(self.settings.poll_seconds)

    def _submit(self, prompts: Prompts) -> bool:
        """Create batches of all open drafts and return whether the budget suffices for all."""
        wanted = self.ledger.wanted()
        drafts: list[SentRequest] = []
        chars = 0
        for sample_id, prompt in prompts(set(wanted)) if wanted else ():
            for draft in wanted[sample_id]:
                most = self.budget.maximum(prompt, self.settings.max_tokens)
                if not self.budget.reserve(most):
                    self._create(drafts)
                    return False
                drafts.append(SentRequest(sample_id, draft, prompt, *most))
                chars += prompt.chars
                if len(drafts) >= self.settings.batch_size or chars >= BATCH_CHARS:
                    self._create(drafts)
                    drafts, chars = [], 0
        self._create(drafts)
        return True

    def _create(self, drafts: list[SentRequest]) -> None:
        """Create one batch, exactly once.

        The SDK does not retry here. If it is unknown whether the batch was created, the batch is
        searched for before the next attempt.
        """
        if not drafts:
            return
        key = secrets.token_hex(8)
        self.ledger.put_in_batch(key, drafts)
        numbers = {draft: number for number, draft in self.ledger.waiting(key).items()}
        body, headers = sampling(self.settings)
        times = Counter(one.sample_id for one in drafts)
        requests = [
            {
                "custom_id": f"{key}-{numbers[one.sample_id, one.draft]}",
                "params": request(self.settings, one.prompt, times[one.sample_id] > 1) | body,
            }
            for one in drafts
        ]
        [batch] = [batch for batch in self.ledger.batches() if batch.key == key]
        for attempt in range(self.settings.max_retries + 1):
            if self._created(batch, requests, headers):
                return
            time.sleep(pause(attempt))
        self.ledger.batch_lost(key)
        raise _UnansweredError("no batch could be created")

    def _created(
        self, batch: Batch, requests: list[dict[str, Any]], headers: dict[str, str]
    ) -> bool:
        """Request the batch once and return whether it exists now."""
        import anthropic

        once = self.client.with_options(max_retries=0).messages.batches.with_raw_response
        try:
            raw = once.create(requests=requests, extra_headers=headers)
            self.ledger.batch_created(batch.key, raw.http_response.json()["id"])
            return True
        except anthropic.APIStatusError as error:
            if not may_pass(error.status_code):
                self.ledger.batch_lost(batch.key)
                raise
            if error.status_code == 429:
                return False  # rejected before processing
        except (anthropic.APIConnectionError, ValueError, KeyError, TypeError):
            pass  # it is unknown whether the batch was created
        return self._find(batch)

    def _find(self, batch: Batch) -> bool:
        """Search for a batch of which only the key is known, and return whether it was found.

        If found, its id is stored. The keys of a batch can be read only from its results. A batch
        of the same size that is still being processed must therefore be awaited.
        """
        known = self.ledger.batch_ids()
        for look in range(LOOKS):
            if look:
                time.sleep(min(self.settings.poll_seconds, 10))
            for batch_id, size in self._listed(batch.sent_at - CLOCKS):
                if batch_id in known or size != batch.requests:
                    continue
                while not self._ended(batch_id):
                    time.sleep(self.settings.poll_seconds)
                if self._first_key(batch_id) == batch.key:
                    self.ledger.batch_created(batch.key, batch_id)
                    return True
                known.add(batch_id)
        return False

    def _listed(self, since: datetime) -> Iterator[tuple[str, int]]:
        """Yield the id and size of every batch created from `since` on, latest first."""
        after: dict[str, str] = {}
        while True:
            batches, more = self._get(partial(_ask_page, after=after), _read_page)
            for batch_id, size, created in batches:
                if created < since:
                    return
                yield batch_id, size
            if not more:
                return
            after = {"after_id": batches[-1][0]}

    def _ended(self, batch_id: str) -> bool:
        import anthropic

        try:
            status = self._get(
                lambda api: api.with_raw_response.retrieve(batch_id).http_response.json(),
                lambda found: found["processing_status"],
            )
        except anthropic.NotFoundError:
            return True  # nothing to wait for
        return status == "ended"

    def _first_key(self, batch_id: str) -> str | None:
        """Return the key of a batch, read from its first result; None if it has no results."""
        return self._get(
            lambda _: next(self._results(batch_id), None),
            lambda found: found and str(found["custom_id"]).rpartition("-")[0],
        )

    def _get(self, ask: Callable[[Any], Any], read: Callable[[Any], Value]) -> Value:
        """Send a request and parse the answer; retry if the answer cannot be parsed."""
        import httpx2

        unread = (ValueError, LookupError, TypeError, AttributeError)
        for attempt in range(self.settings.max_retries + 1):
            try:
                return read(ask(self.client.messages.batches))
            except (*unread, httpx2.HTTPError):
                time.sleep(pause(attempt))
        raise _UnansweredError("malformed answers")

    def _take_in(self, batch: Batch) -> None:
        """Write a batch's results into the ledger; drafts without a result are marked as missed."""
        import anthropic
        import httpx2

        assert batch.batch_id is not None
        for attempt in range(self.settings.max_retries + 1):
            reason = "no result"
            try:
                self._read_results(batch)
                break
            except anthropic.NotFoundError:
                reason = "the batch is gone"
                break
            except anthropic.APIStatusError as error:
                if not may_pass(error.status_code):
                    raise
                time.sleep(pause(attempt))
            except ValueError:
                reason = "malformed results"
                time.sleep(pause(attempt))
            except (anthropic.AnthropicError, httpx2.HTTPError):
                time.sleep(pause(attempt))  # results read so far are in the ledger
        else:
            if reason == "no result":
                raise _UnansweredError("results broke off")
        lost = NoReply(reason, charged=True)
        self._save([(*draft, lost) for draft in self.ledger.waiting(batch.key).values()])

    def _read_results(self, batch: Batch) -> None:
        waiting = self.ledger.waiting(batch.key)
        read: list[tuple[str, int, DraftReply | NoReply]] = []
        try:
            for found in self._results(str(batch.batch_id)):
                number = str(found["custom_id"]).rpartition("-")[2]
                draft = waiting.pop(int(number), None) if number.isdecimal() else None
                if draft is None:
                    continue
                read.append((*draft, self._read(found)))
                if len(read) >= SAVED_AT_ONCE:
                    self._save(read)
                    read = []
        finally:
            self._save(read)

    def _results(self, batch_id: str) -> Iterator[dict[str, Any]]:
        """Yield the parseable lines of a batch's results as they arrive.

        Raises ValueError if there are lines and none can be parsed.
        """
        api = self.client.messages.batches.with_streaming_response
        parsed, lines = 0, 0
        with api.results(batch_id) as response:
            for line in filter(str.strip, response.iter_lines()):
                lines += 1
                try:
                    found = json.loads(line)
                except ValueError:
                    continue
                if isinstance(found, dict) and "custom_id" in found:
                    parsed += 1
                    yield found
        if lines and not parsed:
            raise ValueError(f"none of {lines} lines of results can be parsed")

    def _read(self, found: dict[str, Any]) -> DraftReply | NoReply:
        """Return the answer, or the reason why there is none.

        Requests that errored, expired or were cancelled are not charged.
        """
        result = found.get("result")
        if not isinstance(result, dict):
            return NoReply("malformed result", charged=True)
        if result.get("type") == "succeeded":
            try:
                return draft_reply(read_message(result.get("message")), self.price)
            except MalformedError as error:
                return NoReply(str(error), charged=True)
        if result.get("type") == "errored":
            told = (result.get("error") or {}).get("error") or {}
            return NoReply(f"errored ({told.get('type', 'no reason')})")
        return NoReply(str(result.get("type")))

    def _save(self, read: list[tuple[str, int, DraftReply | NoReply]]) -> None:
        """Write results into budget and ledger."""
        answers: list[tuple[str, int, DraftReply]] = []
        missed: dict[bool, list[tuple[str, int, str]]] = {True: [], False: []}
        for sample_id, draft, found in read:
            prompt_hash, tokens, usd = self.ledger.pending(sample_id, draft)
            reserved = Reservation(tokens, usd)
            if isinstance(found, DraftReply):
                answers.append((sample_id, draft, found))
                self.budget.settle(reserved, found, prompt_hash)
                continue
            missed[found.charged].append((sample_id, draft, found.reason))
            if not found.charged:
                self.budget.release(reserved)
        self.ledger.answered(answers)
        for charged, drafts in missed.items():
            self.ledger.missed(drafts, charged=charged)
        self.advance(len(answers))


def _ask_page(api: Any, after: dict[str, str]) -> Any:
    return api.with_raw_response.list(limit=100, **after).http_response.json()


def _read_page(found: Any) -> tuple[list[tuple[str, int, datetime]], bool]:
    """Return id, size and time of each batch on a page, and whether there are more pages.

    Batches whose results are no longer available are left out.
    """
    batches = [
        (one["id"], sum(one["request_counts"].values()), datetime.fromisoformat(one["created_at"]))
        for one in found["data"]
        if one["processing_status"] != "ended" or one["results_url"]
    ]
    return batches, bool(found["has_more"] and batches)
