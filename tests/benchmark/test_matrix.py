from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.benchmark.expand import Selection
from launcher.benchmark.matrix import Entry, Matrix, benchmark_of, load_matrix
from launcher.core.errors import ConfigError
from tests.benchmark.matrices import AGENTIC, FIXED, RUNNERS, SINGLE, write
from tests.shared import SHARED, needs_shared


def load(directory: Path, text: str, runners: str | None = RUNNERS) -> Matrix:
    return load_matrix([write(directory, text, runners)])


def refused(directory: Path, text: str, runners: str | None = RUNNERS) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(directory, text, runners).entries()
    return caught.value


def line(error: ConfigError) -> int:
    return int(str(error.where).rpartition(":")[2])


def number_of(text: str, part: str) -> int:
    """The number of the first line of ``text`` that has ``part`` in it."""
    return next(n for n, one in enumerate(text.splitlines(), 1) if part in one)


def test_a_multi_node_entry_has_every_field_of_the_generator(tmp_path: Path) -> None:
    (entry,) = load(tmp_path, FIXED).entries(Selection(evals="none"))
    assert entry.data == {
        "image": "vllm/vllm-openai:v1",
        "model": "acme/M",
        "model-prefix": "m",
        "precision": "fp4",
        "framework": "dynamo-vllm",
        "runner": "gb200",
        "isl": 8192,
        "osl": 1024,
        "spec-decoding": "mtp",
        "prefill": {
            "num-worker": 1,
            "tp": 4,
            "pp": 1,
            "dcp-size": 1,
            "pcp-size": 1,
            "ep": 4,
            "dp-attn": True,
            "additional-settings": ["CONFIG_FILE=recipes/m.yaml", "SLURM_PARTITION=first"],
        },
        "decode": {
            "num-worker": 2,
            "tp": 8,
            "pp": 1,
            "dcp-size": 1,
            "pcp-size": 1,
            "ep": 1,
            "dp-attn": False,
            "additional-settings": ["SLURM_PARTITION=second"],
        },
        "conc": [4, 16, 64],
        "max-model-len": 9472,
        "exp-name": "m_8k1k",
        "disagg": True,
        "run-eval": False,
        "kv-p2p-transfer": "nixl",
    }
    assert entry.key == "m-fp4-gb200"


def test_an_agentic_multi_node_row_gives_one_entry_for_each_concurrency(tmp_path: Path) -> None:
    first, second = load(tmp_path, AGENTIC).entries()
    assert first.data["conc"] == [8]
    assert second.data["exp-name"] == "m_p2x2_d1x8ep8dpa_conc32_kvdram-mooncake"
    # 1,000,000 MiB * 0.5 * 2 GPUs of 4
    assert second.data["total-cpu-dram-gb"] == int(1_000_000 * 2**20 * 0.5 * 0.5 / 1e9) == 262
    assert second.data["router"] == {"name": "dynamo-router", "version": "1.2"}
    assert second.data["kv-offload-backend"] == {"name": "mooncake", "version": "0.3"}
    assert second.data["duration"] == 3600
    assert "isl" not in second.data


def test_single_node_concurrencies_double_and_end_at_the_end(tmp_path: Path) -> None:
    entries = load(tmp_path, SINGLE).entries()
    assert [e.data["conc"] for e in entries] == [4, 8, 16, 32, 48, 7]
    assert [e.data["exp-name"] for e in entries[-2:]] == ["m_1k1k", "m_2048_512"]
    assert (entries[0].data["ep"], entries[0].data["dp-attn"]) == (1, False)
    assert (entries[-1].data["ep"], entries[-1].data["dp-attn"]) == (4, True)


def test_an_entry_is_a_benchmark_with_its_settings_merged_decode_last(tmp_path: Path) -> None:
    (entry,) = load(tmp_path, FIXED).entries()
    benchmark = entry.benchmark
    assert benchmark.settings == {"CONFIG_FILE": "recipes/m.yaml", "SLURM_PARTITION": "second"}
    assert benchmark.concurrencies == (4, 16, 64)
    assert benchmark.prefill is not None and benchmark.prefill.dp_attention
    assert benchmark.decode is not None and (benchmark.decode.workers, benchmark.decode.tp) == (2, 8)
    assert benchmark.key == "m-fp4-gb200"
    assert benchmark.source.endswith("matrix.yaml (m-fp4-gb200)")


