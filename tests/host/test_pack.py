"""The pack as the host sees it: it brings nothing else along, it loads, its nodes, pages and words are served."""

import ast
import json
import re
import sys
from typing import get_args
from unittest.mock import ANY

import comfyui
from talk import PLUG_INS, SUITING, inputs, loader, options, report

from flowcore.flows.model import Task
from flowcore.models import catalog

ROOT = comfyui.ROOT
# What every ComfyUI brings along; the pack has no requirements of its own. (tomllib is in Python from 3.11 on.)
OPTIONAL = {
    "c2pa",
    "cryptography",
    "lpips",
    "platformdirs",
    "pyarrow",
    "ray",
    "spandrel",
}  # imported where they are used, with a message where they are missing
BROUGHT = {"PIL", "filelock", "kornia", "numpy", "psutil", "safetensors", "tomli", "torch", "tqdm", "typing_extensions"}
# test_for_ever.py compares the live schemas with it.
GOLDEN = json.loads((ROOT / "tests" / "golden" / "object_info.json").read_text())


def test_flowcore_needs_only_what_the_host_brings():
    needed = set()
    files = (ROOT / "flowcore").rglob("*.py")
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            needed |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            needed.add(node.module.split(".")[0])
    assert needed - OPTIONAL - BROUGHT - sys.stdlib_module_names == set()
    extra = (ROOT / "pyproject.toml").read_text().partition("\npython = [\n")[2].partition("\n]")[0]
    packages = re.findall(r'^ +"([\w-]+)', extra, re.MULTILINE)  # what Python alone has to install
    assert {{"pillow": "PIL", "typing-extensions": "typing_extensions"}.get(name, name) for name in packages} == {
        name for name in needed if name in BROUGHT
    }


def test_installing_the_pack_installs_nothing_else():
    assert (ROOT / "requirements.txt").read_text() == ""
    assert "\ndependencies = []\n" in (ROOT / "pyproject.toml").read_text()
    assert not (ROOT / "install.py").exists()


def test_the_entry_point_is_not_hidden_by_node_class_mappings():
    # With this name, even empty, the host never calls comfy_entrypoint.
    assert "NODE_CLASS_MAPPINGS =" not in (ROOT / "__init__.py").read_text()


def test_no_other_folder_of_workflows_hides_ours():
    # The host serves templates from the first of these names that it finds.
    for name in ("example_workflows", "example", "examples", "workflow"):
        assert not (ROOT / name).exists(), name


def test_the_pack_loads_without_complaint(host):
    console = host.server.console()
    assert "IMPORT FAILED): " not in console
    assert "PRESTARTUP FAILED): " not in console
    assert len(re.findall(rf"\d+\.\d+ seconds: .*{comfyui.PACK_NAME}", console)) == 2  # before all packs, and in turn
    assert "flowcore needs ComfyUI" not in console


def test_models_of_plug_ins_are_known_whichever_pack_is_loaded_first(host):
    for name, when in zip(PLUG_INS, ("before", "after"), strict=True):
        outputs = host.outputs(
            model=loader(f"{name}.safetensors"),
            sample=("FlowcoreSample", {"model": "model.0", "samples": 1, "temperature": 0.5, "seed": 1}),
            report=report("sample.0"),
        )
        assert (outputs["model"]["architecture"], outputs["model"]["source"]) == ([name], [when])
        assert outputs["report"]["shape"] == [1, 8, 8, 3]


FOLDERS = ("enlarge", "color", "repair", "trace", "files", "experiments")


def test_every_node_has_a_place_in_the_menu(host):
    for name in GOLDEN:
        info = host.info(name)
        assert info["category"].removeprefix("flowcore/") in FOLDERS
        assert info["search_aliases"]
        assert info["essentials_category"] is None  # the frontend would take it out of the folder of its pack


def test_temperature_is_a_gradient_slider(host):
    temperature = host.info("FlowcoreUpscale")["input"]["required"]["temperature"][1]
    assert temperature["display"] == "gradientslider"
    _, _, cold, *_, hot = (stop["color"] for stop in temperature["gradient_stops"])  # gray before 0
    assert cold[2] > cold[0]
    assert hot[0] > hot[2]


def test_shipped_models_come_first_and_files_of_all_folders_follow(host):
    other = host.server.extra_flows / "elsewhere.safetensors"
    notes = host.server.base / "models" / "flows" / "notes.txt"
    other.write_bytes(b"")
    notes.write_text("not offered")
    try:
        info = host.info("FlowcoreLoadModel")
    finally:
        other.unlink()
        notes.unlink()
    listed = options(info, "model_name")
    shipped = sorted(file.stem for file in (ROOT / "flowcore" / "weights").glob("*.safetensors"))
    shipped = [name for name in shipped if name not in catalog.OTHER_FILES]  # which no node loads by name
    assert listed[: 1 + len(shipped)] == [SUITING, *shipped]
    assert "elsewhere.safetensors" in listed
    assert "notes.txt" not in listed


