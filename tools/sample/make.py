"""Rebuilds the embedded sample, in two steps:

    python -m tools.sample.make --output build/sample
    python -m tools.sample.make --output build/sample --train tools/sample/sample.toml

The first writes train.json, heldout.json and the inputs of the training: start/, a checkpoint with fresh weights and
its tokenizer, and redrawn.json. The latter is several copies of train.json with each name replaced by another train
name and the digits of each long number by others, so that the model cannot memorise them. The second trains as the
target says, writes the result to checkpoint/, answers the held-out questions with the plain decoder and prints the
scores.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import qabuild
from qabuild.cli.console import Console
from qabuild.qa import sample, squad_metric
from tools.sample.generate import SEED, generate, name_pools

if TYPE_CHECKING:
    from transformers import RobertaForQuestionAnswering, RobertaTokenizerFast

VOCABULARY = 1100
DRAWS = 12
SHARPNESS = 2.0  # of the first layer's attention before training
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # RoBERTa's first four ids; its mask comes last
DIGITS = re.compile(r"[0-9]{3,}")


class Example(NamedTuple):
    question: str
    context: str
    answer: str
    start: int


def make(directory: Path, *, data_only: bool = False) -> None:
    write_data(directory)
    if not data_only:
        train = read(directory / "train.json")
        tokenizer = make_tokenizer(train)
        save(make_model(tokenizer), tokenizer, directory / "start")
        write_redrawn(train, directory / "redrawn.json")


def train_checkpoint(target: Path, directory: Path) -> None:
    """Train `target`, write the checkpoint to `directory`/checkpoint and print its scores."""
    from qabuild.models.training import curves

    trained = qabuild.train(target, reporter=Console())
    shutil.rmtree(directory / "checkpoint", ignore_errors=True)
    shutil.copytree(trained.directory, directory / "checkpoint", ignore=lambda _, names: {curves.FILE} & set(names))
    scores = measure(directory / "checkpoint", directory / "heldout.json")
    print(f"held-out questions: exact match {scores.exact_match:.2f}, F1 {scores.f1:.2f}")


def write_data(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for split in ("train", "heldout"):
        text = json.dumps(generate(split), ensure_ascii=False, separators=(",", ":"))
        (directory / f"{split}.json").write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """The paragraphs of a file."""
    data = json.loads(path.read_text(encoding="utf-8"))["data"]
    return [paragraph for article in data for paragraph in article["paragraphs"]]


def make_tokenizer(train: Sequence[Mapping[str, Any]]) -> RobertaTokenizerFast:
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing
    from transformers import RobertaTokenizerFast

    texts = [paragraph["context"] for paragraph in train]
    texts += [qa["question"] for paragraph in train for qa in paragraph["qas"]]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=SPECIAL_TOKENS, show_progress=False)
    bpe._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    return RobertaTokenizerFast(tokenizer_object=bpe._tokenizer, model_max_length=512)


def make_model(tokenizer: RobertaTokenizerFast) -> RobertaForQuestionAnswering:
    import torch
    from transformers import RobertaConfig, RobertaForQuestionAnswering

    torch.manual_seed(SEED)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.06,
        attn_implementation="sdpa",
    )
    model = RobertaForQuestionAnswering(config)
    ease(model)
    return model


def ease(model: RobertaForQuestionAnswering) -> None:
    """Initialise the weights such that matching words is easy to learn; from the usual ones this takes very long.

    Initially tokens use one half of the embedding and positions, as sinusoids, the other. Keys equal queries, so that
    equal vectors attend to each other; half of the first layer's heads see only positions, and thus neighbouring
    words, the others only tokens, and thus the same word elsewhere.
    """
    import torch

    embeddings, layers = model.roberta.embeddings, model.roberta.encoder.layer
    tokens, positions = embeddings.word_embeddings.weight, embeddings.position_embeddings.weight
    half = model.config.hidden_size // 2
    rates = torch.exp(-torch.arange(0, half, 2) * (math.log(50) / half))
    angles = torch.arange(len(positions))[:, None] * rates
    with torch.no_grad():
        tokens[:, half:] = 0
        positions[:, :half] = 0
        positions[:, half:] = model.config.initializer_range * math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], 1)
        first = layers[0].attention.self.query.weight
        first *= SHARPNESS
        first[:half, :half] = 0
        first[half:, half:] = 0
        for layer in layers:
            layer.attention.self.key.weight.copy_(layer.attention.self.query.weight)


def write_redrawn(train: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write all copies of the questions in SQuAD's layout, one article a copy."""
    draw, names = random.Random(SEED), name_pools()["train"]
    articles = []
    for number in range(DRAWS):
        paragraphs: dict[str, list[dict[str, Any]]] = {}
        for index, example in enumerate(redrawn(train, names, draw)):
            answer = {"text": example.answer, "answer_start": example.start}
            entry = {"id": f"{number}-{index}", "question": example.question, "answers": [answer]}
            paragraphs.setdefault(example.context, []).append(entry)
        articles.append({"paragraphs": [{"context": context, "qas": qas} for context, qas in paragraphs.items()]})
    path.write_text(json.dumps({"data": articles}, ensure_ascii=False) + "\n", encoding="utf-8")


