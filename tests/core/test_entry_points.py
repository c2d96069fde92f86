"""Plug-ins of installed packages: found by their entry points, imported only on request."""

import sys

import pytest

import flowcore
from flowcore import FlowError
from flowcore.cli.main import main
from flowcore.models import catalog


def install(folder, name, value):
    """Write what an installed package with one plug-in leaves in a folder of packages."""
    facts = folder / f"{name}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[flowcore.plugins]\n{name} = {value}\n")


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder of packages, of which one offers the plug-in `small-flow`, the module `offered_plug_in`."""
    install(tmp_path, "small-flow", "offered_plug_in")
    (tmp_path / "offered_plug_in.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("offered_plug_in", None)


def test_plug_ins_of_packages_are_imported_only_on_request(packages):
    catalog.names()
    assert main(["inspect", "mnist-styles"]) == 0
    assert "offered_plug_in" not in sys.modules
    assert flowcore.load_plugins() == ["small-flow"]
    assert "offered_plug_in" in sys.modules


def test_one_is_chosen_by_name_and_the_others_are_left_alone(packages):
    install(packages, "broken", "no_such_module")
    assert flowcore.load_plugins("small-flow") == ["small-flow"]
    with pytest.raises(FlowError, match="broken"):
        flowcore.load_plugins()
    with pytest.raises(FlowError, match="small-flow"):
        flowcore.load_plugins("smal-flow")


def test_the_command_line_takes_the_name_of_an_entry_point(packages):
    assert main(["--plugin", "small-flow", "inspect", "mnist-styles"]) == 0
    assert "offered_plug_in" in sys.modules
