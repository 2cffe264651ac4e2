# %% [markdown]
# # Answer in a Spark job
#
# Answers a data frame of Spark with two workers, each of which loads the artifact once. Needs `pip install '.[cpu]'
# pyspark` and Java, no network and no GPU.

# %%
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pyspark.sql import SparkSession

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
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # of the workers
spark = (
    SparkSession.builder.master("local[2]")
    .config("spark.ui.enabled", "false")
    .config("spark.driver.bindAddress", "127.0.0.1")
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.sql.warehouse.dir", folder.name)
    .getOrCreate()
)
questions = spark.createDataFrame(
    [
        (1, "How long is the Flisool Bridge?", CONTEXT),
        (2, "How long is the Flisool Bridge?", ""),
        (3, "Who drew the plans of the Flisool Bridge?", CONTEXT),
    ],
    "id bigint, question string, context string",
)

# %% [markdown]
# ## Answers
#
# The answerer is pickled and sent to the workers. The digest requires the same artifact on every node.

# %%
ANSWERS = "id bigint, answer string, score double, start bigint, end bigint, question_truncated boolean, error string"
answerer = qabuild.BatchAnswerer(built.directory, digest=built.manifest)
answers = questions.mapInArrow(lambda batches: map(answerer, batches), ANSWERS)
for row in sorted(answers.collect(), key=lambda row: row["id"]):
    print(row["id"], row["answer"] or row["error"])

# %%
spark.stop()
folder.cleanup()
