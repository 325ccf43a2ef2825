"""The error matrix and its CSV."""

import math

import pytest
import torch

from task2vec_ext.experts.errors import ErrorMatrix, read_errors, read_sizes

NAN = math.nan
ERRORS = torch.tensor([[0.1, 1 / 3, NAN], [0.0, 1.0, 0.25]], dtype=torch.float64)


def matrix() -> ErrorMatrix:
    return ErrorMatrix(ERRORS, ("birds", "imagenet"), ("birds", 'a, "b"', "ä"))


def test_csv_gives_every_bit_back(tmp_path):
    matrix().write_csv(tmp_path / "errors.csv")
    read = ErrorMatrix.read_csv(tmp_path / "errors.csv")
    assert (read.experts, read.tasks) == (matrix().experts, matrix().tasks)
    torch.testing.assert_close(read.errors, ERRORS, rtol=0, atol=0, equal_nan=True)
    assert read.row("imagenet").tolist() == [0.0, 1.0, 0.25]
    assert read.column("birds").tolist() == [0.1, 0.0]
    part = read.select(experts=["imagenet"], tasks=["ä", "birds"])
    assert (part.experts, part.tasks, part.errors.tolist()) == (("imagenet",), ("ä", "birds"), [[0.25, 0.0]])


def test_a_spreadsheet_s_csv_is_read(tmp_path):
    (tmp_path / "errors.csv").write_bytes("\ufeffexpert,a,b\r\nx,0.5,\r\ny,nan, 0.25\r\n\r\n".encode())
    read = ErrorMatrix.read_csv(tmp_path / "errors.csv")
    assert read.experts == ("x", "y")
    assert read.errors.isnan().tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expert,a\n", "a row for each expert"),
        ("expert,a,b\nx,0.1\n", r"expected 3 cells as the header has, got 2 in row 2"),
        ("expert,a\nx,low\n", "'low' in the row of 'x'"),
        ("expert,a,b,c\nx,0.2,0.4,31.2\n", "divide percentages by 100"),
        ("expert,a\nx,312\n", "from 0 to 1, got 312"),
        ("expert,a\nx,inf\n", "from 0 to 1, got inf"),
        ("expert,a,a\nx,0,0\n", r"every task to have a name of its own, got \['a'\]"),
        ("expert,a\nx,0\nx,0\n", r"every expert to have a name of its own, got \['x'\]"),
    ],
)
def test_what_is_no_error_matrix_is_refused(tmp_path, text, message):
    (tmp_path / "errors.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        ErrorMatrix.read_csv(tmp_path / "errors.csv")


ROWS = "x,0.1,0.2,0.3\ny, 0.4,0.5 ,0.6\n"


@pytest.mark.parametrize(
    ("text", "rows", "tasks", "decided"),
    [
        ("expert,a,b,c\n" + ROWS, None, "abc", "rows are experts (the header's first cell is 'expert')"),
        ("Model , a,b ,c\n" + ROWS, None, "abc", "rows are experts (the header's first cell is 'Model')"),
        ("task,a,b,c\n" + ROWS, None, "xy", "rows are tasks (the header's first cell is 'task')"),
        ("task,a,b,c\n" + ROWS, "experts", "abc", "rows are experts (as asked)"),
        (",a,b,c\n" + ROWS, "tasks", "xy", "rows are tasks (as asked)"),
        (",a,b,c\n" + ROWS, None, "abc", "rows are experts (the header's first cell, '', does not say; tasks: --rows"),
        (",a,b,imagenet\n" + ROWS, None, "xy", "rows are tasks (the header's first cell, '', does not say"),
    ],
)
def test_the_header_says_which_way_a_table_goes(tmp_path, text, rows, tasks, decided):
    (tmp_path / "errors.csv").write_text(text)
    found, said = read_errors(tmp_path / "errors.csv", rows)
    assert found.tasks == tuple(tasks)
    assert said[0].startswith(decided)
    values = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], dtype=torch.float64)
    assert torch.equal(found.errors, values.T if tasks == "xy" else values)
    assert torch.equal(ErrorMatrix.read_csv(tmp_path / "errors.csv", rows=rows).errors, found.errors)


@pytest.mark.parametrize(("cells", "said"), [("12.5,0.5,30", "most are over 1"), ("0.5%,0.25 %,1%", "percentages")])
def test_percentages_are_divided_by_100_and_told(tmp_path, cells, said):
    (tmp_path / "errors.csv").write_text(f"expert,a,b,c\nx,{cells}\n")
    found, decided = read_errors(tmp_path / "errors.csv")
    assert found.errors.tolist() == [[float(cell.strip("% ")) / 100 for cell in cells.split(",")]]
    assert said in decided[1]


def test_sizes_of_tasks_are_read(tmp_path):
    (tmp_path / "sizes.csv").write_text("task, images\n a,10\nb ,20\n")
    assert read_sizes(tmp_path / "sizes.csv") == {"a": 10, "b": 20}
    for text, message in (("a,10\n", "expected a header task,images"), ("task,images\na,many\n", "in row 2")):
        (tmp_path / "sizes.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_sizes(tmp_path / "sizes.csv")


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        ErrorMatrix.read_csv(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"shape \[E, T\] = \[1, 2\]"):
        ErrorMatrix(torch.zeros(2, 1, dtype=torch.float64), ("x",), ("a", "b"))
    with pytest.raises(TypeError, match=r"float64 tensor, got torch\.float32"):
        ErrorMatrix(torch.zeros(1, 1), ("x",), ("a",))
    with pytest.raises(ValueError, match="expected one of the tasks"):
        matrix().column("cars")
