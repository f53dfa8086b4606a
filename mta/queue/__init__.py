"""The durable queue: one interface, `base`, and SQLite behind it, `sqlite`."""
