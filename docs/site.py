"""The pages of `make site`: every document of the repository under its own path, two generated pages, and llms.txt.

Paths are those of the repository, so that the same links work in both, and mkdocs finds dead ones.
"""

import inspect
import posixpath
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import flowcore

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".", "docs", "docs/decisions", "benchmarks", "flowcore/weights", "web/docs")
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of docs/ by all documents, the files that they show or link to, and the two generated pages."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    documents = [page for folder in FOLDERS for page in (ROOT / folder).glob("*.md")]
    pages = {page.relative_to(ROOT).as_posix(): page.read_text("utf-8") for page in documents}
    made = {"stories.md": stories(pages["README.md"]), "reference.md": reference()}
    linked = {
        posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(target)))
        for page, text in (pages | made).items()
        for target in LINK.findall(text)
    }
    for path in {*pages, *linked, "docs/icon.png"} - made.keys():
        if (ROOT / path).is_file():
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for path, text in (made | {"llms.txt": llms(pages)}).items():
        files.append(File.generated(config, path, content=text))
    return files


def stories(readme: str) -> str:
    """Make a heading and a large picture for every story in the README's table."""
    told = re.findall(r"!\[[\w-]+\]\((workflows/([^)]+)\.jpg)\)<br>\*\*([\w-]+)\*\*: (.+?) \|", readme)
    parts = [
        f"## {unquote(title)}\n\n{text[0].upper()}{text[1:]}.\n\n![{name}]({picture})\n\n"
        f"In *Templates* under *flowcore*, or drop [the workflow]({picture.removesuffix('jpg')}json) on the canvas. "
        f"For scripts: [{name}.json](workflows/api/{name}.json).\n"
        for picture, title, name, text in told
    ]
    return "\n".join(["# Stories\n\nEach runs at once, with pictures that come with the pack.\n", *parts])


def reference() -> str:
    """Make a page of the docstrings of all public names."""
    names = sorted(set(flowcore.__all__) - {"__version__"}, key=str.lower)
    return "\n".join(
        ["# Reference\n\n`import flowcore`, and these are its names.\n", *(f"::: flowcore.{n}" for n in names)]
    )


def llms(pages: dict[str, str]) -> str:
    """List the documents with their first sentences for programs that read, after https://llmstxt.org."""
    told = {path: re.match(r"# (.+)\n\n([A-Z`][^\n]+?[.](?=\s))?", text) for path, text in pages.items()}
    lines = ["# flowcore", "", "> Normalizing flows for artists, in ComfyUI and in Python.", "", "## Documents", ""]
    for path in sorted(told, key=lambda path: (path != "docs/agents.md", path.startswith("web/"), path)):
        if title := told[path]:
            place = path[: -len("README.md")] or "./" if path.endswith("README.md") else f"{path[: -len('.md')]}/"
            lines.append(f"- [{title[1]}]({place})" + (f": {title[2]}" if title[2] else ""))
    return "\n".join([*lines, ""])


class Examples(Extension):
    """Shows examples in docstrings as code: Google style only recognizes them below a heading."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Put a fence around the lines of each example; tasks show the help that they have in Python, with options."""
        made = getattr(flowcore, obj.name, None)
        if obj.docstring and obj.is_function and obj.path == f"{getattr(made, '__module__', '')}.{obj.name}":
            obj.docstring.value = inspect.getdoc(made) or ""
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"((?:^>>> .*\n?(?:^.+\n?)*)+)", r"```pycon\n\1\n```\n", obj.docstring.value, flags=re.M
            )
