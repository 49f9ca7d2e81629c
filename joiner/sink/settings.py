"""Settings of the Parquet sink."""

from dataclasses import dataclass, field
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from headrace.settings import Section
from schemas.topics import TOPICS

TOPIC_NAMES = tuple(topic.name for topic in TOPICS if topic.format == "arrow" and topic.name.endswith("samples"))


@dataclass(frozen=True)
class StorageOptions:
    """What a uri does not say. None: as the store's own clients find it."""

    s3_endpoint: str | None = None
    s3_region: str | None = None
    s3_access_key: str | None = field(default=None, repr=False)
    s3_secret_key: str | None = field(default=None, repr=False)
    s3_session_token: str | None = field(default=None, repr=False)
    hdfs_user: str | None = None
    timeout_s: float = 30.0


class SinkSettings(Section):
    """Where the sink writes samples as Parquet, how often, and how large its files become."""

    section = "sink"

    uri: str = Field(
        "var/samples",
        min_length=1,
        description="a folder, file:///FOLDER, s3://BUCKET/PREFIX, webhdfs://HOST:PORT/PATH, or hdfs://HOST:PORT/PATH (needs libhdfs)",
    )
    topic: str = Field("samples", description="the topic of samples that is written; each topic needs a uri of its own")

    flush_s: float = Field(60.0, gt=0, description="a row waits at most about so long for its file")
    flush_rows: int = Field(500_000, ge=1, description="a file is written when so many rows of a partition wait")
    flush_bytes: int = Field(
        32 << 20, ge=1 << 10, description="or so many bytes, uncompressed; a partition holds at most about three times as many in memory"
    )
    compact_after_s: float = Field(
        300.0, ge=0, description="the files of an hour that is over are merged when none was added for so long (wall time)"
    )
    file_bytes: int = Field(
        128 << 20, ge=1 << 10, description="merged files are at most about so large; those of more than half are left alone"
    )
    keep_replaced_s: float = Field(300.0, ge=0, description="files that were merged stay for so long, for readers that have opened them")
    dedup_horizon_rows: int = Field(
        1_000_000, ge=0, description="samples delivered again are recognised among at least so many of a partition's newest rows"
    )

    s3_endpoint: str | None = Field(None, pattern=r"^https?://[^/]+/?$", description="of a store that is not Amazon's: http://HOST:PORT")
    s3_region: str | None = Field(None, description="by default as the AWS command line finds it")
    s3_access_key: SecretStr | None = Field(
        None, description="by default as the AWS command line finds it: environment, profile, machine role"
    )
    s3_secret_key: SecretStr | None = Field(None, description="goes with s3_access_key")
    s3_session_token: SecretStr | None = Field(None, description="of temporary credentials")
    hdfs_user: str | None = Field(None, description="the user that writes, where HDFS asks for no credentials")
    timeout_s: float = Field(30.0, gt=0, le=600, description="longest silence of the target in one request")

    @field_validator("topic")
    @classmethod
    def _is_a_topic_of_samples(cls, name: str) -> str:
        if name not in TOPIC_NAMES:
            raise ValueError(f"choose one of {', '.join(TOPIC_NAMES)}")
        return name

    @model_validator(mode="after")
    def _keys_come_in_pairs(self) -> Self:
        if (self.s3_access_key is None) != (self.s3_secret_key is None):
            raise ValueError("s3_access_key and s3_secret_key go together: set both, or neither")
        return self

    @property
    def storage(self) -> StorageOptions:
        """What `open_samples` needs beside the uri."""
        return StorageOptions(
            s3_endpoint=self.s3_endpoint,
            s3_region=self.s3_region,
            s3_access_key=_opened(self.s3_access_key),
            s3_secret_key=_opened(self.s3_secret_key),
            s3_session_token=_opened(self.s3_session_token),
            hdfs_user=self.hdfs_user,
            timeout_s=self.timeout_s,
        )


def _opened(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
