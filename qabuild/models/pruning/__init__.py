"""Width pruning: a smaller dense model, from a checkpoint and a few hundred questions.

structure    where each architecture has its FFN neurons and attention heads
importance   what the loss would lose by each of them
latency      the time that a model of some width takes here, measured into a latency_table
widths       how many of them each layer keeps
refit        output projections fitted to what is left
prune        the whole, from checkpoint to checkpoint
compact      a model without its pruned places, for compilers
"""
