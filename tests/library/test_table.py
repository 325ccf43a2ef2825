import builtins
import json

import pytest
from small import Blobs, small_probe

from task2vec_ext import Embedding, Library, as_task, build_library


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    """A task with classes and metadata, one without error bars and with an odd name, and one that fails."""
    broken = Blobs(n=12)
    broken.images[3] = float("nan")
    named = Blobs(n=24)
    named.classes = ["x", "y", "z,\n"]
    (first := as_task(named, name="a")).metadata |= {"domain": "blobs", "level": 2}
    tasks = [first, as_task(Blobs(n=6), name="odd\udcff=é"), as_task(broken, name="z")]
    return build_library(tasks, tmp_path_factory.mktemp("library") / "lib", small_probe())


def test_the_table_has_a_row_for_every_task(library):
    first, odd, failed = library.table()
    embedding = library.embedding("a")
    assert (first["name"], first["state"], first["images"], first["num_outputs"]) == ("a", "done", 24, 3)
    assert first["held_out_score"] == embedding.head.held_out_score
    assert (first["norm"], first["norm_error"]) == (embedding.norm, embedding.groups.norm_error())
    assert first["classes"] == ["x", "y", "z,\n"]
    assert first["metadata"]["domain"] == "blobs"
    assert odd["norm_error"] is None
    assert (failed["state"], failed["norm"]) == ("failed", None)
    assert failed["error"]


@pytest.mark.parametrize("ending", ["csv", "parquet", "CSV"])
def test_pandas_reads_an_export_in_one_call(library, tmp_path, ending):
    pandas = pytest.importorskip("pandas")
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="needs the extra parquet")
    library.export(file := tmp_path / f"table.{ending}")
    frame = pandas.read_parquet(file) if ending == "parquet" else pandas.read_csv(file)
    rows = library.table()
    assert list(frame.columns) == list(rows[0])
    assert frame["name"].tolist() == ["a", r"odd\udcff=é", "z"]
    for column in ("norm", "norm_error", "held_out_score", "images"):
        for got, expected in zip(frame[column], (row[column] for row in rows), strict=True):
            assert pandas.isna(got) if expected is None else got == pytest.approx(expected, rel=1e-12), column
    assert json.loads(frame["classes"][0]) == ["x", "y", "z,\n"]
    assert json.loads(frame["metadata"][0])["level"] == 2
    assert [one.name for one in tmp_path.iterdir()] == [file.name]


def test_a_file_that_cannot_be_written_is_told_before_anything_is_read(library, tmp_path, monkeypatch):
    monkeypatch.setattr(Embedding, "load", None)
    with pytest.raises(ValueError, match=r"ends in \.csv or \.parquet, got .*table\.xlsx"):
        library.export(tmp_path / "table.xlsx")
    real = builtins.__import__

    def without_pyarrow(name, *arguments, **options):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(ImportError, match=r"pip install 'task2vec_ext\[parquet\]'"):
        library.export(tmp_path / "table.parquet")
