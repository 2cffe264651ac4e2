"""`answer`: answers a file of questions."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import click

from qabuild.cli.console import Console
from qabuild.cli.options import column_option, common, native_option, signer_options, unverified_option
from qabuild.errors import BadTarget, UntrustedInput


@click.command()
@click.argument("artifact")
@click.argument("questions", type=click.Path(allow_dash=True))
@click.option("-o", "--output", default="-", show_default=True, help="File for the answers; its ending is the format.")
@column_option
@click.option("--revision", help="Branch, tag or commit of an artifact on the Hub.")
@click.option("--digest", metavar="SHA256", help="Required SHA-256 of the manifest.")
@click.option("--top-k", type=click.IntRange(1), default=1, show_default=True, help="Number of answers per question.")
@click.option("--no-answer/--always-answer", default=None, help="Allow the empty answer, as in SQuAD v2.0, or do not.")
@click.option("--max-question-len", type=click.IntRange(1), help="Tokens of a question that are read.")
@click.option("--max-seq-len", type=click.IntRange(1), help="Tokens of a window.")
@click.option("--doc-stride", type=click.IntRange(0), help="Tokens of the context that two windows share.")
@click.option("--max-answer-len", type=click.IntRange(1), help="Tokens of an answer, at most.")
@click.option("--align-to-words/--no-align-to-words", default=None, help="Let answers begin and end with a word.")
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
    no_answer: bool | None,
    max_question_len: int | None,
    max_seq_len: int | None,
    doc_stride: int | None,
    max_answer_len: int | None,
    align_to_words: bool | None,
    signer: Any,
    allow_native: bool,
    allow_unverified: bool,
    console: Console,
) -> None:
    """Answer a file of QUESTIONS with ARTIFACT, a folder or a repository on the Hub (owner/name).

    QUESTIONS has an id, a question and a context a row: JSON Lines (.jsonl), JSON in SQuAD's layout or flat (.json),
    .csv, .tsv or .parquet, each also with .gz; "-" is JSON Lines from standard input. The ending of OUTPUT is one of
    these too, where .json means SQuAD's predictions. What the options leave open is as in the artifact's verification.
    Run again after an interruption, it resumes where it stopped. A row that cannot be answered is reported and does not
    end the run; the exit status is then 4. Refuses an artifact that did not pass its verification.
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
    model, tokenizer = load_model(opened, allow_native=native, allow_unverified=allow_unverified)
    pipeline = QuestionAnsweringPipeline(model, tokenizer, **opened.manifest.parameters)
    parameters = {
        "top_k": top_k,
        "handle_impossible_answer": no_answer,
        "max_question_len": max_question_len,
        "max_seq_len": max_seq_len,
        "doc_stride": doc_stride,
        "max_answer_len": max_answer_len,
        "align_to_words": align_to_words,
    }
    try:
        pipeline.check(**parameters)
    except ValueError as error:
        raise BadTarget(f"{artifact}: {error}", "lower --doc-stride, or choose another --max-seq-len") from None
    with damage_explained(opened.directory):
        summary = answer_file(
            pipeline,
            questions,
            output,
            columns=columns,
            answered_by=opened.digest,
            parameters=parameters,
            reporter=console,
        )
    counts = f"{summary.answered} answered, {summary.bad} without an answer, {summary.resumed} from an earlier run"
    console.say(f"{counts}, {summary.truncated} with a truncated question" if summary.truncated else counts)
    if console.json:
        console.result({"answers": output, "manifest": opened.digest, **asdict(summary)}, lambda: None)
    if summary.bad:
        sys.exit(UntrustedInput.exit_status)
