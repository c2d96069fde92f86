"""The direction of imports, read off the source: never back, never sideways, never the host."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter

from .imports import ROOT, imports, module_name, sources, targets

PACKAGES = ("flowcore", "nodes")
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "execution"}
HOST |= {"server"}

# A room may import the rows before its own, and its own room.
ROWS = [
    {"errors"},
    {"device"},
    {"flows", "images"},
    {"models"},
    {"engine"},
    {"tasks"},
    {"training", "batch"},
    {"cli"},
    {"__main__"},
]
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}


def internal(path):
    """The modules of flowcore that a file imports, with line numbers, as paths below flowcore."""
    found = []
    for line, level, parts, names in imports(path):
        if level and parts[:1] == ("flowcore",):
            found += [(line, target[1:]) for target in targets(parts, names)]
    return found


def violations(path):
    """Say what is wrong with the imports of one file of flowcore."""
    here = module_name(path)[1:]
    if not here:
        return []  # flowcore/__init__.py is the list of public names
    room, wrong = here[0], []
    for line, target in internal(path):
        where = f"{path.relative_to(ROOT)}:{line} imports {'.'.join(target) or 'flowcore itself'}"
        if not target and room != "cli":
            wrong.append(f"{where}: rooms do not go through the front door")
        elif target and target[0] != room and RANK[target[0]] >= RANK[room]:
            wrong.append(f"{where}: that is backwards")
    return wrong


def test_imports_go_one_way_between_rooms_that_have_a_place():
    files = sources("flowcore")
    assert len(files) > 100
    assert [violation for path in files for violation in violations(path)] == []
    rooms = {module_name(path)[1] for path in sources("flowcore") if module_name(path)[1:]}
    assert rooms == RANK.keys()
    vague = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
    files = [p for package in (*PACKAGES, "tests") for p in sources(package)]
    assert [str(p) for p in files if {p.stem, p.parent.name} & vague] == []


def test_no_test_module_imports_another():
    found = [(path.name, parts, names) for path in sources("tests") for _, _, parts, names in imports(path)]
    assert [each for each in found if any(name.startswith("test_") for name in (*each[1], *each[2]))] == []


def test_no_module_imports_itself_in_a_circle():
    graph = {}
    for path in sources("flowcore"):
        here = module_name(path)[1:]
        graph[here] = {target for _, target in internal(path) if target and target != here}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_transforms_state_both_of_their_types_or_neither():
    """Before version 4.12, typing_extensions do not fill in the second one, and importing flowcore fails."""
    text = "".join(path.read_text("utf-8") for path in sources("flowcore"))
    types = re.findall(r"\(Transform\[(.+)]\)", text)
    assert types
    assert all(isinstance(ast.parse(found).body[0].value, ast.Tuple) for found in types)


def test_nodes_import_flowcore_by_name_and_the_host_in_one_room():
    """The host loads the pack under the name of its folder, where a relative import would make a second flowcore."""
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {'.'.join(parts)}"
        for file in (ROOT / "__init__.py", *sources("flowcore"), *sources("nodes"))
        for line, level, parts, _ in imports(file)
        if (not level and parts[0] == "nodes")
        or (not level and parts[0] == "flowcore" and file.is_relative_to(ROOT / "flowcore"))
        or (level and file.is_relative_to(ROOT / "nodes") and parts[:1] != ("nodes",))
        or (not level and parts[0] in HOST and file.parent != ROOT / "nodes" / "host")
        or (level and file.is_relative_to(ROOT / "flowcore") and parts[:1] != ("flowcore",))
    ]
    assert wrong == []


def test_what_comfyui_imports_at_its_start_trains_and_measures_nothing():
    tops = (node for file in sources("nodes") for node in ast.parse(file.read_text(encoding="utf-8")).body)
    loads = {text for text in map(ast.unparse, tops) if re.match(r"(from|import) flowcore\b", text)}
    assert len(loads) > 40
    program = "\n".join([*sorted(loads), "import sys", "print(*sys.modules)"])
    started = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert [name for name in started if re.match(r"flowcore\.(training|cli)\b", name)] == []


def test_one_module_of_the_page_imports_the_frontend():
    pages = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "web" / "js").glob("*.js")}
    outside = {name: re.findall(r'from "(\.\./[^"]*)"', text) for name, text in pages.items()}
    assert {name for name, paths in outside.items() if paths} == {"frontend.js"}


def test_the_root_module_imports_nothing_of_ours_at_its_top():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in tree.body)
    names = {
        t.id for node in ast.walk(tree) if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)
    }
    assert "NODE_CLASS_MAPPINGS" not in names  # even empty, it would stop the host from calling comfy_entrypoint


def section(heading):
    """A section of CONTRIBUTING."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_the_tree_names_every_room():
    files = {path.name for path in (ROOT / "flowcore").glob("*.py")} - {"__main__.py"}
    folders = {f" {path.name}/" for path in (ROOT / "flowcore").iterdir() if path.is_dir()} - {" __pycache__/"}
    assert [room for room in files | folders if room not in section("The tree")] == []


def defined_in(parts, names):
    """The modules that define names: `from ..transforms import Coupling` is an import of transforms.coupling."""
    package, defined = ROOT.joinpath(*parts) / "__init__.py", {}
    for _, level, origin, exported in imports(package) if package.is_file() else []:
        defined |= dict.fromkeys(exported, origin) if level else {}
    return {defined.get(name, target) for name in names for target in targets(parts, (name,))}


def test_the_first_reading_follows_the_imports():
    """Each file needs only earlier files, and what the section names as helpers; every helper is needed."""
    listed, _, helpers = section("A first reading").partition("\nThey also use ")
    helpers = helpers.partition("\n\n")[0]
    files = [ROOT / "flowcore" / path for path in re.findall(r"`([\w/]+\.py)`", listed)]
    helpers = {ROOT / "flowcore" / path for path in re.findall(r"`([\w/]+(?:\.py|/))`", helpers)}
    unnamed, earlier, needed_helpers = [], set(), set()
    for file in files:
        modules = {name for _, level, parts, names in imports(file) if level for name in defined_in(parts, names)}
        for path in (ROOT.joinpath(*module) for module in modules):
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            matching = helpers & {path, *path.parents}
            needed_helpers |= matching
            if path not in earlier and not matching:
                unnamed.append(f"{file.relative_to(ROOT)} needs {path.relative_to(ROOT)}")
        earlier.add(file)
    assert unnamed == []
    assert needed_helpers == helpers
    assert 3000 < sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) < 4100
