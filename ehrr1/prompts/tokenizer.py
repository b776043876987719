"""A tokenizer trained on the hospital's own records, for models trained from scratch.

A record repeats few strings very often: headings, table headers, item names, units. Each frequent
string becomes one token, so that a row of a record takes a handful of tokens and an item of an
answer one. Rare text falls back to byte-level BPE, so that any text can be encoded.
"""

import json
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub.constants import ENDPOINT
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ehrr1.errors import UserError

END_OF_TEXT = "<|endoftext|>"
START = "<|im_start|>"
END = "<|im_end|>"
THINK = "<think>"
END_THINK = "</think>"

UNREADABLE = (RecursionError, OSError, ValueError, KeyError, TypeError, AttributeError)
"""Errors that Transformers raises for files of a tokenizer that are not whole."""

# Qwen3's dialogue format and thinking switch, without tools.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)

# Where a text is cut before BPE, in order of preference. Item names, answers and the leading
# numbers of values are pieces of their own; the text around them (bars, units, reference ranges,
# flags) is one piece, since it recurs. A run of line ends is never divided nor joined with the text
# that follows an empty line: events, trunk and branch, which meet there, can therefore be tokenised
# separately.
_HEADER = r"\|(?: [^|\n\d]+ \|)+\n\|(?: -+ \|)+\n(?:\| )?"
_KEY = r"- [A-Z]\w*(?: \w+)*:"
_NEXT_ROW = r"\n+(?:\| )?"
_CELL = r"(?: [^|\n]{0,40}? \|)"
_TEXT_CELL = r"(?: (?:(?!-> )[^|\n\d\s][^|\n]{0,60}?)? \|)"
PIECES = "|".join(
    (
        # a time: 2180-, 07-, 23 (with its blank), 04:, 15
        r"(?<=\[|\| )\d{4}-(?=\d\d-)|(?<=\d-)\d{2}[- ]|(?<=-\d\d |\| )\d{2}:(?=\d\d)",
        # the end of a heading with the table's header or the first key below: :00]
        rf":\d\d\](?:\n(?:{_HEADER}|{_KEY} ?)|\n+)?",
        # behind a number, the rest of a row of 5 cells (laboratory) or 1 to 2 (charted values)
        rf"(?<=\d) \|(?:{_CELL}{{5}}|{_CELL}{{1,2}}){_NEXT_ROW}",
        # between an item and a number or the row's end: the bars, with short texts between them
        rf" \| -> \| | \|{_TEXT_CELL}*(?:{_NEXT_ROW}| (?=\d))| ?(?:\| *)+(?:{_NEXT_ROW})?",
        # the same in the form of one line per key
        rf"(?:\n(?:- (?:Ref_Range_\w+|Warning):(?: -?[\d.]+)?"
        rf"|{_KEY}(?: (?![\d ])[^\n]{{1,60}}(?=\n))?))+(?:\n\n+| (?=\d))?",
        # a heading up to its time
        r"^#+ [^\[\n\d]+(?:\[(?!\d))?\[?",
        # a whole cell, line, value or question that begins with a letter
        r"(?:^|(?<=\| )|(?<=: ))\p{L}[^|\n]{0,400}?(?= \||\n| /(?:no_)?think$|\Z)",
        # the thinking switch, separate from its question, which is learnt from direct answers
        r" /(?:no_)?think$",
        # numbers in small parts, so that nearby values share some of them
        r"\.\d{1,2}|\d{1,3}",
        # words and the rest
        r"(?<=\d) ?\p{L}[^|\n\d]{0,30}(?= \|)| ?\p{L}+|\n+| ?[^\s\p{L}\p{N}|]+| +(?! )| +|\s",
    )
)


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Return the pre-tokenizer: splits at `PIECES`, then byte-level characters."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train_tokenizer(
    texts: Mapping[str, int], vocab_size: int, whole_share: float = 0.85
) -> PreTrainedTokenizerFast:
    """Train a vocabulary of at most `vocab_size` tokens on records, questions and answers.

    `texts` maps each text to its weight. The share `whole_share` of the vocabulary is given to the
    most frequent whole pieces (an item name, a table's header, a number), without the intermediate
    merges that BPE would need for each; the rest is byte-level BPE trained on the remaining pieces.
    The tokens are in order of frequency, ties in order of spelling, so that the same texts give the
    same vocabulary. Raises UserError if `vocab_size` is smaller than the number of bytes and chat
    markers.
    """
    special = [END_OF_TEXT, START, END, THINK, END_THINK]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = vocab_size - len(special) - len(alphabet)
    if room < 0:
        raise UserError(
            f"model.tokenizer.vocab_size={vocab_size}: must be at least "
            f"{len(special) + len(alphabet)} (the bytes and the chat markers)"
        )
    cut = pre_tokenizer()
    counts: Counter[str] = Counter()
    for text, times in texts.items():
        for piece, _ in cut.pre_tokenize_str(text):
            counts[piece] += times
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    frequent = [(piece, count) for piece, count in ranked if len(piece) > 1 and count > 1]
    whole = [piece for piece, _ in frequent[: int(room * whole_share)]]
    for piece in whole:
        del counts[piece]

    parts = Tokenizer(models.BPE())
    parts.train_from_iterator(
        (piece for piece, count in sorted(counts.items()) for _ in range(min(count, 1000))),
        trainers.BpeTrainer(
            vocab_size=len(alphabet) + room - len(whole),
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    vocabulary = {token: index for index, token in enumerate(special)}
    learnt = sorted(parts.get_vocab().items(), key=lambda entry: entry[1])
    for token in [*(token for token, _ in learnt), *whole]:
        vocabulary.setdefault(token, len(vocabulary))
    # ignore_merges: a piece of the vocabulary is one token, whatever its merges.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_merges(parts), ignore_merges=True))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special[:3]])
    tokenizer.add_tokens([AddedToken(token, special=False) for token in special[3:]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


def load_tokenizer(source: Path | str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a Hugging Face folder or, with a network, of a model's name.

    Raises UserError if no tokenizer can be read, or if it knows no words.
    """
    try:
        found = AutoTokenizer.from_pretrained(source, local_files_only=not reachable(source))
    except Exception as error:  # the library of tokenizers raises no subclass
        if type(error) is not Exception and not isinstance(error, UNREADABLE):
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.path={source}: no tokenizer can be read there ({reason}); "
            "give a Hugging Face model folder, or a model's name and a network"
        ) from error
    if not found.encode("yes", add_special_tokens=False):
        raise UserError(
            f"model.path={source}: its tokenizer is empty; restore its files (tokenizer.json)"
        )
    return found


def reachable(source: Path | str, timeout: float = 5.0) -> bool:
    """Return whether `source` is a folder or the model hub responds within `timeout` seconds.

    Called before loading by name, because the hub's client retries for a minute.
    """
    if Path(source).is_dir():
        return True
    try:
        urllib.request.urlopen(ENDPOINT, timeout=timeout).close()
    except OSError:
        return False
    return True
