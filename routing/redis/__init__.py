"""The Redis engine: a kombu transport whose verbs are Lua scripts.

Reading order: ``keys`` (what is stored), ``lua/`` and ``scripts`` (the verbs), ``verbs`` (calling
them), ``holdings`` (what this process holds), ``inbox`` (what was fetched and not delivered),
``channel`` and ``transport`` (how kombu drives it all), ``aliases`` (the URL schemes).
"""
