"""Prometheus metrics: the counters all workers share, and what a key scan tells. `register(store)` exports them.

It needs `pip install 'redis-sessions[prometheus]'`. All workers count in one place, so one exporter tells everything, be it
a worker or `redis-sessions metrics --listen`. Where several do, they all show the same: aggregate with `max`, never `sum`.

- What can't be read now is not shown: with Redis away `redis_sessions_up` is 0 and the counters are absent. Zero would be
  a counter reset, and the last known value would look like workers that have nothing to do.
- The gauges are those of the last key scan, whose age is exported: an age, so that no clocks need to agree. It is scanned
  anew by the first scrape that finds the scan too old, in a thread of its own, never twice at once; of stores that share
  a client (`store.for_namespace("…")`) one after the other.
- A scrape waits for Redis no longer than an operation may (the store's `deadline_ms`; on a client that the caller built,
  its own timeouts apply), and for a scan a second. A scan that takes longer goes on, and a later scrape shows it.
- Nothing is sent to Redis by registering, so it may be done before a fork.
- In asyncio: register a SessionStore of the same URL and settings (a scrape blocks, so serve it from a thread, as
  `prometheus_client.start_http_server` does), or leave it to one exporter beside the workers.
- Under PROMETHEUS_MULTIPROC_DIR the default registry is not what a scrape shows: register on the one that has the
  `MultiProcessCollector`; where that is made for each scrape, make one `Collector(store)`, and register it on each of
  them, so that it keeps its scan. Nothing of this goes through that mode's files, so nothing is added up over processes.
- Before a store is closed, unregister its collector and `close()` it.
"""

from redis_sessions.metrics.collector import Collector, register

__all__ = ["Collector", "register"]
