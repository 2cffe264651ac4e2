"""Question answering over any loaded model, with the stock pipeline's answers at a fraction of its cost.

`windows` cuts questions and contexts into model inputs (training uses it too), `decode` finds the best spans in the
logits, `inputs` parses the forms of a call, `results` turns spans into answers, and `pipeline` joins them.
"""

from __future__ import annotations

from qabuild.qa.pipeline.pipeline import QuestionAnsweringPipeline

__all__ = ["QuestionAnsweringPipeline"]
