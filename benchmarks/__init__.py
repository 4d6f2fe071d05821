"""Celeriac beside stock Celery, measured in the same run: ``python -m benchmarks``.

Every scenario runs both sides in turn on one embedded Valkey and reports the medians and their
ratio. Rates depend on the machine; ratios of one run much less. No threshold is asserted here.
"""
