"""`headrace state SERVICE`: what a stage's stores on this disk hold, read beside a running worker or without one."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from confluent_kafka import Consumer, KafkaException, TopicPartition

from experience import page_log, preview, seen, sessions
from headrace import broker as brokers
from headrace.durable_rows import FIRST_LAYOUT
from headrace.settings import ConfigError, StreamSettings, load
from headrace.store import PartitionStore
from joiner import rows
from joiner.settings import JoinerSettings
from joiner.stored_state import stored_state
from monitor import letters, pages, rewards, versions, window
from serving.user_state import step as user_state

Service = Literal["joiner", "experience", "monitor", "user-state"]

LAYOUTS: Mapping[Service, int] = {
    "joiner": rows.LAYOUT,
    "experience": sessions.LAYOUT,
    "monitor": FIRST_LAYOUT,
    "user-state": user_state.LAYOUT,
}
ROW_KINDS: Mapping[Service, Mapping[bytes, str]] = {
    "joiner": rows.ROW_KINDS,
    "experience": {
        seen.PREFIX: "seen_pages",
        page_log.PAGES: "open_pages",
        page_log.PROGRESSED: "progress",
        sessions.CLOCK: "clock",
        **preview.ROW_KINDS,
    },
    "monitor": {
        letters.PREFIX: "dead_letters",
        pages.PREFIX: "pages",
        rewards.PREFIX: "rewards",
        versions.PREFIX: "versions",
        window.PREFIX: "window",
    },
    "user-state": user_state.ROW_KINDS,
}
OPEN_ATTEMPTS = 3
"""A worker that compacts its files while they are opened makes an attempt fail, not the next one."""
TIMEOUT_S = 5.0


def read_state(service: Service, settings: StreamSettings) -> dict[str, Any]:
    """The report on every partition that this state folder holds. Raises ConfigError where it holds none, or none that can be read."""
    folder = settings.state_dir / service
    numbers = sorted(int(child.name) for child in _children(folder) if child.name.isdecimal())
    if not numbers:
        raise ConfigError(
            f"no state in {folder}: no `headrace worker {service}` has read anything there yet; "
            "set stream.state_dir to the folder that the worker uses"
        )
    partitions = [_partition(service, folder / str(number)) for number in numbers]
    reachable = brokers.answers(settings.broker, timeout_s=2.0)
    if reachable:
        _add_kafka_offsets(partitions, settings.broker, f"{settings.group_prefix}-{service}")
    return {
        "service": service,
        "folder": str(folder),
        "broker": settings.broker if reachable else None,
        "partitions": partitions,
        "totals": _totals(partitions),
    }


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"cannot read state in {folder}: {error.strerror}; set stream.state_dir to the folder of a worker") from error


def _partition(service: Service, folder: Path) -> dict[str, Any]:
    store = _opened(folder)
    try:
        if store.layout not in (None, LAYOUTS[service]):
            raise ConfigError(
                f"the state in {folder} has layout {store.layout}, this version reads {LAYOUTS[service]}: "
                f"`headrace worker {service}` of this version rebuilds it from Kafka, or use the version that wrote it"
            )
        report: dict[str, Any] = {"partition": int(folder.name), "disk_bytes": _disk_bytes(folder), "layout": store.layout}
        if service == "joiner":
            report |= stored_state(store, load(JoinerSettings).hold_ms)._asdict()
        sizes: dict[str, Counter[str]] = {name: Counter(rows=0, bytes=0) for name in ROW_KINDS[service].values()}
        for key, value in store.rows():
            sizes[ROW_KINDS[service][key[:1]]].update(rows=1, bytes=len(key) + len(value))
        counts: dict[str, dict[str, int]] = {}
        for count, total in sorted(store.counts.items()):
            counts.setdefault(count.name, {})[count.label] = total
        return report | {
            "rows": {name: dict(size) for name, size in sizes.items()},
            "offsets": {topic: {"stored": offset} for topic, offset in sorted(store.offsets.items())},
            "counts": counts,
        }
    finally:
        store.close()


def _opened(folder: Path) -> PartitionStore:
    for _ in range(OPEN_ATTEMPTS - 1):
        try:
            return PartitionStore(folder, read_only=True)
        except ConfigError:
            continue
    return PartitionStore(folder, read_only=True)


def _disk_bytes(folder: Path) -> int:
    """What the files take on the disk, allocated ahead included."""
    total = 0
    for path in folder.iterdir():
        try:
            total += 512 * path.stat().st_blocks
        except FileNotFoundError:
            continue  # a running worker has just deleted it
    return total


def _add_kafka_offsets(partitions: list[dict[str, Any]], broker: str, group: str) -> None:
    """Beside each stored offset the group's committed one, the topic's end, and how many records lie between it and what is stored."""
    wanted = [TopicPartition(topic, report["partition"]) for report in partitions for topic in report["offsets"]]
    if not wanted:
        return
    consumer = Consumer({"bootstrap.servers": broker, "group.id": group, "enable.auto.commit": False, "log_level": 0})
    try:
        committed = {(place.topic, place.partition): place.offset for place in consumer.committed(wanted, TIMEOUT_S)}
        ends = {(place.topic, place.partition): consumer.get_watermark_offsets(place, TIMEOUT_S)[1] for place in wanted}
    except KafkaException as error:
        raise ConfigError(f"cannot read the offsets of group {group} at {broker}: {error.args[0].str()}") from error
    finally:
        consumer.close()
    for report in partitions:
        for topic, offsets in report["offsets"].items():
            place = topic, report["partition"]
            offsets["committed"] = committed[place] if committed[place] >= 0 else None  # below 0: nothing yet
            offsets["end"] = ends[place]
            offsets["lag"] = max(0, ends[place] - offsets["stored"])


def _totals(partitions: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums of what can be added up; of event times the oldest."""
    totals: dict[str, Any] = {}
    for report in partitions:
        for name, value in report.items():
            if name in ("partition", "layout", "offsets"):
                continue
            if isinstance(value, dict):
                summed = totals.setdefault(name, {})
                for kind, sizes in value.items():
                    summed[kind] = dict(Counter(summed.get(kind, {})) + Counter(sizes))
            elif name.endswith("_ms"):
                totals[name] = min((ms for ms in (totals.get(name), value) if ms is not None), default=None)
            else:
                totals[name] = totals.get(name, 0) + value
    return totals
