"""Lists and dictionaries in the cells of CSV files: read, never evaluated."""

import ast
import json
from typing import Any

LONGEST = 4_000_000
"""Characters of a cell that is taken for a value; a longer one is malformed."""


def value_of(cell: str) -> Any:
    """A cell as JSON or as a Python literal; `nan` in a literal, which pandas writes, is None.

    Raises ValueError for anything else.
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
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(None) if node.id == "nan" else node
