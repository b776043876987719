"""Check for medspaCy and QuickUMLS, which are an optional extra."""

from importlib.util import find_spec

from ehrr1.errors import UserError

PACKAGES = ("spacy", "medspacy", "quickumls", "unqlite", "nltk", "PyRuSH")


def require_clinical(source: str) -> None:
    """Raise UserError if a package for reading free text is not installed; imports none of them."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"concepts={source}: not installed: {', '.join(missing)}; make setup, or "
            "pip install -c constraints.txt -e '.[clinical]' and then pip install --no-deps "
            "-c constraints.txt medspacy medspacy_quickumls PyRuSH; or use concepts=items"
        )
