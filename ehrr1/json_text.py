"""JSON that users and other programs wrote: read, or refused by a reason that quotes none of it."""

import json
from typing import Any

LARGEST_ID = 2**63 - 1
"""The largest number that a column of ids can hold."""


class BadJsonError(ValueError):
    """A text that is no JSON, or cannot be used.

    Neither the message nor `code`, a short name of the reason, contains any of the text.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def from_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises BadJsonError for bytes that are no UTF-8, text that is no JSON or too deep to be parsed,
    whole numbers of thousands of digits, and halves of letters (surrogates), which no file can
    hold.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise BadJsonError("not_json", f"no JSON (character {error.pos})") from None
    except UnicodeError:
        raise BadJsonError("not_utf8", "no UTF-8 text") from None
    except RecursionError:
        raise BadJsonError("too_deep", "JSON of too many levels") from None
    except ValueError:  # Python's limit for converting digits
        raise BadJsonError("too_many_digits", "JSON with a number of too many digits") from None
    return value


def is_id(value: Any) -> bool:
    """Return whether a value is a whole number that a column of ids can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_ID


def id_of(text: str) -> int | None:
    """Return an id that is written as a whole number, and None for any other text."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST_ID))):
        return None
    return number if is_id(number := int(text)) else None
