"""transformers' own ("stock") pipeline, the baseline of the benchmarks, in a process and an environment of its own.

    python benchmarks/stock.py --make-environment [FOLDER]

makes a virtual environment of transformers 4.57, the last line that has a question-answering pipeline, with optimum,
optimum-intel and FastAPI, from constraints/transformers-4.57.txt. The cache folder remembers where it is; without the
option, the script prints its interpreter. Benchmarks run the stock pipeline there, or in the environment that they are
given as --environment FOLDER, and their own pipelines in the environment that runs them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from qabuild.errors import MissingEnvironment
from qabuild.qa.ask import Answered
from qabuild.qa.data import Question
from qabuild.system import user_folders
from qabuild.system.process import Child

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints" / "transformers-4.57.txt"
PACKAGES = ("torch", "transformers", "optimum[onnxruntime]", "optimum-intel[openvino]==1.27.0", "fastapi", "uvicorn")
REMEDY = "`python benchmarks/stock.py --make-environment` makes one; --environment names another"

Example = Mapping[str, str]
"""`question` and `context`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make-environment", type=Path, nargs="?", const=default_folder(), metavar="FOLDER")
    folder = parser.parse_args().make_environment
    if folder is None:
        print(python())
    else:
        make_environment(folder)


def add_environment_option(parser: argparse.ArgumentParser) -> None:
    """Add --environment, whose value `Stock` takes."""
    parser.add_argument(
        "--environment", type=Path, metavar="FOLDER", help="of transformers 4.57, if not that of stock.py"
    )


def make_environment(folder: Path) -> None:
    """Make the environment in `folder` and remember it. Raises CalledProcessError if pip fails."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", "-c", CONSTRAINTS, *PACKAGES], check=True)
    remember(folder)


def default_folder() -> Path:
    return user_folders.cache() / "transformers-4.57"


def remember(folder: Path) -> None:
    """Have benchmarks use the environment in `folder` from now on."""
    note = _note()
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(str(folder.absolute()), encoding="utf-8")


def python(environment: Path | None = None) -> Path:
    """The interpreter of `environment`, or of the remembered one. Raises MissingEnvironment if there is none."""
    note = _note()
    if environment is None and not note.is_file():
        raise MissingEnvironment("the stock pipeline needs an environment of transformers 4.57", REMEDY)
    executable = (environment or Path(note.read_text(encoding="utf-8"))) / "bin" / "python"
    if not executable.is_file():
        raise MissingEnvironment(f"{executable} does not exist", REMEDY)
    return executable


def _note() -> Path:
    """The file that names the remembered environment."""
    return user_folders.cache() / "stock-environment.txt"


class Stock:
    """The stock pipeline over a model, in a process of its own; a call answers questions, as an `Ask` does.

    `checkpoint` is a folder or Hub id, or the folder of an artifact that optimum or optimum-intel can load; `model` a
    name in `stock_worker.MODELS`; `clock` the function of `time` that measures the worker's seconds. The process starts
    with the threads and processor affinity that this one has then. It waits for its turns without using a processor.
    """

    def __init__(
        self,
        checkpoint: Path | str,
        model: str = "eager",
        *,
        environment: Path | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 8,
        squad_v2: bool = False,
        calibration: Sequence[Question] = (),
        clock: str = "perf_counter",
    ) -> None:
        self._clock = clock
        self._child = Child(
            "stock_worker",
            f"the stock pipeline ({model})",
            environment={"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT)])},
            python=str(python(environment)),
        )
        opening = {
            "checkpoint": str(checkpoint),
            "model": model,
            "device": device,
            "dtype": dtype,
            "batch_size": batch_size,
            "squad_v2": squad_v2,
            "calibration": [example(question) for question in calibration],
        }
        try:
            self._child.ask(opening)
        except BaseException:
            self._child.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()

    def __call__(self, questions: Sequence[Question]) -> Answered:
        answers, seconds = self.answer([example(question) for question in questions])
        ids = [question.id for question in questions]
        return Answered(answers=dict(zip(ids, answers, strict=True)), seconds=seconds)

    def answer(self, examples: Sequence[Example]) -> tuple[list[str], float]:
        """The answer to each example, and the seconds."""
        record = self._child.ask({"questions": examples, "clock": self._clock})
        return record["answers"], record["seconds"]

    def search(
        self, examples: Sequence[Example], cut: Mapping[str, Any], searches: Sequence[Mapping[str, Any]]
    ) -> tuple[list[list[Any]], int]:
        """The results of each search for each example, on the logits of the same windows; the number of windows.

        `cut` holds the pipeline's parameters of the windows, a search those of the answers.
        """
        record = self._child.ask({"questions": examples, "cut": cut, "searches": searches})
        return record["results"], record["windows"]


def example(question: Question) -> Example:
    return {"question": question.question, "context": question.context}


if __name__ == "__main__":
    main()
