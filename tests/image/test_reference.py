"""References: every notation of the field, what is refused and why, and the one spelling that enroot reads alike."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.errors import ConfigError
from launcher.image.reference import NameRule, Reference, squash_name
from tests.shared import SHARED, needs_shared

H = "0123456789abcdef" * 4
D = f"sha256:{H}"
HUB = "docker://registry-1.docker.io#"

READ = [
    ("nginx", "docker.io", "library/nginx", None, None, f"{HUB}library/nginx:latest"),
    ("nginx:1.27.4", "docker.io", "library/nginx", "1.27.4", None, f"{HUB}library/nginx:1.27.4"),
    ("library/nginx:1.27.4", "docker.io", "library/nginx", "1.27.4", None, f"{HUB}library/nginx:1.27.4"),
    ("docker.io/nginx:1", "docker.io", "library/nginx", "1", None, f"{HUB}library/nginx:1"),
    ("docker.io#nginx:1", "docker.io", "library/nginx", "1", None, f"{HUB}library/nginx:1"),
    ("registry-1.docker.io#library/nginx:1", "docker.io", "library/nginx", "1", None, f"{HUB}library/nginx:1"),
    ("index.docker.io/a/b:c", "docker.io", "a/b", "c", None, f"{HUB}a/b:c"),
    ("docker://vllm/vllm-openai:v0.25.1", "docker.io", "vllm/vllm-openai", "v0.25.1", None, None),
    ("nvcr.io/nvidia/x:tag", "nvcr.io", "nvidia/x", "tag", None, "docker://nvcr.io#nvidia/x:tag"),
    ("nvcr.io#nvidia/x:tag", "nvcr.io", "nvidia/x", "tag", None, "docker://nvcr.io#nvidia/x:tag"),
    ("docker://nvcr.io#nvidia/x:tag", "nvcr.io", "nvidia/x", "tag", None, "docker://nvcr.io#nvidia/x:tag"),
    ("NVCR.io/nvidia/x:Tag_1", "nvcr.io", "nvidia/x", "Tag_1", None, "docker://nvcr.io#nvidia/x:Tag_1"),
    ("ghcr.io/org/a/b:c", "ghcr.io", "org/a/b", "c", None, "docker://ghcr.io#org/a/b:c"),
    ("quay.io/a/b", "quay.io", "a/b", None, None, "docker://quay.io#a/b:latest"),
    ("localhost/x:1", "localhost", "x", "1", None, "docker://localhost#x:1"),
    ("localhost:5000/x", "localhost:5000", "x", None, None, "docker://localhost:5000#x:latest"),
    ("127.0.0.1:5555#team/x:v1", "127.0.0.1:5555", "team/x", "v1", None, "docker://127.0.0.1:5555#team/x:v1"),
    ("registry#x:1", "registry", "x", "1", None, "docker://registry#x:1"),
    (f"a/b@{D}", "docker.io", "a/b", None, D, f"{HUB}a/b:{D}"),
    (f"a/b:c@{D}", "docker.io", "a/b", "c", D, f"{HUB}a/b:{D}"),
    (f"nginx:{D}", "docker.io", "library/nginx", None, D, f"{HUB}library/nginx:{D}"),
    (f"quay.io#a/b:{D}", "quay.io", "a/b", None, D, f"docker://quay.io#a/b:{D}"),
    ("a/b__c-d.e_f:sha256", "docker.io", "a/b__c-d.e_f", "sha256", None, f"{HUB}a/b__c-d.e_f:sha256"),
    ("x:" + "t" * 128, "docker.io", "library/x", "t" * 128, None, None),
]


@pytest.mark.parametrize(("text", "registry", "repository", "tag", "digest", "uri"), READ)
def test_every_notation_is_read(
    text: str, registry: str, repository: str, tag: str | None, digest: str | None, uri: str | None
) -> None:
    reference = Reference.parse(text)
    assert reference == Reference(registry, repository, tag, digest)
    if uri:
        assert reference.uri == uri


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("docker://", "repository is empty"),
        (":tag", "repository is empty"),
        ("a b:c", "whitespace"),
        ("a/b:c\n", "whitespace"),
        ("a/b:$(id)", r"character '\$'"),
        ("a/b;c", "character ';'"),
        ("a/b:c`id`", "character '`'"),
        ("a/b:c|d", r"character '\|'"),
        ("a/b:é", "character 'é'"),
        ("${IMAGE}", r"character '\$'"),
        ("[::1]:5000/x", r"character '\['"),
        ("vLLM/vllm:1", "upper-case"),
        ("nvcr.io/Nvidia/x:1", "upper-case"),
        ("nvcr.io#nvidia#x:1", "'#' stands in it twice"),
        ("nvcr.io/nvidia#x:1", "'#' ends the registry"),
        ("#x:1", "registry is empty"),
        ("-nvcr.io/x", "not a host name"),
        ("nvcr..io/x", "not a host name"),
        ("host:port/x", "not a port"),
        ("host:99999/x", "not a port"),
        ("a:b/c", "not a port"),
        ("a/b:", "a tag should follow"),
        ("a/b:-c", "'-c' is not a tag"),
        ("a/b:c:d", "'c:d' is not a tag"),
        ("a/b:" + "t" * 129, "129 characters"),
        ("a/b@sha256:abc", "not a digest"),
        (f"a/b@sha256:{H.upper()}", "not a digest"),
        (f"a/b@sha512:{H}{H}", "only a digest"),
        (f"a/b:sha256:{H}0", "not a digest"),
        (f"a/b@{D}@{D}", "not a digest"),
        ("a//b:c", "empty part"),
        ("/a/b", "empty part"),
        ("a/b/", "empty part"),
        ("../../etc/passwd", "not a host name"),
        ("a/../b", "'..' is not a repository name"),
        ("a/.b", "'.b' is not a repository name"),
        ("a/b___c", "'b___c' is not a repository name"),
        ("dockerd://x", "scheme dockerd://"),
        ("https://nvcr.io/x", "scheme https://"),
        ("me@nvcr.io#x:1", "user name"),
        ("me@nvcr.io/x:1", "only a digest"),
    ],
)
def test_what_is_refused_is_named_with_a_hint(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Reference.parse(text)
    assert caught.value.hint


def test_a_password_in_a_reference_is_not_repeated() -> None:
    for text in ("docker://me:hunter2@nvcr.io#x:1", "me:hunter2@nvcr.io/x:1", "https://me:hunter2@nvcr.io/x"):
        with pytest.raises(ConfigError) as caught:
            Reference.parse(text)
        assert "hunter2" not in str(caught.value)


_registry = st.sampled_from(
    ["docker.io", "nvcr.io", "ghcr.io", "quay.io", "localhost", "127.0.0.1:5555", "r.example:80"]
)
_component = st.from_regex(r"[a-z0-9]+(?:(?:\.|_|__|-{1,3})[a-z0-9]+){0,3}", fullmatch=True)
_tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True)
_digest = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
_references = st.builds(
    lambda registry, parts, tag, digest: Reference(registry, "/".join(parts), tag, digest),
    _registry,
    st.lists(_component, min_size=2, max_size=4),
    st.none() | _tag,
    st.none() | _digest,
)


def spellings(reference: Reference) -> list[str]:
    version = (f":{reference.tag}" if reference.tag else "") + (f"@{reference.digest}" if reference.digest else "")
    texts = [f"{reference.registry}{sep}{reference.repository}{version}" for sep in "/#"]
    if reference.registry == "docker.io":
        texts.append(f"registry-1.docker.io#{reference.repository}{version}")
        if not re.match(r"[^/]*\.[^/]*/|localhost/", reference.repository):
            texts.append(f"{reference.repository}{version}")
    return texts + [f"docker://{text}" for text in texts]


@settings(max_examples=60)
@given(_references)
def test_every_spelling_means_the_same_and_its_uri_reads_back(reference: Reference) -> None:
    for text in spellings(reference):
        assert Reference.parse(text) == reference
    uri = reference.uri
    assert Reference.parse(uri).uri == uri
    assert Reference.parse(uri).digest == reference.digest
    # What both parsers of enroot want: the registry before the only '#', no '@', one tag or digest after it.
    assert re.fullmatch(r"docker://[a-z0-9.:-]+#[a-z0-9/._-]+:(sha256:[0-9a-f]{64}|[\w.-]+)", uri)


@given(st.text(alphabet=st.sampled_from("ab/.:@#-_ A0$\n"), max_size=40) | st.text(max_size=40))
def test_any_text_is_read_or_refused_and_never_breaks_the_parser(text: str) -> None:
    try:
        uri = Reference.parse(text).uri
    except ConfigError:
        return
    assert Reference.parse(uri).uri == uri


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("nginx", "docker.io/library/nginx:latest", True),
        ("nvcr.io/x/y:1", "docker://nvcr.io#x/y:1", True),
        (f"a/b:1@{D}", f"a/b:2@{D}", True),
        (f"a/b:1@{D}", f"docker://registry-1.docker.io#a/b:{D}", True),
        (f"a/b:1@{D}", "a/b:1", False),
        ("a/b:1", "a/b:2", False),
        ("nvcr.io/a/b:1", "a/b:1", False),
    ],
)
def test_images_are_compared_by_meaning(a: str, b: str, same: bool) -> None:
    assert (Reference.parse(a).uri == Reference.parse(b).uri) is same


@pytest.mark.parametrize(
    ("text", "rule", "name"),
    [
        ("nvcr.io#nvidia/x:1", "underscore", "nvcr.io_nvidia_x_1.sqsh"),
        ("nvcr.io/nvidia/x:1", "underscore", "nvcr.io_nvidia_x_1.sqsh"),
        ("nginx:1.27.4", "plus", "nginx+1.27.4.sqsh"),
        ("nvcr.io/nvidia/x:1", "plus", "nvcr.io+nvidia+x+1.sqsh"),
        ("nvcr.io/nvidia/x:1", "plus-nv", "nvidia+x+1.sqsh"),
        ("nvcr.io#nvidia/x:1", "plus-nv", "nvidia+x+1.sqsh"),
        ("ghcr.io/nvcr.io/x:1", "plus-nv", "ghcr.io+nvcr.io+x+1.sqsh"),
        (f"a/b:c@{D}", "underscore", f"a_b_c_sha256_{H}.sqsh"),
    ],
)
def test_squash_names_follow_the_clusters_rule(text: str, rule: NameRule, name: str) -> None:
    assert squash_name(text, rule) == name


def test_a_name_too_long_for_a_directory_is_refused() -> None:
    longest = "a" * (250 - len(":" + "t" * 100)) + ":" + "t" * 100
    assert len(squash_name(longest, "plus")) == 255
    with pytest.raises(ConfigError, match="256 bytes"):
        squash_name("a" + longest, "plus")


@needs_shared
def test_recorded_runs_agree_on_names_and_images() -> None:
    """Of each recorded case, the benchmark's own image: its squash file's name, and what enroot was asked for."""
    assert SHARED is not None
    rules: tuple[NameRule, ...] = ("underscore", "plus", "plus-nv")
    seen = 0
    for path in sorted((SHARED / "cases").glob("*.json")):
        case = json.loads(path.read_text())
        image = case["environment"]["IMAGE"]
        reference = Reference.parse(image)
        names = {squash_name(image, rule) for rule in rules}
        for squash, uri in case["images"].items():
            if squash.rsplit("/", 1)[-1] in names and uri.count("#") < 2:
                assert Reference.parse(uri).uri == reference.uri, (path.name, uri)
                seen += 1
    assert seen > 20


@needs_shared
def test_every_image_of_the_real_matrices_is_read() -> None:
    assert SHARED is not None
    images = {
        found
        for path in (SHARED / "inferencex").rglob("*.yaml")
        for found in re.findall(
            r"^\s*image: *[\"']?([^\s\"']+:[^\s\"']+)", path.read_text(errors="replace"), re.MULTILINE
        )
    }
    assert len(images) > 50
    assert all(Reference.parse(image).uri for image in images)
