# One image for workers, Flower and the demo; docker-compose.yml chooses the command.
FROM python:3.11-slim

WORKDIR /srv/celeriac
COPY . .
RUN pip install --no-cache-dir ".[gevent]" -r tasks/requirements.txt "psycopg[binary]>=3.2" \
    && useradd --system --home-dir /srv/celeriac celeriac
USER celeriac

# exec form: the worker is process 1 and gets the SIGTERM of a stop
CMD ["celery", "-A", "tasks", "worker", "--task-events", "--loglevel", "INFO"]