def redrawn(
    train: Sequence[Mapping[str, Any]], names: Mapping[str, Sequence[str]], draw: random.Random
) -> Iterator[Example]:
    """The examples with other names and numbers, consistent within a paragraph."""
    kind_of = {name: kind for kind, pool in names.items() for name in pool}
    word = re.compile(r"\w+|[" + "".join(names["emoji"]) + "]")
    for paragraph in train:
        replacements: dict[str, str] = {}

        def replacement(match: re.Match[str], replacements: dict[str, str] = replacements) -> str:
            old = match.group()
            if old not in replacements:
                if old in kind_of:
                    replacements[old] = draw.choice(names[kind_of[old]])
                elif DIGITS.fullmatch(old):
                    replacements[old] = old[0] + "".join(draw.choice("0123456789") for _ in old[1:])
                else:
                    replacements[old] = old
            return replacements[old]

        context = word.sub(replacement, paragraph["context"])
        for qa in paragraph["qas"]:
            text, start = qa["answers"][0]["text"], qa["answers"][0]["answer_start"]
            before = word.sub(replacement, paragraph["context"][:start])  # answers begin and end between words
            yield Example(word.sub(replacement, qa["question"]), context, word.sub(replacement, text), len(before))


def save(model: RobertaForQuestionAnswering, tokenizer: RobertaTokenizerFast, directory: Path) -> None:
    model.eval()
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    for redundant in ("vocab.json", "merges.txt"):  # tokenizer.json holds both
        (directory / redundant).unlink(missing_ok=True)
    (directory / "model.safetensors").chmod(0o644)  # written readable for its owner only


def measure(checkpoint: Path, data: Path) -> squad_metric.Scores:
    golds = {qa["id"]: [gold["text"] for gold in qa["answers"]] for paragraph in read(data) for qa in paragraph["qas"]}
    return squad_metric.score(answers(checkpoint, data), golds)


def answers(checkpoint: Path, data: Path) -> dict[str, str]:
    """Question id -> answer of the plain decoder with its defaults."""
    from qabuild.models.checkpoint.load import load_model, load_tokenizer
    from qabuild.models.checkpoint.resolve import resolve
    from qabuild.qa import plain_decoder

    resolved = resolve(str(checkpoint))
    model, tokenizer = load_model(resolved), load_tokenizer(resolved.directory)
    return {
        qa["id"]: plain_decoder.answer(model, tokenizer, qa["question"], paragraph["context"])["answer"]
        for paragraph in read(data)
        for qa in paragraph["qas"]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-only", action="store_true", help="write the two JSON files and stop")
    parser.add_argument("--train", type=Path, metavar="TARGET", help="the target that trains the checkpoint")
    parser.add_argument("--output", type=Path, default=sample.TRAIN.parent, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.train:
        train_checkpoint(arguments.train, arguments.output)
    else:
        make(arguments.output, data_only=arguments.data_only)


if __name__ == "__main__":
    main()
