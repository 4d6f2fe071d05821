"""The platform: one configured Celery app, its queue table, example tasks and the demo.

A module put here is found by every worker; ``tasks.celery`` holds the app.
"""
