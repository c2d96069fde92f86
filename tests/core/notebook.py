"""docs/walk-through.ipynb is docs/walk-through.md: text and code in cells, without outputs.

.venv/bin/python tests/core/notebook.py      writes it anew
"""

import doctest
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PAGE = Path(__file__).parents[2] / "docs" / "walk-through.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")


def build():
    """Build the notebook, and list what each cell of code shows: a cell ends where the page has a result."""
    cells, results, code = [], [], ""
    for part in doctest.DocTestParser().parse(PAGE.read_text(encoding="utf-8")):
        example = isinstance(part, doctest.Example)
        code += part.source if example else ""
        if code and ((example and part.want) or (not example and part.strip())):
            cells.append(new_code_cell(code.strip(), id=f"cell-{len(cells)}"))
            results.append(part.want.strip() if example else "")
            code = ""
        if not example and part.strip():
            cells.append(new_markdown_cell(part.strip(), id=f"cell-{len(cells)}"))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel}), results


if __name__ == "__main__":
    nbformat.write(build()[0], NOTEBOOK)
