"""Compare the pipeline with transformers' own and with bare tokenisation, on real questions, in one run.

    python benchmarks/pipeline.py --checkpoint CHECKPOINT --data dev-v1.1.json

prints two tables of ratios: the pipelines alone, on one core, with a model that returns the same random logits for any
window; and end to end, with the checkpoint in fp32 on all available cores. --device cuda measures only end to end, in
fp16 on the GPU, and the share of time in which the GPU is idle. The stock pipeline has batch 8. The contestants take
turns in every round on the same questions; a ratio is the median of the rounds' ratios, with their range in brackets.
The stock pipeline runs in a process and an environment of its own: `python benchmarks/stock.py --make-environment`.
--only measures one of the two. --json FILE writes the seconds of every round, and the GPU's idle share, too.
Run nothing else on the machine: the first table holds CPU times, but another process on the same core slows those, too.

--differential N gives both pipelines the same logits, on N questions spread over the data (10570: all of SQuAD's
development set) and many parameters, and counts their differences by kind; an unknown kind is status 1.

--stream N answers N questions from a generator with the empty model, and prints the memory of the process. --long N
joins paragraphs of an article into documents, and scores N questions on them with both normalisations.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import random
import resource
import statistics
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if "cuda" not in sys.argv:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one core, for all contestants

import torch
from random_models import EmptyModel, HashingModel
from stock import Stock, add_environment_option
from tokenizers import Tokenizer
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, logging

from qabuild.models import sdpa_kernels
from qabuild.qa import squad_metric
from qabuild.qa.pipeline import QuestionAnsweringPipeline

Example = dict[str, Any]
Parameters = dict[str, Any]
Articles = list[list[dict[str, Any]]]
Measured = dict[str, Any]
"""`questions`, and the `seconds` of each contestant in each round."""
STOCK = "stock, batch 8"
Run = Callable[[list[Example]], float]
"""Answers the examples and returns the seconds."""


def main() -> None:
    arguments = parse()
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    articles = read(arguments.data)
    print(f"{processor()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}")
    if arguments.differential:
        with Stock(arguments.checkpoint, "hashing", environment=arguments.environment) as stock:
            sys.exit(1 if differential(stock, tokenizer, articles, arguments.differential)[UNKNOWN] else 0)
    elif arguments.stream:
        stream(tokenizer, articles, arguments.stream)
    elif arguments.long:
        long_documents(arguments.checkpoint, tokenizer, articles, arguments.long)
    else:
        on_gpu = arguments.device == "cuda"
        parts = {"alone": alone, "whole": end_to_end_on_gpu if on_gpu else end_to_end}
        chosen = [arguments.only] if arguments.only else ["whole"] if on_gpu else list(parts)
        measured = {name: parts[name](arguments, tokenizer, articles) for name in chosen}
        if arguments.json:
            arguments.json.write_text(json.dumps(measured), encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="a checkpoint's folder or Hub id")
    parser.add_argument("--data", type=Path, required=True, help="questions in SQuAD's JSON layout")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--questions", type=int, default=4000, help="for the pipelines alone")
    parser.add_argument("--whole-questions", type=int, default=400, help="end to end")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=("alone", "whole"), help="one of the two measurements")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write what was measured")
    parser.add_argument("--differential", type=int, metavar="N", help="compare both pipelines' answers on N questions")
    add_environment_option(parser)
    parser.add_argument("--stream", type=int, metavar="N", help="memory over a stream of N questions")
    parser.add_argument("--long", type=int, metavar="N", help="both normalisations on N questions of long documents")
    return parser.parse_args()


def read(path: Path) -> Articles:
    """The articles' paragraphs: `context` and `qas`."""
    return [article["paragraphs"] for article in json.loads(path.read_text(encoding="utf-8"))["data"]]


def draw(articles: Articles, count: int) -> list[Example]:
    """At least `count` questions: all questions of paragraphs drawn at random."""
    paragraphs = list(itertools.chain.from_iterable(articles))
    random.Random(0).shuffle(paragraphs)
    examples: list[Example] = []
    for paragraph in paragraphs:
        examples += [{"question": qa["question"], "context": paragraph["context"]} for qa in paragraph["qas"]]
        if len(examples) >= count:
            break
    return examples


