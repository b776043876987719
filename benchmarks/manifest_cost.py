"""Cost of manifests and checks beside the stages: python -m benchmarks.manifest_cost FOLDER.

FOLDER holds the runs of one experiment (prepare/, adapt/, ...). For each stage it prints the
seconds that the stage took, those of the digests in its `finish`, and those of the checks of its
inputs before it began, as seconds and shares of the stage. Nothing is written. Each time is the
least of three, of the process and the kernel on its behalf (the files are in memory, as they are
when a stage has just written them), so that other work on the machine does not count.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ehrr1.config.names import ORDER
from ehrr1.damage import check, manifest, read_manifest
from ehrr1.files import read_json
from ehrr1.runs import INPUTS
from ehrr1.runs.catalog import READ_LATER

ROUNDS = 3


def seconds_of(act: Callable[[], object]) -> float:
    """Return the processor's seconds of the fastest of some rounds."""
    found = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        act()
        found.append(time.process_time() - begin)
    return min(found)


def inputs_of(stage: str, root: Path) -> list[Path]:
    """Return the runs that a stage has read."""
    read = read_json(root / stage / "inputs.json")
    return [root / name for name in INPUTS[stage] if name in read]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    root: Path = parser.parse_args().folder
    print("| stage | seconds | MiB listed | digests | share | checks of inputs | share |")
    print("|---|---|---|---|---|---|---|")
    for stage in (one for one in ORDER if (root / one / "metrics.json").exists()):
        folder = root / stage
        whole = read_json(folder / "metrics.json")["seconds"]
        names = ("config.yaml", "inputs.json", *READ_LATER[stage])
        listed = read_manifest(folder)["files"].values()
        digests = seconds_of(partial(manifest, folder, stage, names, {"": ""}))
        checks = sum(seconds_of(partial(check, one)) for one in inputs_of(stage, root))
        print(
            f"| {stage} | {whole:,.0f} | {sum(one['bytes'] for one in listed) / 2**20:,.0f} "
            f"| {digests:.2f} | {digests / whole:.1%} | {checks:.2f} | {checks / whole:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
