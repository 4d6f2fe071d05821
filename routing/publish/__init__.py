"""From ``delay()`` to the transport: routing, messages, bulk calls, groups."""
