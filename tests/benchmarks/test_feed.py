"""feed.py and decoders.py: what is decoded, kept and compared."""

import argparse

import pytest


def test_feed_counts_decodes_and_bytes(tmp_path, monkeypatch):
    import feed

    def in_this_process(build, *arguments, device):  # a fresh one takes seconds
        build(*arguments)()
        return 100 << 20

    monkeypatch.setattr(feed, "peak_memory", in_this_process)
    monkeypatch.setattr(feed, "EMBEDDED", 16)
    options = argparse.Namespace(images=None, count=8, repeats=1, kept=8)
    assert [row["value"] for row in feed.decodes(tmp_path / "decodes", options)] == [1, 1, 1]
    *speeds, of_image = feed.cache(tmp_path / "cache", options)
    assert len(speeds) == 3
    assert of_image["value"] == 3 * 224 * 224
    (used,) = feed.memory(tmp_path / "memory", options)
    assert used["value"] == pytest.approx(-163.6, abs=0.1)  # 100 MiB of a budget of 256


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision:DeprecationWarning")
def test_decoders_are_compared_with_pils_pixels(tmp_path):
    import decoders
    from _photos import write_photos

    files = [path.read_bytes() for path in write_photos(tmp_path, 64, 2)]
    rows = {row["decoder"]: row for row in decoders.measure(files, 64, 1)}
    assert rows["PIL"]["same_pixels"]
    assert all(row["ms"]["median"] > 0 for row in rows.values())
