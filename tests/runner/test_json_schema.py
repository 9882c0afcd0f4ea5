"""The JSON Schema of runner files: what is shipped is what the types say, and it judges files as the loader does."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from launcher.cli import main
from launcher.core.errors import ConfigError
from launcher.core.shipped import shipped
from launcher.core.yaml_source import Document
from launcher.runner import json_schema
from launcher.runner.file import RunnerFile
from tests.runner.test_runner import MINIMAL

FILES = sorted(shipped("runners").glob("*.yaml"))
SCHEMA: dict[str, Any] = json.loads((shipped("runners") / json_schema.FILE).read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker())


def complaints(text: str) -> list[str]:
    """What an editor would underline. A day without quotes is a date to YAML, and text to an editor."""
    return [e.message for e in VALIDATOR.iter_errors(msgspec.to_builtins(yaml.safe_load(text)))]


def test_what_is_shipped_is_what_the_types_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runner", "schema"]) == 0
    assert (shipped("runners") / json_schema.FILE).read_text() == capsys.readouterr().out, (
        "launcher runner schema > runners/runner.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    # Editors that know draft 7 only read the same: no keyword here means something else to them.
    jsonschema.Draft7Validator.check_schema({**SCHEMA, "$schema": "http://json-schema.org/draft-07/schema#"})


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_shipped_file_is_valid_and_says_where_its_schema_is(path: Any) -> None:
    text = path.read_text()
    assert complaints(text) == []
    assert text.splitlines()[0] == json_schema.MODELINE
    assert (path.parent / json_schema.MODELINE.partition("$schema=")[2]).is_file()


def test_every_key_is_described() -> None:
    definitions = {"Runner": SCHEMA, **SCHEMA["$defs"]}
    silent = [
        f"{name}.{key}"
        for name, definition in definitions.items()
        for key, said in definition["properties"].items()
        # What is a mapping of its own kind is described there.
        if not said.get("description") and "$ref" not in said
    ]
    assert silent == []
    assert all(definition["description"] for definition in definitions.values())
    rule = SCHEMA["$defs"]["LaneRule"]["properties"]
    assert rule["when"]["description"].startswith("Which benchmarks")  # inherited
    assert "``" not in json.dumps(SCHEMA) and "_" not in "".join(rule)


EXCLUDED = "exclude-nodes: [{node: n1, reason: x, expires: 2026-08-31}]\nlanes:"

MISTAKES = [
    ("partition: p", "partiton: p", "unknown key 'partiton' (at scheduler.partiton)"),
    ("prefix: minimaxm3,", "prefx: minimaxm3,", "unknown key 'prefx'"),
    ("sku: tiny\n", "", "key 'sku' is missing"),
    ("sku: tiny\n", "sku: 5\n", "Expected `str`, got `int`"),
    ("gpus: 4", "gpus: four", "Expected `int`, got `str`"),
    ("gpus: 4", "gpus: 0", "Expected `int` >= 1"),
    ("gpus: 4", "gpus: 4, arch: arm64", "Invalid enum value 'arm64'"),
    ("kind: node-local", "kind: nodelocal", "Invalid enum value 'nodelocal'"),
    ("seen-by: [compute]", "seen-by: compute", "Expected `array`, got `str`"),
    ("seen-by: [compute]", "seen-by: [compte]", "Invalid enum value 'compte'"),
    ("runners: [tiny]", "runners: tiny", "Expected `array`, got `str`"),
    ("ref: v2", "ref: v2\n    sha: deadbeef", "'deadbeef' is not a full commit id of 40 hexadecimal digits"),
    ("ref: v2", "ref: v2\n    time-limit: 4h", "'4h' is not a time limit as Slurm writes it"),
    ("ref: v2", "ref: v2\n    preflight: 'no'", "Invalid enum value 'no'"),
    ("account: a", "account: a, time-limit: '1:2:3:4'", "'1:2:3:4' is not a time limit"),
    ("path: /, kind", "path: x, kind", "'x' is not absolute"),
    ("path: /other", "path: {a: b}", "Expected `str | array`, got `object`"),
    ("lanes:", EXCLUDED.replace("2026-08-31", "soon"), "'soon' is not a date as 2026-01-31"),
    ("lanes:", EXCLUDED.replace("reason: x, ", ""), "key 'reason' is missing"),
]


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_a_mistake_is_refused_by_schema_and_loader_alike(old: str, new: str, message: str) -> None:
    assert complaints(MINIMAL) == []
    text = MINIMAL.replace(old, new, 1)
    assert text != MINIMAL
    assert complaints(text)
    with pytest.raises(ConfigError) as error:
        RunnerFile(Document("tiny.yaml", text))
    assert message in error.value.message
    line = next(i for i, (a, b) in enumerate(zip(MINIMAL.split("\n"), text.split("\n"), strict=False), 1) if a != b)
    # The line of the mistake, or of what lacks the key.
    assert error.value.where in {f"tiny.yaml:{line}", f"tiny.yaml:{line + new.count(chr(10))}", "tiny.yaml:1"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lanes:", EXCLUDED),
        ("lanes:", EXCLUDED.replace("2026-08-31", "'2026-08-31'")),
        ("ref: v2", f"ref: v2\n    sha: {'0a' * 20}\n    time-limit: 2-00:00:00"),
        ("account: a", "account: a, time-limit: '90'"),
        ("prefix: minimaxm3,", 'prefix: ["mini*", "!minimaxm2"],'),
    ],
)
def test_what_is_right_is_taken_by_both(old: str, new: str) -> None:
    text = MINIMAL.replace(old, new, 1)
    assert text != MINIMAL and complaints(text) == []
    RunnerFile(Document("tiny.yaml", text))


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("kind: nodelocal", "did you mean 'node-local'?"),
        ("kind: zzz", "one of: local, lustre, nfs, node-local"),
    ],
)
def test_a_misspelt_word_gets_the_nearest_or_all(wrong: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        RunnerFile(Document("tiny.yaml", MINIMAL.replace("kind: node-local", wrong)))
    assert error.value.hint == hint
