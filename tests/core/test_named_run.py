"""A run under a name: what it made before is lost to no refusal, and replaced by what a new one has made only."""

import pytest

from flowcore import FlowError
from flowcore.training.run_folder import NamedRun, Record


@pytest.fixture
def run(tmp_path):
    target = tmp_path / "flows" / "mine.safetensors"
    return NamedRun(tmp_path / "runs" / "mine", target, lambda: target if target.exists() else None)


def settings(**changes):
    return Record(**{"recipe": "r", "fingerprint": "f", "minutes": 1.0, "start": "nothing", **changes})


def trained(run, name, **options):
    """Begin, and save a step: what its files hold is the name."""
    record = run.open(settings(), restart=options.get("restart", False))
    for file in ("checkpoint.pt", "model.safetensors", "log.txt"):
        (run.folder / file).write_text(name)
    if options.get("publish", True):
        run.publish(record)


def earlier(run):
    """What the checkpoints of earlier runs hold, by folder; None for one without."""
    files = {folder.name: folder / "checkpoint.pt" for folder in sorted(run.folder.glob("earlier*"))}
    return {name: file.read_text() if file.exists() else None for name, file in files.items()}


def test_a_restart_that_is_refused_and_pressed_again_keeps_the_old_checkpoint(run):
    trained(run, "first")
    trained(run, "second", restart=True)
    assert earlier(run) == {"earlier": "first"}
    for _ in range(3):  # what follows is refused each time, before it saves a step
        run.open(settings(), restart=True)
    assert "second" in earlier(run).values()
    assert "first" in earlier(run).values()
    trained(run, "third", restart=True)
    assert earlier(run) == {"earlier": "second"}
    assert run.target.read_text() == "third"


def test_a_restart_that_stops_at_its_first_step_keeps_both(run):
    trained(run, "first")
    trained(run, "second", restart=True, publish=False)
    trained(run, "third", restart=True, publish=False)
    assert set(earlier(run).values()) == {"first", "second"}
    assert run.target.read_text() == "first"


def test_folders_of_the_user_and_decoded_images_stay(run):
    trained(run, "first")
    for name in ("cache", "earlier-than-that"):
        (run.folder / name).mkdir()
        (run.folder / name / "file").write_text("mine")
    trained(run, "second", restart=True)
    assert (run.folder / "cache" / "file").exists()
    assert (run.folder / "earlier" / "earlier-than-that" / "file").exists()


def test_other_settings_are_refused(run):
    trained(run, "first")
    with pytest.raises(FlowError, match=r"minutes 1\.0 \(now 2\.0\)"):
        run.open(settings(minutes=2.0), restart=False)
