"""The demo: worker processes share sessions through Redis, once without expiry and once with it."""
