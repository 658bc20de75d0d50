"""What Prometheus reads of a page of metrics."""

from __future__ import annotations

import http.client
from collections.abc import Iterable
from typing import Self

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

TOKEN = "a-token-of-the-tests"


class Samples:
    """The samples of some families."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = list(families)

    @classmethod
    def of(cls, text: str) -> Self:
        """Return those of a page."""
        return cls(text_string_to_metric_families(text))

    def find(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and values of each sample called *name* that has all of *labels*."""
        return [
            (dict(sample.labels), sample.value)
            for family in self.families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def get(self, name: str, **labels: str) -> float:
        """Return the sum of these values; fail if there are none."""
        found = self.find(name, **labels)
        assert found, f"no {name} with {labels}"
        return sum(value for _, value in found)

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Return the values that are not zero by these labels."""
        found = self.find(name)
        return {tuple(each[k] for k in labels): value for each, value in found if value}


def ask(
    port: int, path: str = "/metrics", *, timeout: float = 20.0, method: str = "GET", **headers: str
) -> tuple[int, str, str]:
    """Return status, content type and body; the underscores of headers are hyphens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        pairs = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=pairs)
        response = connection.getresponse()
        kind = response.headers.get("content-type", "")
        return response.status, kind, response.read().decode()
    finally:
        connection.close()


def scrape(port: int, *, timeout: float = 20.0) -> Samples:
    """Return what the page of a port says; its process sees the token."""
    status, _, text = ask(port, timeout=timeout, Authorization=f"Bearer {TOKEN}")
    assert status == 200, text
    return Samples.of(text)
