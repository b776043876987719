"""stage=prepare on data that bring their own questions and records: a benchmark's rows, checked.

data=benchmark     EHR-Bench's rows (`tasks.benchmark`)
data=ehrshot       EHRSHOT's folder or its MEDS export (`tasks.ehrshot`)
data=mimiciv_cdm   MIMIC-IV-CDM's folder or its flattened form (`tasks.cdm`)

texts.arrow     the contexts, each distinct one once
similar_item/, item_set/   lists of candidates that lie in the release's folder around data.path
index.parquet   a row a sample, with its question, candidates and answer
split.parquet   subject_id, split
shots.parquet   sample_id, k, replicate: the examples that the benchmark names, where it does
chains.jsonl    the chains that rows bring, for `stage=reason`
reported.json   reason -> rows that could not be used
"""

from pathlib import Path

import polars as pl

from ehrr1.config.records import BenchmarkData, CdmData, EhrshotData
from ehrr1.config.schema import Config, value_of
from ehrr1.files import remove, replacing, write_json, write_jsonl
from ehrr1.prompts.messages import answer_text
from ehrr1.records import openness
from ehrr1.runs import Run
from ehrr1.stages.given_chains import CHAINS, chain_row
from ehrr1.stages.prepare_inputs import UNPACKED
from ehrr1.tasks.external.benchmark import SHOTS, Benchmark, read_benchmark
from ehrr1.tasks.external.cdm import read_cdm
from ehrr1.tasks.external.ehrshot import Limits, read_ehrshot
from ehrr1.tasks.release.lists import CACHE, keep_lists
from ehrr1.tasks.samples import INDEX, SPLIT, TEXTS
from ehrr1.terminal import plain_console

console = plain_console(stderr=True)


def run(cfg: Config, run: Run) -> dict[str, float | int]:
    """Read and check every row. Metrics: rows read = rows kept + rows reported; samples a task."""
    found = read(cfg, run.folder / TEXTS)
    splits = found.index.select("subject_id", "split").unique().sort("subject_id")
    frames = {
        INDEX: found.index.with_columns(pl.lit(value_of(cfg, "data.balanced")).alias("balanced")),
        SPLIT: splits,
        SHOTS: found.shots,
    }
    for name, frame in frames.items():
        if frame is not None:
            with replacing(run.folder / name) as path:
                frame.write_parquet(path)
    if isinstance(cfg.data, BenchmarkData):
        keep_lists_around(Path(str(cfg.data.path or cfg.data.train)), run.folder)
    if found.chains:
        answers = dict(found.index.select("sample_id", "target").iter_rows())
        tasks_of = dict(found.index.select("sample_id", "task").iter_rows())
        write_jsonl(
            run.folder / CHAINS,
            (
                chain_row(name, tasks_of[name], chain, answer_text(answers[name]))
                for name, chain in found.chains.items()
            ),
        )
        console.print(f"chains that the rows bring: {len(found.chains):,}")
    # its ids may be a benchmark's own numbers: nothing follows from them
    closed = {"open": cfg.data.open is True, "why": f"data.open={cfg.data.open}"}
    write_json(run.folder / openness.FILE, closed)
    write_json(run.folder / "reported.json", {"benchmark": dict(found.reported)})
    lost = "".join(f"; {why} {n:,}" for why, n in sorted(found.reported.items()))
    console.print(f"{found.read:,} rows, {found.index.height:,} usable{lost}")
    for why, places in sorted(found.places.items()):
        more = found.reported[why] - len(places)
        console.print(f"  {why}: {', '.join(places)}{f' and {more:,} more' * bool(more)}")
    tasks = found.index["task"].value_counts(sort=True)
    return {
        "rows/benchmark": found.read,
        "rows_kept/benchmark": found.index.height,
        "rows_reported/benchmark": found.reported.total(),
        "subjects": splits.height,
        **found.counts,
        **{f"samples/{task}": count for task, count in tasks.iter_rows()},
    }


def keep_lists_around(path: Path, folder: Path) -> None:
    """Keep the release's lists of candidates where `path` stands in its folder, or in one of it."""
    own = path if path.is_dir() else path.parent
    root = next((at for at in (own, own.resolve().parent) if (at / CACHE).is_dir()), None)
    if root is not None:
        keep_lists(root, folder, folder / UNPACKED)
        remove(folder / UNPACKED)


def read(cfg: Config, texts: Path) -> Benchmark:
    """Return the rows of `data.name`; raise UserError for settings that make no sense."""
    data = cfg.data
    if isinstance(data, EhrshotData):
        limits = Limits(data.max_events, data.samples_per_task, cfg.seed)
        return read_ehrshot(Path(str(data.root)), texts, limits)
    if isinstance(data, CdmData):
        return read_cdm(
            Path(str(data.root)), texts, data.split.validation, data.split.test, cfg.seed
        )
    assert isinstance(data, BenchmarkData)
    path, train = (Path(name) if name else None for name in (data.path, data.train))
    return read_benchmark(path, texts, train, data.split.validation, cfg.seed)
