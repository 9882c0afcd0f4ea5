"""msgspec looks into a type when it first meets it; two threads that have it do so at once would end the process."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import launcher

PLAIN = {"dict", "list", "str", "int", "float", "Any", "msgspec"}

MEETINGS = """
import dataclasses, msgspec, sys, threading, types
from launcher.core.reading import prepare_type

sys.setswitchinterval(1e-6)
for number in range(150):
    module = sys.modules[f"m{number}"] = types.ModuleType(f"m{number}")
    exec('''
from __future__ import annotations
from dataclasses import dataclass, field
@dataclass
class In:
    a: int = 0
    b: dict[str, str] = field(default_factory=dict)
@dataclass
class Out:
    x: In | None = None
    y: tuple[In, ...] = ()
@dataclass
class Other:
    x: In | None = None
    y: list[Out] = field(default_factory=list)
''', module.__dict__)
    together = threading.Barrier(4)

    def read(kind):
        together.wait()
        assert msgspec.convert({"x": {"a": 1}, "y": [{}]}, prepare_type(kind)).x.a == 1

    threads = [threading.Thread(target=read, args=(kind,)) for kind in (module.Out, module.Other) * 2]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print("alive")
"""


def test_threads_may_meet_a_type_together() -> None:
    done = subprocess.run([sys.executable, "-c", MEETINGS], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]


def types_read(tree: ast.Module) -> Iterator[ast.expr]:
    """The types that a module's functions have msgspec read; decoders at the top of a module are made once."""
    for function in (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Lambda))):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) in ("msgspec.convert", "msgspec.json.Decoder"):
                yield call.args[-1]
            elif ast.unparse(call.func) in ("msgspec.json.decode", "msgspec.yaml.decode"):
                yield from (word.value for word in call.keywords if word.arg == "type")


def test_every_type_of_ours_is_prepared_before_it_is_read() -> None:
    root = Path(launcher.__file__).parent
    bare = [
        f"{path.relative_to(root)}: {ast.unparse(kind)}"
        for path in sorted(root.rglob("*.py"))
        if path.name != "reading.py"
        for kind in types_read(ast.parse(path.read_text()))
        if not (isinstance(kind, ast.Call) and ast.unparse(kind.func) == "prepare_type")
        and {node.id for node in ast.walk(kind) if isinstance(node, ast.Name)} - PLAIN
    ]
    assert bare == []
