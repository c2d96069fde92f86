"""Every word of the pack in English, Korean, Japanese and Chinese, as the frontend asks for it."""

from __future__ import annotations

import json
import re
from typing import get_args

import comfyui
import pytest
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


def shape(words):
    return {path for path, _ in texts(words)}


def test_every_node_input_and_output_has_its_english_words(host):
    """Schemas read their texts there, so a missing one stops the pack; this finds the superfluous."""
    words = {
        name: {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                label: {"name": properties["display_name"], "tooltip": properties["tooltip"]}
                for label, _, properties in inputs(info)
            },
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


@pytest.mark.parametrize("language", LANGUAGES[1:])
@pytest.mark.parametrize("file", ["main.json", "nodeDefs.json"])
def test_every_language_has_the_same_words(language, file):
    assert shape(read(language, file)) == shape(read("en", file))


def test_the_host_serves_all_languages(host):
    served = host.get_json("/i18n")
    for language in LANGUAGES:
        for path, text in texts(read(language, "main.json") | {"nodeDefs": read(language, "nodeDefs.json")}):
            found = served[language]
            for key in path:
                found = found[key]
            assert found == text


def english_left(text):
    """Whether a text reads as English: four words in a row, without names in them."""
    return bool(re.search(r"\b[a-z]{2,}( [a-z]{2,}){3}\b", text))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("file", ["main.json", "nodeDefs.json"])
def test_texts_are_of_their_language(language, file):
    source = dict(texts(read("en", file)))
    for path, text in texts(read(language, file)):
        place = f"{language}/{file} {'.'.join(path)}: {text}"
        assert text.strip(), place
        assert text == text.strip(), place
        if path[0] != "flowcore":
            assert not set(text) & set(FRONTENDS), place
        assert "  " not in text, place
        # Names of a letter, as a and x, are the same everywhere.
        if language != "en" and (len(text) > 1 or path[-1] != "name"):
            assert re.search(SCRIPTS[language], text), place
            assert text != source.get(path), place
            assert not english_left(text), place


@pytest.mark.parametrize("language", LANGUAGES)
def test_placeholders_are_the_same_in_every_language(language):
    for path, text in texts(read("en", "main.json")):
        there = dict(texts(read(language, "main.json")))[path]
        assert re.findall(r"\{\w+\}", there) == re.findall(r"\{\w+\}", text)


def test_numbers_and_choices_of_a_tooltip_stand_in_every_language():
    """What is typed or chosen is the same everywhere: code in backticks."""
    source = dict(texts(read("en", "nodeDefs.json")))
    for language in LANGUAGES[1:]:
        there = dict(texts(read(language, "nodeDefs.json")))
        for path, text in source.items():
            code = {word for word in re.findall(r"`([^`]+)`", text) if word != "snap"}
            assert code - {"name"} <= set(re.findall(r"`([^`]+)`", there[path])), f"{language} {'.'.join(path)}"


def test_english_is_noticed():
    assert english_left("온도는 as you like it today 입니다")
    assert not english_left("온도: bfloat16 또는 float16, models/flows")
