"""How a model's chat is written: what stands around record, question and answer.

Read from the tokenizer's own chat template by rendering a chat of marks, so that any instruction
model is asked in its own format. Without a template it is ChatML, as Qwen has it.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ehrr1.prompts.messages import OPENED, THINK_CLOSE
from ehrr1.prompts.tokenizer import CHAT_TEMPLATE, load_tokenizer
from ehrr1.prompts.wording import OURS, Wording

_OPEN = re.compile(r"(<think>\n*)?$")

USER, ANSWER, NEXT = "(what-the-user-says)", "(what-is-answered)", "(what-is-said-next)"
"""Marks; no template has them, and none takes blanks off them."""


@dataclass(frozen=True)
class ChatFormat:
    """`head` before the record; behind the question `think` or `direct`, after which the model
    writes; `end` behind its answer, and `next` between two turns (`end` included)."""

    head: str
    think: str
    direct: str
    end: str
    next: str

    @cached_property
    def opened(self) -> str:
        """What a template itself writes of a think block before the model does (R1, Qwen3.5)."""
        return _OPEN.search(self.think)[0]  # type: ignore[index]  # it finds nothing at least

    @cached_property
    def opening(self) -> str:
        """What is left for the model to write of it."""
        return OPENED.removeprefix(self.opened)


def chat_format(tokenizer: PreTrainedTokenizerBase, wording: Wording = OURS) -> ChatFormat:
    """The format of the tokenizer's template, with the system's sentence of `wording`.

    Where the template has no switch for thinking, a direct answer stands behind an empty think
    block (Qwen2.5-72B); where it knows no system's sentence, that begins the user's.
    """
    system = wording.system

    def render(chat: list[dict[str, str]], answering: bool = False, think: bool = True) -> str:
        text = tokenizer.apply_chat_template(
            chat,
            chat_template=tokenizer.chat_template or CHAT_TEMPLATE,
            tokenize=False,
            add_generation_prompt=answering,
            enable_thinking=think,
        )
        assert isinstance(text, str)
        return text

    chat = [{"role": "system", "content": system}, {"role": "user", "content": USER}]
    try:
        opened = render(chat, answering=True)
    except TemplateError:
        opened = ""
    if system not in opened:
        chat = [{"role": "user", "content": f"{system}\n\n{USER}"}]
        opened = render(chat, answering=True)
    closed = render(chat, answering=True, think=False)
    more = [{"role": "assistant", "content": ANSWER}, {"role": "user", "content": NEXT}]
    between = render(chat + more).split(ANSWER, 1)[1].split(NEXT, 1)[0]
    ended = render(chat + more[:1]).split(ANSWER, 1)[1].rstrip("\n")
    head, think = opened.split(USER, 1)
    direct = closed.split(USER, 1)[1]
    if not direct.rstrip().endswith(THINK_CLOSE):
        direct = _OPEN.sub("", direct) + wording.closed
    return ChatFormat(head, think, direct, ended, between)


def end_token(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> int:
    """The token that ends a turn, which is not every model's end of text: the first of the
    template that is no word. Without one a turn ends with the text."""
    ids = tokenizer(chat.end, add_special_tokens=False)["input_ids"]
    special = {one for one, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((one for one in ids if one in special), tokenizer.eos_token_id)


def load_chat_tokenizer(source: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that answers: its end of text is what ends a turn of its template.

    A base model's own end of text (Qwen3's `<|endoftext|>`) is another: what is trained to end its
    turns would write on for ever.
    """
    tokenizer = load_tokenizer(source)
    tokenizer.eos_token_id = end_token(tokenizer, chat_format(tokenizer))
    return tokenizer
