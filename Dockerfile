# One image for workers, Flower and the demo; docker-compose.yml chooses the command.
FROM python:3.11-slim

WORKDIR /srv/celeriac
COPY . .
RUN pip install --no-cache-dir ".[demo,flower,gevent,postgres]" \
    && useradd --system --home-dir /srv/celeriac celeriac
USER celeriac

# exec form: the worker is process 1 and gets the SIGTERM of a stop
CMD ["celery", "-A", "tasks", "worker", "--task-events", "--loglevel", "INFO"]
