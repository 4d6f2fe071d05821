"""Kombu's side of the engine: channels that fetch, settle and push by script."""
