"""Text around record, question and answer, from the templates of several families."""

from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from ehrr1.prompts.chat_format import chat_format, end_token, load_chat_tokenizer
from ehrr1.prompts.messages import EMPTY_THOUGHT, OPENED, SYSTEM, THINK_TAGS
from ehrr1.prompts.tokenizer import END, START, load_tokenizer, train_tokenizer
from ehrr1.prompts.trees import PromptBuilder, Question
from ehrr1.prompts.wording import OURS
from ehrr1.records.events import Event
from ehrr1.records.markdown import record_markdown
from tests.conftest import shared_folder
from tests.test_graph import event

HEAD = f"{START}system\n{SYSTEM}{END}\n{START}user\n"
ASSISTANT = f"{END}\n{START}assistant\n"

LLAMA = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{{- message.content | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
NO_SWITCH = (  # Qwen2.5's
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
OPENS_ALONE = NO_SWITCH.replace("assistant\n'", "assistant\n<think>'")
ALWAYS_THINKS = NO_SWITCH.replace("assistant\n'", "assistant\n<think>\n'")
WITHOUT_SYSTEM = (  # says nothing of the system's sentence, and ends a turn by a word
    "{%- for message in messages if message.role != 'system' %}"
    "{{- message.role + ': ' + message.content + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"
)
SPECIAL = (
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>"),
)


def record() -> list[Event]:
    return [event("labevents", hour, ["Potassium"], Valuenum="4.1") for hour in (1, 2)]


def speaking(template: str | None) -> PreTrainedTokenizerBase:
    """A small tokenizer with the special tokens of several families and this template."""
    tokenizer = train_tokenizer({SYSTEM: 3, "yes": 3, "no": 3}, 400)
    tokenizer.add_tokens([AddedToken(text, special=True) for text in SPECIAL], special_tokens=True)
    tokenizer.bos_token = "<|begin_of_text|>"
    tokenizer.chat_template = template
    return tokenizer


def as_before(tokenizer: PreTrainedTokenizerBase) -> None:
    """Tokens of trunk and branches are those of ChatML with Qwen's think block, and the same as of
    the whole text in one."""
    answers = {True: "<think>\nfever\n</think>\n\nyes", False: "yes"}
    for think, written in answers.items():
        chain = "fever" if think else None
        question = Question("s", "Inpatient_Mortality", think, "yes", chain)
        tree = PromptBuilder(tokenizer, 10_000).tree(record(), 0, [question])
        [branch] = tree.branches
        asked = OURS.asked("Inpatient_Mortality", think=think)
        behind = ASSISTANT if think else ASSISTANT + EMPTY_THOUGHT
        text = f"{HEAD}{record_markdown(record())}\n\n{asked}{behind}{written}{END}"
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tree.trunk + branch.prompt + branch.completion == whole
        alone = tokenizer(written + END, add_special_tokens=False)["input_ids"]
        assert branch.completion == alone
    assert tokenizer.decode(end_token(tokenizer, chat_format(tokenizer))) == END


def test_our_own_and_qwens_prompts_are_what_they_were() -> None:
    own = train_tokenizer({record_markdown(record()) + "\n\n": 5, "yes": 3, SYSTEM: 5}, 500)
    as_before(own)
    own.chat_template = None  # ChatML too
    as_before(own)
    shared = shared_folder()
    if shared is not None:
        as_before(load_tokenizer(shared / "data" / "qwen3-tokenizer"))


def test_smollm2_is_asked_in_its_own_format(smollm2: Path) -> None:
    chat = chat_format(load_tokenizer(smollm2))
    assert chat.head == HEAD and chat.think == ASSISTANT
    assert chat.direct == ASSISTANT + EMPTY_THOUGHT
    assert chat.end == END and chat.next == f"{END}\n{START}user\n"


def test_llama() -> None:
    tokenizer = speaking(LLAMA)
    chat = chat_format(tokenizer)
    system = "<|start_header_id|>system<|end_header_id|>\n\n" + SYSTEM + "<|eot_id|>"
    user = "<|start_header_id|>user<|end_header_id|>\n\n"
    assert chat.head == "<|begin_of_text|>" + system + user
    assert chat.think == "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert chat.direct == chat.think + EMPTY_THOUGHT
    assert chat.end == "<|eot_id|>" and chat.next == "<|eot_id|>" + user
    assert tokenizer.decode(end_token(tokenizer, chat)) == "<|eot_id|>" != tokenizer.eos_token


@pytest.mark.parametrize("template", [LLAMA, GEMMA])
def test_a_prompt_begins_once(template: str) -> None:
    tokenizer = speaking(template)
    question = Question("s", "Inpatient_Mortality", False, "yes")
    tree = PromptBuilder(tokenizer, 10_000).tree(record(), 0, [question])
    tokens = tree.trunk + tree.branches[0].prompt + tree.branches[0].completion
    assert tokens[0] == tokenizer.bos_token_id and tokens.count(tokenizer.bos_token_id) == 1
    assert tokens[-1] == end_token(tokenizer, chat_format(tokenizer))


def test_a_template_that_refuses_a_system_gets_its_sentence_from_the_user() -> None:
    tokenizer = speaking(GEMMA)
    chat = chat_format(tokenizer)
    assert chat.head == f"<|begin_of_text|><start_of_turn>user\n{SYSTEM}\n\n"
    assert chat.think == "<end_of_turn>\n<start_of_turn>model\n"
    assert chat.end == "<end_of_turn>"
    assert chat.next == "<end_of_turn>\n<start_of_turn>user\n"
    assert tokenizer.decode(end_token(tokenizer, chat)) == "<end_of_turn>"


def test_a_template_that_drops_the_system_too() -> None:
    tokenizer = speaking(WITHOUT_SYSTEM)
    chat = chat_format(tokenizer)
    assert chat.head == f"user: {SYSTEM}\n\n" and chat.think == "\nassistant: "
    assert end_token(tokenizer, chat) == tokenizer.eos_token_id


def test_without_a_switch_a_direct_answer_stands_behind_an_empty_block() -> None:
    chat = chat_format(speaking(NO_SWITCH))
    assert chat.think == ASSISTANT and chat.direct == ASSISTANT + EMPTY_THOUGHT
    assert not chat.opened and chat.opening == OPENED


def test_a_template_that_opens_the_thought_itself() -> None:
    for template, opened in ((ALWAYS_THINKS, "<think>\n"), (OPENS_ALONE, "<think>")):
        tokenizer = speaking(template)
        chat = chat_format(tokenizer)
        assert chat.think == ASSISTANT + opened and chat.opened == opened
        assert chat.direct == ASSISTANT + EMPTY_THOUGHT
        question = Question("s", "Inpatient_Mortality", True, "yes", "fever")
        [branch] = PromptBuilder(tokenizer, 10_000).tree(record(), 0, [question]).branches
        text = tokenizer.decode(branch.prompt + branch.completion)
        assert text.endswith(f"assistant\n<think>\nfever\n</think>\n\nyes{END}")
        assert text.count("<think>") == 1


def test_think_tags_that_count_as_special_stay_in_what_was_written() -> None:
    tokenizer = speaking(NO_SWITCH)
    tags = [AddedToken(tag, special=True) for tag in THINK_TAGS]
    tokenizer.add_tokens(tags, special_tokens=True)
    prompt_builder = PromptBuilder(tokenizer, 10_000)
    question = Question("s", "Inpatient_Mortality", True, "yes", "fever")
    [branch] = prompt_builder.tree(record(), 0, [question]).branches
    assert "<think>" not in tokenizer.decode(branch.completion, skip_special_tokens=True)
    [text] = prompt_builder.markers.decode([branch.completion])
    assert text == "<think>\nfever\n</think>\n\nyes"


def test_a_base_models_tokenizer_ends_where_its_turns_end(tmp_path: Path) -> None:
    tokenizer = speaking(NO_SWITCH)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).eos_token == "<|endoftext|>"
    assert load_chat_tokenizer(tmp_path).eos_token == END
