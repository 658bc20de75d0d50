"""Families of samples: made from the catalog, sent from process to process, merged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import Metric

from wsgateway.counters import Histogram
from wsgateway.metrics.catalog import PROCESS_LABEL, Spec

__all__ = ["Families", "decode", "encode", "merge"]


class Families:
    """The families of some metrics, filled sample by sample.

    Args:
        specs: Which ones.
    """

    def __init__(self, specs: Iterable[Spec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._families = {
            name: Metric(spec.family, spec.doc, spec.type) for name, spec in self._specs.items()
        }

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._families.values())

    def add(self, name: str, value: float, *labels: str) -> None:
        """Add a sample with the labels' values in the catalog's order."""
        self._families[name].add_sample(name, self._labels(name, labels), value)

    def add_histogram(self, name: str, histogram: Histogram, *labels: str) -> None:
        """Add the samples of a histogram."""
        pairs, family = self._labels(name, labels), self._families[name]
        bounds = (*(str(float(bound)) for bound in histogram.bounds), "+Inf")
        counts = list(accumulate(histogram.counts))
        for bound, count in zip(bounds, counts, strict=True):
            family.add_sample(f"{name}_bucket", {**pairs, "le": bound}, count)
        family.add_sample(f"{name}_sum", pairs, histogram.sum)
        family.add_sample(f"{name}_count", pairs, counts[-1])

    def _labels(self, name: str, values: Sequence[str]) -> dict[str, str]:
        return dict(zip(self._specs[name].labels, values, strict=True))


def encode(families: Iterable[Metric]) -> bytes:
    """Return *families* as another process can `decode` them."""
    return json.dumps(
        [
            [each.name, each.documentation, each.type, [sample[:3] for sample in each.samples]]
            for each in families
        ]
    ).encode()


def decode(data: bytes) -> list[Metric]:
    """Return what `encode` was given.

    Raises:
        ValueError: Something else made *data*.
    """
    found = []
    try:
        for name, documentation, kind, samples in json.loads(data):
            family = Metric(name, documentation, kind)
            for sample, labels, value in samples:
                family.add_sample(sample, labels, value)
            found.append(family)
    except (TypeError, AttributeError) as exc:
        raise ValueError("not an answer of this version") from exc
    return found


def merge(answers: Mapping[str, Iterable[Metric]]) -> list[Metric]:
    """Return the families of several processes in one, each sample with its process.

    Args:
        answers: Families by process.
    """
    merged: dict[str, Metric] = {}
    for process, families in answers.items():
        for each in families:
            family = merged.get(each.name)
            if family is None:
                family = merged[each.name] = Metric(each.name, each.documentation, each.type)
            for name, labels, value, *_ in each.samples:
                family.add_sample(name, {**labels, PROCESS_LABEL: process}, value)
    return list(merged.values())
