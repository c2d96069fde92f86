"""What the command line refuses before anything starts, with exit code 2; and how Ctrl-C ends it."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import flowcore
from flowcore.cli import options
from flowcore.cli.main import COMMANDS, build_parser, main
from flowcore.cli.options import NUMBERS, SETTINGS
from flowcore.cli.output import to_json

from .commands import names, photograph, run

IN_NO_RANGE = ["nan", "inf", "-inf", "", "x", "1e400", "-5"]  # what no setting takes


@pytest.fixture
def words(model, tmp_path, monkeypatch):
    """A valid command, whose work fails the test."""

    def work(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr("flowcore.cli.batches._make_images", work)
    photo = photograph(tmp_path / "in" / "a.png", (8, 6))
    return ["upscale", photo, "-o", tmp_path / "out", "--model", model]


def test_every_number_on_the_command_line_has_a_range():
    (commands,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    bare = [
        (name, action.dest)
        for name, command in commands.items()
        for action in command._actions
        if action.type in (int, float) and not action.choices
    ]
    assert bare == []


def test_every_number_is_refused_outside_of_its_range(capsys):
    (commands,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    for name, command in commands.items():
        for action in command._actions:
            if action.dest in {**SETTINGS, **NUMBERS} and action.type is not None and not action.choices:
                for number in IN_NO_RANGE:
                    with pytest.raises(SystemExit) as ended:
                        command.parse_args([f"{action.option_strings[0]}={number}"])
                    assert ended.value.code == 2
                    assert f"argument {'/'.join(action.option_strings)}: " in capsys.readouterr().err, (name, number)


def test_what_cannot_be_done_is_refused_before_anything_starts(words, tmp_path, capsys):
    for wrong, said in (
        (["--samples", 0], "--samples: must be a whole number in [1, "),
        (["--seed", 2**64], "--seed: must be a whole number in [0, 18446744073709551615]"),
        (["--temperature", "nan"], "--temperature: must be a finite number >= 0; got nan"),
        (["--model", "srflow-x5"], "There is no file srflow-x5, and no shipped model of that name"),
        (["-o", tmp_path / "out.jpg", "--bits", 16], "16 bits per channel go into PNG and TIFF"),
        (["-o", words[1]], "The result would overwrite"),
        (["--device", "cuda:99"], "There is no device 'cuda:99' here"),
        (["--guide", tmp_path / "none.png"], "There is no guide "),
        (["--plugin", "x"], "unrecognized arguments"),
    ):
        assert main([*map(str, words), *map(str, wrong)]) == 2, wrong
        assert said in capsys.readouterr().err
    assert names(tmp_path) == ["in/a.png"]


def test_an_error_of_the_work_is_no_error_of_usage(words, monkeypatch):
    monkeypatch.undo()
    words[1].write_bytes(b"damaged")
    assert run(*words) == 1


def test_help_says_what_options_are_without_docstrings():
    program = "from flowcore.cli.main import build_parser; build_parser().parse_args(['clean', '--help'])"
    shown = subprocess.run([sys.executable, "-OO", "-c", program], check=True, capture_output=True, text=True).stdout
    assert "0 changes nothing, 0.5 suits the damage" in " ".join(shown.split())


# A module that interrupts its own import, as Ctrl-C does.
INTERRUPTED = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signal to one process")
def test_ctrl_c_during_the_imports_shows_no_traceback(tmp_path):
    (tmp_path / "torch.py").write_text(INTERRUPTED)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(flowcore.__file__).parents[1])]),
    }
    program = [sys.executable, "-m", "flowcore", "models"]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # programs started in the background ignore it
    ended = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=60, preexec_fn=heed)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("", "", -2)


def test_json_has_no_infinity(model, tmp_path, capsys):
    assert to_json({"a": [float("inf"), 1.5], "b": (float("nan"), "Infinity")}) == (
        '{"a": [null, 1.5], "b": [null, "Infinity"]}'
    )
    path = tmp_path / "a.safetensors"
    flow = flowcore.load(model)
    flowcore.save(flow, path, provenance={"steps": float("inf")})
    assert main(["inspect", str(path)]) == 0
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert content["provenance"]["steps"] is None


@pytest.mark.parametrize("command", ["upscale", "colorize", "brighten", "repair", "restore", "faces", "sample"])
def test_help_says_that_the_low_32_bits_of_a_seed_count(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "n + 2^32 give one picture" in " ".join(capsys.readouterr().out.split()).lower()


@pytest.mark.skipif(os.name == "nt", reason="Windows reports a closed pipe in another way")
def test_the_work_goes_on_when_nobody_reads_its_lines_any_more(model, tmp_path):
    for number in range(4):
        photograph(tmp_path / "in" / f"{number}.png", (8, 6))
    words = ["upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", model]
    program = [sys.executable, "-m", "flowcore", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(Path(flowcore.__file__).parents[1])}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(program, env=environment, text=True, **streams) as running:
        running.stdout.close()
        said = running.stderr.read()
    assert (running.returncode, "Error" in said) == (0, False), said
    assert len([*(tmp_path / "out").glob("*.png")]) == 4


def test_a_name_of_another_format_is_refused_before_the_work(words, capsys):
    for flags in (["--bits", 16], [], ["--format", "webp"]):
        assert run(*words, *flags, "--name", "{stem}.jpg") == 2
        assert "--name ends as a jpeg file" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="the work has begun"):
        run(*words, "--format", "jpeg", "--name", "{stem}.jpg")


@pytest.mark.parametrize("name", ["mnist-styles", "no-such-model"])
def test_a_shipped_model_is_named_wherever_a_model_is_expected(name, tmp_path):
    expected = 0 if name == "mnist-styles" else 2
    assert main(["convert", name, str(tmp_path / "a.safetensors")]) == expected
    assert main(["inspect", name]) == expected
    files = ["--labels", "3", "-o", str(tmp_path / "a.png")]
    assert main(["sample", "--model", name, "--samples", "1", *files]) == expected


def test_what_tells_where_pictures_come_from_stands_together_and_restore_is_said_to_undo_shrink():
    names = [*COMMANDS]
    assert names[names.index("verify") :][:4] == ["verify", "trace", "audit", "credentials"]
    assert COMMANDS["restore"][1].startswith("undo shrink: ")
    assert "scratches" in COMMANDS["repair"][1]
    assert "noise" in COMMANDS["clean"][1]


def test_help_shows_one_name_of_an_option_and_ray_where_it_is_installed(monkeypatch, capsys):
    def shown(command):
        with pytest.raises(SystemExit):
            build_parser().parse_args([command, "--help"])
        return capsys.readouterr().out

    monkeypatch.setattr(options, "find_spec", lambda name: None)
    assert "--hint X,Y,#RRGGBB" in shown("colorize")
    assert "--hints" not in shown("colorize")
    assert "--ray" not in shown("colorize")
    parsed = build_parser().parse_args(["colorize", "a", "b", "--hints", "1,2,#102030", "--ray"])
    assert (parsed.hint, parsed.ray) == (["1,2,#102030"], True)
    monkeypatch.setattr(options, "find_spec", lambda name: object())
    assert "--ray-workers N" in shown("colorize")
