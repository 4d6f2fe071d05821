"""Where batches go: sinks that end each item by what became of it there."""
