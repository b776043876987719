"""Hooks of MkDocs: what the site has beside the pages of docs/ (mkdocs.yml)."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
FETCHED = re.compile(r'<(?:script|img|iframe|link)\b[^>]*\s(?:src|href)="(?:https?:)?//([^"]+)"')
"""What a browser would fetch from another host to show a page."""
MODULE = re.compile(r"^\| .* \| `(ehrr1\.[\w.]+)` \|$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the changelog and the examples, which are outside of docs/, below the same names."""
    examples = [file for file in sorted((ROOT / "examples").rglob("*")) if file.is_file()]
    for file in [ROOT / "CHANGELOG.md", *examples]:
        if "__pycache__" not in file.parts:
            name = file.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, content=file.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, **others: Any) -> str:
    """Lead links to where the site has a page; append what the docstrings say to the API."""
    name = page.file.src_uri
    if name == "CHANGELOG.md" or name.startswith("examples/"):
        back = "../" * name.count("/")
        markdown = re.sub(r"\]\((?:\.\./)*docs/", f"]({back}", markdown)
    else:
        markdown = re.sub(r"\]\(\.\./(CHANGELOG\.md|examples/)", r"](\1", markdown)
    if name == "api.md":
        markdown += "".join(f"\n\n::: {module}\n" for module in MODULE.findall(markdown))
    return markdown


def on_post_page(output: str, page: Page, **others: Any) -> str:
    """Return the page. Raises ValueError if it needs anything from another host."""
    if found := FETCHED.search(output):
        raise ValueError(
            f"{page.file.src_uri} fetches {found[1]}: a site must work without network"
        )
    return output
