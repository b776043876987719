"""Our calls of packages that need a GPU, against the signatures in their pinned sources.

    python -m benchmarks.signatures [FOLDER]

downloads the wheels of `PACKAGES` in the versions of constraints.txt to FOLDER (about 330 MB; those
that are there are not downloaded again), unpacks their Python files, and imports none of them. Each
call of `CALLS` that stands in our source is bound to the signature that stands in theirs: names of
arguments, their number, and those that are missing. Prints a line for each, and exits with 1 if one
does not fit, or if a function is gone. It says nothing about what the functions do.
"""

import ast
import inspect
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import ROOT

PACKAGES = ("vllm", "liger-kernel", "deepspeed", "flash-attn")


class Call(NamedTuple):
    """A call in our `file`, of `ours`, and the file and name where it is defined in theirs."""

    file: str
    ours: str
    source: str
    name: str


ENGINE, WORKER = "ehrr1/engines/vllm_process.py", "ehrr1/engines/vllm_worker.py"
OFFLINE, PARAMETERS = "vllm/entrypoints/llm.py", "vllm/sampling_params.py"
ZERO = "deepspeed/runtime/zero/partition_parameters.py"

CALLS = (
    Call(ENGINE, "LLM", "vllm/engine/arg_utils.py", "EngineArgs"),
    Call(ENGINE, "SamplingParams", PARAMETERS, "SamplingParams"),
    Call(ENGINE, "self.llm.sleep", OFFLINE, "LLM.sleep"),
    Call(ENGINE, "self.llm.wake_up", OFFLINE, "LLM.wake_up"),
    Call(ENGINE, "self.llm.collective_rpc", OFFLINE, "LLM.collective_rpc"),
    Call(ENGINE, "self.llm.reset_prefix_cache", OFFLINE, "LLM.reset_prefix_cache"),
    Call(ENGINE, "self.llm.generate", OFFLINE, "LLM.generate"),
    Call(ENGINE, "tokens_input", "vllm/inputs/engine.py", "tokens_input"),
    Call(ENGINE, "engine.add_request", "vllm/v1/engine/llm_engine.py", "LLMEngine.add_request"),
    Call(ENGINE, "engine.step", "vllm/v1/engine/llm_engine.py", "LLMEngine.step"),
    Call(
        WORKER,
        "self.model_runner.reload_weights",
        "vllm/v1/worker/gpu_model_runner.py",
        "GPUModelRunner.reload_weights",
    ),
    Call(
        WORKER,
        "self.model_runner.get_model",
        "vllm/v1/worker/gpu_model_runner.py",
        "GPUModelRunner.get_model",
    ),
    Call(
        WORKER,
        "finalize_layerwise_processing",
        "vllm/model_executor/model_loader/reload/layerwise.py",
        "finalize_layerwise_processing",
    ),
    Call(
        "ehrr1/models/varlen_attention.py",
        "flash_attn_varlen_func",
        "flash_attn/flash_attn_interface.py",
        "flash_attn_varlen_func",
    ),
    Call(
        "ehrr1/models/loading.py",
        "_apply_liger_kernel_to_instance",
        "liger_kernel/transformers/monkey_patch.py",
        "apply_liger_kernel_to_qwen3",
    ),
    Call(
        "ehrr1/models/loading.py", "deepspeed.zero.GatheredParameters", ZERO, "GatheredParameters"
    ),
    Call(
        "ehrr1/models/weights.py", "deepspeed.zero.GatheredParameters", ZERO, "GatheredParameters"
    ),
    Call(
        "ehrr1/training/strategies.py",
        "deepspeed.initialize",
        "deepspeed/__init__.py",
        "initialize",
    ),
    Call(
        "ehrr1/training/strategies.py",
        "strategy.deepspeed_engine.set_gradient_accumulation_boundary",
        "deepspeed/runtime/engine.py",
        "DeepSpeedEngine.set_gradient_accumulation_boundary",
    ),
    Call(
        "ehrr1/training/strategies.py",
        "strategy.deepspeed_engine.get_global_grad_norm",
        "deepspeed/runtime/engine.py",
        "DeepSpeedEngine.get_global_grad_norm",
    ),
    Call(
        "ehrr1/training/module.py",
        "DeepSpeedCPUAdam",
        "deepspeed/ops/adam/cpu_adam.py",
        "DeepSpeedCPUAdam",
    ),
)