def test_a_marked_row_is_a_throughput_job_and_an_evaluation_is_another(tmp_path: Path) -> None:
    matrix = load(tmp_path, FIXED)
    (marked,) = matrix.entries()
    assert marked.data["run-eval"] and not marked.benchmark.run_eval
    (only,) = matrix.entries(Selection(evals="only"))
    assert only.data["eval-only"]
    assert only.benchmark.run_eval and only.benchmark.eval_only
    assert only.benchmark.eval_concurrencies == (64,)


def test_an_evaluation_of_all_concurrencies_has_them_all(tmp_path: Path) -> None:
    """Rows of `--all-evals`: this launcher makes none, a workflow's matrix may hold them."""
    (entry,) = load(tmp_path, FIXED).entries()
    data = {**entry.data, "run-eval": True, "eval-only": True, "eval-all-concs": True}
    benchmark = benchmark_of(data, key=None, source="matrix", place="matrix")
    assert benchmark.eval_concurrencies == (4, 16, 64)


def test_the_line_of_an_entry_is_that_of_its_row(tmp_path: Path) -> None:
    entries = load(tmp_path, FIXED + AGENTIC + SINGLE).entries()
    assert str(entries[0].place) == f"{tmp_path}/matrix.yaml:{number_of(FIXED, '- spec-decoding: mtp')}"
    assert str(entries[-1].place).endswith(f":{number_of(FIXED + AGENTIC + SINGLE, 'conc-list: [7]')}")


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("      osl: 1024", "      olx: 1024", "unknown key 'olx'", "did you mean 'osl'?"),
        ("conc-list: [4, 16, 64]", "conc-lst: [4]", "unknown key 'conc-lst'", "did you mean 'conc-list'?"),
        ("      osl: 1024", '      osl: "1024"', "Expected `int`, got `str`", None),
        ("tp: 8", "tp: true", "Expected `int`, got `bool`", None),
        ("spec-decoding: mtp", "spec-decoding: mpt", "Invalid enum value 'mpt'", None),
        ("      - spec-decoding: mtp", "      - conc-start: 4", "both given", None),
        ("num-worker: 2", "num-worker: -1", "Expected `int` >= 0", None),
        (
            '- "SLURM_PARTITION=second"',
            '- "SLURM_PARTITION second"',
            "'SLURM_PARTITION second' is not KEY=VALUE",
            None,
        ),
        ('- "SLURM_PARTITION=second"', '- "SLURM_PARTITON=x"', "is not known", "did you mean 'SLURM_PARTITION'?"),
        ('- "SLURM_PARTITION=second"', '- "LD_PRELOAD=/tmp/x.so"', "'LD_PRELOAD' is not known", "known settings"),
        ('- "SLURM_PARTITION=second"', '- "CONFIG_FILE=a\\nb"', "control character", None),
        ("image: vllm/vllm-openai:v1", "image: [a]", "Expected `str`, got `array`", None),
    ],
)
def test_a_bad_value_is_refused_with_its_line(
    tmp_path: Path, old: str, new: str, message: str, hint: str | None
) -> None:
    text = FIXED.replace(old, new)
    assert text != FIXED
    error = refused(tmp_path, text)
    assert message in error.message
    assert hint is None or (error.hint and hint in error.hint)
    # What concerns several keys of a row is said of the row, which begins at its first key.
    assert line(error) == number_of(text, new.strip())


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (SINGLE, "conc-start: 4, conc-end: 48", "conc-start: 50, conc-end: 48", "conc-start (50) is greater"),
        (SINGLE, "conc-start: 4, conc-end: 48", "conc-end: 48", "concurrencies are missing"),
        (SINGLE, "tp: 8,", "tp: 8, dcp-size: 3,", "tp (8) is not divisible by dcp-size (3)"),
        (SINGLE, "runner: h200", "runner: h200\n  disagg: true", "needs multinode: true"),
        (FIXED, "  kv-p2p-transfer: nixl\n", "", "disagg: true needs kv-p2p-transfer"),
        (FIXED, "num-worker: 2", "num-worker: 2\n          hardware: b300", "hardware is given for one role only"),
        (FIXED, "- spec-decoding: mtp", "- kv-p2p-transfer: ucx", "at the top level and in rows"),
        (AGENTIC, "runner: cluster:gb300-nv", "runner: gb300", "needs a runner cluster:<name>"),
        (AGENTIC, "    - dram-utilization: 0.5\n      search", "    - search", "needs dram-utilization"),
        (AGENTIC, "kv-offloading: dram", "kv-offloading: none", "kv-offload-backend is given"),
        (AGENTIC, 'version: "0.3"', 'version: "image:v1"', "version names an image"),
        (AGENTIC, "prefill: { num-worker: 2, tp: 2", "prefill: { num-worker: 2, tp: 3", "do not tile nodes of 4"),
        (AGENTIC, "agentic-coding:", "fixed-seq-len:", "unknown key 'dram-utilization'"),
        (SINGLE, "multinode: false", "multinode: true", "unknown key 'tp'"),
        (SINGLE, "  multinode: false\n", "", "key 'multinode' is missing"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, text: str, old: str, new: str, message: str) -> None:
    changed = text.replace(old, new)
    assert changed != text
    error = refused(tmp_path, changed)
    assert message in error.message
    assert line(error) >= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping, found an empty document"),
        ("- a\n- b\n", "expected a mapping, found a list"),
        ("a: [1\nb: 2\n", "not valid YAML"),
        ("key: text\n", "expected a mapping"),
        ("'m-*':\n  image: x\n", "expected plain text"),
        ("m:\n  image: a\n  image: b\n", "'image' is given twice"),
    ],
)
def test_what_is_no_matrix_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    error = refused(tmp_path, text)
    assert message in str(error)
    assert line(error) >= 1


