"""Every word of the pack in English, Korean, Japanese and Chinese, as the frontend asks for it."""

from __future__ import annotations

import itertools
import json
import re
from typing import get_args
from unittest.mock import ANY

import comfyui
from talk import inputs

from flowcore.checkpoints import catalog
from flowcore.flow import Task

LOCALES = comfyui.ROOT / "locales"
LANGUAGES = ("en", "ko", "ja", "zh")
# Letters that a text of the language must hold.
SCRIPTS = {"ko": "[\uac00-\ud7a3]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]", "zh": "[\u4e00-\u9fff]"}
FRONTENDS = "{}@|"  # means something to the frontend's messages


def read(language, file):
    return json.loads((LOCALES / language / file).read_text(encoding="utf-8"))


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
    assert set(read("en", "main.json")["flowcore"]["uses"]) == {*catalog.names(), *get_args(Task)}


def test_the_host_serves_all_languages(host):
    served = host.get_json("/i18n")
    for language in LANGUAGES:
        for path, text in texts(read(language, "main.json") | {"nodeDefs": read(language, "nodeDefs.json")}):
            found = served[language]
            for key in path:
                found = found[key]
            assert found == text


def test_every_language_has_the_same_words_in_its_own_language():
    for language, file in itertools.product(LANGUAGES, ("main.json", "nodeDefs.json")):
        source, there = (dict(texts(read(each, file))) for each in ("en", language))
        assert there.keys() == source.keys()
        for path, text in there.items():
            place = f"{language}/{file} {'.'.join(path)}: {text}"
            assert text.strip() == text != "", place
            assert path[0] == "flowcore" or not set(text) & set(FRONTENDS), place
            assert "  " not in text, place
            # Placeholders, and what is typed or chosen (code in backticks), are the same everywhere.
            assert re.findall(r"\{\w+\}", text) == re.findall(r"\{\w+\}", source[path]), place
            code = {word for word in re.findall(r"`([^`]+)`", source[path]) if word not in ("snap", "name")}
            assert file == "main.json" or code <= set(re.findall(r"`([^`]+)`", text)), place
            # Names of a letter, as a and x, are the same everywhere, too.
            if language != "en" and (len(text) > 1 or path[-1] != "name"):
                assert re.search(SCRIPTS[language], text), place
                assert text != source[path], place
                assert not re.search(r"\b[a-z]{2,}( [a-z]{2,}){3}\b", text), f"English is left in {place}"
