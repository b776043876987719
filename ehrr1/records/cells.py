"""What a row shows: its cells as text, and the name that stands for it in an answer.

Texts are spelled as the file spells them, so that an answer can be found in its record word for
word: only outer blanks go, and a line break inside a cell becomes one blank. Free text keeps its
lines. Numbers stand without needless digits.
"""

import polars as pl

from ehrr1.records.table import NUMBERS, TEXTS, Table

SEPARATOR = "\x1f"
"""Stands between the values of a row in the store."""

DIGITS = 4
"""Long numbers keep so many decimals, numbers below 1 so many significant digits."""


def item_name(table: Table) -> pl.Expr:
    """The first of the item's columns that has a value, on one line; null where none has."""
    if not table.item:
        return pl.lit(None, pl.String)
    return one_line(pl.coalesce(table.item))


def one_line(text: pl.Expr) -> pl.Expr:
    """A text without line breaks and outer blanks; null where nothing is left."""
    name = text.str.strip_chars().str.replace_all(r"[ \t]*[\r\n\x1f]\s*", " ")
    return pl.when(name != "").then(name)


def shown_values(frame: pl.DataFrame, table: Table) -> pl.Series:
    """The shown values of each row, joined by `SEPARATOR`: one text is read faster than a list."""
    if not table.keys:
        return pl.repeat("", frame.height, dtype=pl.String, eager=True).alias("values")
    shown = frame.select(
        (_first_shown(columns) if columns else pl.lit("")).fill_null("").alias(key)
        for key, columns in table.keys.items()
    )
    joined = shown.select(pl.concat_str(pl.all(), separator=SEPARATOR).alias("values"))["values"]
    separators = joined.str.count_matches(SEPARATOR, literal=True)
    if (separators != len(table.keys) - 1).any():
        clean = shown.select(pl.all().str.replace_all(SEPARATOR, " ", literal=True))
        joined = clean.select(pl.concat_str(pl.all(), separator=SEPARATOR).alias("values"))[
            "values"
        ]
    if joined.str.contains("[\r\n]").any():
        joined = joined.str.replace_all(r"\r\n?", "\n")
        if not TEXTS.intersection(frame.columns):
            joined = joined.str.replace_all(r"[ \t]*\n\s*", " ")
    return joined


def _first_shown(columns: tuple[str, ...]) -> pl.Expr:
    """The first cell that has a value, as it is shown."""
    text = pl.coalesce(columns)
    if not NUMBERS.issuperset(columns):
        return text if TEXTS.issuperset(columns) else text.str.strip_chars()
    number = text.cast(pl.Float64, strict=False)
    rounded = (
        pl.when(number.abs() < 1)
        .then(number.round_sig_figs(DIGITS))
        .otherwise(number.round(DIGITS))
    )
    short = (
        pl.when(text.str.len_bytes() > 9)
        .then(rounded.cast(pl.String).fill_null(text))
        .otherwise(text)
    )
    return short.str.replace(r"^(-?\d+)\.0+$", "$1").str.replace("^-0$", "0")
