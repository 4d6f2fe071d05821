"""The demo: 336,776 real flights through batched loads, while urgent calls keep their pace.

``python -m tasks.demo`` uses the broker and the workers that run and starts those that do not;
what it started it stops again. The modules: ``source`` reads the flights, ``sender`` sends them,
``urgent`` calls and measures, ``endings`` looks up how each item ended, ``waits`` asks how long
messages had waited, ``ledger`` where they are, ``account`` adds up, ``local`` starts and stops
processes, ``progress`` shows the way, ``run`` puts them together.
"""
