"""Two runs of one stage compared: their settings, and the inputs that they have read."""

import hashlib
from pathlib import Path
from typing import Any

from ehrr1.config.schema import Config
from ehrr1.files import read_yaml
from ehrr1.runs.catalog import NOT_COMPARED, RESULT_SETTINGS
from ehrr1.runs.paths import read_inputs


def fingerprint(folder: Path) -> str:
    """Return a hash of a finished run's settings and metrics, which changes with a new run."""
    content = (folder / "config.yaml").read_bytes() + (folder / "metrics.json").read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def made_from(folder: Path, name: str, source: Path) -> bool:
    """Return whether a finished run has read its input `name` from `source` as it is now."""
    return bool(read_inputs(folder).get(name) == fingerprint(source))


def differences(
    cfg: Config,
    stage: str,
    folder: Path,
    inputs: dict[str, Path],
    rooted: bool = False,
    besides: frozenset[str] = frozenset(),
) -> list[str]:
    """List the differences between a begun run and this command that change the result.

    They are settings, and finished `inputs` that were made anew since. A stage that only reads what
    was prepared may leave out from where, unless the records must be `rooted` in the same folder.
    Settings of `besides` are not compared.
    """
    there = read_yaml(folder / "config.yaml")
    wanted = cfg.plain()
    left_out = set(besides)
    if cfg.data.root is None and cfg.data.name != "synthetic" and not rooted:
        left_out.add("data.root")
    found = []
    for section in RESULT_SETTINGS[stage]:
        now, then = flat(wanted[section], section), flat(there.get(section), section)
        found += [
            f"{key}: {then.get(key)} there, {now.get(key)} now"
            for key in sorted((now.keys() | then.keys()) - NOT_COMPARED - left_out)
            if now.get(key) != then.get(key)
        ]
    recorded = read_inputs(folder)
    found += [
        f"its input '{name}' has changed since"
        for name, path in inputs.items()
        if recorded.get(name) != fingerprint(path)
    ]
    return found


def flat(value: Any, prefix: str) -> dict[str, Any]:
    """Return nested settings by their whole names, such as `adapt.lr`."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, one in value.items() for k, v in flat(one, f"{prefix}.{key}").items()}
