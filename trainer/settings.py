"""Settings of the trainer: the learner's hyper-parameters, the replay buffer, and when checkpoints and candidates are written."""

from typing import Self

from pydantic import Field, model_validator

from headrace.settings import Section


class TrainerSettings(Section):
    """One learner. Sizes and `heads` shape the network: a checkpoint made with others is refused."""

    section = "trainer"

    seed: int = Field(0, ge=0, lt=1 << 63, description="of the first weights, of sampling and of exploration in the gate")
    instance: str = Field(
        "td1",
        pattern=r"^(td[1-9][0-9]{0,2}|mc)$",
        description="which of `experience.instances` is learned from: the others are left out, or each page would count more than once",
    )
    hidden: tuple[int, ...] = Field((64, 64), min_length=1, description="widths of the encoder's layers; the last one is the state code")
    head_hidden: int = Field(32, ge=1, description="width of the hidden layer of V, A and the actor")
    channels: int = Field(16, ge=1, description="channels of a sequence's 1-D CNN")
    kernel: int = Field(3, ge=1, description="width of that CNN's kernel, in ids")
    heads: int = Field(5, ge=2, le=32, description="bootstrapped advantage heads; their spread is A's uncertainty")
    critic_learning_rate: float = Field(1e-3, gt=0.0, description="Adam step size of the encoder, V and A")
    actor_learning_rate: float = Field(1e-3, gt=0.0, description="Adam step size of the actor")
    weight_decay: float = Field(1e-2, ge=0.0, description="AdamW decay per unit of learning rate, all weights")
    pessimism: float = Field(1.0, ge=0.0, description="standard deviations of dA/da that the actor must beat to leave the baseline")
    max_grad_norm: float = Field(1.0, gt=0.0, description="gradients are scaled down to this norm, critic and actor each")
    normaliser_half_life_rows: float | None = Field(
        100_000.0, gt=0.0, description="later values of a feature after which a value counts half in its Z-score; none: never"
    )
    normaliser_warm_up_rows: int = Field(100, ge=2, description="a feature passes as it is, clipped, until so many values of it were seen")
    normaliser_clip: float = Field(5.0, gt=0.0, description="normalised features lie in [-clip, clip]")
    normaliser_min_variance: float = Field(1e-6, gt=0.0, description="floor of a feature's variance, in its own unit squared")
    batch_size: int = Field(256, ge=2, description="transitions a gradient step")
    steps_per_transition: float = Field(0.1, gt=0.0, le=10.0, description="gradient steps a new transition")
    replay_capacity: int = Field(50_000, ge=2, description="transitions kept for replay")
    dedup_horizon: int = Field(200_000, ge=1, description="newest transition ids by which a second delivery is recognised")
    holdout_share: float = Field(
        0.05, gt=0.0, lt=0.5, description="share of transitions never learned from; the gate's metrics are measured on them"
    )
    holdout_capacity: int = Field(1024, ge=2, description="newest held-out transitions")
    min_transitions: int = Field(1_000, ge=2, description="no gradient step and no candidate before so many transitions")
    embedding_admission_count: int = Field(2, ge=1, description="an id of a dynamic table gets a row when it has come so many times")
    embedding_max_age_s: int = Field(30 * 86_400, ge=1, description="it is forgotten when it has not come for so long, in event time")
    embedding_capacity_ids: int = Field(
        10_000_000,
        ge=1_000,
        description="known ids of a dynamic table; beyond it those that came longest ago are forgotten (27 bytes each)",
    )
    embedding_hot_rows: int = Field(
        1_000_000, ge=1_000, description="rows of a dynamic table in memory; the others are in RocksDB, below stream.state_dir"
    )
    embedding_learning_rate: float = Field(0.05, gt=0.0, description="AdaGrad step size of dynamic tables")
    embedding_publish_interval_s: float = Field(1.0, gt=0.0, description="how often rows that changed are written for serving")
    checkpoint_interval_s: float = Field(20.0, gt=0.0)
    candidate_interval_s: float = Field(10.0, gt=0.0)
    torch_threads: int = Field(1, ge=1, description="threads of one gradient step; more rarely pays at these sizes")

    @model_validator(mode="after")
    def _enough_rows_before_learning(self) -> Self:
        if self.normaliser_warm_up_rows > self.min_transitions:
            raise ValueError(
                f"normaliser_warm_up_rows {self.normaliser_warm_up_rows} must not exceed min_transitions {self.min_transitions}"
            )
        if self.embedding_hot_rows > self.embedding_capacity_ids:
            raise ValueError(
                f"embedding_hot_rows {self.embedding_hot_rows} must not exceed embedding_capacity_ids {self.embedding_capacity_ids}"
            )
        if self.dedup_horizon < self.replay_capacity:
            raise ValueError(f"dedup_horizon {self.dedup_horizon} must not be below replay_capacity {self.replay_capacity}")
        return self
