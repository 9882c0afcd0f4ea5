"""YAML that would hang, fill the memory or raise what nobody expects: an error with its line, within bounds."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.core.errors import ConfigError
from launcher.core.reading import read_file
from launcher.core.yaml_source import DEEPEST, LARGEST_FILE, MOST_VALUES, Document


def laughs(levels: int) -> str:
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(["a0: &a0 [x]", *lines])


def merges(levels: int) -> str:
    lines = [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}], k{i}: 1}}" for i in range(1, levels)]
    return "\n".join(["a0: &a0 {x: 1}", *lines])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: 1\na: " + "9" * 5000, "x.yaml:2: not valid YAML: a word of 5000 characters that is of type int"),
        ("x: 1\na: 0x" + "f" * 5000, "of type int"),
        ("x: 1\na: 1" + ":1" * 300_000, "of type int"),
        ("x: 1\na: " + "1" * 5000 + ".5", "of type float"),
        ("x: 1\na: 2026-13-45", "x.yaml:2: not valid YAML: '2026-13-45' is no timestamp: month must be in 1..12"),
        ("x: 1\na: 0000-01-01", "is no timestamp"),
        ("x: 1\na: 2001-12-14t21:59:43.10-99:99", "is no timestamp"),
        ("x: 1\na: !!timestamp foo", "'foo' is no timestamp"),
        ("x: 1\na: !!float x", "'x' is no float"),
        ("x: 1\na: !!int ''", "'' is no int"),
        ("x: 1\na: !!bool maybe", "'maybe' is no bool"),
        ("x: 1\na: !!seq {a: b}", "expected a sequence node"),
        ("x: 1\na: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("x: 1\na: " + "[" * 500 + "]" * 500, f"x.yaml:2: not valid YAML: more than {DEEPEST} levels"),
        ("[" * 100_000, "maximum nesting depth"),
        ("- " * 20_000, "maximum nesting depth"),
        ("".join(f"k{i}: 1\n" for i in range(MOST_VALUES)), f"more than {MOST_VALUES:,} keys and values"),
        (f"[{'1,' * MOST_VALUES * 2}]", f"more than {MOST_VALUES:,} keys and values"),
        (laughs(12), "its aliases stand for more than"),
        ("x: 1\na: &a [*a]", "a node that contains itself"),
        ('x: 1\na: "\\0"', "a text with a NUL"),
        ('x: 1\n"\\x00": 1', "a text with a NUL"),
    ],
)
def test_it_is_an_error_that_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        Document("x.yaml", text)
    assert said in str(error.value)


def test_what_only_looks_like_it_is_taken() -> None:
    text = f'long: "{"9" * 5000}"\nsed: s/\\0/x/\nday: 2026-01-31\ndeep: {"[" * 50}{"]" * 50}\nplain: {"x" * 100_000}'
    data = Document("x.yaml", text).mapping()
    assert len(data["long"]) == 5000 and data["sed"] == "s/\\0/x/" and len(data["plain"]) == 100_000
    assert Document("x.yaml", laughs(3)).data["a2"][9] == [["x"]] * 10


def test_merges_of_merges_stay_small() -> None:
    """PyYAML of 2025 takes each pair once; an earlier one multiplies them, and is stopped."""
    with contextlib.suppress(ConfigError):
        assert Document("x.yaml", merges(12)).data["a2"] == {"x": 1, "k1": 1, "k2": 1}


_READ = """
import sys
from pathlib import Path
from launcher.core.errors import ConfigError
from launcher.core.yaml_source import Document
try:
    Document.read(Path(sys.argv[1]))
except ConfigError as error:
    print(error)
"""


def test_800000_keys_take_little_time_and_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("".join(f"k{i}: 1\n" for i in range(600_000)))
    assert path.stat().st_size < LARGEST_FILE

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
        resource.setrlimit(resource.RLIMIT_DATA, (200 << 20, 200 << 20))

    argv = [sys.executable, "-c", _READ, str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    assert "keys and values" in done.stdout, done.stderr
    path.write_text("".join(f"k{i}: 1\n" for i in range(800_000)))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    assert "cannot be read: it has more than" in done.stdout, done.stderr


def test_only_files_are_read_and_only_so_much(tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    (tmp_path / "large").write_bytes(b"x" * 11)
    (tmp_path / "fits").write_bytes(b"x" * 10)
    for path, said in (
        (pipe, "it is a pipe"),
        (tmp_path, "Is a directory"),
        (loop, "Too many levels"),
        (Path("/dev/zero"), "or a device"),
        (tmp_path / "large", "it has more than"),
        (tmp_path / "no\0name", "cannot be one"),
    ):
        with pytest.raises(OSError) as error:
            read_file(path, 10)
        assert said in str(error.value.strerror)
    assert read_file(tmp_path / "fits", 10) == b"x" * 10
    with pytest.raises(ConfigError, match="cannot be read: it is a pipe"):
        Document.read(pipe)
