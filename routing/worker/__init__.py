"""From the transport to the pool and back: what a worker does with what it has fetched."""
