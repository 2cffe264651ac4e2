# %% [markdown]
# # Build, ask, verify
#
# Builds the quickstart target from the embedded sample, answers questions with the artifact, verifies it again and
# compares it with its checkpoint. Needs `pip install '.[cpu]'`, no network and no GPU.
#
# Run it as a script, `python examples/build_compare_answer.py`, or cell by cell in an editor that knows `# %%`.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import qabuild

TARGET = Path(__file__).resolve().parents[1] / "targets" / "quickstart.toml"
folder = TemporaryDirectory(prefix="qabuild-example-")

# %% [markdown]
# ## Build
#
# The build compiles the checkpoint to an ONNX graph, reloads the artifact from disk and verifies it on the held-out
# questions. If a gate fails, the artifact goes to `quickstart.failed` and `passed` is false.

# %%
built = qabuild.build(TARGET, folder.name)
assert built.verification is not None
assert built.verification.passed, built.verification.failed_gates
print(f"built {built.directory.name}, manifest {built.manifest[:12]}")

# %% [markdown]
# ## Ask
#
# `load` checks every file against the manifest before it deserialises any. Its result is called like transformers'
# question-answering pipeline.

# %%
CONTEXT = (
    "Flerad Vopper was the architect of the Flisool Bridge. In 1809 the first carts crossed the Flisool Bridge. "
    "Hånika Dalsen won a medal in 1527. Since 13 July 1680 the doors of Révium Press have been open. "
    "The length of the Flisool Bridge is 175 metres."
)
QUESTIONS = ("Who drew the plans of the Flisool Bridge?", "How long is the Flisool Bridge?")

answer = qabuild.load(built.directory)
for question in QUESTIONS:
    print(f"{question} {answer(question=question, context=CONTEXT)['answer']}")

# %% [markdown]
# ## Verify again
#
# The artifact carries the reference answers, so verifying it needs no checkpoint.

# %%
verification = qabuild.verify(built.directory)
assert verification.manifest == built.manifest

# %% [markdown]
# ## Compare
#
# The speedup comes from the build, in which artifact and checkpoint took turns on the same questions.

# %%
first, second = built.verification.measurement, verification.measurement
rows = (
    ("checkpoint", second.checkpoint_exact_match, second.checkpoint_f1, "reference"),
    ("artifact, built", first.exact_match, first.f1, "passed" if built.verification.passed else "failed"),
    ("artifact, verified again", second.exact_match, second.f1, "passed" if verification.passed else "failed"),
)
print(f"\n{'':<26}{'EM':>6}{'F1':>8}  result")
for name, exact_match, f1, result in rows:
    print(f"{name:<26}{exact_match:>6.2f}{f1:>8.2f}  {result}")
print(f"F1 retention {second.f1_retention:.2%}, agreement {second.agreement:.2%}")
if first.speed:
    low, high = first.speed.speedup_interval
    print(f"speedup {first.speed.speedup:.2f} (95 % interval {low:.2f} to {high:.2f})")

# %%
folder.cleanup()
