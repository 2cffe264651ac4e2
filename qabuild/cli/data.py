"""`data`: examines and mends files of questions."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qabuild.cli.console import Console, table
from qabuild.cli.options import column_option, common
from qabuild.errors import BadTarget, UntrustedInput
from qabuild.system.units import count_of

SHOWN_EXAMPLES = 3


@click.group()
def data() -> None:
    """Examine and mend files of questions."""


@data.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--fix", "output", metavar="OUT", type=click.Path(path_type=Path), help="Write the mended questions.")
@column_option
@common
def check(file: Path, output: Path | None, columns: dict[str, str], console: Console) -> None:
    """Report what is wrong with the questions in FILE: .json, .jsonl, .csv, .tsv or .parquet.

    --fix writes the questions to OUT, a .json file in SQuAD's layout: it decodes text that is not UTF-8, corrects
    answer_start, merges rows that repeat a question and gives shared ids anew. What cannot be mended is left out. The
    exit status is 4 if something is wrong and was not mended.
    """
    from qabuild.qa.bulk.file import require_place
    from qabuild.qa.data import repair
    from qabuild.qa.data.dataset_ref import columns_of
    from qabuild.system import files

    if output is not None:
        if output.suffix != ".json":
            raise BadTarget(f"{output}: questions are written as SQuAD JSON", "name a .json file")
        require_place(str(file), str(output))
    found = repair.examine(file, columns_of(columns))
    if not found.questions:
        problem = f"{file}: there are no questions with answers in it"
        for kind, bad in found.problems.items():
            if kind.drops:
                raise UntrustedInput(f"{problem}: {kind.problem}: {_first(bad)}", kind.advice)
        raise UntrustedInput(problem, "write rows into it, or name another file")
    encoding = f", {found.encoding.shown}" if found.encoding else ""
    made = f"; {found.made_ids} have no id and get one from their texts" if found.made_ids else ""
    read = f"{count_of(len(found.questions), 'question')}, {found.unanswerable} of them unanswerable{made}"
    console.say(f"{file} ({found.format}{encoding}): {read}")
    rows = [
        [kind.problem, str(len(problems)), _first(problems), kind.remedy] for kind, problems in found.problems.items()
    ]
    if output is not None:
        files.write(output.resolve(), repair.document(found.questions))
    document = {
        "file": str(file),
        "format": found.format,
        "encoding": found.encoding and found.encoding.shown,
        "questions": len(found.questions),
        "unanswerable": found.unanswerable,
        "made_ids": found.made_ids,
        "problems": [
            {"problem": kind.problem, "count": len(problems), "first": problems[:SHOWN_EXAMPLES], "fix": kind.remedy}
            for kind, problems in found.problems.items()
        ],
        "written": output and str(output),
    }

    def show() -> None:
        if rows:
            table(["problem", "count", "first", "--fix"], rows)

    console.result(document, show)
    if output is not None:
        console.say(f"{output}: {count_of(len(found.questions), 'question')} written")
    elif not rows:
        console.say("nothing is wrong with it")
    if any(kind.drops or output is None for kind in found.problems):
        sys.exit(UntrustedInput.exit_status)


def _first(problems: list[str]) -> str:
    return "; ".join(problems[:SHOWN_EXAMPLES]) + ("; ..." if len(problems) > SHOWN_EXAMPLES else "")
