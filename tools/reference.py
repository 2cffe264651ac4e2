"""Generate docs/reference/ from the package.

python tools/reference.py            writes the pages, and the table of backends in README.md
python tools/reference.py --check    exits with status 1 if a page is out of date
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import html
import importlib
import inspect
import json
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import click

import qabuild
from qabuild import errors
from qabuild.cli import cli

ROOT = Path(__file__).resolve().parents[1]
GENERATED = "<!-- Written by tools/reference.py; do not edit. -->"


# --- backends ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """What a backend module states."""

    description: str
    extras: tuple[str, ...]
    """The extras of qabuild that install its packages; one is enough."""
    dtypes: Mapping[str, tuple[str, ...]]
    """By device, the dtypes that its default options support."""


def backends() -> tuple[dict[str, Backend], str]:
    """Every backend by name, and the table of supported architectures."""
    from qabuild.models import support
    from qabuild.models.backends import BACKENDS, backend
    from qabuild.models.runtime import Runtime

    def accepts(options: Any, device: str, dtype: str) -> bool:
        try:
            support.check({}, options, Runtime.model_validate({"device": device, "dtype": dtype}))
        except errors.BadTarget:
            return False
        return True

    described = {}
    for name in BACKENDS:
        module = backend(name)
        by_device = {
            device: tuple(
                dtype for dtype in ("fp32", "bf16", "fp16", "int8") if accepts(module.Options(), device, dtype)
            )
            for device in ("cpu", "cuda")
        }
        described[name] = Backend(
            description=module.Options.model_fields["name"].description or "",
            extras=module.EXTRAS,
            dtypes={device: dtypes for device, dtypes in by_device.items() if dtypes},
        )
    return described, support.markdown()


def table_of_backends() -> str:
    rows = [
        (f"`{name}`", entry.description, "; ".join(f"{device}: {', '.join(d)}" for device, d in entry.dtypes.items()))
        for name, entry in backends()[0].items()
    ]
    return table(("backend", "what it builds", "device and dtype"), rows)


def page_of_backends() -> str:
    described, architectures = backends()
    extras = [
        (f"`{name}`", " or ".join(f"`pip install '.[{extra}]'`" for extra in entry.extras) or "nothing further")
        for name, entry in described.items()
    ]
    return f"""\
# Backends

{table_of_backends()}

