"""Every setting of the platform, read from ``CELERIAC_*`` environment variables.

Each field says what it means, its default and why; ``tasks.celery`` and the commands of this
package read them once at start. What the queues do is not here but in ``queues_file``. Flower reads
variables of its own: ``FLOWER_PORT`` (5555) and ``FLOWER_`` with any other option of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PACKAGE_DIR = Path(__file__).parent


class Settings(BaseSettings):
    """The settings of one process, read from its environment."""

    model_config = SettingsConfigDict(env_prefix="CELERIAC_", frozen=True, env_ignore_empty=True)

    data_dir: Path = Field(
        Path(".data"),
        description="Folder for what must survive a restart: the embedded broker's files and the "
        "demo's SQLite database. Default .data in the working directory: a clone keeps to itself.",
    )
    broker_url: str | None = Field(
        None,
        description="The broker, as Celery writes it: redis://, rediss://, sentinel:// or "
        "redis+socket://, also a ';' list; Redis 6.2 or later, or Valkey. Default none: the "
        "embedded Valkey under data_dir, so that a machine needs no server.",
    )
    embedded_port: int = Field(
        6389,
        ge=1,
        le=65535,
        description="TCP port on 127.0.0.1 that the embedded broker tries first; when it is taken, "
        "the one of last time or any free one. When set, a broker that ran elsewhere moves "
        "there at its next start. Default 6389: near Redis's own 6379, which the machine may use.",
    )
    result_backend: str | None = Field(
        None,
        description="Celery result backend URL. Default none: the broker's server, so that results "
        "need no second one.",
    )
    result_expires_seconds: int = Field(
        86_400,
        ge=1,
        description="Seconds after which a stored result is forgotten. Default one day, as in "
        "Celery: long enough to look at yesterday's failure, short enough to bound memory.",
    )
    database_url: str | None = Field(
        None,
        description="SQLAlchemy URL of the demo's tables. Default none: SQLite under data_dir, "
        "which needs no server; PostgreSQL and MySQL need their driver installed.",
    )
    queues_file: Path = Field(
        PACKAGE_DIR / "queues.toml",
        description="The queue table (TOML). Default: the one in this package.",
    )
    task_modules: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="More modules with tasks: dotted names, comma-separated. Default none: every "
        "module put into tasks/ is found without being named.",
    )

    @field_validator("task_modules", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @property
    def database(self) -> str:
        """The database URL in force."""
        if self.database_url:
            return self.database_url
        return f"sqlite:///{self.data_dir.resolve() / 'flights.db'}"
