"""peers.py: a peer is timed where it gives our numbers."""

import torch


def test_every_peer_gives_our_numbers_before_it_is_timed(setup):
    import peers

    ways = list(peers.measure(setup, repeats=1, memory=False))[-1]["ways"]
    assert set(ways) == {"plain", "ours", "vmap", "opacus", "backpack", "loop"}
    for name, way in ways.items():
        if name in peers.PACKAGES and way["version"] is None:
            assert "not installed" in way["failed"]
        elif name != "plain":
            assert way["relative_error"] < 1e-4, name
            assert way["time_to_plain"]["n"] == 1


def test_a_peer_of_other_numbers_is_not_timed(setup, monkeypatch):
    import peers

    monkeypatch.setattr(peers, "WAYS", {name: peers.WAYS[name] for name in ("plain", "ours", "loop")})
    monkeypatch.setitem(peers.WAYS, "loop", lambda step: lambda: torch.ones(step.layers[-1].stop))
    *_, row = peers.measure(setup, repeats=1, memory=False)
    assert "other numbers" in row["ways"]["loop"]["failed"]
    assert "seconds" not in row["ways"]["loop"]
    peers.report(row)