Any other dtype is refused before any work, with the reason. Some options allow more: see
[`[backend]`](targets.md#backend).

## Packages

What each backend needs besides qabuild's own dependencies:

{table(("backend", "install"), extras)}

## Architectures

The encoders that each backend supports. Before any work, `plan` and `build` refuse the combinations marked `no`, with
the reason. The tests build every cell and compare its logits with those of the checkpoint in PyTorch.

<!-- architectures -->

{architectures}

<!-- /architectures -->

## DeepSpeed's kernels

DeepSpeed's injected kernels (`backend.replace_with_kernel_inject`) are for `bert` and `roberta`, on a GPU. DeepSpeed
compiles them with nvcc, of the CUDA toolkit that torch was built with, when an artifact is first loaded.
"""


# --- targets ----------------------------------------------------------------------------------------------------------


def page_of_targets() -> str:
    run = subprocess.run([sys.executable, "-m", "qabuild", "schema"], capture_output=True, text=True, check=True)
    schema = json.loads(run.stdout)
    return f"""\
# Target keys

Every table and key of a [target](../concepts/targets.md), from the JSON Schema that `qabuild schema` prints. A key
without a default is optional unless marked as required.

{"".join(sections_of_table(schema, schema, "")).strip()}
"""


def sections_of_table(schema: Any, model: Any, name: str) -> Iterator[str]:
    """The keys of a target's table, then the tables nested in it."""
    rows, nested = [], []
    for key, value in model["properties"].items():
        if "discriminator" in value:
            nested.append((key, value))
        elif (inner := nested_table(schema, value)) is not None:
            nested.append((key, {**inner, "description": value.get("description") or inner["description"]}))
        else:
            rows.append(row_of_key(key, value, key in model.get("required", ())))
    if not name:
        yield f"## Top level\n\n{table(('key', 'type', 'default', 'meaning'), rows)}\n\n"
    else:
        meaning = model.get("description", "")
        yield f"## `[{name}]`\n\n{sentence(meaning)}\n\n{table(('key', 'type', 'default', 'meaning'), rows)}\n\n"
    for key, value in nested:
        path = f"{name}.{key}".strip(".")
        if "discriminator" in value:
            yield sections_of_backend(schema, value, path)
        else:
            yield from sections_of_table(schema, value, path)


def sections_of_backend(schema: Any, value: Any, path: str) -> str:
    """One table whose keys depend on its `name`."""
    options = {name: definition(schema, ref) for name, ref in value["discriminator"]["mapping"].items()}
    names = [definition(schema, member["$ref"])["properties"]["name"]["const"] for member in value["oneOf"]]
    one_of = ", ".join(f"`{name}`" for name in names)
    text = f"## `[{path}]`\n\nCompiles and runs the model. `name` is required; the other keys depend on it.\n\n"
    text += table(("key", "type", "default", "meaning"), [("`name`", one_of, "required", "the backend")]) + "\n\n"
    for name in names:
        rows = [row_of_key(key, option, False) for key, option in options[name]["properties"].items() if key != "name"]
        text += f"### `{name}`\n\n{sentence(options[name]['description'])}\n\n"
        text += table(("key", "type", "default", "meaning"), rows) + "\n\n" if rows else ""
    return text


def definition(schema: Any, ref: str) -> Any:
    return schema["$defs"][ref.rsplit("/", 1)[1]]


def nested_table(schema: Any, value: Any) -> Any:
    """The table that a property refers to, or None if it is a plain key."""
    for member in (value, *value.get("anyOf", ())):
        if "$ref" in member and "properties" in (table := definition(schema, member["$ref"])):
            return table
    return None


def row_of_key(key: str, value: Any, required: bool) -> tuple[str, str, str, str]:
    default = value.get("default")
    shown = "required" if required else "" if default in (None, "") else f"`{json.dumps(default)}`"
    return f"`{key}`", type_of(value), shown, value.get("description", "")


def type_of(value: Any) -> str:
    """A JSON Schema type in words, with its bounds."""
    if "anyOf" in value:
        return " or ".join(type_of(member) for member in value["anyOf"] if member.get("type") != "null")
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{json.dumps(member)}`" for member in value["enum"])
    if value.get("type") == "array":
        items = value.get("prefixItems")
        return f"{len(items)} of {type_of(items[0])}" if items else f"list of {type_of(value['items'])}"
    return ", ".join([value.get("type", "any"), *bounds_of(value)])


def bounds_of(value: Any) -> Iterator[str]:
    if "minimum" in value and "maximum" in value:
        yield f"{value['minimum']} to {value['maximum']}"
    else:
        signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
        yield from (f"{sign} {value[key]}" for key, sign in signs.items() if key in value)
    if value.get("pattern") == "^[0-9a-f]{64}$":
        yield "64 hex digits"


# --- commands ---------------------------------------------------------------------------------------------------------


def page_of_commands() -> str:
    commands = dict(commands_of(cli, "qabuild"))
    options = {name: options_of(command) for name, command in commands.items()}
    common = [option for option in options["qabuild build"] if all(option in other for other in options.values())]
    summary = [
        (f"[`{name}`](#{name.replace(' ', '-')})", command.get_short_help_str(200))
        for name, command in commands.items()
    ]
    sections = "\n\n".join(
        section_of_command(name, command, [option for option in options[name] if option not in common])
        for name, command in commands.items()
    )
    return f"""\
# Commands

`qabuild TARGET...` is short for `qabuild build TARGET...`.

{table(("command", ""), summary)}

Every command has these options:

{table(("option", ""), common)}

Progress and remarks go to stderr, results to stdout. The document of `--json` states the same facts as the table; that
of `qabuild answer` is a summary, and the answers go to a file. [Exit statuses](statuses.md) are the same for all
commands.

For shell completion, put `eval "$(_QABUILD_COMPLETE=bash_source qabuild)"` into `~/.bashrc`; `zsh_source` and
`fish_source` are for other shells.

{sections}
"""


def commands_of(group: click.Group, prefix: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def options_of(command: click.Command) -> list[tuple[str, str]]:
    context = click.Context(command, parent=click.Context(cli, **cli.context_settings))
    options = [parameter for parameter in command.get_params(context) if isinstance(parameter, click.Option)]
    records = [record for option in options if (record := option.get_help_record(context))]
    return [(code_cell(names), text) for names, text in records]


def section_of_command(name: str, command: click.Command, options: list[tuple[str, str]]) -> str:
    usage = " ".join([name, *command.collect_usage_pieces(click.Context(command))])
    parts = [f"## {name}", f"    {usage}", inspect.cleandoc(command.help or "").replace("\b\n", "")]
    return "\n\n".join([*parts, table(("option", ""), options)] if options else parts)


# --- exit statuses ----------------------------------------------------------------------------------------------------


def page_of_statuses() -> str:
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.QABuildError)  # in the order of the file
    ]
    rows = [("0", "", "Success.")]
    rows += sorted(
        (str(error.exit_status), f"[`{error.__name__}`](python-api.md#{error.__name__.lower()})", first_line(error))
        for error in classes
    )
    rows.append((str(errors.INTERRUPTED), "", "Interrupted, as by Ctrl-C."))
    rows.append((str(128 + signal.SIGTERM), "", "Terminated by SIGTERM."))
    return f"""\
# Exit statuses

{table(("exit status", "Python exception", "meaning"), rows)}

An error is one message and a hint on stderr; `-v` adds the traceback. A usage error counts as a bad target. Any other
exception is a bug in qabuild: it prints its traceback and exits with {errors.QABuildError.exit_status}.
"""


# --- Python API -------------------------------------------------------------------------------------------------------


TYPES = (
    "artifact.evidence.Gate",
    "artifact.evidence.Measurement",
    "builder.plan.PlanStep",
    "builder.store.local.Store",
    "evaluation.compare.result.Failure",
    "evaluation.compare.result.Measured",
    "models.checkpoint.resolve.Checkpoint",
    "system.reporter.Reporter",
)
"""Types of what the functions take and return, which have no name in `qabuild` itself."""


def page_of_api() -> str:
    public = {name: getattr(qabuild, name) for name in qabuild.__all__}
    functions = [name for name, value in public.items() if inspect.isroutine(value)]
    exceptions = [name for name, value in public.items() if inspect.isclass(value) and issubclass(value, Exception)]
    classes = [name for name in public if name not in {*functions, *exceptions}]
    exceptions.sort(key=lambda name: (len(public[name].__mro__), public[name].exit_status))
    groups = [("Functions", functions), ("Classes", classes), ("Exceptions", exceptions)]
    contents = [(title, ", ".join(link(name, public[name]) for name in names)) for title, names in groups]
    sections = [
        f"## {title}\n\n" + "\n\n".join(section_of_name(name, public[name]) for name in names)
        for title, names in groups
    ]
    sections.append("## Other types\n\n" + "\n\n".join(map(section_of_type, TYPES)))
    return f"""\
# Python API

The names of `qabuild.__all__`. `import qabuild` imports nothing heavy; each function imports what it needs when it is
called.

{table(("kind", "names"), contents)}

Types in signatures that are not among them stand under [other types](#other-types). Every argument that cannot be used
raises [`BadTarget`](#badtarget), which names it.

{(chr(10) * 2).join(sections)}
"""


def heading(name: str, value: Any) -> str:
    """`class Plan` and `plan`: a class and a function of one name need headings, and so anchors, of their own."""
    return f"class {name}" if inspect.isclass(value) and not issubclass(value, Exception) else name


def link(name: str, value: Any) -> str:
    return f"[`{name}`](#{heading(name, value).lower().replace(' ', '-')})"


def section_of_name(name: str, value: Any) -> str:
    parts = [f"### {heading(name, value)}"]
    if inspect.isroutine(value):
        parts += [code(signature(name, value)), doc(value)]
    elif issubclass(value, Exception):
        parts += [f"Base: `{value.__base__.__name__}`. Exit status {value.exit_status}.", doc(value)]
    elif hasattr(value, "model_json_schema"):
        parts += [doc(value), "Its fields are the tables and keys of [a target](targets.md).", *members(value, ())]
    elif dataclasses.is_dataclass(value) and isinstance(value, type):
        fields = [(code_cell(field.name), code_cell(annotation(field.type))) for field in dataclasses.fields(value)]
        parts += [
            doc(value),
            table(("field", "type"), fields),
            *members(value, {field.name for field in dataclasses.fields(value)}),
        ]
    else:
        parts += [code(signature(name, value)), doc(value), *members(value, ())]
    return "\n\n".join(part for part in parts if part)


def section_of_type(path: str) -> str:
    """Fields of a dataclass, methods of a protocol, or how the object is made."""
    module, _, name = path.rpartition(".")
    value = getattr(importlib.import_module(f"qabuild.{module}"), name)
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        rows = [table(("field", "type"), [(code_cell(f.name), code_cell(annotation(f.type))) for f in fields])]
    else:
        rows = members(value, ()) if inspect.isabstract(value) or value.__bases__ == (Protocol,) else []
        rows = rows or [code(signature(name, value))]
    return "\n\n".join([f"### class {name}", f"`qabuild.{path}`", doc(value), *rows])


def members(owner: type, known: Any) -> list[str]:
    """A table of the documented properties and methods that the class itself defines."""
    rows = []
    for name, value in vars(owner).items():
        if name.startswith("_") or name in known or name.startswith("model_"):
            continue
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if isinstance(function, property) and inspect.getdoc(function):
            rows.append((f"`{name}`", first_line(function)))
        elif inspect.isfunction(function) and inspect.getdoc(function):
            rows.append((code_cell(f"{name}{short_signature(function)}"), first_line(function)))
    return [table(("member", ""), rows)] if rows else []


def signature(name: str, value: Any) -> str:
    """The signature with one parameter per line, as the formatter writes it."""
    signed = inspect.signature(value)
    lines, keyword_only = [], False
    for parameter in signed.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            lines.append("*")
        lines.append(shown_parameter(parameter))
    returns = "" if inspect.isclass(value) else f" -> {annotation(signed.return_annotation)}"
    return f"{name}(\n" + "".join(f"    {line},\n" for line in lines) + f"){returns}"


def short_signature(function: Any) -> str:
    signed = inspect.signature(function)
    parameters = [
        shown_parameter(parameter) for parameter in signed.parameters.values() if parameter.name not in ("self", "cls")
    ]
    return f"({', '.join(parameters)}) -> {annotation(signed.return_annotation)}"


def shown_parameter(parameter: inspect.Parameter) -> str:
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
    text = f"{stars}{parameter.name}"
    if parameter.annotation is not parameter.empty:
        text += f": {annotation(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        shown = repr(parameter.default)
        shown = f"{type(parameter.default).__name__}()" if " object at 0x" in shown else shown.replace("'", '"')
        text += f" = {shown}"
    return text


def annotation(value: Any) -> str:
    return value if isinstance(value, str) else inspect.formatannotation(value)


# --- Markdown ---------------------------------------------------------------------------------------------------------


def table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("".join(f"| {cell} " if cell else "| " for cell in map(one_line, line)) + "|" for line in lines)


def code_cell(text: str) -> str:
    """Code in a table cell. GitHub and Python-Markdown disagree on an escaped bar in backquotes; HTML works in both."""
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def one_line(text: str) -> str:
    return " ".join(text.split())


def code(text: str) -> str:
    return f"```py\n{text}\n```"


def doc(value: Any) -> str:
    return textwrap.dedent(inspect.getdoc(value) or "").strip()


def first_line(value: Any) -> str:
    return one_line((inspect.getdoc(value) or "").split("\n\n")[0])


def sentence(text: str) -> str:
    text = one_line(text)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


# --- pages ------------------------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Every generated file, including README.md with its table of backends."""
    reference = {
        "targets": page_of_targets,
        "commands": page_of_commands,
        "statuses": page_of_statuses,
        "python-api": page_of_api,
        "backends": page_of_backends,
    }
    written = {
        ROOT / "docs" / "reference" / f"{name}.md": f"{GENERATED}\n\n{page()}" for name, page in reference.items()
    }
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    part = f"<!-- backends -->\n\n{table_of_backends()}\n\n<!-- /backends -->"
    written[ROOT / "README.md"] = re.sub(r"<!-- backends -->.*<!-- /backends -->", lambda _: part, readme, flags=re.S)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with status 1 if a page is stale")
    check = parser.parse_args().check
    stale = 0
    for path, text in pages().items():
        committed = path.read_text(encoding="utf-8") if path.exists() else ""
        if committed == text:
            continue
        stale += 1
        name = str(path.relative_to(ROOT))
        if check:
            sys.stdout.writelines(
                difflib.unified_diff(committed.splitlines(True), text.splitlines(True), name, "the package says", n=0)
            )
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    if check and stale:
        print("out of date; run: python tools/reference.py", file=sys.stderr)
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
