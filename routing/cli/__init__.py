"""Sub-commands of ``celery``: one module each, found through the entry points ``celery.commands``.

A command reads its options, asks a pure part of the package, and prints. The app of ``-A`` is
``ctx.obj.app``; `routing.cli.broker` opens its broker.
"""
