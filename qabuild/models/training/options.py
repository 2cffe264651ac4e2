"""The tables `[train]`, `[distill]` and `[prune.recover]` of a target, and the steps of a training."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from qabuild.models.checkpoint.source import CheckpointSource
from qabuild.qa.data.dataset_ref import SOURCE, DatasetTable, Share
from qabuild.system.frozen import Frozen

Autocast = Literal["auto", "fp32", "bf16", "fp16"]


class Fit(DatasetTable):
    """How a model is fitted to questions: what all trainings have in common."""

    table: ClassVar[str] = "train"
    """Its name in a target, for messages and keys."""

    dataset: str = Field("rajpurkar/squad", min_length=1, description=f"what it learns from: {SOURCE}")
    held_out: int = Field(
        0, ge=0, description="questions, of whole contexts, that are kept from training and asked after each epoch"
    )
    epochs: int = Field(2, ge=1, description="how often each question is seen")
    learning_rate: float = Field(3e-5, gt=0, description="of AdamW, at its highest; it falls linearly to 0")
    warmup_ratio: Share = Field(0.0, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    dropout: float | None = Field(None, ge=0, lt=1, description="while training; as the checkpoint has it where absent")
    batch_size: int = Field(32, ge=1, description="windows to each step of the optimiser, on all devices together")
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="parts that a batch is put through the model in, where the memory holds no whole one"
    )
    max_seq_len: int = Field(384, ge=16, description="tokens of a window, the question's among them")
    doc_stride: int = Field(128, ge=0, description="tokens of the context that two neighbouring windows share")
    dtype: Autocast = Field(
        "auto", description="autocast over fp32 weights: bf16, fp16, or fp32 for none; auto takes what is fast here"
    )
    seed: int = Field(0, ge=0, description="of the draws, the order of the questions, dropout and new weights")
    save_steps: int = Field(
        500, ge=1, description="steps between two states that an interrupted training can go on from"
    )
    deepspeed: str | None = Field(None, min_length=1, description="a DeepSpeed config (ZeRO), passed to the Trainer")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if problems := self._problems():
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> list[str]:
        """What of its keys does not fit together."""
        problems = []
        if self.doc_stride >= self.max_seq_len:
            problems.append(
                f"`doc_stride` must be less than `max_seq_len`, and is {self.doc_stride} to {self.max_seq_len}: "
                "windows that share all would never end"
            )
        if self.batch_size % self.gradient_accumulation_steps:
            problems.append(
                f"`gradient_accumulation_steps` must divide `batch_size`, and {self.gradient_accumulation_steps} does "
                f"not divide {self.batch_size}"
            )
        return problems


class Train(Fit):
    """How the checkpoint is fine-tuned before it is compiled."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, strict=False, min_length=1, description="start from these layers of the checkpoint only, as in [0, 2, 5]"
    )
    from_config: bool = Field(False, description="start from random weights of the checkpoint's configuration")

    def _problems(self) -> list[str]:
        problems = []
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            problems.append(f"`layers` are named once each, in their order, and not as {list(self.layers)}")
        if self.layers is not None and self.from_config:
            problems.append("name one of `layers` and `from_config`")
        return [*problems, *super()._problems()]


class Recover(Fit):
    """How a pruned checkpoint is trained to answer as it did before it was pruned."""

    table: ClassVar[str] = "prune.recover"

    epochs: int = Field(1, ge=1, description="how often each question is seen")
    warmup_ratio: Share = Field(0.05, description="share of the steps in which the learning rate rises")
    dropout: float | None = Field(
        0.0, ge=0, lt=1, description="while training: 0 takes a third less time, and one epoch needs none"
    )
    alpha: Share = Field(0.0, description="weight of the gold answers' loss; the rest is that of the teacher's logits")
    temperature: float = Field(1.0, gt=0, description="by which the logits of both are divided")
    hidden_states: float = Field(
        1.0, ge=0, description="weight of the relative error of each layer's hidden states, beside both"
    )


class Search(Frozen):
    """Hyper-parameter search of distillation with Optuna."""

    trials: int = Field(20, ge=1, description="trainings to try")
    samples: int | None = Field(None, ge=1, description="questions of each trial; those of `train` where absent")
    epochs: int = Field(1, ge=1, description="epochs of each trial")
    alpha: tuple[Share, Share] = Field((0.0, 1.0), strict=False, description="range of `alpha`")
    temperature: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = Field(
        (1.0, 10.0), strict=False, description="range of `temperature`"
    )
    seed: int = Field(0, ge=0, description="of the choice of trials")
    storage: str | None = Field(
        None,
        pattern="^[a-z][a-z0-9+_]*://.",
        description="where hosts that build this target share the trials: journal:///shared/FILE, or the address of a "
        "database, such as postgresql://host/name",
    )

    @field_validator("storage")
    @classmethod
    def _is_the_same_file_on_all_hosts(cls, storage: str | None) -> str | None:
        if storage and storage.startswith("journal://") and not storage.startswith("journal:///"):
            raise ValueError("a path after journal:// begins at the root, as in journal:///shared/study.log")
        return storage

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for name in ("alpha", "temperature"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"`{name}` is a range [low, high], and [{low}, {high}] falls")
        return self


class Distill(Frozen):
    """Two-step distillation (Sanh et al. 2019, arXiv 1910.01108): the student learns from the answers and a teacher."""

    alpha: Share = Field(0.25, description="weight of the student's own loss; the rest is that of the teacher's")
    temperature: float = Field(3.0, gt=0, description="by which the logits of both are divided")
    teacher: CheckpointSource = Field(description="a checkpoint fine-tuned for question answering")
    search: Search | None = Field(None, description="look for `alpha` and `temperature`")


StepName = Literal["logits", "search", "train", "recover"]


PACKAGES = ("accelerate", "tokenizers", "torch", "transformers")


SEARCH_PACKAGES = ("optuna",)

MODULES: dict[StepName, str] = {
    "logits": "qabuild.models.training.teacher_logits",
    "search": "qabuild.models.training.search",
    "train": "qabuild.models.training.fit",
    "recover": "qabuild.models.training.recover",
}
"""The module that runs each step, in its function `run`. A module imports another step's only if it uses it."""
