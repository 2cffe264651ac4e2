"""How long a model takes to answer, by the widths of its layers: measured on this machine, in the artifact's backend.

Kurtic et al. 2023, "ZipLM: Inference-Aware Structured Pruning of Language Models", arXiv 2302.04089, choose widths by
such a table. Models take turns in rounds, and only ratios of the same round count, so that other work on the machine
disturbs little. The models are compiled and timed in a subprocess, as compilers set global state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from qabuild.models.backends import backend
from qabuild.models.calibration import Calibrated
from qabuild.models.pruning.latency_table import Latency
from qabuild.models.pruning.options import Prune
from qabuild.models.pruning.structure import Part, architecture, layers, require_unpruned
from qabuild.models.runtime import Runtime
from qabuild.qa.answer_options import Answer
from qabuild.qa.ask import Ask, answerer
from qabuild.system.frozen import Frozen
from qabuild.system.process import Tell, run_in_child, serve
from qabuild.system.reporter import Reporter

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint
    from qabuild.qa.data import Question

SHARES: Mapping[Part, tuple[float, ...]] = {"ffn": (1 / 32, 1 / 2), "heads": (0, 1 / 2)}
"""Of the units of each layer, in the models that are timed. Between them, times are as good as linear in the width."""
MULTIPLE: Mapping[Part, int] = {"ffn": 16, "heads": 1}
QUESTIONS = 32
"""That the models answer in each round."""
ROUNDS = 9


def measure_in_child(
    checkpoint: Checkpoint,
    options: Prune,
    backend_options: Frozen,
    runtime: Runtime,
    answer: Answer,
    directory: Path,
    *,
    pruned: Path | None = None,
    offline: bool,
    reporter: Reporter,
) -> Mapping[str, Any]:
    """The table of the checkpoint, `times` of `Latency`; or, of a `pruned` one, `time` relative to the checkpoint.

    `directory` holds what is compiled meanwhile. Raises what the backend raises.
    """
    request = {
        "checkpoint": checkpoint.to_dict(),
        "prune": options.model_dump(mode="json"),
        "backend": briefly(backend_options).model_dump(mode="json"),
        "runtime": runtime.model_dump(mode="json"),
        "answer": answer.model_dump(mode="json"),
        "pruned": pruned and str(pruned),
        "offline": offline,
    }
    total = 1 if pruned else sum(map(len, SHARES.values()))
    with TemporaryDirectory(dir=directory) as scratch, reporter.progress("latency", total) as advance:
        # What runtimes cache of models that are never seen again goes with them.
        environment = {"QABUILD_CACHE": scratch}
        return run_in_child(
            __name__, request, Path(scratch), "the measurement", lambda _: advance(1), environment=environment
        )


def briefly(options: Frozen) -> Frozen:
    """The options of a backend, calibrated on a few questions of the sample: the model is as fast, if less accurate."""
    if not isinstance(options, Calibrated):
        return options
    given = options.model_dump()
    kept = {name: value for name, value in given.items() if not name.startswith("calibration") and value is not None}
    kept.pop("accuracy_drop", None)
    return type(options).model_validate({**kept, "calibration": "sample", "calibration_samples": 8})


def _work(request: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
    from qabuild.models.checkpoint.resolve import Checkpoint, resolve
    from qabuild.qa import data

    checkpoint = Checkpoint.from_dict(request["checkpoint"])
    questions = data.load(Prune.model_validate(request["prune"]).data, offline=request["offline"]).questions[:QUESTIONS]
    options = backend(request["backend"]["name"]).Options.model_validate(request["backend"])
    unanswerable = any(not question.answers for question in questions)
    answer = Answer.model_validate(request["answer"]).parameters(unanswerable=unanswerable)
    runtime, directory = Runtime.model_validate(request["runtime"]), Path(request["directory"])
    bench = Bench(options, runtime, answer, questions, directory)
    with bench.compiled(checkpoint) as unpruned:
        if request["pruned"]:
            with bench.compiled(resolve(Path(request["pruned"]))) as other:
                tell({})
                return {"time": bench.relative(other, unpruned)}
        times: dict[Part, dict[int, float]] = {}
        for part, count in _counts(checkpoint).items():
            times[part] = {count: 1.0}
            for width in _narrower(part, count):
                with bench.narrowed(checkpoint, part, width) as other:
                    times[part][width] = bench.relative(other, unpruned)
                tell({})
    return {"times": asdict(Latency.measured(times))["times"]}


def _counts(checkpoint: Checkpoint) -> dict[Part, int]:
    """How many units the layers have of each part that can be pruned."""
    from qabuild.models.checkpoint.load import load_model

    every = layers(load_model(checkpoint))
    require_unpruned(checkpoint.name, every)
    parts = architecture(checkpoint.config, heads=False).parts
    return {part: max(layer.count(part) for layer in every) for part in parts}


def _narrower(part: Part, count: int) -> list[int]:
    """The smaller numbers of units that are timed."""
    multiple = MULTIPLE[part]
    widths = {max(1, round(share * count / multiple)) * multiple for share in SHARES[part]}
    return sorted(width for width in widths if width < count)


@dataclass(frozen=True)
class Bench:
    """Compiles models as an artifact is compiled, and times how they answer."""

    options: Any
    runtime: Runtime
    answer: Mapping[str, Any]
    """Parameters of the pipeline."""
    questions: Sequence[Question]
    directory: Path

    @contextmanager
    def compiled(self, checkpoint: Checkpoint) -> Iterator[Ask]:
        """The checkpoint's compiled model, which answers questions; its files go with the block."""
        from qabuild.models.checkpoint.load import load_tokenizer

        module = backend(self.options.name)
        with TemporaryDirectory(dir=self.directory) as folder:
            module.compile(checkpoint, self.options, self.runtime, Path(folder))
            model = module.load(Path(folder), self.options, self.runtime)
            ask = answerer(model, load_tokenizer(checkpoint.directory), **self.answer)
            ask(self.questions)  # runtimes choose and compile kernels for each shape
            yield ask

    @contextmanager
    def narrowed(self, checkpoint: Checkpoint, part: Part, width: int) -> Iterator[Ask]:
        """The same, with the first `width` units of each layer alone."""
        from qabuild.models.checkpoint.load import copy_tokenizer, load_model
        from qabuild.models.checkpoint.resolve import resolve

        model = load_model(checkpoint)
        for layer in layers(model):
            layer.zero(part, range(min(width, layer.count(part))))
        with TemporaryDirectory(dir=self.directory) as folder:
            model.save_pretrained(folder)
            copy_tokenizer(checkpoint, Path(folder))
            del model
            with self.compiled(resolve(Path(folder))) as ask:
                yield ask

    def relative(self, ask: Ask, unpruned: Ask) -> float:
        """The time that answering takes, relative to the unpruned model: the median of rounds in which both answer."""
        ratios = []
        for number in range(ROUNDS):
            # Who is first changes, so that neither profits from it.
            one, other = (ask, unpruned) if number % 2 else (unpruned, ask)
            first, second = one(self.questions).seconds, other(self.questions).seconds
            ratios.append(first / second if number % 2 else second / first)
        return median(ratios)


if __name__ == "__main__":
    serve(_work)
