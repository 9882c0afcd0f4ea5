"""The site's reference pages, made of the code that they describe; a hook of mkdocs, which calls `on_files`.

Nothing here is committed as text, so that no page can be older than what it tells about.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import msgspec  # noqa: E402

from launcher.check.report import RULES  # noqa: E402
from launcher.cli.arguments import parser  # noqa: E402
from launcher.core import errors  # noqa: E402
from launcher.result.contradictions import refusals  # noqa: E402
from launcher.runner.json_schema import json_schema  # noqa: E402


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: the files of the site, with the generated ones among them."""
    from mkdocs.structure.files import File

    for path, make in PAGES.items():
        files.append(File.generated(config, path, content="\n".join(make()) + "\n"))
    return files


def commands() -> Iterator[str]:
    """Every command with its usage, what it says of itself, and its flags."""
    yield "# Commands"
    yield ""
    yield "`launcher COMMAND --help` says the same in a terminal. Exit codes are [a page of their own](exit-codes.md)."
    top = parser()
    top.format_help()
    for name, one in (("Every command", top), *_commands(top)):
        yield f"\n## {name}\n"
        yield f"```text\n{one.description}\n```\n" if one is top else f"{one.description or ''}\n"
        examples = (one.epilog or "").partition("\n\n")[0].strip()  # after it: which flags every command has
        yield f"```text\n{one.format_usage().strip()}\n{examples}\n```\n"
        told = [
            action
            for action in one._actions
            if action.help != argparse.SUPPRESS
            and action.dest != "help"
            and not isinstance(action, argparse._SubParsersAction)
        ]
        if told:
            yield "| argument | |\n|---|---|"
        for action in told:
            yield f"| {_cell(_spelled(action))} | {_cell(_help(one, action), code=False)} |"


def _commands(top: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            listed = {choice.dest for choice in action._choices_actions}
            for name, one in action.choices.items():
                if name in listed:  # what has no help is not for people
                    one.format_help()  # its arguments are added when they are asked for
                    verbs = list(_commands(one))
                    full = one.prog.removeprefix("launcher ")
                    yield from verbs or [(full, one)]


def _spelled(action: argparse.Action) -> str:
    value = action.metavar or ("" if action.nargs == 0 else "{" + ",".join(map(str, action.choices or ())) + "}")
    value = " ".join(value) if isinstance(value, tuple) else value
    return f"{', '.join(action.option_strings)} {'' if action.nargs == 0 else value}".strip().replace("{}", action.dest)


def _help(one: argparse.ArgumentParser, action: argparse.Action) -> str:
    return one._get_formatter()._expand_help(action) if action.help else ""


def exit_codes() -> Iterator[str]:
    """The tree of errors: code, layer, meaning."""
    yield "# Exit codes\n"
    yield "0 means that the job COMPLETED with 0:0 and every result that was asked for is there and is believed. All"
    yield "else has the code of the layer at fault. Several runs end with the code of the first that failed, in the"
    yield "order of the plan.\n"
    yield "| code | layer | meaning |\n|---|---|---|"
    tree = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.LauncherError)]
    for error in sorted(tree, key=lambda one: one.exit_code):
        yield f"| {error.exit_code} | {error.layer} | {_cell(_sentences(error), code=False)} |"
    yield "| 129, 143 | cancelled | By SIGHUP, by SIGTERM; the jobs were cancelled first. |"


def runner_file() -> Iterator[str]:
    """Each key of a runner file, of the schema that editors use."""
    schema = json_schema()
    yield "# Runner files\n"
    yield "One file of `runners/` describes one cluster: [a new cluster](../guides/new-cluster.md) tells how."
    yield "`launcher runner schema` prints the JSON Schema behind this page, by which an editor completes and checks.\n"
    yield "## The file\n"
    yield from _keys(schema)
    for name, definition in sorted(schema["$defs"].items()):
        yield f"\n## {name}\n\n{definition.get('description', '')}\n"
        yield from _keys(definition)


def _keys(definition: Mapping[str, Any]) -> Iterator[str]:
    yield "| key | type | |\n|---|---|---|"
    required = definition.get("required", ())
    for key, said in definition.get("properties", {}).items():
        text = said.get("description", "")
        if "default" in said:
            text += f" Default: `{said['default']}`."
        elif key in required:
            text += " Required."
        yield f"| {_cell(key)} | {_type(said)} | {_cell(text.strip(), code=False)} |"


