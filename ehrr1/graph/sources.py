"""Open the sources of concepts and knowledge: the user's dictionaries and relations.

They are prepared once and kept for all runs under `concepts.cache`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ehrr1.config.records import Concepts, OpenConcepts, UmlsConcepts
from ehrr1.errors import UserError
from ehrr1.files import fingerprint, locked, settle_beside
from ehrr1.graph.knowledge import FORMAT
from ehrr1.graph.knowledge_build import build_open, build_umls
from ehrr1.graph.text.linking import Linker, open_linker
from ehrr1.graph.text.mention_cache import MentionCache
from ehrr1.graph.text.mentions import TextSource, open_source


class Dictionary:
    """A dictionary that links item names and free text to concepts."""

    def __init__(self, linker: Linker, source: TextSource, cache: Path):
        self._linker, self._cache = linker, cache
        self.source = source

    def read(self, texts: Sequence[str], workers: int | None) -> None:
        """Find the mentions in these texts; texts in the cache are not read again."""
        MentionCache(self._cache, self.source).read(texts, workers)

    def link(self, names: Sequence[str]) -> dict[str, str]:
        """Return name -> concept id for the names that the dictionary contains."""
        return self._linker.link(names)


def open_dictionary(concepts: Concepts) -> Dictionary | None:
    """Open the dictionary that `concepts` selects; returns None for concepts=items."""
    linker, source = open_linker(concepts), open_source(concepts)
    if linker is None or source is None:
        return None
    return Dictionary(linker, source, Path(concepts.cache))


def knowledge_folder(concepts: Concepts) -> Path | None:
    """Return the folder of the knowledge base, built if missing, or None if there are no relations.

    Raises UserError, naming the settings, if a source file is missing or cannot be used.
    """
    if isinstance(concepts, UmlsConcepts):
        meta = Path(str(concepts.folder))
        files = [meta / name for name in ("MRCONSO.RRF", "MRSTY.RRF", "MRREL.RRF")]
        setting = f"concepts.folder={meta}"
    elif isinstance(concepts, OpenConcepts) and concepts.relations is not None:
        files = [Path(str(concepts.dictionary)), Path(concepts.relations)]
        setting = f"concepts.dictionary={files[0]} concepts.relations={files[1]}"
    else:
        return None
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{setting}: not found: {', '.join(missing)}; name the files that you have")
    folder = Path(concepts.cache) / f"knowledge-{fingerprint(files, str(FORMAT))}"
    with locked(folder.with_suffix(".lock")):
        settle_beside(folder)
        if not folder.exists():
            build(concepts.source, files, folder)
    return folder


def build(source: str, files: Iterable[Path], folder: Path) -> None:
    """Build a knowledge base in `folder` from UMLS files or from a dictionary and relations."""
    first, *rest = files
    if source == "umls":
        build_umls(first.parent, folder)
    else:
        build_open(first, rest[0], folder)
