"""A stage's counts and gauges as a Prometheus page, and a small reader of such pages."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from headrace.step import Count

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Looks = Mapping[int, tuple[Counter[Count], Mapping[str, float]]]
"""By partition: the counts since its state began, and its gauges now."""

COUNTERS: dict[str, tuple[str, str, str]] = {
    "in": ("headrace_rows_in_total", "topic", "Events or rows read, by topic"),
    "out": ("headrace_rows_out_total", "topic", "Events or rows sent, by topic"),
    "rejected": ("headrace_rejected_total", "reason", "Events or rows refused, each with a dead letter, by reason"),
    "ignored": ("headrace_ignored_total", "reason", "Harmless drops such as duplicates, by reason"),
    "out_of_order": ("headrace_out_of_order_total", "topic", "Rows that came behind the promised watermark and were used, by topic"),
}
"""By `Count.name`: the metric, the name of its label, its help text."""

BATCH_SECONDS = "headrace_batch_seconds"
BATCH_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_GAUGE_NAME = re.compile(r"[a-z][a-z0-9_]*")


def gauge_metric(name: str) -> str:
    """The metric of a step's gauge: `watermark_ms` is headrace_watermark_ms{stage, partition}."""
    if not _GAUGE_NAME.fullmatch(name):
        raise ValueError(f"gauge {name!r}: a name is lower-case letters, digits and underscores")
    return f"headrace_{name}"


class StageMetrics(Collector):
    """The metrics of one stage in this process. `looks` is asked at every scrape, so nothing is counted twice or held here.

    Counters are the stage's durable counts: they go on after a restart on the same disk, and start at zero without it.
    """

    def __init__(self, stage: str, looks: Callable[[], Looks]) -> None:
        self.stage = stage
        self.registry = CollectorRegistry()
        self._looks = looks
        self._batch_seconds = Histogram(
            BATCH_SECONDS,
            "Time to apply, send and store one delivered batch",
            ["stage", "topic"],
            buckets=BATCH_BUCKETS_S,
            registry=self.registry,
        )
        self.registry.register(self)

    def observe_batch(self, topic: str, seconds: float) -> None:
        """One delivered batch of `topic` was applied, sent and stored in `seconds`."""
        self._batch_seconds.labels(self.stage, topic).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """The counters of all partitions together, and each partition's gauges."""
        looks = self._looks()
        counts: Counter[Count] = Counter()
        gauges: dict[tuple[str, str], float] = {}
        for partition, (partition_counts, partition_gauges) in looks.items():
            counts.update(partition_counts)
            gauges.update({(name, str(partition)): value for name, value in partition_gauges.items()})
        for name, (metric, label, text) in COUNTERS.items():
            counter = CounterMetricFamily(metric, text, labels=["stage", label])
            for count in sorted(count for count in counts if count.name == name):
                counter.add_metric([self.stage, count.label], counts[count])
            yield counter
        yield from self._gauge_families(gauges)

    def _gauge_families(self, gauges: Mapping[tuple[str, str], float]) -> Iterator[Metric]:
        for name in sorted({name for name, _ in gauges}):
            family = GaugeMetricFamily(gauge_metric(name), f"{name} of a stage's partition", labels=["stage", "partition"])
            for (gauge, partition), value in sorted(gauges.items()):
                if gauge == name:
                    family.add_metric([self.stage, partition], value)
            yield family

    def render(self) -> bytes:
        """The page, in Prometheus's text format (CONTENT_TYPE)."""
        return generate_latest(self.registry)


@dataclass(frozen=True)
class Sample:
    """One line of a page."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Page:
    """A scraped page."""

    samples: tuple[Sample, ...]

    def values(self, name: str, **labels: str) -> list[float]:
        """The values of the samples called `name` that have these labels."""
        return [s.value for s in self.samples if s.name == name and all(s.labels.get(key) == value for key, value in labels.items())]

    def total(self, name: str, **labels: str) -> float:
        """Their sum; 0 where there is none."""
        return sum(self.values(name, **labels))

    def highest(self, name: str, **labels: str) -> float | None:
        """The largest of them: the lag of the partition that is furthest behind. None where there is none."""
        return max(self.values(name, **labels), default=None)

    def counts(self, stage: str) -> Counter[Count]:
        """A stage's counts, as its runner had them."""
        names = {metric: (name, label) for name, (metric, label, _) in COUNTERS.items()}
        counts: Counter[Count] = Counter()
        for sample in self.samples:
            if sample.name in names and sample.labels.get("stage") == stage:
                name, label = names[sample.name]
                counts[Count(name, sample.labels[label])] += int(sample.value)
        return counts


def parse(text: str) -> Page:
    """Read a page. Raises ValueError where the text is not in Prometheus's format."""
    families = text_string_to_metric_families(text)
    return Page(tuple(Sample(line.name, line.labels, line.value) for family in families for line in family.samples))
