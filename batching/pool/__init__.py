"""In the pool process: a batch is opened, called once, and each item settled."""
