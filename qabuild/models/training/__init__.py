"""Fine-tuning and two-step distillation: from a checkpoint, questions and perhaps a teacher to another checkpoint.

`steps` says which steps a plan has for it and what decides each; `apart` carries a step out in a process of its own.
"""