def processor() -> str:
    """The CPU's name, and its relevant instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in values.get("flags", "").split()]
    family = f"family {values.get('cpu family')}, model {values.get('model')}"
    return f"{values.get('model name')} ({family}; {', '.join(flags)})"


def alone(arguments: argparse.Namespace, tokenizer: Any, articles: Articles) -> Measured:
    examples = draw(articles, arguments.questions)
    model = EmptyModel()
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)

    def ours() -> Run:
        pipeline = QuestionAnsweringPipeline(model, tokenizer)  # a new one has an empty tokenisation cache
        pipeline(examples[:1])
        return timed(pipeline, time.process_time)

    def tokenise() -> Run:
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        return timed(
            lambda batch: [
                backend.encode_batch(list(dict.fromkeys(example[key] for example in batch)), add_special_tokens=False)
                for key in ("question", "context")
            ],
            time.process_time,
        )

    with Stock(arguments.checkpoint, "empty", environment=arguments.environment, clock="process_time") as stock:
        contestants = {"qabuild": ours, STOCK: lambda: seconds_of(stock), "bare tokenisation": tokenise}
        seconds = race(contestants, examples, arguments.rounds)
    show("the pipeline alone, one core", seconds, len(examples))
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)
    return {"questions": len(examples), "seconds": seconds}


def end_to_end(arguments: argparse.Namespace, tokenizer: Any, articles: Articles) -> Measured:
    examples = draw(articles, arguments.whole_questions)
    model = AutoModelForQuestionAnswering.from_pretrained(arguments.checkpoint).eval()
    with Stock(arguments.checkpoint, environment=arguments.environment) as stock:
        contestants: dict[str, Callable[[], Run]] = {
            "qabuild": lambda: timed(QuestionAnsweringPipeline(model, tokenizer), time.perf_counter),
            STOCK: lambda: seconds_of(stock),
        }
        seconds = race(contestants, examples, arguments.rounds)
    show(f"end to end, fp32, {torch.get_num_threads()} threads", seconds, len(examples))
    return {"questions": len(examples), "seconds": seconds}


def end_to_end_on_gpu(arguments: argparse.Namespace, tokenizer: Any, articles: Articles) -> Measured:
    checkpoint, examples = arguments.checkpoint, draw(articles, arguments.whole_questions)
    model = AutoModelForQuestionAnswering.from_pretrained(checkpoint, dtype=torch.float16).to("cuda").eval()
    pipeline = QuestionAnsweringPipeline(model, tokenizer)
    with (
        Stock(checkpoint, environment=arguments.environment, device="cuda", dtype="float16") as stock,
        sdpa_kernels.of_any_shape("cuda"),  # for both, as in an artifact
    ):
        runs = {"qabuild": timed(pipeline, time.perf_counter), STOCK: seconds_of(stock)}
        for run in runs.values():
            run(examples[:500])  # the first calls load kernels
        seconds = race({name: lambda run=run: run for name, run in runs.items()}, examples, arguments.rounds)
        idle = 1 - busy(runs["qabuild"], examples) / statistics.median(seconds["qabuild"])
        sampled = {name: utilisation(run, examples) for name, run in runs.items()}
    show(f"end to end, fp16, {torch.cuda.get_device_name()}", seconds, len(examples))
    print(f"  qabuild: the GPU is idle for {idle:.0%} of the time")
    print(f"  share of samples in which the driver saw it busy: {sampled}")
    return {"questions": len(examples), "seconds": seconds, "idle": idle, "sampled": sampled}


def busy(run: Run, examples: list[Example]) -> float:
    """Seconds in which the GPU computes or copies. The profiler slows only the CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(examples)
        torch.cuda.synchronize()
    on_gpu = torch.autograd.DeviceType.CUDA
    spans = [event.time_range for event in profile.events() if event.device_type == on_gpu]
    until = total = 0.0
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
    return total / 1e6


def utilisation(run: Run, examples: list[Example]) -> float | None:
    """The GPU's utilisation during a run as the driver states it (NVML), 0 to 1: the mean of samples, each the share of
    time in which any kernel ran. None where NVML's Python package is missing."""
    samples: list[float] = []
    finished = threading.Event()

    def sample() -> None:
        while not finished.wait(0.05):
            samples.append(torch.cuda.utilization() / 100)

    try:
        torch.cuda.utilization()
    except (ModuleNotFoundError, RuntimeError):
        return None
    thread = threading.Thread(target=sample)
    thread.start()
    run(examples)
    finished.set()
    thread.join()
    return statistics.mean(samples) if samples else None


