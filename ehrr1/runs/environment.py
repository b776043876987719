"""The machine and the packages that a run is made with."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

from ehrr1 import __version__


def environment() -> str:
    """Describe Python, platform, command, version, processor and packages, one a line."""
    # the folders' names say it all: parsing every package's metadata takes a third of a second
    installed = {info.stem for path in sys.path for info in Path(path).glob("*.dist-info")}
    packages = sorted("==".join(name.rsplit("-", 1)) for name in installed)
    lines = [f"python {platform.python_version()}", platform.platform(), " ".join(sys.argv)]
    return "\n".join([*lines, version(), *_kernels(), *packages]) + "\n"


def version() -> str:
    """Return the version of ehrr1, and in a checkout the commit; `-dirty` where files differ."""
    checkout, told = Path(__file__).parents[2], f"ehrr1 {__version__}"
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return told
    command = ("git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{told}, commit {done.stdout.strip()}" if done.returncode == 0 else told


def _kernels() -> list[str]:
    """Name the processor, and the kernels and threads that the loaded numerical libraries chose.

    The last digits of a result depend on them.
    """
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line for line in described.splitlines() if line.startswith("model name")]
    name = models[0].partition(":")[2].strip() if models else platform.processor()
    lines = [f"processor {name or platform.machine()}"]
    if "numpy" in sys.modules:
        from threadpoolctl import threadpool_info

        lines += [
            f"{pool['internal_api']} {pool.get('architecture') or ''}".strip()
            + f", {pool['num_threads']} threads"
            for pool in threadpool_info()
        ]
    if "torch" in sys.modules:
        import torch

        capability = torch.backends.cpu.get_cpu_capability()
        lines.append(f"torch {capability}, {torch.get_num_threads()} threads")
    return lines
