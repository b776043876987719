"""Ways in which a file between stages can be damaged, by its format.

`damages(path)` enumerates them for one file in a fixed order; nothing is drawn at random.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Damage:
    """A damage to a file: what it is called, and what does it.

    whole: the format's reader finds nothing wrong with the damaged file.
    """

    name: str
    do: Callable[[Path], object]
    whole: bool = False


def in_bytes(name: str, change: Callable[[bytes], bytes], whole: bool = False) -> Damage:
    return Damage(name, lambda path: path.write_bytes(change(path.read_bytes())), whole)


def in_lines(name: str, change: Callable[[list[bytes]], list[bytes]]) -> Damage:
    def do(content: bytes) -> bytes:
        return b"".join(change(content.splitlines(keepends=True)))

    return in_bytes(name, do, whole=True)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


ANY = (
    in_bytes("half of it", lambda own: own[: len(own) // 2]),
    in_bytes("the last byte cut", lambda own: own[:-1], whole=True),
    in_bytes("empty", lambda own: b""),
    in_bytes("twice", lambda own: own + own, whole=True),
    in_bytes("a byte flipped", lambda own: flipped(own, len(own) // 2), whole=True),
    in_bytes(
        "zeros at the end", lambda own: own[: len(own) // 2] + bytes(len(own) - len(own) // 2)
    ),
    in_bytes("other text", lambda own: b"this is no such file\n"),
    Damage("missing", Path.unlink),
)


def of_rows(path: Path) -> Iterator[Damage]:
    """Damages to the rows of a table, after which it is a whole file of its format."""
    read, write = (
        (pl.read_parquet, pl.DataFrame.write_parquet)
        if path.suffix == ".parquet"
        else (lambda own: pl.read_ipc(own.read_bytes()), pl.DataFrame.write_ipc)
    )

    def table(name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Damage:
        return Damage(name, lambda own: write(change(read(own)), own), whole=True)  # type: ignore[operator]

    yield table("rows twice", lambda own: pl.concat([own, own]))
    yield table("a row less", lambda own: own.head(-1))
    yield table("rows turned round", lambda own: own.reverse())


LINES = (
    in_lines("a line less", lambda own: own[:-1]),
    in_lines("a line twice", lambda own: [*own, own[-1]]),
    in_lines("a line of another kind", lambda own: [b"[]\n", *own[1:]]),
)


def with_tensors(path: Path, change: Callable[[dict], dict]) -> None:  # type: ignore[type-arg]
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def of_weights() -> Iterator[Damage]:
    """Damages after which a file of weights is whole, and not that of the model."""

    def lacks(own: dict) -> dict:  # type: ignore[type-arg]
        return {name: value for name, value in own.items() if "layers.0" not in name}

    def surplus(own: dict) -> dict:  # type: ignore[type-arg]
        return own | {"model.layers.99.mlp.gate_proj.weight": next(iter(own.values())).clone()}

    def narrower(own: dict) -> dict:  # type: ignore[type-arg]
        name = next(name for name in own if "q_proj" in name)
        return own | {name: own[name][:1].clone()}

    for name, change in {
        "a layer less": lacks,
        "a layer more": surplus,
        "narrow": narrower,
    }.items():
        yield Damage(name, lambda path, change=change: with_tensors(path, change), whole=True)


def damages(path: Path) -> list[Damage]:
    """All damages to a file, by its format."""
    found = [*ANY]
    if path.suffix == ".parquet" or path.read_bytes()[:6] == b"ARROW1":  # no stream
        found += of_rows(path)
    if path.suffix == ".jsonl":
        found += LINES
    if path.suffix == ".json":
        found.append(in_bytes("an empty object", lambda own: b"{}", whole=True))
        found.append(
            in_bytes("a list", lambda own: json.dumps([own.decode()]).encode(), whole=True)
        )
    if path.suffix == ".safetensors":
        found += of_weights()
    return found
