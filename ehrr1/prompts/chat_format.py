"""Format of a model's chat: the text around record, question and answer.

It is derived from the tokenizer's chat template by rendering a chat of markers, so that every
instruction-tuned model is prompted in its own format. Without a template the format is ChatML, as
in Qwen.
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
"""Placeholders that occur in no template, and that no template strips of blanks."""


@dataclass(frozen=True)
class ChatFormat:
    """The fixed texts of a chat.

    `head` precedes the record; `think` or `direct` follows the question and precedes the model's
    output; `end` follows the answer, and `next` separates two turns (`end` included).
    """

    head: str
    think: str
    direct: str
    end: str
    next: str

    @cached_property
    def opened(self) -> str:
        """Return the part of a think block's opening that the template writes (R1, Qwen3.5)."""
        return _OPEN.search(self.think)[0]  # type: ignore[index]  # it matches at least ""

    @cached_property
    def opening(self) -> str:
        """Return the part of the opening that is left for the model to write."""
        return OPENED.removeprefix(self.opened)


def chat_format(tokenizer: PreTrainedTokenizerBase, wording: Wording = OURS) -> ChatFormat:
    """Return the format of the tokenizer's template, with the system message of `wording`.

    If the template has no switch for thinking, a direct answer follows an empty think block
    (Qwen2.5-72B); if it does not support a system message, that is prepended to the user's message.
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
    """Return the id of the token that ends a turn, which may differ from the model's end of text.

    It is the first special token behind an answer in the template; without one it is the end of
    text.
    """
    ids = tokenizer(chat.end, add_special_tokens=False)["input_ids"]
    special = {one for one, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((one for one in ids if one in special), tokenizer.eos_token_id)


def load_chat_tokenizer(source: Path | str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a chat model, with the end of a turn as its end of text.

    A base model's own end of text (Qwen3's `<|endoftext|>`) differs: a model that is trained to end
    its turns would then continue without end. Raises UserError if no tokenizer can be read.
    """
    tokenizer = load_tokenizer(source)
    tokenizer.eos_token_id = end_token(tokenizer, chat_format(tokenizer))
    return tokenizer