def timed(answer: Callable[[list[Example]], object], clock: Callable[[], float]) -> Run:
    def run(examples: list[Example]) -> float:
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            begin = clock()
            answer(examples)
            return clock() - begin

    return run


def seconds_of(stock: Stock) -> Run:
    return lambda examples: stock.answer(examples)[1]


def race(contestants: dict[str, Callable[[], Run]], examples: list[Example], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, rotating the order."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for round_ in range(rounds):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            run = contestants[name]()
            seconds[name].append(run(examples))
    return seconds


def show(title: str, seconds: dict[str, list[float]], count: int) -> None:
    print(f"\n{title}, {count} questions, {len(next(iter(seconds.values())))} rounds")
    for name, times in seconds.items():
        print(f"  {name:<18} {count / statistics.median(times):9.1f} questions/s")
    ours = seconds["qabuild"]
    for name, times in seconds.items():
        if name != "qabuild":
            ratios = sorted(theirs / mine for mine, theirs in zip(ours, times, strict=True))
            median, low, high = statistics.median(ratios), ratios[0], ratios[-1]
            print(f"  {name}: {median:.2f} times the time of qabuild ({low:.2f} to {high:.2f}), or 1/{1 / median:.2f}")


CUTS: tuple[Parameters, ...] = ({}, {"max_seq_len": 128, "doc_stride": 40}, {"max_seq_len": 96, "doc_stride": 0})


def searches(full: bool) -> Iterator[Parameters]:
    """Parameters of the span search for windows of one cut."""
    for impossible, align in itertools.product((False, True), (True, False)):
        for top_k in range(1, 21) if full else (1, 3, 20):
            yield {"top_k": top_k, "handle_impossible_answer": impossible, "align_to_words": align}
        for longest in (1, 3, 60):
            limits = {"max_answer_len": longest, "align_to_words": align}
            yield {"top_k": 4, "handle_impossible_answer": impossible, **limits}


def differential(stock: Stock, tokenizer: Any, articles: Articles, count: int) -> Counter[str]:
    """Count the differences of both pipelines on the same logits, by kind."""
    examples = spread(articles, count)
    pipeline = QuestionAnsweringPipeline(HashingModel(), tokenizer)
    kinds: Counter[str] = Counter()
    for cut in CUTS:
        parameters = list(searches(full=not cut))
        counts: Counter[str] = Counter()
        windows = 0
        for at in range(0, len(examples), 500):
            batch = examples[at : at + 500]
            results, of_batch = stock.search(batch, cut, parameters)
            windows += of_batch
            for search, theirs in zip(parameters, results, strict=True):
                for example, our, their in zip(batch, pipeline(batch, **cut, **search), theirs, strict=True):
                    kind = difference(our, their)
                    counts[kind] += 1
                    if kind == UNKNOWN:
                        print(f"  {cut | search}\n  {example}\n  {our}\n  {their}")
        print(f"\n{cut or 'defaults'}: {len(examples)} questions, {windows} windows, {counts.total()} cases")
        for kind, number in counts.most_common():
            print(f"  {number:>8} {kind}")
        kinds += counts
    return kinds


def spread(articles: Articles, count: int) -> list[Example]:
    """`count` questions spread evenly over the data."""
    paragraphs = itertools.chain.from_iterable(articles)
    examples = [{"question": qa["question"], "context": p["context"]} for p in paragraphs for qa in p["qas"]]
    return examples[:: max(1, len(examples) // count)][:count]


SAME, TIED = "the same", "the same, but for the order of tied answers and the choice among the last ones tied"
IMPOSSIBLE = "the same, but for impossible spans with score 0 in the stock pipeline's list"
UNKNOWN = "different"


def difference(ours: Any, theirs: Any) -> str:
    """The kind of difference of two results; scores within 1e-6 count as equal."""
    ours, theirs = (result if isinstance(result, list) else [result] for result in (ours, theirs))
    if alike(ours, theirs):
        return SAME
    ours, theirs = ([answer for answer in result if answer["score"] > 0] for result in (ours, theirs))
    if alike(ours, theirs):
        return IMPOSSIBLE
    return TIED if tied(ours, theirs) else UNKNOWN


def tied(ours: list[Example], theirs: list[Example]) -> bool:
    """Whether two lists hold the same answers, except for order and for answers tied with the last one."""
    if len(ours) != len(theirs) or not close(ours, theirs):
        return False
    above = (
        [span(answer) for answer in result if answer["score"] > result[-1]["score"] + 1e-6] for result in (ours, theirs)
    )
    return Counter(next(above)) == Counter(next(above))


def alike(ours: list[Example], theirs: list[Example]) -> bool:
    return [*map(span, ours)] == [*map(span, theirs)] and close(ours, theirs)


def close(ours: list[Example], theirs: list[Example]) -> bool:
    return all(abs(one["score"] - other["score"]) <= 1e-6 for one, other in zip(ours, theirs, strict=True))


def span(answer: Example) -> tuple[int, int, str]:
    return answer["start"], answer["end"], answer["answer"]


def stream(tokenizer: Any, articles: Articles, count: int) -> None:
    """Answer a stream of distinct questions: real ones, repeated with a number before each text."""
    examples = draw(articles, 10_000)

    def numbered() -> Iterator[Example]:
        for number in range(count):
            turn, index = divmod(number, len(examples))
            yield {key: f"{turn} {text}" for key, text in examples[index].items()}

    begin = time.perf_counter()
    for done, _ in enumerate(QuestionAnsweringPipeline(EmptyModel(), tokenizer)(numbered()), 1):
        if done % max(1, count // 10) == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rate = done / (time.perf_counter() - begin)
            print(f"  {done:>9} questions, {rate:7.0f} questions/s, {resident():7.0f} MB, peak {peak:7.0f} MB")


def resident() -> float:
    """Resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class CachingModel(EmptyModel):
    """A model that caches the logits of every batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.cache = model, {}

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        key = input_ids.numpy().tobytes()
        if key not in self.cache:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            output = self.model(**inputs)
            self.cache[key] = {name: getattr(output, name) for name in ("start_logits", "end_logits")}
        return self.cache[key]


def long_documents(checkpoint: str, tokenizer: Any, articles: Articles, count: int) -> None:
    """EM and F1 on questions whose contexts are several adjacent paragraphs, joined."""
    model = CachingModel(AutoModelForQuestionAnswering.from_pretrained(checkpoint).eval())
    pipeline = QuestionAnsweringPipeline(model, tokenizer)
    for paragraphs in (1, 4, 12):
        examples = documents(articles, count, paragraphs)
        gold = {example["id"]: example["answers"] for example in examples}
        questions = [{"question": example["question"], "context": example["context"]} for example in examples]
        answers = {}
        print(f"\n{len(examples)} questions on documents of {paragraphs} paragraphs", flush=True)
        for normalize in ("window", "context"):
            results = pipeline(questions, normalize=normalize)
            answers[normalize] = {
                example["id"]: result["answer"] for example, result in zip(examples, results, strict=True)
            }
            scores = squad_metric.score(answers[normalize], gold)
            print(f"  {normalize:<8} EM {scores.exact_match:5.2f}  F1 {scores.f1:5.2f}")
        model.cache.clear()
        f1 = [squad_metric.score_each(predictions, gold) for predictions in answers.values()]
        differences = [f1[1][name].f1 - f1[0][name].f1 for name in gold]
        better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
        print(f"  by context, F1 is higher on {better} questions and lower on {worse}")


def documents(articles: Articles, count: int, size: int) -> list[Example]:
    joined: list[Example] = []
    for article in articles:
        for at in range(0, len(article) - size + 1, size):
            part = article[at : at + size]
            context = "\n".join(paragraph["context"] for paragraph in part)
            for qa in itertools.chain.from_iterable(paragraph["qas"] for paragraph in part):
                texts = [answer["text"] for answer in qa["answers"]]
                joined.append({"id": qa["id"], "question": qa["question"], "context": context, "answers": texts})
    return random.Random(0).sample(joined, min(count, len(joined)))


if __name__ == "__main__":
    main()
