"""Measure the gain of distillation: a student trained alone and with a teacher, on the same examples and random seeds.

    python benchmarks/distillation.py TEACHER TRAIN DEV --questions 8000 --layers 0,2,5 --seeds 0,1 --output FOLDER

TEACHER is a checkpoint, TRAIN and DEV are SQuAD files. The student starts from some of the teacher's layers.
Writes a target for each training into FOLDER, runs the trainings (cached results are reused), and prints EM and F1 on
all questions of DEV. An interrupted run resumes. To compile a result:

    qabuild FOLDER/distilled-0.toml --set backend.name=onnxruntime --set backend.level=2
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import qabuild
from qabuild.cli.console import Console, table
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.qa import data, squad_metric
from qabuild.qa.ask import answerer
from qabuild.qa.data import Question

TARGET = """\
description = "{description}"

[checkpoint]
model = "{teacher}"

[train]
dataset = "./examples-{questions}.json"
layers = [{layers}]
epochs = {epochs}
learning_rate = {learning_rate}
dropout = {dropout}
seed = {seed}
save_steps = 20
gradient_accumulation_steps = {parts}

{distill}
[backend]
name = "eager"

[verify]
dataset = "{dev}"
"""


def write_examples(questions: Sequence[Question], path: Path) -> None:
    """The questions as a file in SQuAD's layout."""
    paragraphs = [
        {
            "context": question.context,
            "qas": [
                {
                    "id": question.id,
                    "question": question.question,
                    "answers": [
                        {"text": text, "answer_start": start}
                        for text, start in zip(question.answers, question.answer_starts, strict=True)
                    ],
                }
            ],
        }
        for question in questions
    ]
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}, ensure_ascii=False), encoding="utf-8")
    os.replace(partial, path)


def write_target(arguments: argparse.Namespace, seed: int, *, distilled: bool) -> Path:
    path = Path(arguments.output, f"{'distilled' if distilled else 'alone'}-{seed}.toml")
    text = TARGET.format(
        description=f"{arguments.questions} questions, seed {seed}",
        teacher=arguments.teacher.resolve(),
        questions=arguments.questions,
        layers=arguments.layers,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        dropout=arguments.dropout,
        seed=seed,
        parts=arguments.parts,
        distill=f'[distill]\nteacher.model = "{arguments.teacher.resolve()}"\n' if distilled else "",
        dev=arguments.dev.resolve(),
    )
    path.write_text(text, encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "train", "dev"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--questions", type=int, default=8000)
    parser.add_argument("--layers", default="0,2,5")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--parts", type=int, default=1, help="gradient accumulation steps per batch")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--only", choices=("alone", "distilled"))
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    examples = arguments.output / f"examples-{arguments.questions}.json"
    if not examples.exists():
        write_examples(
            data.load(data.DatasetRef(arguments.train.resolve(), samples=arguments.questions)).questions, examples
        )
    dev = data.load(data.DatasetRef(arguments.dev.resolve())).questions
    rows: list[list[str]] = []
    for seed in map(int, arguments.seeds.split(",")):
        for distilled in (False, True):
            if arguments.only == ("alone" if distilled else "distilled"):
                continue
            target = write_target(arguments, seed, distilled=distilled)
            checkpoint = qabuild.train(target, reporter=Console())
            ask = answerer(load_model(checkpoint), load_tokenizer(checkpoint.directory), handle_impossible_answer=False)
            scores = squad_metric.score(dict(ask(dev).answers), {question.id: question.answers for question in dev})
            rows.append([target.stem, f"{scores.exact_match:.2f}", f"{scores.f1:.2f}"])
            print(f"{target.stem}: EM {scores.exact_match:.2f}, F1 {scores.f1:.2f}", flush=True)
    print(f"{arguments.questions} questions of {arguments.train.name}, {len(dev)} of {arguments.dev.name}")
    table(["student and seed", "EM", "F1"], rows)


if __name__ == "__main__":
    main()
