"""Tokenised trees on disk: one Arrow file, memory-mapped, written once."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import get_start_method
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from ehrr1.cores import cores
from ehrr1.damage import damaged, digest, digest_beside, reading
from ehrr1.files import replacing, write_text
from ehrr1.progress import track
from ehrr1.prompts.trees import Branch, PromptBuilder, Question, Tree
from ehrr1.tasks.samples import Prepared, Sample, preamble_length

PART, MAX_WORKERS = 64, 8
"""Number of contexts that a process tokenises at a time, and maximum number of processes."""

FEATURES = Features(
    {
        "trunk": List(Value("int32")),
        "prompts": List(List(Value("int32"))),
        "completions": List(List(Value("int32"))),
        "weights": List(Value("float32")),
        "sample_ids": List(Value("string")),
        "tasks": List(Value("string")),
        "length": Value("int32"),
        "trunk_length": Value("int32"),
        "branches": Value("int32"),
        "learnt_weight": Value("float64"),
        "cut_events": Value("int32"),
        "cut_tokens": Value("int32"),
    }
)

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of a whole Arrow stream."""

AGAIN = "delete it and repeat the command, which makes it again"
"""The remedy for damaged trees."""


def rank(seed: int, name: str) -> int:
    """Return a pseudo-random number for ordering names, the same in every process."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest())


class OfTask(Protocol):
    """A sample or a prompt."""

    @property
    def sample_id(self) -> str:
        """Return the id of the sample."""

    @property
    def task(self) -> str:
        """Return the key of the task."""


OfTaskItem = TypeVar("OfTaskItem", bound=OfTask)


def evenly(items: Iterable[OfTaskItem], count: int, seed: int) -> list[OfTaskItem]:
    """Draw at most `count` of `items` at random, with tasks mixed as evenly as possible."""
    tasks: dict[str, list[OfTaskItem]] = defaultdict(list)
    for item in sorted(items, key=lambda item: rank(seed, item.sample_id)):
        tasks[item.task].append(item)
    rounds = [
        (number, rank(seed, f"{number}/{task}"), item)
        for task, group in tasks.items()
        for number, item in enumerate(group)
    ]
    rounds.sort(key=lambda entry: entry[:2])
    return [item for _, _, item in rounds[:count]]


def write_trees(
    path: Path,
    prepared: Prepared,
    samples: Sequence[Sample],
    ask: Callable[[Sample], Sequence[Question]],
    prompt_builder: PromptBuilder,
    max_branches: int = 16,
) -> Dataset:
    """Tokenise `samples` into one memory-mapped Arrow file; an existing file is reused.

    Its digest is written beside it, since other runs may share it (`damage.is_whole`).
    Samples that share a context become one tree of at most `max_branches` branches. A question
    whose answer leaves no room for a record is left out.
    """
    if not path.exists():
        contexts: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            contexts[sample.context_id].append(sample)
        groups = list(contexts.values())
        parts = [groups[first : first + PART] for first in range(0, len(groups), PART)]
        work = DataLoader(
            _Tokenised(
                parts, lambda group: _trees(prepared, group, ask, prompt_builder, max_branches)
            ),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=_workers(len(parts)),
            worker_init_fn=_one_thread,
        )
        rows = iter(work)  # start processes before the thread of the progress bar
        with replacing(path) as temporary:
            writer = ArrowWriter(path=str(temporary), features=FEATURES)
            for part in track(rows, "tokenising records", total=len(parts)):
                for row in part:
                    writer.write(row)
            writer.finalize()
            writer.close()
            write_text(digest_beside(path), digest(temporary))
    return read_trees(path)


def _workers(parts: int) -> int:
    """Return the number of processes that tokenise; 0: this one."""
    # macOS spawns processes, which would need to be sent the prompts' functions
    return min(cores(), MAX_WORKERS) if parts > MAX_WORKERS and get_start_method() == "fork" else 0


def read_trees(path: Path) -> Dataset:
    """Map a file of trees. Raises DamagedError for one that is not whole.

    An Arrow stream that ends early may still be read; only its last bytes tell.
    """
    with reading(path, FileNotFoundError, remedy=AGAIN), path.open("rb") as file:
        file.seek(max(path.stat().st_size - len(END_OF_STREAM), 0))
        if file.read() != END_OF_STREAM:
            raise damaged(path, "ends too early", AGAIN)
    with reading(path, pa.ArrowException, OSError, ValueError, remedy=AGAIN):
        found = Dataset.from_file(str(path))
        found.data.table.validate(full=True)  # offsets and texts; numbers are not read
        return found


class _Tokenised(MapDataset[Any]):
    """The rows of each part, computed on access."""

    def __init__(
        self,
        parts: Sequence[Sequence[Sequence[Sample]]],
        trees: Callable[[Sequence[Sample]], Iterator[Tree]],
    ):
        self.parts, self.trees = parts, trees

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> list[dict[str, object]]:
        return [_row(tree) for group in self.parts[index] for tree in self.trees(group)]


def _as_it_is(part: Any) -> Any:
    return part


def _one_thread(worker: int) -> None:
    """Disable the tokenizer's own threads, which do not survive a fork."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _trees(
    prepared: Prepared,
    group: Sequence[Sample],
    ask: Callable[[Sample], Sequence[Question]],
    prompt_builder: PromptBuilder,
    max_branches: int,
) -> Iterator[Tree]:
    questions = [
        question for sample in group for question in ask(sample) if prompt_builder.fits(question)
    ]
    events = prepared.context(group[0]) if questions else []
    for first in range(0, len(questions), max_branches):
        some = questions[first : first + max_branches]
        yield prompt_builder.tree(events, preamble_length(events), some)


def _row(tree: Tree) -> dict[str, object]:
    return {
        "trunk": tree.trunk,
        "prompts": [branch.prompt for branch in tree.branches],
        "completions": [branch.completion for branch in tree.branches],
        "weights": [branch.weight for branch in tree.branches],
        "sample_ids": [branch.sample_id for branch in tree.branches],
        "tasks": [branch.task for branch in tree.branches],
        "length": len(tree),
        "trunk_length": len(tree.trunk),
        "branches": len(tree.branches),
        "learnt_weight": sum(branch.weight * len(branch.completion) for branch in tree.branches),
        "cut_events": tree.cut_events,
        "cut_tokens": tree.cut_tokens,
    }


def read_tree(dataset: Dataset, index: int) -> Tree:
    """Return the tree of a row of the dataset."""
    row = dataset[index]
    columns = (
        row["sample_ids"], row["prompts"], row["completions"], row["weights"], row["tasks"]
    )  # fmt: skip
    branches = [Branch(*values) for values in zip(*columns, strict=True)]
    return Tree(row["trunk"], branches, row["cut_events"], row["cut_tokens"])
