"""Size of the code, and the functions between a CSV file and the first update.

    python -m benchmarks.house [CHECKOUT]

CHECKOUT is a checkout of the project, by default this one. Prints, as a table: lines and files of
ehrr1/, public names without a docstring, functions of more than 60 lines, and the distinct
functions of ehrr1 that run from the beginning of `stage=prepare` to the first step of the optimizer
in `stage=adapt` (`experiment=smoke` with `data.tasks=[labevents]`).

A public name is a class, function or method of a module or of a public class whose name does not
begin with an underscore. Comprehensions, lambdas and the bodies of classes and modules are not
counted as functions, and neither are the functions that write the synthetic hospital.
"""

import ast
import inspect
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from benchmarks.measure import ROOT, markdown

LONG = 60
"""A function of more lines than this does not fit a screen."""

SMOKE = ("experiment=smoke", "data.tasks=[labevents]", "adapt.max_steps=1")

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def public_names(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the public classes, functions and methods that statements define."""
    for one in body:
        if isinstance(one, (*FUNCTIONS, ast.ClassDef)) and not one.name.startswith("_"):
            yield one
            if isinstance(one, ast.ClassDef):
                yield from public_names(one.body)


def size(package: Path) -> dict[str, int]:
    """Return the figures that follow from the source alone."""
    sources = [file.read_text(encoding="utf-8") for file in sorted(package.rglob("*.py"))]
    modules = [ast.parse(source) for source in sources]
    public = [name for module in modules for name in public_names(module.body)]
    nodes = [node for module in modules for node in ast.walk(module)]
    lengths = [node.end_lineno - node.lineno + 1 for node in nodes if isinstance(node, FUNCTIONS)]
    return {
        "lines": sum(len(source.splitlines()) for source in sources),
        "files": len(sources),
        "public names": len(public),
        "public names without docstring": sum(ast.get_docstring(name) is None for name in public),
        f"functions of more than {LONG} lines": sum(length > LONG for length in lengths),
    }


class Recorder:
    """Records the distinct functions of a package that this process calls, in any thread.

    `functions` holds file in the package, qualified name and line.
    """

    def __init__(self, package: Path):
        self.package = f"{package}/"
        self.seen: set[CodeType] = set()
        self.functions: set[tuple[str, str, int]] = set()

    def start(self) -> None:
        threading.setprofile(self._record)
        sys.setprofile(self._record)

    def stop(self, *_: Any) -> None:
        threading.setprofile(None)
        sys.setprofile(None)

    def _record(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code in self.seen:
            return
        self.seen.add(code)
        file = code.co_filename.removeprefix(self.package)
        ours = file != code.co_filename and "synthetic" not in file
        named = code.co_flags & inspect.CO_NEWLOCALS and not code.co_name.startswith("<")
        if ours and named:
            self.functions.add((file, code.co_qualname, code.co_firstlineno))


def functions_to_update(checkout: Path) -> set[tuple[str, str, int]]:
    """Run `prepare` and the first update of `adapt` and return the functions that were called.

    Both stages run in this process. Recording begins when a stage's `run` is entered, which leaves
    out the command line and the composition of the configuration.
    """
    sys.path.insert(0, str(checkout))
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from ehrr1 import cli, stages

    package = checkout / "ehrr1"
    if Path(cli.__file__).parent != package:
        raise SystemExit(f"ehrr1 was imported from {cli.__file__}, not from {package}")
    recorder = Recorder(package)

    def recorded(run: Callable[..., Any]) -> Callable[..., Any]:
        def begin(*arguments: Any) -> Any:
            recorder.start()
            try:
                return run(*arguments)
            finally:
                recorder.stop()

        return begin

    register_optimizer_step_post_hook(recorder.stop)
    with tempfile.TemporaryDirectory() as folder:
        for stage in ("prepare", "adapt"):
            module = stages.module_of(stage)
            module.run = recorded(module.run)
            sys.argv = ["run.py", f"stage={stage}", *SMOKE, f"output_root={folder}"]
            cli.main()
    return recorder.functions


def main() -> None:
    checkout = Path(sys.argv[1]).resolve() if sys.argv[1:] else ROOT
    figures = size(checkout / "ehrr1")
    functions = functions_to_update(checkout)
    figures["functions from the file to the first update"] = len(functions)
    figures["files that hold them"] = len({file for file, _, _ in functions})
    print(markdown(["", "count"], [[name, f"{count:,}"] for name, count in figures.items()]))
    folders = Counter(file.split("/")[0] for file, _, _ in functions)
    print("\n" + ", ".join(f"{name} {count}" for name, count in folders.most_common()))


if __name__ == "__main__":
    main()
