"""`answer`: answers a file of questions."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import click

from qabuild.cli.console import Console
from qabuild.cli.options import column_option, common, native_option, signer_options, unverified_option
from qabuild.errors import UntrustedInput


@click.command()
@click.argument("artifact")
@click.argument("questions", type=click.Path(allow_dash=True))
@click.option("-o", "--output", default="-", show_default=True, help="File for the answers; its ending is the format.")
@column_option
@click.option("--revision", help="Branch, tag or commit of an artifact on the Hub.")
@click.option("--digest", metavar="SHA256", help="Required SHA-256 of the manifest.")
@click.option("--top-k", type=click.IntRange(1), default=1, show_default=True, help="Number of answers per question.")
@click.option("--no-answer", is_flag=True, help="Allow the empty answer, as in SQuAD v2.0.")
@signer_options
@native_option
@unverified_option
@common
def answer(
    artifact: str,
    questions: str,
    output: str,
    columns: dict[str, str],
    revision: str | None,
    digest: str | None,
    top_k: int,
    no_answer: bool,
    signer: Any,
    allow_native: bool,
    allow_unverified: bool,
    console: Console,
) -> None:
    """Answer a file of QUESTIONS with ARTIFACT, a folder or a repository on the Hub (owner/name).

    QUESTIONS has an id, a question and a context a row: JSON Lines (.jsonl), JSON in SQuAD's layout or flat (.json),
    .csv, .tsv or .parquet, each also with .gz; "-" is JSON Lines from standard input. The ending of OUTPUT is one of
    these too, where .json means SQuAD's predictions. Run again after an interruption, it resumes where it stopped. A
    row that cannot be answered is reported and does not end the run; the exit status is then 4.
    Refuses an artifact that did not pass its verification.
    """
    from qabuild.artifact.load import damage_explained, find, load_model
    from qabuild.artifact.validation import unverified
    from qabuild.qa.bulk import answer_file, require_formats, require_place
    from qabuild.qa.data.dataset_ref import columns_of
    from qabuild.qa.data.source import is_pipe
    from qabuild.qa.pipeline import QuestionAnsweringPipeline

    if console.json and is_pipe(output):
        raise click.UsageError("--json prints a summary on stdout, where the answers go: name a file with -o")
    columns_of(columns)
    require_formats(questions, output)
    require_place(questions, output)
    opened = find(artifact, revision=revision, digest=digest, key=signer, allow_unverified=allow_unverified)
    if allow_unverified and (reason := unverified(opened)):
        console.say(f"{reason}; loaded all the same")
    native = allow_native or signer is not None
    pipeline = QuestionAnsweringPipeline(*load_model(opened, allow_native=native, allow_unverified=allow_unverified))
    with damage_explained(opened.directory):
        summary = answer_file(
            pipeline,
            questions,
            output,
            columns=columns,
            answered_by=opened.digest,
            parameters={"top_k": top_k, "handle_impossible_answer": no_answer},
            reporter=console,
        )
    console.say(f"{summary.answered} answered, {summary.bad} without an answer, {summary.resumed} from an earlier run")
    if console.json:
        console.result({"answers": output, "manifest": opened.digest, **asdict(summary)}, lambda: None)
    if summary.bad:
        sys.exit(UntrustedInput.exit_status)
