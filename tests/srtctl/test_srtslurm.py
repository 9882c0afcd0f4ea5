"""srtslurm.yaml: written so that srtctl reads what was meant, and looked for in what srtctl says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.errors import ConfigError, SubmissionError
from launcher.srtctl import checkout, submit

DOCUMENT = {
    "default_account": "benchmark",
    "default_time_limit": "4:00:00",
    "gpus_per_node": 4,
    "network_interface": "",
    "use_segment_sbatch_directive": False,
    "model_paths": {"on": "/models/a", "dsr1-fp8": "hf:deepseek-ai/DeepSeek-R1"},
    "containers": {"lmsysorg/sglang:v0.5.8": "/images/x.sqsh", "4:00:00": "yes"},
    "default_mounts": {"/a b": "/c: d # e"},
}


def test_what_srtctl_reads_is_what_was_meant() -> None:
    assert yaml.safe_load(submit.dump_srtslurm(DOCUMENT)) == DOCUMENT


def test_strings_that_yaml_would_mangle_are_quoted() -> None:
    lines = submit.dump_srtslurm(DOCUMENT).splitlines()
    assert 'default_time_limit: "4:00:00"' in lines
    assert 'network_interface: ""' in lines
    assert "gpus_per_node: 4" in lines
    assert "use_segment_sbatch_directive: false" in lines
    assert any(line.strip().startswith(("'on'", '"on"')) for line in lines)


_text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(
    ["on", "off", "y", "No", "6:00:00", "190:20:30.15", "0o7", "017", "0x1f", "1e3", ".inf", "~", "null", "=", "<<", ""]
)


@given(st.dictionaries(_text.filter(bool), _text))
def test_any_map_of_strings_survives(names: dict[str, str]) -> None:
    assert yaml.safe_load(submit.dump_srtslurm({"containers": names})) == {"containers": names}


def test_a_number_in_a_map_of_strings_is_refused() -> None:
    with pytest.raises(ConfigError, match="model_paths"):
        submit.dump_srtslurm({"model_paths": {"x": 3}})
    with pytest.raises(ConfigError, match="map of strings"):
        submit.dump_srtslurm({"containers": ["x"]})


def test_a_value_that_yaml_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        submit.dump_srtslurm({"srtctl_root": Path("/x")})


SCHEMA = '''
from typing import ClassVar
raise RuntimeError("this module must not be imported")
class Other:
    not_me: str
class ClusterConfig:
    """Cluster."""
    cluster: str | None = None
    default_mounts: dict[str, str] | None = None
    Schema: ClassVar[type] = object
'''


def _checkout(root: Path, text: str) -> Path:
    file = root / checkout.SCHEMA_FILE
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return root


def test_known_keys_are_parsed_and_never_imported(tmp_path: Path) -> None:
    assert checkout.known_keys(_checkout(tmp_path, SCHEMA)) == {"cluster", "default_mounts"}


@pytest.mark.parametrize("text", ["class Nothing:\n    x: int\n", "def broken(:\n"])
def test_a_tree_that_is_not_srt_slurm_is_said(tmp_path: Path, text: str) -> None:
    with pytest.raises(SubmissionError, match=r"schema\.py"):
        checkout.known_keys(_checkout(tmp_path, text))
    with pytest.raises(SubmissionError, match="cannot read"):
        checkout.known_keys(tmp_path / "nowhere")


def test_an_unknown_key_stops_the_file_from_being_written(tmp_path: Path) -> None:
    file = tmp_path / "srtslurm.yaml"
    with pytest.raises(ConfigError, match="drop the whole file") as caught:
        submit.write_srtslurm(file, {"default_mount": {}}, {"default_mounts", "cluster"})
    assert caught.value.hint == "did you mean 'default_mounts'?"
    assert not file.exists()
    submit.write_srtslurm(file, {"cluster": "x"}, {"default_mounts", "cluster"})
    assert yaml.safe_load(file.read_text()) == {"cluster": "x"}


def test_the_warning_that_the_file_was_dropped_is_seen() -> None:
    said = (
        "2026-11-21 17:13:38 | WARNING | Failed to load or validate srtslurm.yaml: {'bogus': ['Unknown field.']}\n"
        "2026-11-21 17:13:38 | INFO | Loaded config: x\n"
    )
    assert submit.dropped_warning(said) == "{'bogus': ['Unknown field.']}"
    assert "not found: /x" in (submit.dropped_warning("SRTSLURM_CONFIG set but file not found: /x") or "")
    assert submit.dropped_warning("✅ Job 4242 submitted!") is None
