"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("fmopt_requests", "Requests answered", ("route", "status"), registry=self.registry)
        self.seconds = Histogram(
            "fmopt_request_seconds", "From a request to its answer", ("route",), buckets=SECONDS, registry=self.registry
        )
        self.items = Counter("fmopt_items", "Items answered", registry=self.registry)
        self.batches = Histogram("fmopt_batch_items", "Items in one call", buckets=SIZES, registry=self.registry)
        self.busy = Counter("fmopt_model_seconds", "Seconds that the model was computing", registry=self.registry)
        self.waiting = Gauge("fmopt_waiting_items", "Items that wait or are being answered", registry=self.registry)

    def watch(self, depth: Callable[[], int]) -> None:
        """Tell how much waits."""
        self.waiting.set_function(depth)

    def batch(self, items: int, seconds: float) -> None:
        """One call of the model has ended."""
        self.items.inc(items)
        self.batches.observe(items)
        self.busy.inc(seconds)

    def request(self, route: str, status: int, seconds: float) -> None:
        """One request was answered."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
