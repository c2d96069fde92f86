"""What nodes and errors say; the page translates notes by the templates in the locales, see web/js/messages.js."""

import ast
import json
import re
from pathlib import Path
from typing import get_args

import flowcore
from flowcore.flows.model import SUITABLE_MODELS, Task
from flowcore.tasks import audit
from flowcore.tasks.ranking import By

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = json.loads((ROOT / "locales" / "en" / "main.json").read_text(encoding="utf-8"))["flowcore"]["messages"]
COMPOSED = re.compile("(all_images|images?|this_(clip|picture))_((is|are)_clean|has|have)")  # of single words
SPOKEN = ("nodes", "flowcore/tasks", "flowcore/engine", "flowcore/images")  # the rooms whose notes a canvas shows
CALLS = {"notes", "notify", "tell", "sentences.append"}  # functions that a note is passed to


def template(node):
    """A string of the source with {0}, {1} and so on in place of its values; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return None
    values = iter(range(len(node.values)))
    return "".join(part.value if isinstance(part, ast.Constant) else f"{{{next(values)}}}" for part in node.values)


def trees(*rooms):
    return [ast.parse(path.read_text(encoding="utf-8")) for room in rooms for path in (ROOT / room).rglob("*.py")]


def notes():
    """All notes that are written where they are passed on, or that are constants of the module."""
    for tree in trees(*SPOKEN):
        assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
        constants = {ast.unparse(node.targets[0]): template(node.value) for node in assigned}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            said = template(call.args[0]) or constants.get(ast.unparse(call.args[0]))
            if {name, ast.unparse(call.func)} & CALLS and said and re.search("[a-z]{3}", said):
                yield said


ERRORS = {"FlowError", *(kind.__name__ for kind in flowcore.FlowError.__subclasses__())}


def test_every_error_is_a_sentence():
    """Other tests match a word of it, if any, so that it can be said better."""
    said = [
        template(node.exc.args[0])
        for tree in trees("flowcore", "nodes")
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
        if ast.unparse(node.exc.func).split(".")[-1] in ERRORS
    ]
    assert len([text for text in said if text]) > 400
    reasons = "it is |it. header|this version|[{]0[}](x[{]1| take up)"  # which follow "Cannot read NAME as an image: "
    assert [text for text in said if text and not re.match(reasons, text) and text.rstrip()[-1] not in ".}`?"] == []


def errors():
    """All errors that a node raises, but those of values that a canvas cannot send, and those that pass on another."""
    for path in (ROOT / "nodes").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8") if path.stem not in ("node", "sockets") else "")
        raised = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call))
        texts = filter(None, (template(call.args[0]) for call in raised if call.args))
        yield from (text for text in texts if not re.fullmatch(r"\w+( \{0\})?: \{\d\}", text))


def test_every_note_and_every_error_of_a_node_has_a_template():
    assert len(said := {*notes(), *errors()}) > 80
    known = set(MESSAGES.values())
    assert [text for text in said if not known & {text, text.removeprefix("{0}: ")}] == []


PLACES_OF_ADVICE = {"Runner": 2, "check_memory": 3, "report": 2}  # by function


def test_what_notes_and_errors_are_filled_with_has_a_template():
    """Tasks, criteria, and what a person is told to do if memory runs out."""
    said = [*get_args(Task), *get_args(By), *SUITABLE_MODELS.values(), " made to {0}"]
    for node in (node for tree in trees("nodes", "flowcore/tasks", "flowcore/engine") for node in ast.walk(tree)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).upper().endswith("ADVICE"):
            said.append(template(node.value))
        elif isinstance(node, ast.Call) and (name := ast.unparse(node.func).split(".")[-1]) in PLACES_OF_ADVICE:
            place = PLACES_OF_ADVICE[name]
            said += map(template, node.args[place : place + 1])
    assert len(said) > 50
    assert [text for text in said if text and text not in MESSAGES.values()] == []


def test_what_an_audit_says_is_made_of_templates():
    assert {place for row in audit.PLACES for place in row} <= set(MESSAGES.values())
    said = MESSAGES["as_detailed_as_a_photograph_of"].format("90 %", "42 %", "168 %")
    said += MESSAGES["the_small_image_supports_it_least"].format("at the top right")
    said += MESSAGES["it_contradicts_the_small_image_shrunk"].format(31)
    usual = audit.CALIBRATIONS["fc3484189a1a"]
    assert audit._sentence(0.9, usual, 31.0, [(8, 0, 9, 1)], (9, 9)) == said


def test_every_template_is_something_that_is_said():
    strings = (template(node) for tree in trees("nodes", "flowcore") for node in ast.walk(tree))
    sources = "\n".join(filter(None, strings))
    whole = [text for key, text in MESSAGES.items() if not COMPOSED.fullmatch(key)]
    parts = [part for text in whole for part in re.split(r"\{\d\}", text) if len(part) > 12]
    assert len(parts) > len(MESSAGES) / 2
    assert [part for part in parts if part.lstrip("; ")[:12] not in sources] == []
