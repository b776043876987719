"""medspaCy and QuickUMLS are an extra: whether they are here, and what to do if not."""

from importlib.util import find_spec

from ehrr1.errors import UserError

PACKAGES = ("spacy", "medspacy", "quickumls", "unqlite", "nltk", "PyRuSH")


def require_clinical(source: str) -> None:
    """Raise UserError where free text cannot be read for lack of a package. Imports nothing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"concepts={source}: not installed: {', '.join(missing)}; make setup, or "
            "pip install -c constraints.txt -e '.[clinical]' and then pip install --no-deps "
            "-c constraints.txt medspacy medspacy_quickumls PyRuSH; or use concepts=items"
        )
