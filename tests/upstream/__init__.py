"""Celery's own integration suite against the engine: ``python -m tests.upstream``.

The suite of the installed Celery comes from its source distribution and runs twice, beside each
other: with Celery's Redis transport, and with `routing.install` called on the suite's apps. What
passes on the first must pass on the second, or be listed with its reason in ``known.toml``.
"""
