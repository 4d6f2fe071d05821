"""The settings of a Django project with a database in a file that the environment names."""

from __future__ import annotations

import os

USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("CELERIAC_TEST_DATABASE", ":memory:"),
    }
}
