"""Images that only look right, and odd ones that are: what each meets, with the exit code and the words of the cause.

Every trap is an import or an adoption that must not end well; every good one is a form that enroot takes.
"""

from __future__ import annotations

import json
import os
import stat
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from launcher.core.errors import ImageError
from launcher.core.process import Completed
from launcher.image.enroot import allows_http, credentials, credentials_file, diagnose, setting
from launcher.image.inventory import adopt
from launcher.image.reference import PlannedImage, Reference
from launcher.image.registry import Registry, Unreachable
from launcher.image.squash import PlacedImage, Sidecar, sidecar_path
from launcher.rehearsal.enroot_stand_in import squashfs
from tests.commands import ScriptedCommands, not_installed
from tests.image.registries import INDEX, FakeRegistry, fake_registry
from tests.image.support import Store, registry_for, request, small_image

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"


@dataclass
class Site:
    """A registry, a directory for enroot's settings, and an image that is wanted from there."""

    place: Path
    served: FakeRegistry
    wanted: PlannedImage
    environ: dict[str, str]

    def ensure(self, **more: Any) -> PlacedImage:
        return Store(registry=registry_for(self.environ)).ensure(replace(self.wanted, **more))

    def look_up(self, reference: str = "") -> str:
        text = reference or self.wanted.reference
        return Registry(Reference.parse(text), self.environ, "x86_64", sleep=lambda s: None).manifest().digest

    def file(self, *lines: str) -> None:
        """enroot's credentials."""
        (self.place / ".credentials").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "images").mkdir()
    with fake_registry() as served:
        environ = {**served.environment(str(tmp_path)), "HOME": str(tmp_path)}
        wanted = request(tmp_path, reference=f"{served.address}/a/b:1", name="x.sqsh", architecture="x86_64")
        yield Site(tmp_path, served, wanted, environ)


def image_of(note: str) -> bytes:
    return squashfs("etc", {"rc": f"# {note}".encode()}, created=1_700_000_000)


def record(squash: Path, **more: Any) -> None:
    """Change what stands in the record beside a file, as somebody with an editor would."""
    path = sidecar_path(squash)
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def swapped(site: Site) -> None:
    site.served.add("a/b", "1", "amd64")
    os.environ.pop("SOURCE_DATE_EPOCH", None)
    done = site.ensure()
    before = done.squash.stat()
    content = bytearray(done.squash.read_bytes())
    at = content.index(b"this image is a rehearsal")
    content[at : at + 4] = b"that"
    done.squash.write_bytes(bytes(content))
    os.utime(done.squash, ns=(before.st_atime_ns, before.st_mtime_ns))
    site.ensure()


def another_digest_by_the_record(site: Site) -> None:
    named = site.served.add("a/b", "1", "amd64")
    by_digest = {"reference": f"{site.served.address}/a/b@{named}"}
    by_digest["uri"] = Reference.parse(by_digest["reference"]).uri
    done = site.ensure(**by_digest)
    record(done.squash, digest="sha256:" + "0" * 64)
    site.ensure(**by_digest)


def a_record_made_by_hand(site: Site) -> None:
    squash = small_image(site.wanted.squash_path)
    adopt(squash, site.wanted.reference, site.wanted.uri)
    record(squash, hash="xxh3-128:" + "0" * 32, digest="sha256:" + "1" * 64, changed_ns=None)
    site.ensure()


def of_another_reference(site: Site) -> None:
    squash = small_image(site.wanted.squash_path)
    adopt(squash, "c/d:1", Reference.parse("c/d:1").uri)
    site.ensure()


def adopted_over_another_digest(site: Site) -> None:
    site.served.add("a/b", "1", "amd64")
    squash = site.ensure().squash
    squash.write_bytes(image_of("another"))
    adopt(squash, site.wanted.reference, site.wanted.uri)


def adopted_as_another_digest(site: Site) -> None:
    site.served.add("a/b", "1", "amd64")
    squash = site.ensure().squash
    other = f"{site.served.address}/a/b@sha256:{'2' * 64}"
    adopt(squash, other, Reference.parse(other).uri)


def only_for_arm(site: Site) -> None:
    site.served.add("a/b", "1", "arm64", "s390x")
    site.ensure()


def nested_only_for_arm(site: Site) -> None:
    inner = site.served.add("a/b", "inner", "arm64", "s390x")
    site.served.put("a/b", {"manifests": [{"mediaType": INDEX, "digest": inner}]}, "1")
    site.ensure()


