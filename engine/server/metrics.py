"""Counts for Prometheus. Names are vLLM's, with `lariat_` in front.

No text of a request becomes a label: what may stand there is a route, a status, or a reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from lariat.cache.blocks import BlockPool
    from lariat.runtime.request import Completion
    from lariat.server.admission import Admission

prometheus.disable_created_metrics()  # of each count a second one, which nobody reads

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_BETWEEN = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """All counts of a service, in a registry of its own."""

    def __init__(self, admission: Admission, pool: Callable[[], BlockPool | None]) -> None:
        """`pool`: the blocks of the cache, None before the model is loaded."""
        self.registry = prometheus.CollectorRegistry()
        self.registry.register(_State(admission, pool))
        registry = self.registry
        self.prompt_tokens = prometheus.Counter(
            "lariat_prompt_tokens", "Prompt tokens that were computed", registry=registry
        )
        self.generation_tokens = prometheus.Counter(
            "lariat_generation_tokens", "Tokens that were written", registry=registry
        )
        self.passes = prometheus.Counter(
            "lariat_generation_passes", "Forward passes that wrote tokens", registry=registry
        )
        self.drafted = prometheus.Counter(
            "lariat_spec_decode_num_draft_tokens", "Tokens that were guessed", registry=registry
        )
        self.accepted = prometheus.Counter(
            "lariat_spec_decode_num_accepted_tokens", "Guessed tokens that came", registry=registry
        )
        self.prefix_queries = prometheus.Counter(
            "lariat_prefix_cache_queries",
            "Prompt tokens that were looked for",
            registry=registry,
        )
        self.prefix_hits = prometheus.Counter(
            "lariat_prefix_cache_hits", "Prompt tokens that were in the cache", registry=registry
        )
        self.finished = prometheus.Counter(
            "lariat_request_success", "Streams that ended", ["finished_reason"], registry=registry
        )
        self.cancelled = prometheus.Counter(
            "lariat_request_cancelled", "Streams whose client went first", registry=registry
        )
        self.first_token = prometheus.Histogram(
            "lariat_time_to_first_token_seconds", "From the request to its first token",
            buckets=_FIRST, registry=registry,
        )  # fmt: skip
        self.between = prometheus.Histogram(
            "lariat_inter_token_latency_seconds", "Between two tokens of a stream",
            buckets=_BETWEEN, registry=registry,
        )  # fmt: skip
        self.whole = prometheus.Histogram(
            "lariat_e2e_request_latency_seconds", "From the request to its last token",
            buckets=_FIRST, registry=registry,
        )  # fmt: skip
        self.requests = prometheus.Counter(
            "lariat_http_requests", "Requests", ["route", "method", "status"], registry=registry
        )

    def stream(self, n_prompt: int) -> Watch:
        """Watch a stream of text, from its request on."""
        return Watch(self, n_prompt)

    def text(self) -> bytes:
        """All counts, as Prometheus reads them."""
        return prometheus.generate_latest(self.registry)


class Watch:
    """Counts the tokens of one stream."""

    def __init__(self, metrics: Metrics, n_prompt: int) -> None:
        self._metrics, self._n_prompt = metrics, n_prompt
        self._start = self._last = time.monotonic()
        self._n = 0

    def begin(self) -> None:
        """It runs now."""
        self._metrics.prefix_queries.inc(self._n_prompt)

    def tokens(self, n_new: int) -> None:
        """It has so many tokens more."""
        now = time.monotonic()
        if self._n == 0:
            self._metrics.first_token.observe(now - self._start)
        elif n_new:
            self._metrics.between.observe((now - self._last) / n_new)
        self._last, self._n = now, self._n + n_new

    def end(self, done: Completion) -> None:
        """It is over, finished or not."""
        m = self._metrics
        m.prompt_tokens.inc(done.timings.n_prompt)
        m.prefix_hits.inc(done.timings.n_reused)
        m.generation_tokens.inc(len(done.token_ids))
        m.passes.inc(done.timings.n_passes)
        m.drafted.inc(done.timings.n_drafted)
        m.accepted.inc(done.timings.n_accepted)
        if done.finish_reason is None:
            m.cancelled.inc()
            return
        m.finished.labels(done.finish_reason).inc()
        m.whole.observe(time.monotonic() - self._start)


class _State:
    """Gauges, looked up when they are asked for."""

    def __init__(self, admission: Admission, pool: Callable[[], BlockPool | None]) -> None:
        self._admission, self._pool = admission, pool

    def collect(self) -> Iterator[Any]:
        """The gauges."""
        running, waiting = self._admission.n_running, self._admission.n_waiting
        yield GaugeMetricFamily("lariat_num_requests_running", "Streams that run", running)
        yield GaugeMetricFamily("lariat_num_requests_waiting", "Streams that wait", waiting)
        pool = self._pool()
        if pool is not None:
            yield GaugeMetricFamily(
                "lariat_kv_cache_usage_perc", "Share of the cache that is in use, 0 to 1",
                1 - pool.n_free / pool.n_blocks,
            )  # fmt: skip
