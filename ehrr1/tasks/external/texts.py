"""Write the contexts of a benchmark, each distinct text once."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from ehrr1.files import replacing

TEXTS_AT_ONCE = 1_000


@contextmanager
def text_file(path: Path) -> Iterator["Texts"]:
    """Yield a writer of contexts to the Arrow file `path`, which is written atomically."""
    with replacing(path) as temporary, pa.ipc.new_file(str(temporary), Texts.SCHEMA) as file:
        contexts = Texts(file)
        yield contexts
        contexts.write()


class Texts:
    """Writer of distinct texts into an Arrow file of one column, in batches."""

    SCHEMA = pa.schema([("text", pa.large_string())])

    def __init__(self, file: pa.RecordBatchFileWriter):
        self.file = file
        self.places: dict[bytes, int] = {}
        self.waiting: list[str] = []

    def add(self, text: str) -> int:
        """Return the position of the text in the file, and add it if it is new."""
        key = hashlib.sha256(text.encode()).digest()
        if key not in self.places:
            self.places[key] = len(self.places)
            self.waiting.append(text)
            if len(self.waiting) == TEXTS_AT_ONCE:
                self.write()
        return self.places[key]

    def write(self) -> None:
        """Write the texts that are waiting as one batch."""
        column = pa.array(self.waiting, pa.large_string())
        self.file.write_batch(pa.record_batch([column], schema=self.SCHEMA))
        self.waiting = []
