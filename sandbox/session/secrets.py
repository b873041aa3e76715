"""The secrets of a session that is about to start: what stands for them inside, and the file that only its gateway reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remit.sandbox.authority.errors import LaunchError
from remit.sandbox.egress import web
from remit.sandbox.egress.secrets import SecretError
from remit.sandbox.session import place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from remit.sandbox.authority.web import Credential


class Secrets:
    """``placeholders``, by variable. Holds no secret: they are got when ``file`` is asked for, and not kept."""

    def __init__(self, credentials: tuple[Credential, ...], environ: Mapping[str, str]) -> None:
        self._credentials = credentials
        self._environ = environ
        self.placeholders = web.placeholders(credentials)

    def file(self) -> int:
        """A descriptor of the file that goes with the gateway's config, to be closed. Raises LaunchError."""
        try:
            return web.secrets_file(
                self._credentials, self.placeholders, self._environ, place.home_directory(self._environ)
            )
        except SecretError as error:
            raise LaunchError(
                f"a credential cannot be had: {error}",
                where="credentials",
                hint="nothing was started; put it there, or take the entry out of the profile",
            ) from None
        except OSError as error:
            raise LaunchError(f"no file in memory for the credentials: {error.strerror}") from None