def nothing_but_papers(site: Site) -> None:
    site.served.put(
        "a/b", {"manifests": [{"digest": "sha256:" + "3" * 64, "artifactType": "application/spdx+json"}]}, "1"
    )
    site.ensure()


def a_chart(site: Site) -> None:
    blob = b'{"name": "chart"}'
    config = {"digest": f"sha256:{_sha(blob)}", "mediaType": "application/vnd.cncf.helm.config.v1+json"}
    site.served.put("a/b", {"config": config, "layers": []}, "1")
    site.served.documents[f"a/b/blobs/{config['digest']}"] = ("application/json", blob)
    site.ensure()


def a_wrong_password(site: Site) -> None:
    site.served.add("a/b", "1", "amd64")
    site.served.account = ("me", "right")
    site.file("# ours", "machine 127.0.0.1 login me password wrong # it expired")
    site.ensure()


def a_line_for_the_tokens_alone(site: Site) -> None:
    """enroot has a user only by a line for the registry: it asks as nobody."""
    site.served.add("a/b", "1", "amd64")
    site.served.account = ("me", "right")
    site.file("machine localhost login me password right")
    site.ensure()


TRAPS: list[tuple[Callable[[Site], None], str]] = [
    (swapped, "swapped or damaged since it was recorded as sha256:"),
    (another_digest_by_the_record, "is requested"),
    (a_record_made_by_hand, "swapped or damaged since it was recorded"),
    (of_another_reference, "this squash file is of c/d:1"),
    (adopted_over_another_digest, "and is another file"),
    (adopted_as_another_digest, "it is recorded as"),
    (only_for_arm, "is for arm64, s390x, and the nodes need amd64"),
    (nested_only_for_arm, "is for arm64, s390x, and the nodes need amd64"),
    (nothing_but_papers, "is for no Linux"),
    (a_chart, "no image manifest"),
    (a_wrong_password, "401, the registry wants credentials"),
    (a_line_for_the_tokens_alone, "401, the registry wants credentials"),
]


