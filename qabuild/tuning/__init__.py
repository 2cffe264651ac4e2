"""Find the fastest artifact of a checkpoint that keeps its answers on this machine.

tune         the whole, from a checkpoint to a verified artifact: read it first
request      what the user asks for, checked, and its folder locked
arguments    checks numbers and names
objective    what is best
outputs      what it writes, and that it replaces nothing else
start        what is tuned: a checkpoint or a target, and its questions
candidates   the targets that are tried
job          what every part is given
rounds       screens, compares and verifies candidates: which go on
child        builds one of them in a process of its own
ranking      lets artifacts take turns, and tells which is better
selection    which of those that keep the answers wins, and what must be said of it
budget       the time that is left
table        what is known of each candidate, shown as it grows
result       what a tuning found
"""
