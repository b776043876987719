"""The card of the dataset that `export.layout=parquet` writes: README.md with its YAML header."""

from collections.abc import Mapping

import yaml

from ehrr1.files import read_json
from ehrr1.prompts.wording import Wording
from ehrr1.records import openness
from ehrr1.runs import data_is_open
from ehrr1.tasks.samples import Prepared
from ehrr1.tasks.splits import SPLITS

CONFIGS = ("samples", "contexts")

CARD = """\
---
{header}---

# Questions on health records

Written by `stage=export export.layout=parquet` of ehrr1. {whose}

| split | samples | contexts |
| --- | --: | --: |
{counts}

- `samples` has a question a row. `context_id` names the record that it is asked about, `output` is
  the answer, an item a line, and `target` the same as JSON. `candidates` are answers to choose
  from, for models that were not trained on the task (null: a text to write, or an answer that is
  longer than a list).
- `contexts` has each record once, as it is shown at the time of a question (`text`, Markdown).
- `prediction_time` is the time of the question, `available_until` the latest time at which
  something that the record shows became known.
- `question` is `instruction` with the switch that asks for thinking or for a direct answer, in the
  wording `{wording}`.

```python
from datasets import load_dataset

samples = load_dataset(DIR, "samples", split="{split}")
contexts = load_dataset(DIR, "contexts", split="{split}")
row_of = {{name: row for row, name in enumerate(contexts["context_id"])}}
sample = samples[0]
record = contexts[row_of[sample["context_id"]]]["text"]
messages = [
    {{"role": "system", "content": {system!r}}},
    {{"role": "user", "content": record + {joint!r} + sample["question"]}},
]
```

`load_dataset` unpacks the files into its cache, where contexts are many times as large as here;
with `streaming=True` it does not, and neither does Polars:

```python
import polars as pl

samples = pl.scan_parquet(f"{{DIR}}/{split}/samples.parquet")
contexts = pl.scan_parquet(f"{{DIR}}/{split}/contexts.parquet")
rows = samples.head(100).join(contexts, on="context_id").collect()
```
"""


def card(prepared: Prepared, style: Wording, counts: Mapping[str, tuple[int, int]]) -> str:
    """Return the card; `counts` are the samples and contexts of each split."""
    splits = sorted(counts, key=SPLITS.index)
    header = {
        "pretty_name": "Questions on health records",
        "language": ["en"],
        "tags": ["medical", "electronic health records"],
        "configs": [
            {
                "config_name": name,
                "default": name == "samples",
                "data_files": [{"split": s, "path": f"{s}/{name}.parquet"} for s in splits],
            }
            for name in CONFIGS
        ],
    }
    return CARD.format(
        header=yaml.safe_dump(header, sort_keys=False),
        whose=_whose(prepared),
        counts="\n".join(f"| {s} | {counts[s][0]:,} | {counts[s][1]:,} |" for s in splits),
        split=splits[-1],
        system=style.system,
        joint=style.joint,
        wording=style.name,
    )


def _whose(prepared: Prepared) -> str:
    """Say who may read the records."""
    if data_is_open(prepared.folder):
        return f"The records are open: {read_json(prepared.folder / openness.FILE)['why']}."
    return (
        "**The records are closed**: whoever may not read them may not have this folder either. "
        "Do not upload it."
    )
