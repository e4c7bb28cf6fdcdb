"""The part of the configuration that concerns other machines."""

import re
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from ..pipelines.errors import ConfigError

ENDPOINT = re.compile(r"tcp://(\*|[^:/\s]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}")


class RemoteConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Endpoints for other machines: encrypted, and only for clients made with `visaged keys add`."""

    results: str = ""
    """Where subscribers on other machines connect, such as `tcp://10.0.0.5:5560`. Default: nowhere."""
    control: str = ""
    """Where requests from other machines are taken, such as `tcp://10.0.0.5:5561`. Default: nowhere."""
    keys: Path | None = None
    """Folder of the server's and the clients' keys. Default: `keys` in `[paths] state`."""
    requests_per_s: Annotated[float, Meta(gt=0, le=1000)] = 5.0
    """Control requests that one client may make per second in the long run."""
    burst: Annotated[int, Meta(ge=1, le=1000)] = 20
    """Control requests that one client may make at once after a pause."""
    max_connections: Annotated[int, Meta(ge=1, le=10000)] = 500
    """Connections to an endpoint, half-open ones included; one more, and all have to connect again."""
    allow_plaintext_tcp: bool = False
    """True: `results` is neither encrypted nor restricted; anybody who reaches the port reads every face."""

    @property
    def is_enabled(self) -> bool:
        """Whether other machines are served at all."""
        return bool(self.results or self.control)

    @property
    def needs_keys(self) -> bool:
        """Whether anything is served encrypted."""
        return bool(self.control or (self.results and not self.allow_plaintext_tcp))


def check_remote(config: RemoteConfig) -> None:
    """Refuse endpoints that cannot be served.

    Raises:
        ConfigError: not `tcp://ADDRESS:PORT`, or both the same.
    """
    for key, endpoint in (("results", config.results), ("control", config.control)):
        if endpoint and not ENDPOINT.fullmatch(endpoint):
            raise ConfigError(
                f"remote.{key} (it is {endpoint!r}): expected tcp://ADDRESS:PORT, as tcp://*:5560"
            )
    if config.results and config.results == config.control:
        raise ConfigError(
            f"remote.control: {config.control} is remote.results too; give it a port of its own"
        )
