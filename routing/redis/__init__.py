"""The server: keys, scripts and their commands, without kombu and without Celery.

Reading order: ``keys`` (what is stored), ``lua/`` and ``scripts`` (what runs there), ``values`` and
``commands`` (calling them), ``ledger`` and ``letters`` (reading), ``faults`` (what errors mean).
"""
