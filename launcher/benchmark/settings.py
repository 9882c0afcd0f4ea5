"""Additional settings: the KEY=VALUE texts of a matrix row that become environment variables of the job.

InferenceX's workflow pastes them into a shell line, where spaces, globs and ``$()`` are interpreted. Here they are
data: the keys are those listed below, the values are taken as they stand.
"""

from __future__ import annotations

import re

from launcher.core.errors import ConfigError
from launcher.core.suggest import suggest
from launcher.core.yaml_source import Place

SETTING_KEYS = frozenset(
    {
        "CLIENT_IMAGE",
        "CONFIG_FILE",
        "DECODE_GPU_MEM_FRACTION",
        "DECODE_IMAGE",
        "DECODE_MAX_BATCH_SIZE",
        "DECODE_MAX_NUM_TOKENS",
        "DECODE_MTP_SIZE",
        "DECODE_NODES",
        "DECODE_WORKERS",
        "EVAL_CONFIG_FILE",
        "GPUS_PER_NODE",
        "NUM_SPEC_TOKENS",
        "PREFILL_IMAGE",
        "PREFILL_MAX_BATCH_SIZE",
        "PREFILL_MAX_NUM_TOKENS",
        "PREFILL_NODES",
        "PREFILL_WORKERS",
        "SLURM_EXCLUDE_NODES",
        "SLURM_PARTITION",
        "SYNTHETIC_ACCEPTANCE",
        "SYNTHETIC_ACCEPTANCE_LENGTH",
        "THINKING_MODE",
        "TIME_LIMIT",
    }
)
"""What a row may set. A key that is not listed (``PATH``, ``LD_PRELOAD``, or one that the row has a field for) is
refused."""


def parse_setting(text: str, place: Place | str) -> tuple[str, str]:
    """Key and value of one additional setting (``KEY=VALUE``); the value is taken literally, spaces and all.

    ``place`` is where an error is said to be. Raises ConfigError for a text without ``=``, a key that is not in
    `SETTING_KEYS`, or a value with control characters.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"additional setting {text!r} is not KEY=VALUE", where=str(place))
    if key not in SETTING_KEYS:
        hint = suggest(key, SETTING_KEYS, f"known settings: {', '.join(sorted(SETTING_KEYS))}")
        raise ConfigError(f"additional setting {key!r} is not known", where=str(place), hint=hint)
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise ConfigError(f"additional setting {key} has a control character in its value {value!r}", where=str(place))
    return key, value
