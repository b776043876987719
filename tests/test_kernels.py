"""Another processor gives the same run: its kernels of linear algebra, its vectors, its threads.

OpenBLAS (NumPy, SciPy) and PyTorch choose kernels by the processor they find, and can be told to
take those of another. What may differ is the order of sums, within the tolerances that compare
strategies; a start that is decomposed in single precision was off by 3e-3 from the first step on.
"""

from pathlib import Path

import pytest

from tests.conftest import CommandLine
from tests.test_processes import assert_same_trajectory, given

PROCESSORS = {
    "haswell": {
        "OPENBLAS_CORETYPE": "Haswell",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "skylakex": {
        "OPENBLAS_CORETYPE": "SkylakeX",
        "ATEN_CPU_CAPABILITY": "avx512",
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",  # else they would spin beside other tests
    },
    "zen": {
        "OPENBLAS_CORETYPE": "Zen",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}
"""What NumPy, PyTorch, and MKL and oneDNN, which multiply PyTorch's matrices, are told."""

NEEDS = {"haswell": "avx2", "skylakex": "avx512f", "zen": "avx2"}


def can(instructions: str) -> bool:
    """Return whether this processor has them; one of another family ignores the setting."""
    path = Path("/proc/cpuinfo")
    found = path.read_text().split() if path.exists() else []
    return "flags" not in found or instructions in found


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_processor_has_the_committed_trajectory(
    name: str, smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    """And one and two threads, which SkylakeX is given."""
    if not can(NEEDS[name]):
        pytest.skip(f"this processor has no {NEEDS[name]}")
    done = command_line(*given(smoke, tmp_path, name), **PROCESSORS[name])
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "smoke" / name / "adapt"
    assert_same_trajectory(folder)
    said = (folder / "environment.txt").read_text()
    assert "processor " in said and "threads" in said
