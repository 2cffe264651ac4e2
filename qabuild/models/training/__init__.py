"""Fine-tuning and two-step distillation: from a checkpoint, a training set and an optional teacher to a new checkpoint.

`options` defines the tables of a target and the steps; `launch` runs a step in a subprocess, `__main__` is that
subprocess, and `fit`, `search` and `teacher_logits` do the work.
"""
