"""What this process holds from the queues: bookkeeping without I/O."""
