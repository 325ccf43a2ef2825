"""The CUDA kernels under ThreadSanitizer: no access to memory that no barrier orders, none that is misaligned."""

import os
import subprocess

import emulation
import pytest

pytestmark = [pytest.mark.simt, pytest.mark.slow]


@pytest.fixture(scope="module")
def watch():
    """Run races.cpp: (exit status, output)."""
    if reason := emulation.no_races():
        if os.environ.get("TASK2VEC_REQUIRE_SIMT") == "1":
            pytest.fail(f"TASK2VEC_REQUIRE_SIMT=1, but: {reason}", pytrace=False)
        pytest.skip(f"simt: {reason}")
    program = emulation.build_races(emulation._cache())

    def run(*parts: str) -> tuple[int, str]:
        command = emulation.watched_command(program, *parts)
        environment = {**emulation._environment(), "TSAN_OPTIONS": "exitcode=66"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.parametrize("part", ["convolution", "bias", "noise", "pairwise", "threads"])
def test_kernels_are_right_and_free_of_races(part, watch):
    status, output = watch(part)
    told = [line for line in output.splitlines() if ": error " not in line or "WRONG" in line]
    assert status == 0, "\n".join(told[:200])
    assert "error" in output


@pytest.mark.parametrize("name", ["barrier", "warp-barrier", "half-warp-barrier", "next-block", "copy"])
def test_what_barriers_order_is_not_reported(name, watch):
    assert watch(name) == (0, "")


@pytest.mark.parametrize(
    "name",
    [
        "no-barrier",
        "warp-barrier-between-warps",
        "half-warp-barrier-between-halves",
        "shuffle",
        "everyone-writes",
        "used-again",
        "copy-not-waited-for",
    ],
)
def test_a_race_is_reported(name, watch):
    status, output = watch(name)
    assert status == 66
    assert "ThreadSanitizer: data race" in output
    assert "racy.cpp" in output
    assert "CUDA thread" in output


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("misaligned-copy", "misaligned address"),
        ("too-much-shared-memory", "more than 48 KiB of shared memory without permission; CUDA refuses it"),
    ],
)
def test_what_the_emulation_refuses_is_no_race(name, error, watch):
    assert watch(name) == (1, f"WRONG simt: {error}\n")


def test_a_misaligned_store_is_reported(watch):
    status, output = watch("misaligned")
    assert status != 0
    assert "misaligned address" in output
