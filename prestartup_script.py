"""Let all packs share one `flowcore`. ComfyUI runs this file before it loads any pack.

`import flowcore` then finds the package in this pack, even if pip has installed another. The pack itself imports it
under the name that the host gives to the pack's folder, but gets the same modules, so its nodes know what plug-ins
register.
"""

import importlib.util
import logging
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

NAME = "flowcore"
FILE = Path(__file__).parent / NAME / "__init__.py"


class _Package(MetaPathFinder):
    """Finds `flowcore` in this pack, from where Python finds its modules."""

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(NAME, FILE) if fullname == NAME else None


class _SameModules(MetaPathFinder):
    """Finds the modules of `flowcore` also under names that start with the pack's."""

    def __init__(self, pack: str) -> None:
        self.start = f"{pack}."

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        name = fullname.removeprefix(self.start)
        is_ours = name != fullname and name.partition(".")[0] == NAME
        return ModuleSpec(fullname, _Loaded(importlib.import_module(name))) if is_ours else None


class _Loaded(Loader):
    """Returns a module that is already loaded, and restores its spec, which the import system replaces."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


def share(pack: str) -> None:
    """Make a pack, named as in `sys.modules`, import the shared `flowcore`, unless another one was imported first."""
    import flowcore

    if FILE.samefile(str(flowcore.__file__)):
        sys.meta_path.insert(0, _SameModules(pack))
    else:
        logging.getLogger(NAME).warning(
            "Another flowcore was imported before this pack: %s. The nodes use their own and do not know what plug-ins "
            "register there. Uninstall the other one: pip uninstall flowcore.",
            flowcore.__file__,
        )


sys.meta_path.insert(0, _Package())
