"""What the source imports, read off its syntax."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


@functools.cache
def imports(path):
    """Every import of a file, at any depth: (line, level, absolute parts, names); level 0 is an absolute import."""
    here = module_name(path)
    package = here if path.name == "__init__.py" else here[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, 0, tuple(alias.name.split(".")), ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            parts = (*base, *(node.module.split(".") if node.module else ()))
            found.append((node.lineno, node.level, parts, tuple(alias.name for alias in node.names)))
    return found


def is_module(parts):
    path = ROOT.joinpath(*parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def targets(parts, names):
    """What an import brings in, as modules: `from . import prior` is an import of prior."""
    return [(*parts, name) if is_module((*parts, name)) else parts for name in names] or [parts]
