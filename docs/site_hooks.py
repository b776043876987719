"""Hooks of MkDocs: what the site has beside the pages of docs/ (mkdocs.yml)."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = ("CHANGELOG.md", "examples/README.md")
"""Pages outside of docs/ that the site has too, below the same names."""

MODULE = re.compile(r"^\| .* \| `(ehrr1\.[\w.]+)` \|$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside of docs/."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, content=(ROOT / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **others: Any) -> str:
    """Lead links to where the site has a page; append what the docstrings say to the API."""
    name = page.file.src_uri
    if name in OUTSIDE:
        back = "../" * name.count("/")
        markdown = re.sub(r"\]\((?:\.\./)*docs/", f"]({back}", markdown)
    for outside in OUTSIDE:
        markdown = markdown.replace(f"](../{outside}", f"]({outside}")
    if name == "api.md":
        markdown += "".join(f"\n\n::: {module}\n" for module in MODULE.findall(markdown))
    return markdown
