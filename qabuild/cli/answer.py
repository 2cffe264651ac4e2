"""`answer`: answers files of questions."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import asdict
from typing import Any

import click

from qabuild.cli.console import Console
from qabuild.cli.options import Finite, column_option, common, native_option, signer_options, unverified_option
from qabuild.errors import UntrustedInput, without_secrets


class _Shard(click.ParamType[tuple[int, int]]):
    """The number of a shard, from 0, and how many there are."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"(\d+)/(\d+)", str(value))
        if not match:
            self.fail(f"{value!r} is not of the form I/N, as in 0/4", param, ctx)
        return int(match[1]), int(match[2])


@click.command()
@click.argument("artifact")
@click.argument("questions", type=click.Path(allow_dash=True))
@click.option(
    "-o",
    "--output",
    default="-",
    show_default=True,
    help="File for the answers, whose ending is the format; or folder, as OUT/, for parts.",
)
@click.option("--format", "form", type=click.Choice(["jsonl", "csv", "tsv", "parquet"]), help="Format of the answers.")
@click.option("--part-rows", type=click.IntRange(1), help="Rows of a part of a Parquet file; 100,000 by default.")
@click.option("--shard", type=_Shard(), metavar="I/N", help="Make the parts whose number modulo N is I.")
@click.option("--engine", type=click.Choice(["ray"]), help="Make the parts with workers of this engine.")
@click.option("--address", help="Ray cluster, as HOST:PORT; by default RAY_ADDRESS, or Ray starts here.")
@click.option("--workers", type=click.IntRange(1), help="Number of workers; by default one a node, or one a GPU.")
@click.option("--gpus-per-worker", type=Finite(0), help="By default 1 if the artifact needs it.")
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
    form: Any,
    part_rows: int | None,
    shard: tuple[int, int] | None,
    engine: str | None,
    address: str | None,
    workers: int | None,
    gpus_per_worker: float | None,
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
    """Answer QUESTIONS with ARTIFACT, a folder or a repository on the Hub (owner/name).

    QUESTIONS has an id, a question and a context a row: JSON Lines (.jsonl), JSON in SQuAD's layout or flat (.json),
    .csv, .tsv or .parquet, each also with .gz; "-" is JSON Lines from standard input. The ending of OUTPUT is one of
    these too, without .gz, and .json means SQuAD's predictions. QUESTIONS can also be a folder or a glob, and OUTPUT a
    folder, which gets the answers in parts; both can be URLs, as in s3://bucket/questions/. With --engine ray, workers
    on the nodes of a cluster make the parts. What the options leave open is as in the artifact's verification. Run
    again after an interruption, it resumes where it stopped. A row that cannot be answered is reported and does not end
    the run; the exit status is then 4. Refuses an artifact that did not pass its verification.
    """
    from qabuild.artifact.artifact_ref import ArtifactRef
    from qabuild.artifact.load import damage_explained, find, load_pipeline, require_parameters
    from qabuild.artifact.validation import unverified
    from qabuild.qa.bulk import answer_dataset, answer_file
    from qabuild.qa.bulk.dataset import PART_ROWS, require_dataset
    from qabuild.qa.bulk.file import require_answerable
    from qabuild.qa.data.dataset_ref import columns_of
    from qabuild.qa.data.source import is_pipe
    from qabuild.system import storage

    in_parts = output.endswith("/") or os.path.isdir(storage.plain(output))
    if not in_parts and (shard or part_rows):
        raise click.UsageError("--shard and --part-rows need a folder for the answers: name one with -o, as OUT/")
    if not in_parts and engine:
        raise click.UsageError("--engine needs a folder for the answers: name one with -o, as OUT/")
    if not engine and (address or workers or gpus_per_worker is not None):
        raise click.UsageError("--address, --workers and --gpus-per-worker need --engine ray")
    if console.json and is_pipe(output) and not in_parts:
        raise click.UsageError("--json prints a summary on stdout, where the answers go: name a file with -o")
    columns_of(columns)
    if in_parts:
        require_dataset(questions, output, shard or (0, 1), form)
    else:
        require_answerable(questions, output, form)
    opened = find(artifact, revision=revision, digest=digest, key=signer, allow_unverified=allow_unverified)
    if allow_unverified and (reason := unverified(opened)):
        console.say(f"{reason}; loaded all the same")
    native = allow_native or signer is not None
    parameters = {
        "top_k": top_k,
        "handle_impossible_answer": no_answer,
        "max_question_len": max_question_len,
        "max_seq_len": max_seq_len,
        "doc_stride": doc_stride,
        "max_answer_len": max_answer_len,
        "align_to_words": align_to_words,
    }
    common_arguments: dict[str, Any] = {
        "answers_format": form,
        "columns": columns,
        "answered_by": opened.digest,
        "parameters": parameters,
        "reporter": console,
    }
    sizes: dict[str, Any] = {"part_rows": part_rows or PART_ROWS, "shard": shard or (0, 1)}
    if engine:
        from qabuild.artifact.ray_engine import engine_for

        engine_of_ray = engine_for(
            opened,
            ArtifactRef.to(opened, artifact, revision=revision, allow_native=native, allow_unverified=allow_unverified),
            address=address,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
        )
        summary = answer_dataset(engine_of_ray, questions, output, **sizes, **common_arguments)
    else:
        pipeline = load_pipeline(opened, allow_native=native, allow_unverified=allow_unverified)
        require_parameters(pipeline, parameters, artifact)
        with damage_explained(opened.directory):
            if in_parts:
                summary = answer_dataset(pipeline, questions, output, **sizes, **common_arguments)
            else:
                summary = answer_file(pipeline, questions, output, **common_arguments)
    counts = f"{summary.answered} answered, {summary.bad} without an answer, {summary.resumed} from an earlier run"
    console.say(f"{counts}, {summary.truncated} with a truncated question" if summary.truncated else counts)
    if console.json:
        console.result({"answers": without_secrets(output), "manifest": opened.digest, **asdict(summary)}, lambda: None)
    if summary.bad:
        sys.exit(UntrustedInput.exit_status)
