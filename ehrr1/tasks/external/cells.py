"""Lists and dictionaries in the cells of CSV files, which are parsed and never evaluated."""

import ast
import json
from typing import Any

LONGEST = 4_000_000
"""Maximum number of characters of a cell that is parsed; a longer one is malformed."""


def value_of(cell: str) -> Any:
    """Return a cell parsed as JSON or as a Python literal.

    `nan` in a literal, which pandas writes, is None. Raises ValueError for anything else, and for a
    cell of more than `LONGEST` characters.
    """
    if len(cell) > LONGEST:
        raise ValueError("the cell is too long")
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(_NoNumber().visit(ast.parse(cell.strip(), mode="eval")))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("the cell is no JSON and no Python literal") from error


class _NoNumber(ast.NodeTransformer):
    """Transformer that replaces the name `nan` by None."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Return None as a constant for `nan`, and other names unchanged."""
        return ast.Constant(None) if node.id == "nan" else node
