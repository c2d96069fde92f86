"""What nodes and errors say, and its translations, which web/js/messages.js finds by their templates."""

import ast
import json
import pickle
import re
from functools import cache
from pathlib import Path

import pytest

from flowcore.errors import Argument, FlowError, ImageError, Message, on_lines, say
from flowcore.tasks import audit

ROOT = Path(__file__).resolve().parents[2]
TRANSLATIONS = {
    file.parent.name: json.loads(file.read_text(encoding="utf-8"))["flowcore"]["messages"]
    for file in (ROOT / "locales").glob("*/main.json")
    if file.parent.name != "en"
}
SPOKEN = ("nodes", "flowcore/tasks", "flowcore/engine", "flowcore/images")  # the folders whose notes a canvas shows
TELLING = {
    "say",
    "run.notify",
    "self.notify",
    "self.notes",
    "notes",
    "tell",
    "settings.tell",
}  # a template and its values
TELLING |= {"RunOptions(notify=notify).tell"}  # functions of a template and its values
PASSING = {"notify", "sentences.append"}  # functions that a message is passed to
# Modules whose errors are about values that a canvas cannot send, and about the host.
OF_SCRIPTS = {ROOT / "nodes" / name for name in ("node.py", "sockets.py", "host/compat.py", "host/paths.py")}


@cache
def parsed():
    """The parts of all modules, by path."""
    files = [file for room in ("flowcore", "nodes") for file in (ROOT / room).rglob("*.py")]
    return {file: [*ast.walk(ast.parse(file.read_text(encoding="utf-8")))] for file in files}


@cache
def calls():
    """All calls with an argument: the module's path, the line, what is called, and the first argument."""
    found = ((file, node) for file, nodes in parsed().items() for node in nodes if isinstance(node, ast.Call))
    return [(file, node.lineno, ast.unparse(node.func), node.args[0]) for file, node in found if node.args]


@cache
def error_classes():
    """The names of FlowError and all classes that are made of it."""
    names, classes = {"FlowError"}, [n for nodes in parsed().values() for n in nodes if isinstance(n, ast.ClassDef)]
    while more := {each.name for each in classes if names & {ast.unparse(b) for b in each.bases}} - names:
        names |= more
    return names


def text_of(node):
    """A string of the code, with {} in place of an f-string's values; "" for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def texts(names, files=None):
    """The first arguments, with words, of the calls of functions and classes of these names."""
    said = {text_of(text) for file, _, name, text in calls() if name in names and (files is None or file in files)}
    return {text for text in said if re.search("[a-z]{2}", re.sub(r"\{\w*\}", "", text))}


def said():
    """The templates of all messages."""
    return texts(TELLING)


def test_every_error_is_a_sentence():
    """Other tests match a word of it, if any, so that it can be said better."""
    errors = texts(error_classes())
    assert len(errors) > 400
    reasons = r"its? |this version|\{size\} are more|\{\}(x\{| take up)"  # after "Cannot read NAME as an image: "
    assert [text for text in errors if not re.match(reasons, text) and text.rstrip()[-1] not in ".}`?"] == []


@pytest.mark.parametrize("language", sorted(TRANSLATIONS))
def test_what_is_translated_is_said(language):
    assert TRANSLATIONS[language].keys() - said() - texts(error_classes()) == set()


@pytest.mark.parametrize("language", sorted(TRANSLATIONS))
def test_what_nodes_say_is_translated(language):
    own = [file for file in parsed() if (ROOT / "nodes") in file.parents and file not in OF_SCRIPTS]
    assert (said() | texts(error_classes(), own)) - TRANSLATIONS[language].keys() == set()


def test_messages_name_inputs_as_the_canvas_does():
    """They say Argument("longest_side") for "longest side"; here are the names that no label has."""
    nodes = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8")).values()
    names = {name for node in nodes for name in node["inputs"] if "_" in name}
    words = {text: set(re.findall(r"\w+", re.sub(r"\{\w+\}", "", text))) for text in TRANSLATIONS["ja"]}
    assert [text for text, found in words.items() if found & names] == []


def test_every_note_can_be_translated():
    """None is an f-string, which has no template, or reaches a plain function as a string."""
    for file, line, name, note in calls():
        if any((ROOT / room) in file.parents for room in SPOKEN) and name in TELLING | PASSING:
            text = text_of(note) if name in PASSING or isinstance(note, ast.JoinedStr) else ""
            assert not re.search("[a-z]{2}", text), f"{file}, line {line}: {text}"


def test_a_message_is_its_english_text():
    message = say("{count} made of {what}, {kinds}", count=2, what=say("noise"), kinds=["a", say("b {n}", n=1)])
    assert message == "2 made of noise, a, b 1"
    assert (message.template, message.values["what"].template) == ("{count} made of {what}, {kinds}", "noise")
    assert say("got {shape}", shape=(3, 6)) == "got (3, 6)"
    assert say("{name} is ignored.", name=Argument("factor")) == "factor is ignored."
    assert on_lines(say("{n} made", n=1), "", "{as it is}") == "1 made\n\n{as it is}"


def test_a_message_survives_a_pickle_as_workers_send_it():
    error = ImageError("{file} is {kind}.", file="a.png", kind=say("noise"))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (ImageError, "a.png is noise.")
    assert (again.message.template, again.message.values) == (error.message.template, error.message.values)
    assert isinstance(again.message.values["kind"], Message)


def test_an_error_in_a_message_keeps_its_own():
    inner = FlowError("{file} is empty.", file="a\x1b.png")
    outer = FlowError("The guide cannot be used. {error}", error=inner)
    assert str(outer) == "The guide cannot be used. a\\x1b.png is empty."
    assert outer.message.values["error"].template == "{file} is empty."
    assert FlowError("Got {x}.").message == "Got {x}."  # without values, nothing is filled in
    assert FlowError("one", "two").message == "one\ntwo"


def test_what_an_audit_says_is_made_of_messages():
    sentence = audit._sentence(0.9, audit.CALIBRATIONS["fc3484189a1a"], 31.0, [(8, 0, 9, 1)], (9, 9))
    assert sentence == (
        "As detailed as a photograph: 90 % of the fine detail expected, photographs 42 % to 168 %. The small image "
        "supports it least at the top right. It contradicts the small image: shrunk, it is only 31 dB from it."
    )
    assert [part.template[:10] for part in sentence.values.values()] == ["As detaile", " The small", " It contra"]
