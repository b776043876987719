"""EHR-R1 as an open experiment framework: language models that reason over health records."""

from importlib import import_module
from typing import Any

__all__ = ["EHRModel", "__version__"]
__version__ = "0.2.0.dev0"


def __getattr__(name: str) -> Any:
    """Import `EHRModel` on first access, so that `import ehrr1` does not import torch."""
    if name == "EHRModel":
        return import_module("ehrr1.inference.model").EHRModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