def _type(said: Mapping[str, Any]) -> str:
    if "$ref" in said:
        name = said["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in said:
        return " or ".join(_type(one) for one in said["anyOf"] if one.get("type") != "null")
    if "enum" in said:
        return " or ".join(f"`{one}`" for one in said["enum"] if one is not None)
    if said.get("type") == "array":
        return f"list of {_type(said['items'])}" if said.get("items") else "list"
    if said.get("type") == "object":
        more = said.get("additionalProperties")
        return f"map to {_type(more)}" if isinstance(more, Mapping) and more else "map"
    kind = said.get("type", "anything")
    return " or ".join(one for one in kind if one != "null") if isinstance(kind, list) else str(kind)


def matrix() -> Iterator[str]:
    """The types of a matrix file."""
    from launcher.benchmark import matrix_schema

    yield "# Matrix rows\n"
    yield "A matrix file has a key for each benchmark; `launcher matrix` shows what its rows expand to. Sizes are GPUs."
    yield from _structs(matrix_schema)


def sweep_events() -> Iterator[str]:
    """The types of a sweep's ledger."""
    from launcher.sweep import schema

    yield "# Sweeps and their events\n"
    yield "`sweeps/<id>/sweep.json` holds a `Sweep`, `events.jsonl` one event a line: `event` names its type."
    yield from _structs(schema)


def _structs(module: Any) -> Iterator[str]:
    for name, one in vars(module).items():
        if not (isinstance(one, type) and issubclass(one, msgspec.Struct) and one.__module__ == module.__name__):
            continue
        if name.startswith("_") or not one.__struct_fields__:
            continue
        yield f"\n## {one.__struct_config__.tag or name}\n\n{_sentences(one)}\n"
        yield "| key | type | default |\n|---|---|---|"
        for field in msgspec.structs.fields(one):
            said = next(
                inspect.get_annotations(base).get(field.name)
                for base in one.__mro__
                if field.name in base.__annotations__
            )
            default = (
                "required"
                if field.required
                else ""
                if field.default in (msgspec.NODEFAULT, msgspec.UNSET)
                else field.default
            )
            yield f"| {_cell(field.encode_name)} | {_cell(str(said))} | {_cell(str(default), code=False)} |"


def check_rules() -> Iterator[str]:
    """All rules of `launcher check`, worst first."""
    yield "# Check rules\n"
    yield "What `launcher check` can find. `launcher check --explain RULE` shows a rule's page in the terminal.\n"
    yield "| severity | rule | what is wrong |\n|---|---|---|"
    order = {"error": 0, "warning": 1, "note": 2}
    for one in sorted(RULES.values(), key=lambda one: (order.get(one.severity, 3), one.id)):
        yield f"| {one.severity} | [{one.id}](../rules/{one.id}.md) | {_cell(one.title, code=False)} |"


def result_checks() -> Iterator[str]:
    """What refuses a result."""
    yield "# Checks of results\n"
    yield "A result that one of these refuses is not published. `launcher report --explain RULE` shows the same.\n"
    for rule, said in refusals().items():
        yield f"## {rule}\n\n**{said.title}.** {_cell(said.text, code=False)}\n"


def _sentences(documented: object) -> str:
    """A docstring's text in one line, with this code's own names as code."""
    text = " ".join((inspect.getdoc(documented) or "").split())
    return re.sub(r"``(.+?)``|`(.+?)`", lambda m: f"`{m[1] or m[2]}`", text)


def _cell(text: str, code: bool = True) -> str:
    """Text that stands in a table's cell: nothing of it is markup."""
    text = " ".join(text.split())
    if code:
        return "`" + text.replace("|", "\\|").replace("`", "'") + "`" if text else ""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("{", "&#123;").replace("*", "\\*")


PAGES: Mapping[str, Callable[[], Iterator[str]]] = {
    "reference/commands.md": commands,
    "reference/exit-codes.md": exit_codes,
    "reference/runner-file.md": runner_file,
    "reference/matrix.md": matrix,
    "reference/sweep-events.md": sweep_events,
    "reference/check-rules.md": check_rules,
    "reference/result-checks.md": result_checks,
}
"""Every generated page, and what makes its lines."""