def test_a_missing_file_and_a_key_in_two_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_matrix([tmp_path / "none.yaml"])
    first = write(tmp_path, SINGLE)
    second = tmp_path / "second.yaml"
    second.write_text("\n" + SINGLE)
    with pytest.raises(ConfigError, match="is in two files") as caught:
        load_matrix([first, second])
    assert caught.value.where == f"{second}:2"
    assert caught.value.hint == f"the first is at {first}:1"


def test_every_error_of_a_key_is_reported(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.yaml" for number in range(3)]
    for file in files:
        file.write_text(SINGLE)
    errors: list[ConfigError] = []
    assert load_matrix(files, strict=False).entries(refused=errors) == []
    assert [error.where for error in errors] == [f"{file}:1" for file in files[1:]]


def test_without_a_runners_file_only_what_needs_a_nodes_memory_is_refused(tmp_path: Path) -> None:
    matrix = load(tmp_path, FIXED + AGENTIC + SINGLE, runners=None)
    assert len(matrix.entries(Selection(keys=["m-fp4-gb200", "m-fp8-*"]))) == 7
    with pytest.raises(ConfigError, match="no runners file was read") as caught:
        matrix.entries()
    assert line(caught.value) == number_of(FIXED + AGENTIC, "kv-offloading: dram")


def test_without_offloading_no_hardware_is_needed(tmp_path: Path) -> None:
    text = AGENTIC.replace("kv-offloading: dram", "kv-offloading: none")
    text = text.replace('        kv-offload-backend: { name: mooncake, version: "0.3" }\n', "")
    first = load(tmp_path, text, runners=None).entries()[0]
    assert first.data["total-cpu-dram-gb"] == 0
    assert first.data["exp-name"] == "m_p2x2_d1x8ep8dpa_conc8"


def test_a_runners_file_is_named_or_found_beside_and_validated(tmp_path: Path) -> None:
    path = write(tmp_path, AGENTIC, runners=None)
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text(RUNNERS)
    assert load_matrix([path], elsewhere).entries()
    elsewhere.write_text(RUNNERS.replace("cluster:gb300-nv:\n    avail", "cluster:other:\n    avail"))
    with pytest.raises(ConfigError, match="the runners file does not have") as caught:
        load_matrix([path], elsewhere).entries()
    assert caught.value.hint == "it has: cluster:other"
    elsewhere.write_text(RUNNERS.replace("gpus-per-node", "gpu-per-node"))
    with pytest.raises(ConfigError, match="unknown key 'gpu-per-node'") as caught:
        load_matrix([path], elsewhere)
    assert caught.value.hint == "did you mean 'gpus-per-node'?"


def real() -> list[Path]:
    assert SHARED is not None
    return [SHARED / "inferencex" / "configs" / f"{name}-master.yaml" for name in ("nvidia", "amd")]


@needs_shared
def test_the_real_files_give_the_entries_of_the_generator() -> None:
    nvidia, amd = (load_matrix([path]).entries() for path in real())
    both = load_matrix(real())
    entries = both.entries()
    assert (len(nvidia), len(amd), len(entries)) == (1355, 465, 1820)
    assert [e.data for e in entries] == [e.data for e in (*nvidia, *amd)]
    # Counts as InferenceX's generator gave them for these files.
    assert sum(e.data["run-eval"] for e in entries) == 519
    assert sum("prefill" in e.data for e in entries) == 648
    evaluations = both.entries(Selection(evals="only"))
    assert len(evaluations) == 645
    assert sum(e.data.get("scenario-type") == "agentic-coding" for e in evaluations) == 126
    assert all(e.benchmark.concurrencies for e in entries)


@needs_shared
def test_a_real_agentic_entry() -> None:
    def wanted(entry: Entry) -> bool:
        return str(entry.data["exp-name"]) == "kimik3_p1x8_d1x8_conc64_kvdram-mooncake"

    (entry,) = filter(wanted, load_matrix(real()).entries(Selection(runners=["cluster:gb300-nv"])))
    assert entry.data["total-cpu-dram-gb"] == 150
    assert entry.data["prefill"]["dcp-size"] == 8
    assert entry.benchmark.settings["SYNTHETIC_ACCEPTANCE_LENGTH"] == "3.36"
    assert entry.benchmark.kv_offload_backend is not None
    assert entry.benchmark.kv_offload_backend.version == "0.3.12.post1"
    source, _, number = str(entry.place).rpartition(":")
    assert "- " in Path(source).read_text().splitlines()[int(number) - 1]


@needs_shared
def test_expanding_the_real_files_is_fast() -> None:
    """At most 0.5 s of processor time, parse included, in a fresh process (some 0.15 s when this was written)."""
    code = (
        "import sys, time; from launcher.benchmark.matrix import load_matrix; began = time.process_time();"
        "assert len(load_matrix(sys.argv[1:]).entries()) == 1820; print(time.process_time() - began)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, real())],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert float(done.stdout) < 0.5


def _told(matrix: Matrix, key: str) -> list[tuple[object, str]]:
    return [(entry.data, str(entry.place)) for entry in matrix.entries(Selection(keys=[key]))]


@needs_shared
def test_of_globs_only_what_they_select_is_read_and_it_is_the_same() -> None:
    """Half of what `launcher plan -k KEY` cost was to read the keys beside it."""
    whole = load_matrix(real())
    for glob in [*list(whole.families)[::23], "dsv4-fp4-b200*"]:
        part = load_matrix(real(), keys=[glob])
        assert set(part.families) == {key for key in whole.families if Selection(keys=[glob]).wants_key(key)}
        assert _told(part, glob) == _told(whole, glob)


@pytest.mark.parametrize(
    "beside",
    [
        'quoted: "begins\na-key:\n  ends"\n',
        "quoted: 'begins\na-key:\n  ends'\n",
        "flow: {\na-key:\n 1}\n",
        "--- \nplain: 1\n",
        "? a\n: 1\n",
        "shared: &shared\n  a: 1\n",
    ],
)
def test_a_file_that_cannot_be_taken_apart_is_read_whole(tmp_path: Path, beside: str) -> None:
    key = next(iter(load(tmp_path, FIXED).families))
    path = write(tmp_path, beside + FIXED)
    whole, part = (load_matrix([path], strict=False, keys=keys) for keys in ((), [key, "a-key"]))
    assert _told(part, key) == _told(whole, key)
    assert "a-key" not in whole.families and len(part.refused) == len(whole.refused) == 1


def test_a_key_that_comes_near_is_told_of_all_keys(tmp_path: Path) -> None:
    key = next(iter(load(tmp_path, FIXED).families))
    wrong = key.replace("-", "_", 1)
    with pytest.raises(ConfigError) as caught:
        load_matrix([write(tmp_path, FIXED)], keys=[wrong]).entries(Selection(keys=[wrong]))
    assert key in (caught.value.hint or "")


def test_an_alias_of_another_key_is_found(tmp_path: Path) -> None:
    lists = FIXED.replace("[4, 16, 64]", "&points [4, 16, 64]"), AGENTIC.replace("[8, 32]", "*points")
    key = AGENTIC.partition(":")[0]
    path = write(tmp_path, "".join(lists))
    part = load_matrix([path], keys=[key])
    assert _told(part, key) == _told(load_matrix([path]), key) and len(part.families) == 2
