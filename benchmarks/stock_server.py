"""transformers' own ("stock") pipeline behind FastAPI, the baseline of benchmarks/serving.py.

    python stock_server.py CHECKPOINT [--model eager]

runs in an environment of transformers 4.57 with FastAPI, such as `stock.py --make-environment` makes; `PYTHONPATH`
holds this folder and the one above it. POST /answer takes `question` and `context`, and answers one question at a time,
as a plain loop does. (FastAPI would call a `def answer` in threads, which cannot share a tokenizer that truncates.)
Prints its port once it has answered a question.
"""

import argparse
import asyncio
import socket

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from stock_worker import MODELS, Opening, StockPipeline

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("checkpoint")
parser.add_argument("--model", choices=MODELS, default="eager")
arguments = parser.parse_args()

app = FastAPI()
pipeline = StockPipeline(
    Opening(
        checkpoint=arguments.checkpoint,
        model=arguments.model,
        device="cpu",
        dtype="float32",
        batch_size=1,
        squad_v2=False,
        calibration=(),
    )
).pipeline


class Question(BaseModel):
    question: str
    context: str


@app.post("/answer")
async def answer(asked: Question) -> dict[str, object]:
    return dict(pipeline(question=asked.question, context=asked.context))


if __name__ == "__main__":
    with torch.inference_mode():
        pipeline(question="Who built the mill?", context="Ann Vole built the mill in 1871.")
    # Without the protocol, asyncio does not set TCP_NODELAY.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    asyncio.run(uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).serve(sockets=[listener]))
