"""How a model's chat is written: what stands around record, question and answer.

Read from the tokenizer's own chat template by rendering a chat of marks, so that any instruction
model is asked in its own format. Without a template it is ChatML, as Qwen has it.
"""

from dataclasses import dataclass
from functools import cached_property

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ehrr1.prompts.messages import EMPTY_THOUGHT, OPENED, SYSTEM
from ehrr1.prompts.tokenizer import CHAT_TEMPLATE

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
    def opens_thought(self) -> bool:
        """Whether the think block is already open where the model begins to write."""
        return self.think.endswith(OPENED)


def chat_format(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """The format of the tokenizer's template.

    Where the template has no switch for thinking, a direct answer stands behind an empty think
    block (Qwen2.5-72B); where it knows no system's sentence, that begins the user's.
    """

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

    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
    try:
        opened = render(chat, answering=True)
    except TemplateError:
        opened = ""
    if SYSTEM not in opened:
        chat = [{"role": "user", "content": f"{SYSTEM}\n\n{USER}"}]
        opened = render(chat, answering=True)
    closed = render(chat, answering=True, think=False)
    more = [{"role": "assistant", "content": ANSWER}, {"role": "user", "content": NEXT}]
    between = render(chat + more).split(ANSWER, 1)[1].split(NEXT, 1)[0]
    ended = render(chat + more[:1]).split(ANSWER, 1)[1].rstrip("\n")
    head, think = opened.split(USER, 1)
    direct = closed.split(USER, 1)[1]
    if not direct.endswith("</think>\n\n"):
        direct += EMPTY_THOUGHT.removeprefix(OPENED) if direct.endswith(OPENED) else EMPTY_THOUGHT
    return ChatFormat(head, think, direct, ended, between)


def end_token(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> int:
    """The token that ends a turn, which is not every model's end of text: the first of the
    template that is no word. Without one a turn ends with the text."""
    ids = tokenizer(chat.end, add_special_tokens=False)["input_ids"]
    special = {one for one, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((one for one in ids if one in special), tokenizer.eos_token_id)
