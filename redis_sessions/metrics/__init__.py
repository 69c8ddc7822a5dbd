"""Prometheus metrics: the counters that all workers share, and the results of a key scan. `register(store)` exports them.

It needs `pip install 'redis-sessions[prometheus]'`. All workers count in one place, so one exporter is enough, in a worker
or by `redis-sessions metrics --listen`. If there are several, all show the same: aggregate with `max`, never `sum`.

- What can't be read now is not shown: with Redis away `redis_sessions_up` is 0 and the counters are absent. Zero would be
  a counter reset, and the last known value would look like idle workers.
- The gauges come from the last key scan, whose age is exported, so that clocks need not agree. The first scrape that finds
  the scan too old starts a new one in a thread of its own, never two at once; stores that share a client
  (`store.for_namespace("…")`) scan one after the other.
- A scrape waits for Redis no longer than an operation may (the store's `deadline_ms`; for a client that the caller built,
  its own timeouts), and for a scan one second. A scan that takes longer continues, and a later scrape shows it.
- Registering sends nothing to Redis, so it may be done before a fork.
- In asyncio: register a SessionStore of the same URL and settings (a scrape blocks, so serve it from a thread, as
  `prometheus_client.start_http_server` does), or leave it to one exporter beside the workers.
- Under PROMETHEUS_MULTIPROC_DIR a scrape does not show the default registry: register on the one that has the
  `MultiProcessCollector`. If that is made for each scrape, make one `Collector(store)` and register it on each of them, so
  that it keeps its scan. None of these metrics go through that mode's files, so nothing is summed over processes.
- Before a store is closed, unregister its collector and `close()` it.
"""

from redis_sessions.metrics.collector import Collector, register

__all__ = ["Collector", "register"]
