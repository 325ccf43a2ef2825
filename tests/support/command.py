"""The command line, run in this process."""

import sys

import pytest

from task2vec_ext import cli


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["task2vec", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
    code = exit.value.code
    captured = capsys.readouterr()
    return (code if isinstance(code, int) else 0 if code is None else 1), captured.out, captured.err
