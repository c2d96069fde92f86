"""Plug-ins of installed packages: found by their entry points, imported only on request."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flowcore
from flowcore import FlowError
from flowcore.cli.main import WAITING, main
from flowcore.models import catalog

ROOT = Path(__file__).resolve().parents[2]


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


def modules_after(program):
    """The modules that a program of one line loads, by top-level package or module of flowcore."""
    program += "\nprint(*sys.modules, file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", f"import sys\n{program}"], capture_output=True, text=True, check=True)
    return {*ran.stderr.split()}


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["--wrong"], ["no-such-command"], []])
def test_what_needs_no_command_is_answered_without_torch(words):
    """Torch takes seconds to import: 1.5 s of processor time, of 2.4 s for `flowcore --help`."""
    end = "from flowcore.cli.main import main\ntry: main({})\nexcept SystemExit: pass\nsys.stderr.write(chr(10))"
    assert modules_after(end.format(words)) & {"torch", "numpy", "PIL"} == set()


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "3000"), ({"OMP_WAIT_POLICY": "active"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
@pytest.mark.parametrize(
    "start",
    [
        "from flowcore.cli.main import main\nmain(['models', '--wrong'])",
        f"import runpy\nrunpy.run_path({str(ROOT / 'prestartup_script.py')!r})\nimport torch",  # what ComfyUI does
    ],
)
def test_threads_wait_as_is_best_beside_other_programs_unless_somebody_said_how(given, spins, start):
    """OpenMP reads the variable when torch is imported."""
    look = "import os\nclass Looking:\n    def find_spec(name, *_):\n"
    look += "        if name.startswith('torch.'): print(os.environ.get('GOMP_SPINCOUNT'), flush=True); os._exit(0)\n"
    environment = {name: value for name, value in os.environ.items() if name not in WAITING} | given
    program = f"import sys\n{look}sys.meta_path.insert(0, Looking)\n{start}"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert ran.stdout.split() == [spins]


def test_importing_flowcore_loads_neither_testing_nor_training():
    loaded = modules_after("import flowcore; flowcore.upscale")
    assert {"torch", "flowcore.tasks.upscale"} <= loaded
    assert [name for name in loaded if name.startswith(("flowcore.training", "flowcore.flows.testing"))] == []
    assert "flowcore.flows.testing" in modules_after("from flowcore.testing import check")
    assert "torch" not in modules_after("import flowcore; flowcore.__version__")


def test_every_public_name_is_there_and_is_listed():
    names = {name for names in flowcore._NAMES.values() for name in names.split()}
    assert names == {*flowcore.__all__} - {"__version__"}
    assert {*flowcore.__all__} <= {*dir(flowcore)}
    for name in (*flowcore.__all__, *flowcore._LAZY):
        assert getattr(flowcore, name) is not None
    tree = ast.parse(Path(flowcore.__file__).read_text(encoding="utf-8"))
    (typed,) = (node.body for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    typed = {alias.name for node in typed if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed - {"testing", "models"} == names
