"""The keys of the pack's caches: a changed input is a changed key, for every node and every input that it has."""

from talk import newest


@newest
def test_any_other_input_has_another_key(host):
    """See `probe/keys.py`, which runs in the host and reads nodes and inputs off the pack."""
    found = host.outputs(keys=("FlowcoreTestKeys", {}))["keys"]
    assert found["same"] == []
    assert (found["picking"][0], found["live"][0], found["files"][0]) >= (10, 5, 7)
