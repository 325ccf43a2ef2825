import builtins

import pytest
from layouts import image

from task2vec_ext import Task2VecWarning
from task2vec_ext.data.sources import table, tasks_from

ROWS = [
    # file, species, shoot, use
    ("a/1.png", "owl", "night", "train"),
    ("a/2.png", "cat", "night", "train"),
    ("b/3.png", "cat", "day", "train"),
    ("b/4.png", "owl", "day", "test"),
    ("b/5.png", "dog", "day", "train"),
]


@pytest.fixture
def pets(tmp_path):
    for shade, row in enumerate(ROWS):
        image(tmp_path / row[0], shade)
    (tmp_path / "pets.csv").write_text("path,label,shoot,use\n" + "\n".join(map(",".join, ROWS)), encoding="utf-8-sig")
    return tmp_path


def test_a_table_is_one_task(pets):
    (task,) = tasks_from(f"table:{pets / 'pets.csv'}")
    assert task.name == "pets"
    assert task.classes == ("cat", "dog", "owl")
    assert task.labels.tolist() == [2, 0, 0, 2, 1]
    assert [int(task[i][0][0, 0, 0]) for i in range(5)] == [0, 1, 2, 3, 4]
    assert task.describe(3) == "image 3 (b/4.png)"


def test_a_column_of_tasks_gives_one_each_and_a_split_leaves_rows_out(pets):
    tasks = tasks_from(f"table:{pets / 'pets.csv'}?task=shoot&split=use:train")
    assert tasks.names == ("night", "day")
    assert tasks[1].classes == ("cat", "dog")
    assert tasks[1].labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="expected rows with use = val in"):
        table(pets / "pets.csv", split="use:val")


def test_numbers_are_classes_by_size_and_columns_have_any_name(tmp_path):
    for i in range(3):
        image(tmp_path / "images" / f"{i}.png")
    (tmp_path / "t.tsv").write_text("file\tage\n0.png\t10\n1.png\t9\n2.png\t100\n")
    (task,) = table(tmp_path / "t.tsv", path="file", label="age", root=str(tmp_path / "images"))
    assert task.classes == ("9", "10", "100")
    assert task.labels.tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match=r"got no 0.png; .*root=DIR"):
        table(tmp_path / "t.tsv", path="file", label="age")


def test_a_parquet_table_gives_the_same_tasks(pets):
    pa = pytest.importorskip("pyarrow", reason="needs the extra parquet")
    from pyarrow import parquet

    columns = dict(zip(("path", "label", "shoot", "use"), zip(*ROWS, strict=True), strict=True))
    parquet.write_table(pa.table(columns), pets / "pets.parquet")
    for csv, other in zip(
        table(pets / "pets.csv", task="shoot"), table(pets / "pets.parquet", task="shoot"), strict=True
    ):
        assert (csv.name, csv.classes, csv.digest()) == (other.name, other.classes, other.digest())


def test_parquet_without_pyarrow_says_what_to_install(pets, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    (pets / "pets.parquet").touch()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'task2vec_ext\[parquet\]', or give a CSV"):
        table(pets / "pets.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,species\na/1.png,owl\n", "expected columns path, label in .*, got path, species; name them"),
        ("path,label\na/1.png,owl\na/2.png\n", "expected path and label in row 2 of"),
        ("path,label\n", "expected rows in .*, got none"),
        ("path,label\ngone.png,owl\n", "got no gone.png"),
        ("path,label\na/1.png,  \n", "expected path and label in row 1 of"),
        ("path,label\na/1.png," + "x" * 200_000, "got: field larger than field limit .*; save it again as CSV"),
    ],
    ids=["columns", "row", "empty", "file", "blank", "csv"],
)
def test_a_table_that_cannot_be_used_says_where(pets, text, message):
    (pets / "pets.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        table(pets / "pets.csv")


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got no t.csv"):
        table(tmp_path / "t.csv")
    (tmp_path / "t.xlsx").touch()
    with pytest.raises(ValueError, match=r"expected a .csv, .tsv or .parquet file"):
        table(tmp_path / "t.xlsx")


def test_blanks_after_commas_make_no_other_classes(pets):
    (pets / "pets.csv").write_text("path, label\na/1.png, owl\na/2.png,owl\na/3.png,cat \nb/4.png,cat\n")
    (task,) = table(pets / "pets.csv")
    assert (task.classes, task.labels.tolist()) == (("cat", "owl"), [1, 1, 0, 0])


def test_a_file_with_two_labels_is_warned_of(pets):
    (pets / "pets.csv").write_text("path,label\na/1.png,owl\na/2.png,cat\na/1.png,cat\na/2.png,cat\n")
    with pytest.warns(Task2VecWarning, match=r"1 file with more than one label \(a/1.png\)"):
        table(pets / "pets.csv")[0]
