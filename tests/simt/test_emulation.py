"""How the emulated kernels are built; tests/kernels runs them."""

import emulation
import pytest


@pytest.mark.simt
def test_a_second_build_is_taken_from_the_cache(simt, monkeypatch):
    def no_compilation(command):
        raise AssertionError(command)

    monkeypatch.setattr(emulation, "_run", no_compilation)
    assert emulation.build(emulation._cache()).is_file()


@pytest.mark.simt
def test_other_flags_are_another_build(tmp_path, monkeypatch):
    commands = []

    def touch(command):
        commands.append(command)
        if "-shared" in command:
            command[-1].write_text("")

    monkeypatch.setattr(emulation, "_run", touch)
    first = emulation.build(tmp_path)
    monkeypatch.setenv("TASK2VEC_SIMT_FLAGS", "-g -fsanitize=address")
    second = emulation.build(tmp_path)
    assert first != second
    assert {path.name for path in tmp_path.iterdir()} == {first.name, second.name}  # nothing else is left behind
    assert all("-fsanitize=address" in command for command in commands[len(commands) // 2 :])


@pytest.mark.simt
def test_a_compilers_error_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("TASK2VEC_SIMT_FLAGS", "-include no_such_header.h")
    with pytest.raises(RuntimeError, match=r"(?s)emulation: .* failed:.*no_such_header\.h"):
        emulation.build(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    assert emulation.missing() == "no C++ compiler 'no-such-compiler' in PATH (CXX names another)"
