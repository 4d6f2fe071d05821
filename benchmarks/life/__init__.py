"""``life``: a load that looks like production, and what becomes of every message of it.

- `plan` says what is sent when and what happens meanwhile (pure);
- `traffic` sends it, in a process of its own, to the tasks of `benchmarks.apps.living`;
- `fleet` starts, deploys and kills workers, which reach the broker through `proxy`;
- `trouble` makes the events happen and keeps the evidence that they did;
- `records` is what tasks and producer write down, `watch` samples memory and ledger;
- `account` says what became of every message, `report` makes figures of it (both pure);
- `run` does one run, `command` is its command line.

It asserts nothing about time. Counts that must be 0 and are not, and events that did not happen,
are problems: a line each, and exit status 1.
"""
