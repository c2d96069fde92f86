"""Before the registry's archive is packed: the repository's address in pyproject.toml, and in front of all links.

    python .github/addresses.py https://github.com/OWNER/flowcore v0.1.0

Pages of the archive, and the registry's page of the pack, link to files that the archive does not have.
"""

import posixpath
import re
import sys
from pathlib import Path

RELATIVE = re.compile(r"(!\[[^]]*\]|\])\((?!\w+:|#)([^)#\s]+)")


def absolute(text: str, folder: str, repository: str, tag: str) -> str:
    """Make the links of a page in a folder absolute: pictures to the raw files, the rest to their pages."""

    def address(link: re.Match[str]) -> str:
        kind = "raw" if link[1].startswith("!") else "blob"
        return f"{link[1]}({repository}/{kind}/{tag}/{posixpath.normpath(posixpath.join(folder, link[2]))}"

    return RELATIVE.sub(address, text)


def main(repository: str, tag: str) -> None:
    """Rewrite the checkout in the working directory."""
    project = Path("pyproject.toml")
    text = re.sub(r'= "(docs/(?:icon|banner)\.png)"', rf'= "{repository}/raw/{tag}/\1"', project.read_text())
    text += f'\n[project.urls]\nRepository = "{repository}"\nIssues = "{repository}/issues"\n'
    project.write_text(f'{text}Changelog = "{repository}/blob/{tag}/CHANGELOG.md"\n')
    for page in [*Path().glob("*.md"), *Path("docs").glob("*.md"), *Path("flowcore/weights").glob("*.md")]:
        page.write_text(absolute(page.read_text(encoding="utf-8"), page.parent.as_posix(), repository, tag), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
