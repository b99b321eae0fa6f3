"""What a server tells Prometheus of itself."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)


class Metrics:
    """Counters, gauges and histograms of one server, in a registry of their own.

    Args:
        worker: `Worker`, whose state the gauges read when they are asked.
    """

    def __init__(self, worker):
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self._answers = Counter("serve_answers", "Answers by HTTP status; 499: the client left.", ["status"], **own)
        self._tokens = Counter("serve_tokens", "Tokens of finished sequences.", ["part"], **own)
        self._first = Histogram("serve_first_token_seconds", "From request to first token.", buckets=SECONDS, **own)
        self._between = Histogram("serve_token_seconds", "Per token after the first.", buckets=SECONDS, **own)
        self._whole = Histogram("serve_request_seconds", "From request to last token.", buckets=SECONDS, **own)
        engine, pool = worker.engine, worker.engine.pool
        gauges = {
            "running": ("Sequences in the batch.", lambda: len(engine.running)),
            "accepted": ("Sequences that are accepted and not done.", lambda: worker.num_accepted),
            "blocks_free": ("Blocks of keys and values that are free.", lambda: pool.num_free),
            "blocks": ("Blocks of keys and values.", lambda: pool.num_blocks),
            "preemptions": ("How often a sequence lost its blocks.", lambda: engine.num_preempted),
            "steps": ("Forward passes.", lambda: worker.num_steps),
        }
        for name, (text, read) in gauges.items():
            Gauge(f"serve_{name}", text, **own).set_function(read)

    def answered(self, status):
        """Count an answer."""
        self._answers.labels(status).inc()

    def done(self, sequence, begun_s):
        """Hear that a `sequence` is done whose request came at `begun_s`, by `time.monotonic`."""
        self._tokens.labels("prompt").inc(sequence.num_prompt)
        self._tokens.labels("added").inc(sequence.num_added)
        if sequence.num_added:
            self._first.observe(sequence.first_at_s - begun_s)
            self._whole.observe(sequence.last_at_s - begun_s)
        if sequence.num_added > 1:
            self._between.observe((sequence.last_at_s - sequence.first_at_s) / (sequence.num_added - 1))

    def text(self):
        """All of it, in Prometheus's format: bytes."""
        return generate_latest(self.registry)
