"""Question answering over any loaded model, with the stock pipeline's answers at a fraction of its cost.

`windows` cuts questions and contexts into what the model reads (training uses it too), `decode` finds the best
spans in the logits, `inputs` understands the forms of a call, and `answering` puts them together.
"""

from __future__ import annotations

from qabuild.qa.pipeline.pipeline import QuestionAnsweringPipeline

__all__ = ["QuestionAnsweringPipeline"]
