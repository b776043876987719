"""The number of cores to use."""

import os


def cores() -> int:
    """Return the number of cores that this process may use, on a shared node those of its job."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
