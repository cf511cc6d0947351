"""The options of the tasks of `solve`, checked as a configuration is."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from nas_moreau.config import DataConfig, Section

Count = Annotated[int, Field(ge=1)]
AtLeastTwo = Annotated[int, Field(ge=2)]
AUTOMATIC = "automatic"
"""The method of problems with known answers if none is named: `bilevel.solve` without a method."""


class SolveConfig(Section):
    """The options that all tasks have."""

    method: str = Field(default="moreau", description="Bilevel method (nas-moreau list methods).")
    steps: Count | None = Field(default=None, description="Maximum number of steps. Default: the task's own.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="Seed of every random draw.")


class SmallConfig(SolveConfig):
    """The options of problems with known answers."""

    method: str = Field(
        default=AUTOMATIC,
        description="Bilevel method (nas-moreau list methods), or automatic: the solver decides and certifies.",
    )
    n: Count | None = Field(default=None, description="Size of the problem. Default: the task's own.")
    debias: bool = Field(default=False, description="Whether to remove the bias of the penalty (methods named moreau).")
    polish: bool = Field(
        default=True, description="Whether to solve the lower level accurately at the final x; automatic does so."
    )


class DataTaskConfig(SolveConfig):
    """The options of tasks that learn from images, in a run folder."""

    data: DataConfig = Field(default=DataConfig(), description="The images.")
    device: str = Field(default="auto", description="auto, cpu, or a device of torch.")


class CleaningConfig(DataTaskConfig):
    """The options of data hyper-cleaning."""

    n: AtLeastTwo | None = Field(
        default=None, description="Training samples, and as many for validation. Default: 5000; all where corrupt is 0."
    )
    corrupt: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="Fraction of the training labels to change, for a demonstration; 0 judges the labels as they are. "
        "Default: 0; 0.5 for the generated images (shapes).",
    )

    @model_validator(mode="before")
    @classmethod
    def _labels_of_users_stay(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("corrupt") is not None:
            return values
        data = values.get("data", DataConfig())
        name = (
            data.name if isinstance(data, DataConfig) else data.get("name", "shapes") if isinstance(data, dict) else ""
        )
        return {**values, "corrupt": 0.5 if name == "shapes" else 0.0}

    @model_validator(mode="after")
    def _all_are_judged(self) -> CleaningConfig:
        if self.corrupt == 0 and self.n is not None:
            raise ValueError("with corrupt 0 all training images are judged; leave n out")
        return self


class FewShotConfig(DataTaskConfig):
    """The options of few-shot learning."""

    ways: AtLeastTwo = Field(default=5, description="Classes of a task.")
    shots: Count = Field(default=1, description="Training images of each class.")
