"""open_library.py on a few files."""

import pytest


def test_the_library_that_it_writes_has_the_files_and_no_cache(tmp_path):
    import open_library

    open_library.write(tmp_path, 3)
    assert not (tmp_path / "cache").exists()
    open_library.opened(tmp_path, 3)
    assert (tmp_path / "cache").exists()
    with pytest.raises(SystemExit, match="expected 4 entries, got 3"):
        open_library.opened(tmp_path, 4)
