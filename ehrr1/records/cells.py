"""Conversion of a row's cells to text, and the name of its item.

Texts keep the spelling of the file, so that an answer can be found verbatim in its record. Only
leading and trailing white space is removed, and a line break inside a cell becomes one blank. Free
text keeps its lines. Numbers are printed without superfluous digits.
"""

from collections.abc import Callable

import polars as pl

from ehrr1.records.table_spec import NUMBERS, TEXTS, Table

SEPARATOR = "\x1f"
"""Separator between the values of a row in the store."""

LONG, DIGITS = 9, 4
"""Length in bytes above which a number is rounded, and the digits that are kept.

`DIGITS` counts decimals, or significant digits of numbers whose absolute value is below 1.
"""


def item_name(table: Table) -> pl.Expr:
    """Return an expression for the name of a row's item.

    The name is the first non-null column of `table.item`, on one line; null if all of them are null
    or the table has no item.
    """
    if not table.item:
        return pl.lit(None, pl.String)
    if {lookup.name for lookup in table.lookups}.issuperset(table.item):
        return pl.coalesce(table.item)  # dictionaries give names on one line
    return one_line(pl.coalesce(table.item))


def one_line(text: pl.Expr) -> pl.Expr:
    """Return a text without line breaks and surrounding blanks, or null if nothing is left."""
    name = text.str.strip_chars().str.replace_all(r"[ \t]*[\r\n\x1f]\s*", " ")
    return pl.when(name != "").then(name)


def shown_values(frame: pl.DataFrame, table: Table) -> pl.Series:
    """Return the shown values of each row as one text, joined by `SEPARATOR`.

    A joined text is read faster than a list of texts. Returns a series of length `frame.height`.
    """
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
    """Return the values of rows that were already formatted, joined by `SEPARATOR`.

    The first column of each key is used unchanged. Returns a series of length `frame.height`.
    """
    cells = [
        pl.col(columns[0]).fill_null("").str.replace_all(SEPARATOR, " ", literal=True)
        if columns
        else pl.lit("")
        for columns in table.keys.values()
    ]
    joined = pl.concat_str(cells, separator=SEPARATOR) if cells else pl.lit("")
    return frame.with_columns(joined.alias("values"))["values"]


def _shown(text: pl.Series, columns: tuple[str, ...]) -> pl.Series:
    """Return cells of these columns as they are shown."""
    if not NUMBERS.issuperset(columns) or not columns:
        return text if TEXTS.intersection(columns) else text.str.strip_chars()
    # Most numbers are short and need no change; only the others are processed.
    text = _changed(text, text.str.len_bytes() > LONG, _rounded)
    text = _changed(text, text.str.contains(".0", literal=True), _without_zeros)
    return _changed(text, text == "-0", lambda zeros: zeros.str.strip_prefix("-"))


def _changed(
    text: pl.Series, where: pl.Series, change: Callable[[pl.Series], pl.Series]
) -> pl.Series:
    places = where.arg_true()
    return text.scatter(places, change(text[places])) if len(places) else text


def _without_zeros(text: pl.Series) -> pl.Series:
    """Return numbers such as "12.00" without the point and the zeros behind it."""
    return text.str.replace(r"^(-?\d+)\.0+$", "$1")


def _rounded(text: pl.Series) -> pl.Series:
    number = text.cast(pl.Float64, strict=False)
    small = number.abs() < 1
    short = number.round_sig_figs(DIGITS).zip_with(small, number.round(DIGITS))
    return short.cast(pl.String).fill_null(text)
