"""Remakes the embedded sample: python -m qabuild.sample.make [--data-only] [--output DIR].

Writes train.json, heldout.json and checkpoint/ into DIR (this folder when not given), then answers
the held-out questions through the stock pipeline and prints the scores. The checkpoint learns from
train.json alone; at every epoch each name in it is exchanged for another train name, and the digits
of each long number for others, so that reading is all that is left to learn.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qabuild import squad
from qabuild.sample.generate import SEED, generate, name_pools

if TYPE_CHECKING:
    import torch
    from transformers import RobertaForQuestionAnswering, RobertaTokenizerFast

VOCABULARY = 1100
MAX_LENGTH = 384
DOC_STRIDE = 128
EPOCHS = 12
BATCH = 16
LEARNING_RATE = 1.5e-3
SHARPNESS = 2.0  # of the first layer's attention before training
WARMUP = 0.05  # share of the steps
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # RoBERTa's first four ids; its mask comes last
DIGITS = re.compile(r"[0-9]{3,}")


class Example(NamedTuple):
    question: str
    context: str
    answer: str
    start: int


class Window(NamedTuple):
    input_ids: list[int]
    start: int  # token position; 0, the <s>, where the window does not hold the whole answer
    end: int


def make(directory: Path, *, data_only: bool = False) -> None:
    write_data(directory)
    if data_only:
        return
    train = read(directory / "train.json")
    tokenizer = make_tokenizer(train)
    model = make_model(tokenizer)
    fit(model, tokenizer, train)
    save(model, tokenizer, directory / "checkpoint")
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
    """Start where matching is easy to find; from the usual start so small a model takes very long to find it.

    At first tokens live in one half of the embedding and positions, as sinusoids, in the other. Keys equal
    queries, so that like attends to like; half of the first layer's heads see only positions, and thus
    the neighbourhood, the others only tokens, and thus the same word elsewhere.
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


def fit(
    model: RobertaForQuestionAnswering, tokenizer: RobertaTokenizerFast, train: Sequence[Mapping[str, Any]]
) -> None:
    """AdamW with a linear rise and fall of the learning rate; the loss is the model's own."""
    import torch

    draw = random.Random(SEED)
    names = name_pools()["train"]
    steps = EPOCHS * len(batches(windows(tokenizer, list(redrawn(train, names, draw))), draw))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (WARMUP * steps), max(0.02, 1 - step / steps))
    )
    model.train()
    for epoch in range(EPOCHS):
        losses = []
        for batch in batches(windows(tokenizer, list(redrawn(train, names, draw))), draw):
            loss = model(**collate(batch)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}/{EPOCHS}: mean loss {sum(losses) / len(losses):.4f}", flush=True)


def redrawn(
    train: Sequence[Mapping[str, Any]], names: Mapping[str, Sequence[str]], draw: random.Random
) -> Iterator[Example]:
    """The examples, with other names and numbers, the same ones throughout a paragraph."""
    kind_of = {name: kind for kind, pool in names.items() for name in pool}
    word = re.compile(r"\w+|[" + "".join(names["emoji"]) + "]")
    for paragraph in train:
        other: dict[str, str] = {}

        def exchange(match: re.Match[str], other: dict[str, str] = other) -> str:
            old = match.group()
            if old not in other:
                if old in kind_of:
                    other[old] = draw.choice(names[kind_of[old]])
                elif DIGITS.fullmatch(old):
                    other[old] = old[0] + "".join(draw.choice("0123456789") for _ in old[1:])
                else:
                    other[old] = old
            return other[old]

        context = word.sub(exchange, paragraph["context"])
        for qa in paragraph["qas"]:
            text, start = qa["answers"][0]["text"], qa["answers"][0]["answer_start"]
            before = word.sub(exchange, paragraph["context"][:start])  # answers begin and end between words
            yield Example(word.sub(exchange, qa["question"]), context, word.sub(exchange, text), len(before))


def windows(tokenizer: RobertaTokenizerFast, examples: Sequence[Example]) -> list[Window]:
    encoded = tokenizer(
        [example.question for example in examples],
        [example.context for example in examples],
        truncation="only_second",
        max_length=MAX_LENGTH,
        stride=DOC_STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found = []
    for index, number in enumerate(encoded["overflow_to_sample_mapping"]):
        example, offsets = examples[number], encoded["offset_mapping"][index]
        context = [place for place, part in enumerate(encoded.sequence_ids(index)) if part == 1]
        first, last = example.start, example.start + len(example.answer)
        inside = [place for place in context if offsets[place][0] < last and offsets[place][1] > first]
        whole = inside and offsets[context[0]][0] <= first and last <= offsets[context[-1]][1]
        start, end = (inside[0], inside[-1]) if whole else (0, 0)
        found.append(Window(encoded["input_ids"][index], start, end))
    return found


def batches(all_windows: Sequence[Window], draw: random.Random) -> list[list[Window]]:
    """Batches of windows of about one length, in random order."""
    ordered = sorted(all_windows, key=lambda window: (len(window.input_ids), draw.random()))
    parts = [ordered[begin : begin + BATCH] for begin in range(0, len(ordered), BATCH)]
    draw.shuffle(parts)
    return parts


def collate(batch: Sequence[Window]) -> dict[str, torch.Tensor]:
    import torch

    longest = max(len(window.input_ids) for window in batch)
    pad = SPECIAL_TOKENS.index("<pad>")
    rows = [window.input_ids + [pad] * (longest - len(window.input_ids)) for window in batch]
    input_ids = torch.tensor(rows)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != pad).long(),
        "start_positions": torch.tensor([window.start for window in batch]),
        "end_positions": torch.tensor([window.end for window in batch]),
    }


def save(model: RobertaForQuestionAnswering, tokenizer: RobertaTokenizerFast, directory: Path) -> None:
    model.eval()
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.backend_tokenizer.no_truncation()  # or the training's windows would be kept as its default
    tokenizer.save_pretrained(directory)
    for spare in ("vocab.json", "merges.txt"):  # tokenizer.json holds both
        (directory / spare).unlink(missing_ok=True)
    (directory / "model.safetensors").chmod(0o644)  # is written for its owner alone


def measure(checkpoint: Path, data: Path) -> squad.Scores:
    golds = {qa["id"]: [gold["text"] for gold in qa["answers"]] for paragraph in read(data) for qa in paragraph["qas"]}
    return squad.score(answers(checkpoint, data), golds)


def answers(checkpoint: Path, data: Path) -> dict[str, str]:
    """Question id -> answer, through the stock pipeline with its defaults."""
    from transformers import pipeline

    reader = pipeline("question-answering", model=str(checkpoint), tokenizer=str(checkpoint), device="cpu")
    return {
        qa["id"]: reader(question=qa["question"], context=paragraph["context"])["answer"]
        for paragraph in read(data)
        for qa in paragraph["qas"]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-only", action="store_true", help="write the two JSON files and stop")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, metavar="DIR")
    arguments = parser.parse_args()
    make(arguments.output, data_only=arguments.data_only)


if __name__ == "__main__":
    main()