def test_help_pages_are_served_and_name_every_input_and_output(host):
    for name, kept in GOLDEN.items():
        page = host.get(f"/extensions/{comfyui.PACK_NAME}/docs/{name}.md").decode()
        words = host.get_json("/i18n")["en"]["nodeDefs"][name]
        for described in kept["inputs"]:
            label = words["inputs"][described["name"]]["name"]
            assert f"**{label}**" in page
            assert label == described["name"] or f"(`{described['name']}`)" in page
        outputs = page.partition("\n## Output")[2].partition("\n## ")[0]
        for described in words["outputs"].values():
            assert f"**{described['name']}**" in outputs
    for page in (ROOT / "web" / "docs").glob("*/*.md"):  # ID/LOCALE.md, where the frontend looks before ID.md
        served = host.get(f"/extensions/{comfyui.PACK_NAME}/docs/{page.parent.name}/{page.name}")
        assert served == page.read_bytes()


# --- words ------------------------------------------------------------------------------------------------------------

LANGUAGES = ("en", "ko", "ja", "zh")
SOME = ("zh-TW", "es", "fr", "ru", "ar")  # of nodes only those whose help pages are translated, too
MOST_USED = {page.parent.name for page in (ROOT / "web" / "docs").glob("*/ko.md")}
# Letters that a text of the language must hold.
SCRIPTS = {"ko": "[\uac00-\ud7a3]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]", "zh": "[\u4e00-\u9fff]"}
SCRIPTS |= {"zh-TW": "[\u4e00-\u9fff]", "es": "[a-z]", "fr": "[a-z]", "ru": "[\u0400-\u04ff]", "ar": "[\u0600-\u06ff]"}
ENGLISH = dict.fromkeys(SCRIPTS, r"\b[a-z]{2,}( [a-z]{2,}){3}\b")
ENGLISH |= dict.fromkeys(("es", "fr"), r"\b(the|and|which|with|every|picture)\b")
FRONTENDS = "{}@|"  # means something to the frontend's messages


def read(language, file):
    return json.loads((ROOT / "locales" / language / file).read_text(encoding="utf-8"))


def all_words(language):
    """All texts of a language, by file."""
    return {file: read(language, file) for file in ("main.json", "nodeDefs.json")}


def texts(words, path=()):
    """All texts of a file: path and text."""
    for key, value in words.items():
        if isinstance(value, dict):
            yield from texts(value, (*path, key))
        else:
            yield (*path, key), value


def test_every_node_input_and_output_has_its_english_words(host):
    """Schemas read their texts there, so a missing one stops the pack; this finds the superfluous."""
    words = {
        name: {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                label: {"name": properties["display_name"], "tooltip": properties["tooltip"]}
                for label, _, properties in inputs(info)
            }
            | dict.fromkeys(("upload" for _, _, described in inputs(info) if described.get("image_upload")), ANY),
            "outputs": {
                str(place): {"name": label, "tooltip": tooltip}
                for place, (label, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
            },
        }
        for name, info in host.get_json("/object_info").items()
        if info["python_module"].endswith(comfyui.PACK_NAME)
    }
    assert words == read("en", "nodeDefs.json")


def test_every_shipped_model_and_every_task_has_a_text_that_says_what_it_is_for():
    assert set(read("en", "main.json")["flowcore"]["uses"]) == {SUITING, *catalog.names(), *get_args(Task)}


def test_the_host_serves_all_languages(host):
    served = host.get_json("/i18n")
    for language in (*LANGUAGES, *SOME):
        words = all_words(language)
        for path, text in texts(words["main.json"] | {"nodeDefs": words["nodeDefs.json"]}):
            found = served[language]
            for key in path:
                found = found[key]
            assert found == text


def test_every_language_has_the_same_words_in_its_own_language():
    assert len(MOST_USED) == 10
    files = [(language, file) for language in (*LANGUAGES, *SOME) for file in all_words(language)]
    for language, file in files:
        source, there = (dict(texts(read(each, file))) for each in ("en", language))
        if language in SOME:
            missing = read("en", "nodeDefs.json").keys() - MOST_USED
            source = {path: text for path, text in source.items() if missing.isdisjoint(path)}
        if language != "en":  # messages are found by their English templates
            source |= {path: path[-1] for path in there if path[:-1] == ("flowcore", "messages")}
        assert there.keys() == source.keys()
        for path, text in there.items():
            place = f"{language}/{file} {'.'.join(path)}: {text}"
            assert text != "", place
            assert text.strip() == text or "messages" in path, place
            assert path[0] == "flowcore" or not set(text) & set(FRONTENDS), place
            assert "  " not in text, place
            # Placeholders, and what is typed or chosen (code in backticks), are the same everywhere.
            placed = [sorted(re.findall(r"\{\w+\}", each)) for each in (text, source[path])]
            assert placed[0] == placed[1], place
            code = {word for word in re.findall(r"`([^`]+)`", source[path]) if word not in ("snap", "name")}
            assert file == "main.json" or code <= set(re.findall(r"`([^`]+)`", text)), place
            # Names of a letter, as a and x, are the same everywhere, too.
            if language != "en" and (len(text) > 1 or path[-1] != "name"):
                words = re.sub(r"\{\w+\}", "", text)
                assert re.search(SCRIPTS[language], words), place
                assert text != source[path], place
                assert not re.search(ENGLISH[language], words), f"English is left in {place}"