@pytest.mark.parametrize(("trap", "words"), [pytest.param(*one, id=one[0].__name__) for one in TRAPS])
def test_what_only_looks_right_is_refused_with_its_cause(site: Site, trap: Callable[[Site], None], words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        trap(site)
    assert caught.value.exit_code == 3
    assert caught.value.hint and caught.value.where is not None


@pytest.mark.parametrize("program", ["enroot", "srun"])
def test_a_program_that_is_not_there_is_told_at_once(tmp_path: Path, program: str) -> None:
    (tmp_path / "images").mkdir()
    waits: list[float] = []
    store = Store(ScriptedCommands(not_installed), command=(program,), sleep=waits.append)
    with pytest.raises(ImageError, match=f"{program} is not there") as caught:
        store.ensure(request(tmp_path))
    assert caught.value.exit_code == 3 and waits == []


def papers_beside_it(site: Site) -> str:
    image = json.loads(site.served.documents[f"a/b/manifests/{site.served.add('a/b', 'x', 'amd64', 'arm64')}"][1])
    papers = [{"digest": "sha256:" + "5" * 64}, {"digest": "sha256:" + "6" * 64, "platform": None}, None, 7, {}]
    papers += [{"digest": "sha256:" + "7" * 64, "platform": {}}, {"digest": "x", "platform": {"architecture": "amd64"}}]
    site.served.put("a/b", {"manifests": [*papers, *image["manifests"]]}, "1")
    return str(image["manifests"][0]["digest"])


def an_index_within_the_index(site: Site) -> str:
    inner = site.served.add("a/b", "inner", "amd64", "arm64")
    site.served.put("a/b", {"manifests": [{"mediaType": INDEX, "digest": inner}]}, "1")
    return str(json.loads(site.served.documents["a/b/manifests/inner"][1])["manifests"][0]["digest"])


def an_image_without_a_platform(site: Site) -> str:
    only = site.served.add("a/b", "x", "amd64")
    site.served.put("a/b", {"manifests": [{"digest": only}]}, "1")
    return only


def an_image_that_does_not_say_what_it_is_for(site: Site) -> str:
    blob = b'{"config": {}}'
    digest = site.served.put(
        "a/b", {"config": {"digest": f"sha256:{_sha(blob)}", "mediaType": OCI_CONFIG}, "layers": []}, "1"
    )
    site.served.documents[f"a/b/blobs/sha256:{_sha(blob)}"] = (OCI_CONFIG, blob)
    return digest


def a_comment_after_the_password(site: Site) -> str:
    site.served.account = ("me", "right")
    site.file(
        "# the team's", "machine 127.0.0.1 login me password right # rotated in May", "default login x password y"
    )
    return site.served.add("a/b", "1", "amd64")


def a_quoted_password(site: Site) -> str:
    site.served.account = ("me", 'ri"g #ht')
    site.file(r'machine 127.0.0.1 login me password "ri\"g #ht"')
    return site.served.add("a/b", "1", "amd64")


def a_password_in_the_environment(site: Site) -> str:
    site.served.account = ("me", "right")
    site.environ["PASS"] = "right"
    site.file("machine 127.0.0.1 login me password ${PASS}  # not in the file")
    return site.served.add("a/b", "1", "amd64")


def moved_within_the_registry(site: Site) -> str:
    site.served.account = ("me", "right")
    site.file("machine 127.0.0.1 login me password right")
    digest = site.served.add("a/b", "real", "amd64")
    site.served.redirects["/v2/a/b/manifests/1"] = "/v2/a/b/manifests/real"
    return digest


def credentials_by_the_settings_of_another_prefix(site: Site) -> str:
    site.served.account = ("me", "right")
    program, sysconf = site.place / "opt/bin/enroot", site.place / "opt/enroot-4/etc"
    program.parent.mkdir(parents=True)
    sysconf.mkdir(parents=True)
    program.write_text(f'#!/usr/bin/env bash\nset -e\nconfig::init "{sysconf}/enroot.conf"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (sysconf / "enroot.conf").write_text(
        "# ours\n  ENROOT_CONFIG_PATH  ~/deep/conf   # per user\nENROOT_ALLOW_HTTP yes\nENROOT_CONFIG_PATH /later\n"
    )
    (site.place / "deep/conf").mkdir(parents=True)
    (site.place / "deep/conf/.credentials").write_text("machine 127.0.0.1 login me password right\n")
    site.environ = {"HOME": str(site.place), "PATH": str(program.parent), "no_proxy": "*"}
    return site.served.add("a/b", "1", "amd64")


GOOD = [
    papers_beside_it,
    an_index_within_the_index,
    an_image_without_a_platform,
    an_image_that_does_not_say_what_it_is_for,
    a_comment_after_the_password,
    a_quoted_password,
    a_password_in_the_environment,
    moved_within_the_registry,
    credentials_by_the_settings_of_another_prefix,
]


def _sha(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("good", GOOD, ids=lambda good: good.__name__)
def test_what_is_of_an_odd_form_is_imported(site: Site, good: Callable[[Site], str]) -> None:
    expected = good(site)
    done = site.ensure()
    assert (done.how, done.sidecar.digest, done.notes) == ("imported", expected, ())


def test_each_host_of_one_login_gets_its_own_line(site: Site) -> None:
    """NVIDIA's: the registry's realm leads to another host, for which curl has a line of the same file."""
    with fake_registry() as other:
        other.account = ("$oauthtoken", "second")
        site.served.account = ("$oauthtoken", "first")
        site.served.redirects["/token"] = f"http://localhost:{other.address.partition(':')[2]}/token"
        expected = site.served.add("a/b", "1", "amd64")
        site.file(
            "machine 127.0.0.1 login $oauthtoken password first",
            "machine localhost login $oauthtoken password second",
        )
        assert site.look_up() == expected
        assert other.accounts_seen == ["Basic " + b64encode(b"$oauthtoken:second").decode()]
        site.file("machine 127.0.0.1 login $oauthtoken password first")
        with pytest.raises(ImageError, match="401"):
            site.look_up()
        assert other.accounts_seen[1:] == [None], "one host's password is not given to another"


@pytest.mark.parametrize("code", [401, 404])
def test_a_refusal_where_enroot_may_ask_otherwise_is_a_fact(site: Site, code: int) -> None:
    site.served.faults = [(code, {})] * 2
    (site.place / ".curlrc").write_text("cacert = /x\n")
    with pytest.raises(Unreachable, match="curl has settings of its own"):
        site.look_up()
    (site.place / ".curlrc").unlink()
    site.served.faults = [(code, {})] * 2
    site.file("  machine 127.0.0.1 login me password right")
    with pytest.raises(Unreachable, match="begins with a space"):
        site.look_up()


def test_a_swapped_file_with_other_times_is_said_with_what_it_was(site: Site) -> None:
    site.served.add("a/b", "1", "amd64")
    before = site.ensure()
    before.squash.write_bytes(image_of("by bash"))
    done = Store().ensure(site.wanted)
    assert done.how == "adopted"
    assert f"is another file than {before.sidecar.digest}" in done.notes[0]


def test_a_file_that_was_only_touched_is_read_once(site: Site) -> None:
    site.served.add("a/b", "1", "amd64")
    squash = site.ensure().squash
    squash.chmod(0o640)
    assert (site.ensure().how, site.ensure().notes) == ("hit", ())
    assert Sidecar.read(squash).changed_ns == squash.stat().st_ctime_ns  # type: ignore[union-attr]


def test_an_image_asked_for_by_digest_that_nobody_verified_is_said(site: Site) -> None:
    named = site.served.add("a/b", "1", "amd64")
    reference = f"{site.served.address}/a/b@{named}"
    small_image(site.wanted.squash_path)
    done = site.ensure(reference=reference, uri=Reference.parse(reference).uri)
    assert done.notes == (f"x.sqsh was taken for {named}: nobody verified that it is",)


def test_the_settings_of_enroot_are_shell_text(tmp_path: Path) -> None:
    environ = {"HOME": "/h", "ENROOT_SYSCONF_PATH": str(tmp_path)}
    (tmp_path / "enroot.conf").write_text("ENROOT_ALLOW_HTTP 'false' # never\nENROOT_CONFIG_PATH \"${HOME}/c\"\n")
    assert not allows_http(environ)
    assert credentials_file(environ) == Path("/h/c/.credentials")
    assert setting("ENROOT_TEMP_PATH", environ) is None


@pytest.mark.parametrize(
    ("text", "login"),
    [
        ("machine a.b\n  login me\n  password x\n", "me"),
        ("machine a.b password x login me\n", "me"),
        ("MACHINE A.B login me password x\n", "me"),
        ("machine c.d login you password machine\nmachine a.b login me password x\n", None),  # so does curl
        ("machine a.b login nobody\nmachine c.d login you password x\n", None),
        ("macdef init\nmachine a.b login no password x\n\nmachine a.b login me password x\n", "me"),
        ("# machine a.b login no password x\nmachine a.b login me password x\n", "me"),
        ("default login me password x\nmachine a.b login no password x\n", "me"),
        ("machine a.b login me password $(never run)\n", None),
        ("machine a.b", None),
    ],
)
def test_the_file_is_read_as_curl_reads_it(tmp_path: Path, text: str, login: str | None) -> None:
    (tmp_path / ".credentials").write_text(text)
    try:
        account = credentials("a.b", {"ENROOT_CONFIG_PATH": str(tmp_path)})
    except ImageError:
        account = None
    assert (account.login if account else None) == login


def test_the_line_that_tells_most_is_shown_wherever_it_stands() -> None:
    advice = "\n".join(f"parallel: job {number} is done" for number in range(9))
    done = Completed(("enroot",), 1, "", f"tar: x: Cannot write: No space left on device\n{advice}\n", 1.0)
    assert diagnose(done).what.splitlines()[:2] == ["no space left", "  tar: x: Cannot write: No space left on device"]
    odd = Completed(("enroot",), 9, "", f"zstd: /*stdin*\\: unsupported format\n{advice}\n", 1.0)
    assert "unsupported format" in diagnose(odd).what
    assert "unsupported format" in odd.tail(1)


@pytest.mark.parametrize("words", ["curl: (5) Could not resolve proxy: x", "curl: (60) SSL certificate problem: x"])
def test_what_is_hopeless_is_not_tried_again(words: str) -> None:
    assert not diagnose(Completed(("enroot",), 5, "", f"{words}\nFailed to connect", 1.0)).may_pass


def test_a_look_up_takes_little(site: Site) -> None:
    expected = papers_beside_it(site)
    began = time.process_time()
    for _ in range(5):
        assert site.look_up() == expected
    print(f"a look-up: {(time.process_time() - began) / 5 * 1e3:.1f} ms CPU")
