"""stage=graph graph.show=SAMPLE_ID: one sample's evidence as a figure and as an interactive page.

They are written into the graph's run folder, which holds the same patients already: show/<id>.png,
.svg and .html. The run itself stays as it is.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from ehrr1 import runs
from ehrr1.command import with_stage
from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.files import replacing, write_text
from ehrr1.graph.evidence import from_json
from ehrr1.reasoning.pictures.figure import draw
from ehrr1.reasoning.pictures.page import PageContent, page
from ehrr1.runs import data_is_open
from ehrr1.tasks.samples import Prepared, Sample


def show(cfg: Config, console: Console) -> None:
    """Draw the sample that `graph.show` names, and print the paths.

    Raises UserError where the finished graph has no such sample.
    """
    inputs = runs.find_inputs(cfg, "chains")
    is_open = data_is_open(inputs["prepare"])
    row = line_of(inputs["graph"] / "graphs.jsonl", str(cfg.graph.show), is_open)
    prepared, graph = Prepared(inputs["prepare"]), from_json(row["graph"])
    sample = _sample(prepared, row["sample_id"])
    draft, note = find_draft(cfg, inputs["graph"], sample.sample_id)
    shown = PageContent(
        sample=sample,
        context=prepared.context(sample),
        graph=graph,
        draft=draft,
        note=note,
        is_open=is_open,
    )
    stem = inputs["graph"] / "show" / safe_name(sample.sample_id)
    title = f"{sample.task} at {sample.prediction_time:%Y-%m-%d %H:%M}: evidence for the answer"
    for form in ("png", "svg"):
        with replacing(stem.with_name(f"{stem.name}.{form}")) as path:
            draw(graph, title, path, form)
    write_text(stem.with_name(f"{stem.name}.html"), page(shown))
    for form in ("png", "svg", "html"):
        console.print(f"{stem}.{form}", highlight=False, soft_wrap=True)


def line_of(graphs: Path, sample_id: str, is_open: bool) -> dict[str, Any]:
    """Return the sample's line of graphs.jsonl.

    Raises UserError where there is none; it names some samples of open records.
    """
    for row in _rows_of(graphs, sample_id):
        return row
    some = ""
    if is_open:  # ids hold a patient and a time
        with graphs.open(encoding="utf-8") as lines:
            told = [json.loads(line)["sample_id"] for line in islice(lines, 3)]
        some = f" (for example {', '.join(told) or 'none: the file is empty'})"
    raise UserError(
        f"graph.show={sample_id}: no graph of that sample in {graphs}; choose another sample_id "
        f"of that file{some}, or raise graph.samples_per_task"
    )


def find_draft(cfg: Config, graph: Path, sample_id: str) -> tuple[dict[str, Any] | None, str]:
    """Return the kept draft of a sample, else its first, else None with a note that says why."""
    given, made_by = cfg.inputs.chains, f"run `{with_stage('chains')}`, then this command again."
    folder = Path(given) if given else runs.home(cfg) / "chains"
    if not runs.is_finished(folder):
        if given:
            raise UserError(f"inputs.chains={given}: no finished stage=chains there; leave it out")
        return None, f"There are no chains beside this graph: {made_by}"
    if not runs.made_from(folder, "graph", graph):
        return None, f"The chains beside this graph were written from another one: {made_by}"
    drafts = list(_rows_of(folder / "chains.jsonl", sample_id))
    if not drafts:
        return None, (
            "No chain was written for this sample: its graph has no evidence, or it is beyond "
            "chains.samples_per_task."
        )
    return next((draft for draft in drafts if draft["kept"]), drafts[0]), ""


def safe_name(sample_id: str) -> str:
    """Return a file name for a sample; characters that are special to file systems are `_`."""
    return re.sub(r"[^\w.-]+", "_", sample_id)


def _sample(prepared: Prepared, sample_id: str) -> Sample:
    rows = prepared.scan().filter(pl.col("sample_id") == sample_id).collect()
    return prepared.as_samples(rows)[0]


def _rows_of(path: Path, sample_id: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of a JSON lines file about a sample; others are long, and are not parsed."""
    spelled = json.dumps(sample_id, ensure_ascii=False)
    with path.open(encoding="utf-8") as lines:
        for row in (json.loads(line) for line in lines if spelled in line):
            if row["sample_id"] == sample_id:
                yield row
