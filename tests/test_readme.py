"""The README's first example prints what the README says."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
NUMBER = r"-?\d+\.\d+"


def test_the_first_example_prints_what_is_shown(capsys):
    text = README.read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.S)[1]
    shown = re.search(r"```text\n(.*?)```", text, re.S)[1]
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.sub(NUMBER, "#", printed).split() == re.sub(NUMBER, "#", shown).split()
    # Another processor sums in another order; the head's solver and the rounding of the text leave a little more.
    numbers = [[float(n) for n in re.findall(NUMBER, part)] for part in (printed, shown)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.05, abs=0.02)


def test_set_up_and_tests_are_one_command_each_in_the_first_30_lines():
    first = README.read_text(encoding="utf-8").splitlines()[:30]
    commands = [line for line in first if line.startswith("pip install")]
    assert len(commands) == 2
    assert "task2vec demo" in commands[0]
    assert "pytest" in commands[1]
