"""The limit of a process's addresses (`ulimit -v`), below which libraries hang or abort."""

import resource

from ehrr1.errors import UserError

GIB = 2**30

LEAST_BYTES = 2 * GIB
"""Without so much, Polars waits for its threads for ever, deaf to signals, or Rust aborts."""

LEAST_OF_MODELS_BYTES = 4 * GIB
"""The same for stages that import PyTorch."""

WITHOUT_MODEL = frozenset({"prepare", "audit", "card", "export", "graph", "plan"})


def require_addresses(stage: str) -> None:
    """Raise UserError if the limit of addresses is below what a stage's libraries reserve."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    least = LEAST_BYTES if stage in WITHOUT_MODEL else LEAST_OF_MODELS_BYTES
    if limit != resource.RLIM_INFINITY and limit < least:
        raise UserError(
            f"ulimit -v {limit // 1024}: stage={stage} needs at least {least // 1024} (KiB of "
            "addresses, of which libraries reserve more than they use): raise the limit, or "
            "limit the job's memory instead"
        )