def sources(folder: Path) -> Path:
    """Return the folder with the packages' Python files, downloaded and unpacked."""
    unpacked = folder / "sources"
    for package in PACKAGES:
        stem = package.replace("-", "_")
        if not [*folder.glob(f"{stem}-*.whl"), *folder.glob(f"{stem}-*.tar.gz")]:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
            command += ["--no-build-isolation", "-c", str(ROOT / "constraints.txt")]
            command += ["-d", str(folder), package]
            # flash-attn's own script would compile kernels before it tells its name
            skip = {"FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"}
            subprocess.run(command, check=True, env=os.environ | skip)
    for archive in folder.glob("*.whl"):
        with zipfile.ZipFile(archive) as file:
            names = [name for name in file.namelist() if name.endswith(".py")]
            file.extractall(unpacked, names)
    for archive in folder.glob("*.tar.gz"):
        with tarfile.open(archive) as file:
            for member in file.getmembers():
                inner = member.name.partition("/")[2]
                if inner.endswith(".py") and member.isfile():
                    member.name = inner
                    file.extract(member, unpacked, filter="data")
    return unpacked


def signature(source: Path, name: str) -> inspect.Signature:
    """Return the signature of a function, of a method without `self`, or of a class's creation."""
    body: list[ast.stmt] = ast.parse(source.read_text(encoding="utf-8")).body
    node: ast.AST | None = None
    for part in name.split("."):
        found = [n for n in body if isinstance(n, DEFINED) and n.name == part]
        if not found:
            raise LookupError(f"{source} has no {name}")
        node = found[-1]  # of overloads, the last is the function
        body = node.body
    if isinstance(node, ast.ClassDef):
        made = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if not made:
            return of_fields(body)
        node = made[0]
    assert isinstance(node, ast.FunctionDef)
    method = bool(node.args.args) and node.args.args[0].arg == "self"
    return inspect.Signature(list(parameters(node.args))[method:])


DEFINED = (ast.FunctionDef, ast.ClassDef)


def of_fields(body: list[ast.stmt]) -> inspect.Signature:
    """Return the signature of a dataclass (or msgspec struct) with these annotated fields."""
    fields = [n for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature(
        [
            inspect.Parameter(n.target.id, kind, default=None)
            for n in fields
            if isinstance(n.target, ast.Name)
        ]
    )


def parameters(given: ast.arguments) -> Iterator[inspect.Parameter]:
    """Yield the parameters of a definition; every default is None."""
    places = [*given.posonlyargs, *given.args]
    needed = len(places) - len(given.defaults)
    for number, one in enumerate(places):
        default = inspect.Parameter.empty if number < needed else None
        yield inspect.Parameter(one.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
    if given.vararg:
        yield inspect.Parameter(given.vararg.arg, inspect.Parameter.VAR_POSITIONAL)
    for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        default = inspect.Parameter.empty if value is None else None
        yield inspect.Parameter(one.arg, inspect.Parameter.KEYWORD_ONLY, default=default)
    if given.kwarg:
        yield inspect.Parameter(given.kwarg.arg, inspect.Parameter.VAR_KEYWORD)


def calls(file: Path, ours: str) -> Iterator[tuple[int, list[None], dict[str, None]]]:
    """Yield line, positional and named arguments of each call; `**name` by what `name` gets."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) == ours):
            continue
        named = {one.arg: None for one in node.keywords if one.arg is not None}
        for one in node.keywords:
            if one.arg is None:
                named |= dict.fromkeys(keys(tree, ast.unparse(one.value)))
        yield node.lineno, [None] * len(node.args), named


def keys(tree: ast.AST, name: str) -> Iterator[str]:
    """Yield the keys that a file puts into the dictionary `name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if ast.unparse(target) == name and isinstance(node.value, ast.Dict):
                    yield from (k.value for k in node.value.keys if isinstance(k, ast.Constant))
                if isinstance(target, ast.Subscript) and ast.unparse(target.value) == name:
                    assert isinstance(target.slice, ast.Constant)
                    yield target.slice.value


def check(call: Call, theirs: Path, ours: Path = ROOT) -> list[str]:
    """Return a line for each place of a call that does not fit its signature."""
    try:
        wanted = signature(theirs / call.source, call.name)
    except (LookupError, FileNotFoundError) as error:
        return [f"{call.ours}: {error}"]
    found = list(calls(ours / call.file, call.ours))
    problems = [] if found else [f"{call.file} does not call {call.ours}"]
    for line, places, named in found:
        try:
            wanted.bind(*places, **named)
        except TypeError as error:
            problems.append(f"{call.file}:{line}: {call.name}: {error}")
    return problems


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "outputs" / "benchmarks" / "wheels")
    folder.mkdir(parents=True, exist_ok=True)
    theirs = sources(folder)
    problems = []
    for call in CALLS:
        wrong = check(call, theirs)
        print(f"{'differs' if wrong else 'fits':8}{call.file}: {call.ours} -> {call.name}")
        problems += wrong
    print(*problems, sep="\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
