"""One request to a registry, as curl under enroot would make it: proxies, certificates, accounts, tokens, redirections.

The accounts are those of enroot's file. A token is requested once and used for all further requests.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from typing import Any

from launcher.image.enroot import allows_http, credentials, has_login_line, setting
from launcher.image.reference import Reference

INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_ACCEPT = ", ".join((*INDEXES, *MANIFESTS))
_MAX_ANSWER = 16 << 20
"""The most bytes that are read of an answer. No manifest and no image configuration is longer."""


@dataclass
class Requests:
    """Requests to the registry of an image. ``realm`` is the host that gave, or refused, its token."""

    reference: Reference
    environ: Mapping[str, str]
    timeout: float
    realm: str = field(default="", init=False)
    _authorization: str | None = field(default=None, init=False)

    @cached_property
    def scheme(self) -> str:
        """Without TLS where enroot's settings allow that, as enroot does."""
        return "http" if allows_http(self.environ) else "https"

    def send(self, url: str, method: str) -> tuple[bytes, Message]:
        """Content and headers. After a 401 the request is repeated once, with the authorization that it asks for.

        Raises HTTPError, OSError, HTTPException, PasswordFromCommand.
        """
        try:
            return self._send_once(url, method, self._authorization)
        except urllib.error.HTTPError as error:
            if error.code != 401 or self._authorization:
                raise
            self._authorization = self._answer_challenge(error.headers.get_all("WWW-Authenticate") or [])
            return self._send_once(url, method, self._authorization)

    def _send_once(
        self, url: str, method: str, authorization: str | None, *, login: bool = False
    ) -> tuple[bytes, Message]:
        """One request. With ``login`` each host, also one that a redirection names, gets its own account."""
        request = urllib.request.Request(url, headers={"Accept": _ACCEPT}, method=method)
        account = self._basic_authorization if login else lambda host: None
        if authorization := authorization or account(request.host):
            # Not redirected: other hosts keep the blobs; they refuse a second authorization, and must not get ours.
            request.add_unredirected_header("Authorization", authorization)
        handlers = [_Redirects(account, allows_http(self.environ)), urllib.request.ProxyHandler(self._proxies_for(url))]
        opener = urllib.request.build_opener(*handlers, _Https(lambda: self._tls_context))
        with opener.open(request, timeout=self.timeout) as response:
            content = response.read(_MAX_ANSWER)
            if method != "HEAD" and (response.length or 0) > 0:  # read(n) does not say that the connection was cut
                raise http.client.IncompleteRead(content, response.length)
            return content, response.headers

    def _proxies_for(self, url: str) -> dict[str, str]:
        """The proxies that curl, started by enroot, would use for a URL (its environment, or enroot's settings)."""
        proxies = {name: setting(f"{name}_proxy", self.environ) for name in ("http", "https", "all", "no")}
        proxies |= {name: proxies[name] or self.environ.get(f"{name.upper()}_PROXY") for name in ("https", "all", "no")}
        host = urllib.parse.urlsplit(url).netloc
        if urllib.request.proxy_bypass_environment(host, {"no": proxies["no"] or ""}):  # type: ignore[attr-defined]
            return {}
        return {scheme: proxy for scheme in ("http", "https") if (proxy := proxies[scheme] or proxies["all"])}

    @cached_property
    def _tls_context(self) -> ssl.SSLContext:
        """The certificates that TLS trusts: those of enroot's settings, else the system's. Raises OSError."""
        named = (setting(name, self.environ) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
        return ssl.create_default_context(cafile=next(named), capath=next(named))

    def _basic_authorization(self, host: str) -> str | None:
        """The account that curl sends to a host, from enroot's file. Raises PasswordFromCommand."""
        if (account := credentials(host, self.environ)) is None:
            return None
        return "Basic " + b64encode(f"{account.login}:{account.password}".encode()).decode()

    def _answer_challenge(self, challenges: list[str]) -> str:
        """The Authorization header that a 401's challenge asks for. Raises HTTPError when the realm refuses."""
        known = [challenge for challenge in challenges if re.match(r"(?i)(bearer|basic)\b", challenge)]
        kind, _, rest = (known or [""])[0].partition(" ")
        parameters = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm, is_bearer = parameters.pop("realm", ""), kind.lower() == "bearer"
        address = urllib.parse.urlsplit(realm)
        self.realm = address.netloc if is_bearer else ""
        # enroot logs in only if a line names the registry itself; curl then takes the line of the host that it asks.
        login = has_login_line(self.reference.host, self.environ)
        if is_bearer and address.scheme in {"https", self.scheme}:
            query = {"scope": f"repository:{self.reference.repository}:pull", **parameters}
            separator = "&" if address.query else "?"
            content, _ = self._send_once(f"{realm}{separator}{urllib.parse.urlencode(query)}", "GET", None, login=login)
            try:
                answer = json.loads(content)
                return f"Bearer {answer.get('token') or answer['access_token']}"
            except (ValueError, KeyError, AttributeError):
                raise urllib.error.URLError(f"{address.netloc} gave no token") from None
        if login and (basic := self._basic_authorization(self.reference.host)) is not None:
            return basic
        raise urllib.error.HTTPError(realm, 401, "Unauthorized", http.client.HTTPMessage(), None)


class _Https(urllib.request.HTTPSHandler):
    """TLS with ``tls_context``, which is called at the first such request: it takes 40 ms."""

    def __init__(self, tls_context: Callable[[], ssl.SSLContext]) -> None:
        urllib.request.AbstractHTTPHandler.__init__(self)  # HTTPSHandler's own reads the system's
        self._tls_context = tls_context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(http.client.HTTPSConnection, req, context=self._tls_context())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections as curl does. A HEAD stays a HEAD (before Python 3.13 it becomes a GET). The same host gets
    the same authorization, another host its own ``account``. A redirection away from TLS is refused, unless enroot
    allows it."""

    def __init__(self, account: Callable[[str], str | None], allows_http: bool) -> None:
        self._account, self._allows_http = account, allows_http

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.startswith("https:") and not self._allows_http:
            raise urllib.error.URLError(f"a redirection from https to {urllib.parse.urlsplit(newurl).scheme}")
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None:
            if req.get_method() == "HEAD":
                following.method = "HEAD"
            is_same = (following.type, following.host) == (req.type, req.host)
            authorization = req.unredirected_hdrs.get("Authorization") if is_same else self._account(following.host)
            if authorization:
                following.add_unredirected_header("Authorization", authorization)
        return following
