# %% [markdown]
# # Answer in a Ray job
#
# Answers a data set of Ray with two workers, each of which loads the artifact once. Needs `pip install '.[cpu]'
# 'ray[data]'`, no network and no GPU.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import ray

import qabuild

TARGET = Path(__file__).resolve().parents[1] / "targets" / "quickstart.toml"
folder = TemporaryDirectory(prefix="qabuild-example-")
built = qabuild.build(TARGET, folder.name)

# %% [markdown]
# ## Questions
#
# The second row is bad: its answer is an error, and the job goes on.

# %%
CONTEXT = "The length of the Flisool Bridge is 175 metres. Flerad Vopper drew its plans."
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
questions = ray.data.from_items(
    [
        {"id": 1, "question": "How long is the Flisool Bridge?", "context": CONTEXT},
        {"id": 2, "question": "How long is the Flisool Bridge?", "context": ""},
        {"id": 3, "question": "Who drew the plans of the Flisool Bridge?", "context": CONTEXT},
    ]
)

# %% [markdown]
# ## Answers
#
# The digest requires the same artifact on every node.

# %%
answers = questions.map_batches(
    qabuild.BatchAnswerer,
    fn_constructor_kwargs={"artifact": str(built.directory), "digest": built.manifest},
    compute=ray.data.ActorPoolStrategy(size=2),
    batch_format="pyarrow",
)
for row in sorted(answers.take_all(), key=lambda row: row["id"]):
    print(row["id"], row["answer"] or row["error"])

# %%
ray.shutdown()
folder.cleanup()
