"""The two Celery apps that are compared, and what runs inside their processes."""
