"""The queue table: which queues there are, what bounds them, which task goes where. Pure."""
