"""What a row shows: its cells as text, and the name that stands for it in an answer.

Texts are spelled as the file spells them, so that an answer can be found in its record word for
word: only outer blanks go, and a line break inside a cell becomes one blank. Free text keeps its
lines. Numbers stand without needless digits.
"""

from collections.abc import Callable

import polars as pl

from ehrr1.records.table_spec import NUMBERS, TEXTS, Table

SEPARATOR = "\x1f"
"""Stands between the values of a row in the store."""

LONG, DIGITS = 9, 4
"""Numbers of more characters keep so many decimals, those below 1 so many significant digits."""


def item_name(table: Table) -> pl.Expr:
    """The first of the item's columns that has a value, on one line; null where none has."""
    if not table.item:
        return pl.lit(None, pl.String)
    if {lookup.name for lookup in table.lookups}.issuperset(table.item):
        return pl.coalesce(table.item)  # dictionaries give names on one line
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
        (pl.coalesce(columns) if columns else pl.lit("")).alias(key)
        for key, columns in table.keys.items()
    )
    shown = shown.with_columns(
        _shown(shown[key], columns).fill_null("") for key, columns in table.keys.items()
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


def listed_values(frame: pl.DataFrame, table: Table) -> pl.Series:
    """The values of rows that came as they are shown: each key's first column, letter by letter."""
    cells = [
        pl.col(columns[0]).fill_null("").str.replace_all(SEPARATOR, " ", literal=True)
        if columns
        else pl.lit("")
        for columns in table.keys.values()
    ]
    joined = pl.concat_str(cells, separator=SEPARATOR) if cells else pl.lit("")
    return frame.with_columns(joined.alias("values"))["values"]


def _shown(text: pl.Series, columns: tuple[str, ...]) -> pl.Series:
    """Cells of these columns as they are shown."""
    if not NUMBERS.issuperset(columns) or not columns:
        return text if TEXTS.intersection(columns) else text.str.strip_chars()
    # Most numbers are short and stand as they are: only the others are worked on.
    text = _changed(text, text.str.len_bytes() > LONG, _rounded)
    text = _changed(text, text.str.contains(".0", literal=True), _without_zeros)
    return _changed(text, text == "-0", lambda zeros: zeros.str.strip_prefix("-"))


def _changed(
    text: pl.Series, where: pl.Series, change: Callable[[pl.Series], pl.Series]
) -> pl.Series:
    places = where.arg_true()
    return text.scatter(places, change(text[places])) if len(places) else text


def _without_zeros(text: pl.Series) -> pl.Series:
    """Whole numbers without a fraction of zeros."""
    return text.str.replace(r"^(-?\d+)\.0+$", "$1")


def _rounded(text: pl.Series) -> pl.Series:
    number = text.cast(pl.Float64, strict=False)
    small = number.abs() < 1
    short = number.round_sig_figs(DIGITS).zip_with(small, number.round(DIGITS))
    return short.cast(pl.String).fill_null(text)
