"""stage=audit: temporal leaks in contexts, changed labels, splits, and answers in contexts.

audit.json   every count by task and table, with examples (docs/audit.md)
audit.png    the same as a figure

The stage accepts any prepared index. Under `strict` a leak is a bug of this program, which no
setting can correct: the stage then writes its files and raises LeakError (exit code 1).
"""

import resource
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import DictConfig, OmegaConf

from ehrr1.audit import index_checks, leakage, single_features
from ehrr1.audit.index_checks import Audit
from ehrr1.audit.raw_rules import Raw
from ehrr1.audit.recheck import KINDS, Finding, Recheck
from ehrr1.audit.report import draw, show
from ehrr1.config.schema import Config
from ehrr1.errors import LeakError, UserError
from ehrr1.files import read_json, replacing, write_json
from ehrr1.runs import Run, data_is_open, finish
from ehrr1.tasks.label_options import ED_DELAY
from ehrr1.tasks.samples import STORE, Prepared
from ehrr1.terminal import plain_console

console = plain_console(stderr=True)

EXAMPLES = 5
"""Number of leaking samples per task whose names are in audit.json."""

Metrics = dict[str, float | int]


def run(cfg: Config, run: Run) -> Metrics:
    """Audit the prepared index. Metrics: `leaking_samples/<task>`, `label_changes/<task>`, ..."""
    prepared = Prepared(run.input("prepare"))
    if not (prepared.folder / STORE).exists():
        raise UserError(
            f"{prepared.folder} has no records to audit: rows of data=benchmark bring their "
            "contexts as text; audit what they were made from (data=mimic, data=release)"
        )
    data = OmegaConf.load(prepared.folder / "config.yaml").data
    recheck = opened_files(prepared, data, cfg.audit.raw_patients, cfg.seed)
    audit, seconds = examine(
        prepared,
        data.protocol,
        cfg.audit.text_samples_per_task,
        cfg.seed,
        recheck,
        cfg.audit.rule_samples_per_task,
    )
    write_json(run.folder / "audit.json", as_json(audit))
    with replacing(run.folder / "audit.png") as path:
        draw(audit, path)
    show(audit, data_is_open(prepared.folder))
    metrics = flat(audit) | seconds
    verdict = problem(audit, run.folder)
    if verdict:
        finish(run, metrics)
        raise LeakError(verdict)
    return metrics


def opened_files(
    prepared: Prepared, data: DictConfig, patients: int | None, seed: int
) -> Recheck | None:
    """Read the raw files of some patients.

    Returns None if there are no tables, or if the protocol leaks by design.
    """
    root = prepared.folder / "hospital" if data.root is None else Path(str(data.root))
    tables = data.name in ("mimic", "synthetic") and root.is_dir()
    if not tables or data.protocol != "strict" or patients == 0:
        return None
    subjects = prepared.splits["subject_id"].sort()
    if patients is not None and patients < len(subjects):
        subjects = subjects.sample(patients, seed=seed)
    with console.status(f"reading the raw files of {len(subjects):,} patients"):
        return Recheck(Raw(root, subjects.to_list()), ED_DELAY[data.labels.ed_time])


def examine(
    prepared: Prepared,
    protocol: str,
    text_samples_per_task: int | None,
    seed: int,
    recheck: Recheck | None = None,
    rule_samples_per_task: int = 0,
) -> tuple[Audit, Metrics]:
    """Run all checks, and return the audit with the seconds of its long steps.

    Without `recheck` nothing is compared with raw files; with `rule_samples_per_task=0` no rules
    are searched. Raises UserError if there are no samples.
    """
    index = prepared.index()
    if not index.height:
        raise UserError(
            f"{prepared.folder} has no samples to audit: prepare more patients (data.subjects, "
            "data.root) or more tasks (data.tasks)"
        )
    view = leakage.VIEWS[protocol]
    begin = time.monotonic()
    leaks = leakage.find_leaks(prepared, index, view)
    judged = time.monotonic()
    texts = index_checks.read_texts(prepared, index, view, text_samples_per_task, seed, recheck)
    read = time.monotonic()
    rules = single_features.find_rules(prepared, index, rule_samples_per_task, seed)
    searched = time.monotonic()
    assumed = assumed_shares(prepared.folder)
    wholly_assumed = [table for table, share in assumed.items() if share == 1]
    audit = Audit(
        protocol=protocol,
        contexts=leaks.contexts,
        tasks=leakage.by_task(leaks),
        tables=leakage.by_table(leaks),
        examples=leakage.examples(leaks, EXAMPLES),
        labels=compared_labels(prepared, index, protocol),
        splits=index_checks.split_patients(prepared, index),
        records=index_checks.same_records(prepared),
        texts=texts,
        assumed=assumed,
        surely_leaking=leakage.leaking_without(leaks, wholly_assumed),
        rules=rules,
    )
    return audit, {
        "seconds/leaks": round(judged - begin, 3),
        "seconds/texts": round(read - judged, 3),
        "seconds/rules": round(searched - read, 3),
    }


def compared_labels(prepared: Prepared, index: pl.DataFrame, protocol: str) -> pl.DataFrame | None:
    """Return the index's labels compared with those of the other protocol.

    Returns None if there is no other protocol, or if the input has no stays from which to compute
    labels (the release, other MEDS datasets).
    """
    labels_of = index_checks.LABELS.get(index_checks.OTHER[protocol])
    stays = prepared.parents.get("admissions")
    if labels_of is None or stays is None or stays.is_empty():
        return None
    here = index_checks.index_labels(prepared, index)
    there = labels_of(prepared, here["task"].unique().to_list())
    return index_checks.label_changes(here, there)


