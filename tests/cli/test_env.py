import getpass
import socket
import sys
from pathlib import Path

import pytest
import torch
from command import run


def test_env_is_a_table_without_paths_and_names(capsys):
    code, table, _ = run(capsys, "env")
    rows = [line.split(" | ") for line in table.splitlines()]
    assert code == 0
    assert [row[0] for row in rows[2:]] == [
        "| task2vec_ext",
        "| kernels",
        "| Python",
        "| system",
        "| torch",
        "| GPU",
        "| CPU",
        "| packages",
    ]
    assert torch.__version__ in rows[6][1]
    assert "matplotlib 3." in table
    assert "failed" not in table
    assert not [word for word in (str(Path.home()), socket.gethostname(), sys.prefix) if word in table]
    assert getpass.getuser() not in table or getpass.getuser() == "root"


@pytest.mark.parametrize(
    "error",
    [
        OSError("/home/zoe lee/x.so: cannot open"),
        ImportError("libcudart.so.13: needed by '/home/zoelee/venv/lib/_C.so' | 3"),
        RuntimeError("no C:\\Users\\zoelee\\torch.dll\nhere"),
    ],
)
def test_what_fails_is_a_row_without_paths(capsys, monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr("torch.cuda.device_count", fail)
    _, table, _ = run(capsys, "env")
    (row,) = (line for line in table.splitlines() if line.startswith("| GPU"))
    assert row.startswith(f"| GPU | failed: {type(error).__name__}: ")
    assert row.count("|") == 3
    assert not [part for part in ("zoe", "lee", "home", "Users") if part in row], row
