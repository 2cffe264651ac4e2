"""Answers one question at a time: each window through the model, then every span scored.

Slow and short, so that it can be checked by reading. It has the parameters and answers of transformers 4's
question-answering pipeline and shares no code with `qabuild.qa.pipeline`, which it checks. Sealed handlers contain this
file. Imports torch on import: import it inside functions only.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"
    "\u2e80-\u312f\u3190-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff9f]"
)
"""A character of a script without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Chinese, Japanese."""


def answer(
    model: Any,
    tokenizer: Any,
    question: str,
    context: str,
    *,
    top_k: int = 1,
    doc_stride: int | None = None,
    max_answer_len: int = 15,
    max_question_len: int | None = None,
    max_seq_len: int | None = None,
    handle_impossible_answer: bool = False,
    align_to_words: bool | str = True,
    normalize: str = "window",
) -> Any:
    """The best answer as a dictionary of `score`, `start`, `end` and `answer`; with `top_k` above 1, a list of them.

    `start` and `end` are character offsets in the context. Equal texts, up to case, are one answer: their scores add
    up, but with a `normalize` other than "window", only those of the best window. An answer has `question_truncated`,
    true, if the question was. Raises ValueError for a `top_k`, `max_answer_len` or `doc_stride` that is out of range.
    """
    limit, stride = window_limits(tokenizer, max_seq_len, doc_stride)
    if top_k < 1 or max_answer_len < 1:
        raise ValueError(f"top_k ({top_k}) and max_answer_len ({max_answer_len}) must be at least 1")
    answers: dict[str, dict[str, Any]] = {}
    no_answer = np.inf
    # Spans of different tokens may be the same words: search for more than are returned.
    count = 2 * top_k + 10 if align_to_words else top_k
    cut = cut_question(tokenizer, question, context, limit, stride, max_question_len)
    windows = list(_windows(tokenizer, cut, context, limit, stride))
    logits = [_logits(model, inputs, allowed) for inputs, _, allowed in windows]
    factors = zip(*(_factors(each, normalize) for each in zip(*logits, strict=True)), strict=True)
    for (_, encoding, allowed), (start, end) in zip(windows, factors, strict=True):
        own = answers if normalize == "window" else {}
        no_answer = min(no_answer, float(start[0] * end[0]))
        start[0] = end[0] = 0
        for score, first, last in _spans(start, end, count, max_answer_len):
            if not (allowed[first] and allowed[last]):
                continue
            begin, stop = characters(encoding, first, last, context, align_to_words)
            text = context[begin:stop]
            entry = own.setdefault(text.lower(), {"score": 0.0, "start": begin, "end": stop, "answer": text})
            entry["score"] += score
        for text, entry in own.items():
            if text not in answers or entry["score"] > answers[text]["score"]:
                answers[text] = entry
    entries = list(answers.values())
    if handle_impossible_answer:
        entries.append({"score": no_answer, "start": 0, "end": 0, "answer": ""})
    best = sorted(entries, key=lambda entry: -entry["score"])[:top_k]
    if cut != question:
        best = [{**entry, "question_truncated": True} for entry in best]
    return best[0] if len(best) == 1 else best


def window_limits(tokenizer: Any, max_seq_len: int | None, doc_stride: int | None) -> tuple[int, int]:
    """The tokens of a window, and those of the context that two share."""
    limit = max_seq_len or min(tokenizer.model_max_length, 384)
    return limit, min(limit // 2, 128) if doc_stride is None else doc_stride


def cut_question(tokenizer: Any, question: str, context: str, limit: int, stride: int, longest: int | None) -> str:
    """The question's first tokens, as text: `longest` at most, or as many as fit, of whole characters, without spaces
    at the end.

    That is all of them if question and context fit one window, of `limit` tokens; else 7/8 of the tokens beside those
    that two windows share, or with a `longest` all but one, so that each window holds something new of the context.
    Raises ValueError if `stride` leaves none.
    """
    room = limit - tokenizer.num_special_tokens_to_add(pair=True)
    if stride >= room:
        raise ValueError(f"doc_stride ({stride}) must be at most {room - 1}, with max_seq_len {limit}")
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    size = min(len(offsets), longest or len(offsets))
    most = room - stride - 1 if longest else (room - stride) * 7 // 8
    if size > most and size + len(tokenizer(context, add_special_tokens=False)["input_ids"]) > room:
        size = most
    while 0 < size < len(offsets):
        begin, end = offsets[size - 1]
        if offsets[size][0] >= end and question[begin:end].strip():
            break
        size -= 1
    return question if size == len(offsets) else question[: offsets[size - 1][1] if size else 0]


def _windows(tokenizer: Any, question: str, context: str, limit: int, stride: int) -> Iterator[tuple[Any, Any, Any]]:
    """For each window its input ids and masks, its encoding, and which tokens [tokens] an answer may have.

    Those are the context's tokens and CLS, at which models that know unanswerable questions point. A tokenizer that
    pads on the left, as XLNet's, puts the context first.
    """
    context_first = tokenizer.padding_side == "left"
    encoded = tokenizer(
        *((context, question) if context_first else (question, context)),
        truncation="only_first" if context_first else "only_second",
        max_length=limit,
        stride=stride,
        return_overflowing_tokens=True,
        return_token_type_ids=True,
        return_attention_mask=True,
    )
    for row, encoding in enumerate(encoded.encodings):
        inputs = {name: encoded[name][row] for name in tokenizer.model_input_names if name in encoded}
        part = 0 if context_first else 1
        allowed = np.array([sequence == part for sequence in encoding.sequence_ids])
        allowed |= np.array(encoding.ids) == tokenizer.cls_token_id
        yield inputs, encoding, allowed & (np.array(encoding.attention_mask) == 1)


def _logits(model: Any, inputs: dict[str, list[int]], allowed: Any) -> tuple[Any, Any]:
    """Start and end logits, float32 [tokens], -10000 where not allowed. The model gets what its forward takes."""
    taken = inspect.signature(model.forward).parameters
    batch = {name: torch.tensor([ids], device=model.device) for name, ids in inputs.items() if name in taken}
    with torch.inference_mode():
        output = model(**batch)
    start, end = (logits[0].float().cpu().numpy() for logits in (output.start_logits, output.end_logits))
    return np.where(allowed, start, -10000.0), np.where(allowed, end, -10000.0)


def _factors(logits: Any, normalize: str) -> list[Any]:
    """The factors of scores for each window [tokens]: a softmax over it, or over all; with "none", exponentials."""
    if normalize == "none":
        return [np.exp(window.astype(float)) for window in logits]
    if normalize == "window":
        return [_softmax(window) for window in logits]
    return np.split(_softmax(np.concatenate(logits)), np.cumsum([len(window) for window in logits])[:-1])


def _softmax(logits: Any) -> Any:
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


def _spans(start: Any, end: Any, count: int, longest: int) -> Iterator[tuple[float, int, int]]:
    """The `count` best spans of up to `longest` tokens: score, first and last token (inclusive), best first."""
    scores = np.tril(np.triu(np.outer(start, end)), longest - 1)
    for place in np.argsort(-scores, axis=None, kind="stable")[:count]:
        first, last = divmod(int(place), len(end))
        yield float(scores[first, last]), first, last


def characters(encoding: Any, first: int, last: int, context: str, align_to_words: bool | str) -> tuple[int, int]:
    """Where the span begins and stops in the context; with `align_to_words`, at the borders of its outer words.

    With "auto", a token that holds a character of a script without spaces is a word by itself.
    """
    if align_to_words == "auto" and UNSPACED.search(context):
        first, last = _end_of_word(encoding, first, -1, context), _end_of_word(encoding, last, 1, context)
    elif align_to_words:
        words = encoding.token_to_word(first), encoding.token_to_word(last)
        if None not in words:
            borders = [encoding.word_to_chars(word, encoding.token_to_sequence(first)) for word in words]
            if None not in borders:
                return borders[0][0], borders[1][1]
    return encoding.offsets[first][0], encoding.offsets[last][1]


def _end_of_word(encoding: Any, token: int, step: int, context: str) -> int:
    """The last token of the same word in the direction of `step`, -1 or 1."""
    part, word = encoding.token_to_sequence(token), encoding.token_to_word(token)
    while word is not None and not UNSPACED.search(context, *encoding.offsets[token]):
        beside = token + step
        inside = 0 <= beside < len(encoding.ids) and encoding.token_to_sequence(beside) == part
        if not inside or encoding.token_to_word(beside) != word or UNSPACED.search(context, *encoding.offsets[beside]):
            break
        token = beside
    return token