def assumed_shares(prepare: Path) -> dict[str, float]:
    """Return by table the share of rows whose time of knowledge is the schema's delay."""
    counts = read_json(prepare / "metrics.json")
    prefix = "availability_assumed/"
    tables = [name.removeprefix(prefix) for name in counts if name.startswith(prefix)]
    return {name: counts[prefix + name] / counts[f"rows_kept/{name}"] for name in tables}


def problem(audit: Audit, folder: Path) -> str | None:
    """Return a description of the audit's failure, or None if it has passed."""
    if audit.texts.unlike:
        return (
            f"{len(audit.texts.unlike)} of {audit.texts.contexts:,} rendered contexts hold other "
            f"rows than the audit judged, so that its counts are void: see {folder}/audit.json"
        )
    if audit.protocol == "strict" and audit.leaking:
        return (
            f"{audit.leaking:,} of {audit.samples:,} samples show what was known only after their "
            f"prediction time, under data.protocol=strict: a bug; see {folder}/audit.json"
        )
    if audit.texts.findings:
        kinds = Counter(finding.kind for finding in audit.texts.findings)
        numbers = ", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items()))
        return (
            f"the raw files speak against {len(audit.texts.findings):,} facts shown in "
            f"{audit.texts.rechecked:,} contexts ({numbers}): a bug; see {folder}/audit.json"
        )
    return None


def flat(audit: Audit) -> Metrics:
    """Return the counts as flat numbers for metrics.json."""
    metrics: Metrics = {
        "samples": audit.samples,
        "contexts": audit.contexts,
        "leaking_samples": audit.leaking,
        "leaking_samples_without_assumed": audit.surely_leaking,
        "patients_in_several_splits": audit.splits.height,
        "same_records_in_several_splits": len(audit.records),
        "contexts_not_as_judged": len(audit.texts.unlike),
        "contexts_read": audit.texts.contexts,
        "contexts_rechecked": audit.texts.rechecked,
        "rules_too_good": audit.rules.height,
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    }
    for kind in KINDS:
        of_kind = [finding for finding in audit.texts.findings if finding.kind == kind]
        metrics[f"recheck/{kind}"] = len(of_kind)
    for row in audit.tasks.iter_rows(named=True):
        task = row["task"]
        metrics[f"samples/{task}"] = row["samples"]
        metrics[f"leaking_samples/{task}"] = row["leaking"]
        if row["most"] is not None:
            metrics[f"hours_ahead/{task}/median"] = round(row["median"], 4)
            metrics[f"hours_ahead/{task}/max"] = round(row["most"], 4)
    for table, count in audit.tables.group_by("table").agg(pl.col("leaking").sum()).iter_rows():
        metrics[f"leaking_by_table/{table}"] = count
    for row in audit.texts.answers.iter_rows(named=True):
        for name in ("examined", "all", "any"):
            metrics[f"answer_in_context/{row['task']}/{name}"] = row[name]
    if audit.labels is not None:
        for row in audit.labels.iter_rows(named=True):
            metrics[f"label_changes/{row['task']}"] = row["changed"]
            for name in ("both", "only_here", "only_there"):
                metrics[f"asked_{name}/{row['task']}"] = row[name]
    return metrics


def as_json(audit: Audit) -> dict[str, Any]:
    """Return all counts, task by task."""
    tasks = {row.pop("task"): row for row in audit.tasks.to_dicts()}
    for row in tasks.values():
        row["hours_ahead"] = {"median": row.pop("median"), "max": row.pop("most")}
        row["tables"] = {}
    for row in audit.tables.rename({"most": "hours_ahead_max"}).to_dicts():
        tasks[row.pop("task")]["tables"][row.pop("table")] = row
    for task, names in audit.examples.items():
        tasks[task]["examples"] = names
    for row in audit.texts.answers.to_dicts():
        tasks[row.pop("task")]["answer_in_context"] = row
    for row in audit.labels.to_dicts() if audit.labels is not None else []:
        tasks[row.pop("task")]["labels"] = row
    return {
        "protocol": audit.protocol,
        "labels_compared_with": None
        if audit.labels is None
        else index_checks.OTHER[audit.protocol],
        "samples": audit.samples,
        "contexts": audit.contexts,
        "leaking_samples": audit.leaking,
        "leaking_samples_without_assumed": audit.surely_leaking,
        "tasks": tasks,
        "patients_in_several_splits": audit.splits.to_dicts(),
        "same_records_in_several_splits": audit.records,
        "contexts_read": audit.texts.contexts,
        "contexts_not_as_judged": audit.texts.unlike,
        "contexts_rechecked": audit.texts.rechecked,
        "findings": examples_of(audit.texts.findings),
        "rules_too_good": audit.rules.to_dicts(),
        "availability_assumed": audit.assumed,
    }


def examples_of(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Return the first findings of each kind and place, as examples to look at."""
    seen: Counter[tuple[str, str]] = Counter()
    shown = []
    for finding in findings:
        place = "" if finding.kind == "prediction_time" else finding.where
        seen[finding.kind, place] += 1
        if seen[finding.kind, place] <= EXAMPLES:
            shown.append(asdict(finding))
    return shown
