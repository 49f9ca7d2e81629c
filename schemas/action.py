"""The action specification: what each number of an action means, its bounds, and the baseline that reproduces the ranker."""

import hashlib
from typing import Literal, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator


class ActionDimension(BaseModel):
    """One number of the action. `objective` names the ranker's score that it moves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    objective: str = Field(min_length=1)
    baseline: float = 1.0
    low: float = 0.0
    high: float = 2.0
    meaning: str = ""

    @model_validator(mode="after")
    def _baseline_inside_the_bounds(self) -> Self:
        if not self.low < self.high or not self.low <= self.baseline <= self.high:
            raise ValueError(
                f"action {self.name}: needs low < high and low <= baseline <= high, got {self.low}, {self.baseline}, {self.high}"
            )
        return self


class ActionSpec(BaseModel):
    """The whole action and how it fuses an item's scores into one.

    `power_product`: score = prod_k p_k ** w_k, with w_k = beta * a_k for the objectives that the action moves and 1 for the
    rest (Meituan: p_click * p_pay ** (beta * a)). `weighted_sum`: score = sum_k a_k * p_k.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fusion: Literal["power_product", "weighted_sum"] = "power_product"
    beta: float = Field(1.0, gt=0.0)
    dimensions: tuple[ActionDimension, ...] = Field(
        default=(
            ActionDimension(
                name="pay_exponent", objective="pay", meaning="multiplies the exponent of p_pay; 1 is the ranker's own trade-off"
            ),
        ),
        min_length=1,
    )

    @property
    def size(self) -> int:
        """How many numbers an action has."""
        return len(self.dimensions)

    @property
    def baseline(self) -> list[float]:
        """The action that changes nothing."""
        return [dimension.baseline for dimension in self.dimensions]

    @property
    def low(self) -> list[float]:
        """Smallest allowed value of each dimension."""
        return [dimension.low for dimension in self.dimensions]

    @property
    def high(self) -> list[float]:
        """Largest allowed value of each dimension."""
        return [dimension.high for dimension in self.dimensions]


def spec_hash(*specs: BaseModel) -> str:
    """A short name for exactly these specifications: it travels with a model, and a model of another one is refused."""
    encoded = msgspec.json.encode([spec.model_dump(mode="json") for spec in specs], order="sorted")
    return hashlib.sha256(encoded).hexdigest()[:16]
