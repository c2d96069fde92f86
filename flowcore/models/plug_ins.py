"""Plug-ins that installed packages offer: entry points of the group ``flowcore.plugins``; see ``docs/plug-ins.md``."""

from importlib.metadata import EntryPoint, entry_points

from ..errors import FlowError

GROUP = "flowcore.plugins"


def find_plugins() -> list[EntryPoint]:
    """List the plug-ins of all installed packages by name, without importing them."""
    return sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))


def load_plugins(*names: str) -> list[str]:
    """Import plug-ins of installed packages, so that the models and checkpoint sources that they register are known.

    A package offers a plug-in by an entry point of the group ``flowcore.plugins``, whose value is a module. None is
    imported until this is called, because a plug-in is code of another program.

    >>> flowcore.load_plugins()  # no package offers any here
    []

    Args:
        names: Of the plug-ins; without any, all are imported.

    Returns:
        The names of the imported plug-ins.

    Raises:
        FlowError: If no installed package offers a plug-in of that name, or if its import fails.
    """
    offered = find_plugins()
    known = {point.name for point in offered}
    if missing := [name for name in names if name not in known]:
        there = f"there are {', '.join(sorted(known))}" if known else "there are none"
        raise FlowError(
            f"No installed package offers a plug-in named {', '.join(missing)}; {there}. Install the package, or "
            "import its module."
        )
    chosen = [point for point in offered if not names or point.name in names]
    for point in chosen:
        try:
            point.load()
        except Exception as error:
            raise FlowError(
                f"Cannot import the plug-in {point.name} ({point.value}): {error}. Update or uninstall its package."
            ) from error
    return [point.name for point in chosen]
