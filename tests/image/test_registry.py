"""What a registry says before a download, and every way in which it says nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.core.errors import ImageError
from launcher.image.enroot import PasswordFromCommand, allows_http, credentials, credentials_file
from launcher.image.reference import Reference
from launcher.image.registry import Registry, Unreachable
from launcher.image.squash import Sidecar
from tests.image.registries import FakeRegistry, fake_registry


@pytest.fixture
def served() -> Iterator[FakeRegistry]:
    with fake_registry() as registry:
        yield registry


class Asking(Registry):
    """A registry client that notes its pauses in place of making them."""

    def __init__(
        self, served: FakeRegistry, architecture: str = "x86_64", config: str = "/nonexistent", address: str = ""
    ) -> None:
        self.slept: list[float] = []
        self.said: list[str] = []
        reference = Reference.parse(f"{address or served.address}/a/b:1")
        own = {"log": self.said.append, "sleep": self.slept.append, "timeout": 5}
        super().__init__(reference, served.environment(config), architecture, **own)  # type: ignore[arg-type]


def test_an_image_of_several_platforms_is_found_by_its_index(served: FakeRegistry) -> None:
    named = served.add("a/b", "1", "amd64", "arm64")
    amd, arm = (Asking(served, arch).manifest() for arch in ("x86_64", "aarch64"))
    assert (amd.architecture, arm.architecture, amd.index, arm.index) == ("amd64", "arm64", named, named)
    assert amd.digest != arm.digest
    assert (amd.size, arm.size) == (1500, 1500)


def test_an_image_of_one_platform_says_its_architecture_in_its_configuration(served: FakeRegistry) -> None:
    named = served.add("a/b", "1", "arm64")
    manifest = Asking(served, "aarch64").manifest()
    assert (manifest.digest, manifest.index, manifest.architecture) == (named, None, "arm64")


@pytest.mark.parametrize("there", [("arm64",), ("arm64", "s390x")])
def test_the_wrong_architecture_is_an_error_at_once(served: FakeRegistry, there: tuple[str, ...]) -> None:
    served.add("a/b", "1", *there)
    with pytest.raises(ImageError, match=r"a/b:1 is for arm64.*the nodes need amd64") as caught:
        Asking(served).manifest()
    assert not isinstance(caught.value, Unreachable)


def test_a_head_tells_what_the_tag_names(served: FakeRegistry) -> None:
    named = served.add("a/b", "1", "amd64", "arm64")
    known = Sidecar("a/b:1", "", "imported", 0, 0, 0, index=named)
    assert Asking(served).check_tag(Path("x.sqsh"), known) == ("", None)
    assert served.asked == ["HEAD /v2/a/b/manifests/1"]


def test_what_is_not_there_is_an_error_at_once(served: FakeRegistry) -> None:
    asking = Asking(served)
    with pytest.raises(ImageError, match="404, the registry has no such image") as caught:
        asking.manifest()
    assert (asking.slept, len(served.asked)) == ([], 1)
    assert "correct the image" in (caught.value.hint or "")


def account(tmp_path: Path, served: FakeRegistry, password: str = "right") -> str:
    served.account = ("me", "right")
    (tmp_path / ".credentials").write_text(f"# ours\nmachine 127.0.0.1 login me password {password}\n")
    return str(tmp_path)


@pytest.mark.parametrize("kind", ["Bearer", "Basic"])
def test_credentials_of_enroots_file_are_used(served: FakeRegistry, tmp_path: Path, kind: str) -> None:
    served.add("a/b", "1", "amd64")
    served.kind = kind
    asking = Asking(served, config=account(tmp_path, served))
    assert asking.manifest().architecture == "amd64"
    assert len([line for line in served.asked if "token" in line]) == (kind == "Bearer"), "one token for all requests"


@pytest.mark.parametrize("kind", ["Bearer", "Basic"])
@pytest.mark.parametrize("password", ["wrong", None])
def test_401_is_an_error_at_once_that_names_the_file(
    served: FakeRegistry, tmp_path: Path, kind: str, password: str | None
) -> None:
    served.add("a/b", "1", "amd64")
    served.kind = kind
    asking = Asking(served, config=account(tmp_path, served, password or ""))
    if password is None:
        (tmp_path / ".credentials").unlink()
    with pytest.raises(ImageError, match="401, the registry wants credentials") as caught:
        asking.manifest()
    assert f"{tmp_path}/.credentials" in (caught.value.hint or "")
    assert asking.slept == []
    assert "wrong" not in str(caught.value)


def test_nobody_in_particular_gets_a_token_too(served: FakeRegistry) -> None:
    served.add("a/b", "1", "amd64")
    served.account, served.anonymous = ("me", "right"), True
    assert Asking(served).manifest().size == 1500


def test_429_waits_as_long_as_it_is_told(served: FakeRegistry) -> None:
    served.add("a/b", "1", "amd64")
    served.faults = [(429, {"Retry-After": "7"}), (429, {})]
    asking = Asking(served)
    assert asking.manifest().size == 1500
    assert asking.slept == [7, 2]
    assert asking.said[0].startswith("attempt 1: 127.0.0.1")
    assert "to come again in 7 s; next one in 7 s" in asking.said[0]


def test_429_for_hours_is_an_error_that_says_so(served: FakeRegistry) -> None:
    served.faults = [(429, {"Retry-After": "21600"})] * 9
    asking = Asking(served)
    with pytest.raises(ImageError, match="rate limit, which says to come again in 21600 s") as caught:
        asking.manifest()
    assert not isinstance(caught.value, Unreachable)
    assert asking.slept == []


@pytest.mark.parametrize("fault", [(503, {"Retry-After": "1"}), (500, {}), "cut"])
def test_what_may_pass_is_asked_again(served: FakeRegistry, fault: tuple[int, dict[str, str]] | str) -> None:
    served.add("a/b", "1", "amd64", "arm64")
    served.faults = [fault, fault]
    assert Asking(served).manifest().architecture == "amd64"
    served.faults = [fault] * 9
    with pytest.raises(Unreachable):
        Asking(served).manifest()
    assert len(served.faults) == 5, "four attempts"


def test_content_that_is_not_what_its_digest_says_is_not_believed(served: FakeRegistry) -> None:
    served.add("a/b", "1", "amd64", "arm64")
    served.faults = ["wrong"]
    assert Asking(served).manifest().architecture == "amd64"
    served.faults = ["wrong"] * 9
    with pytest.raises(ImageError, match="where it says sha256:") as caught:
        Asking(served).manifest()
    assert not isinstance(caught.value, Unreachable)


def test_a_registry_that_is_not_there_is_unreachable(served: FakeRegistry) -> None:
    with pytest.raises(Unreachable, match="cannot be reached"):
        Asking(served, address="127.0.0.1:9").manifest()


def test_a_registry_without_tls_is_told_from_one_that_is_away(served: FakeRegistry) -> None:
    asking = Asking(served)
    asking.environ = {**asking.environ, "ENROOT_ALLOW_HTTP": "no"}
    with pytest.raises(Unreachable, match=f"^{served.address}: the registry does not speak TLS: ") as caught:
        asking.manifest()
    assert "ENROOT_ALLOW_HTTP=y" in (caught.value.hint or "") and not asking.slept, "asking again does not help"


@pytest.mark.parametrize("content", [b"[]", b"{}", b"no", b'{"manifests": 3}', b'{"schemaVersion": 1}'])
def test_what_is_no_manifest_is_said(served: FakeRegistry, content: bytes) -> None:
    served.documents["a/b/manifests/1"] = ("application/json", content)
    with pytest.raises(ImageError, match="no image manifest"):
        Asking(served).manifest()


def test_the_file_of_credentials_is_enroots(tmp_path: Path) -> None:
    nothing = {"HOME": "/h", "ENROOT_SYSCONF_PATH": str(tmp_path)}
    assert credentials_file(nothing) == Path("/h/.config/enroot/.credentials")
    assert credentials_file({**nothing, "XDG_CONFIG_HOME": "/c"}) == Path("/c/enroot/.credentials")
    environ = {"ENROOT_CONFIG_PATH": str(tmp_path), "PASS": "word"}
    (tmp_path / ".credentials").write_text(
        "machine nvcr.io login $oauthtoken password key\n"
        "machine other.io login me password $PASS\n"
        "machine gcr.io login me password $(gcloud auth print-access-token)\n"
    )
    account = credentials("nvcr.io:443", environ)
    assert account is not None
    assert (account.login, account.password) == ("$oauthtoken", "key")
    assert "key" not in repr(account)
    other = credentials("other.io", environ)
    assert other is not None and other.password == "word"
    assert credentials("io", environ) is None
    with pytest.raises(PasswordFromCommand):
        credentials("gcr.io", environ)


def test_settings_of_enroots_own_files_count(tmp_path: Path) -> None:
    environ = {"HOME": "/h", "ENROOT_SYSCONF_PATH": str(tmp_path)}
    assert not allows_http(environ)
    (tmp_path / "enroot.conf").write_text("#ENROOT_CONFIG_PATH /no\nENROOT_CONFIG_PATH  ${HOME}/conf \n")
    (tmp_path / "enroot.conf.d").mkdir()
    (tmp_path / "enroot.conf.d" / "a.conf").write_text("ENROOT_ALLOW_HTTP=yes\nENROOT_CONFIG_PATH=/later\n")
    assert credentials_file(environ) == Path("/h/conf/.credentials")
    assert allows_http(environ)
    assert not allows_http({**environ, "ENROOT_ALLOW_HTTP": "no"})
    assert credentials_file({**environ, "ENROOT_CONFIG_PATH": "/own"}) == Path("/own/.credentials")
