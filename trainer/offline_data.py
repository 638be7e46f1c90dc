"""Recorded episodes as RLlib's offline data: what ``millrace export-episodes`` wrote, for BC and MARWIL.

A recording is a folder with Parquet files in RLlib's columns, one row a step, and a manifest that says of which
environment they are. Nothing in it is ever unpickled: a file whose columns are not exactly ours is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from env.settings import EnvSettings
from env.spaces import action_space
from schemas.errors import InputError, SettingsError
from trainer.environments import settings_hash
from trainer.settings import EnvConfig

MANIFEST = "manifest.json"
FORMAT = "millrace-episodes-v1"

# Steps that one iteration learns from: a pass over the recording, or this much of one that is larger. Copied at once.
_STEPS_PER_ITERATION = 65_536


class Manifest(BaseModel):
    """What a recording says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    run_id: str
    env: dict[str, Any]
    settings_hash: str
    scaler: dict[str, Any]
    scaler_version: str
    observation_size: int
    action_size: int
    discrete: bool
    episodes: int
    steps: int
    files: dict[str, str]
    """File name to SHA-256."""

    @property
    def schema(self) -> pa.Schema:
        """Columns of its files, under RLlib's names."""
        action: Any = pa.int64() if self.discrete else pa.float32()
        observation = pa.list_(pa.float32(), self.observation_size)
        return pa.schema(
            {
                Columns.EPS_ID: pa.string(),
                Columns.T: pa.int64(),
                Columns.OBS: observation,
                Columns.ACTIONS: pa.list_(action, self.action_size) if self.action_size else action,
                Columns.REWARDS: pa.float32(),
                Columns.NEXT_OBS: observation,
                Columns.TERMINATEDS: pa.bool_(),
                Columns.TRUNCATEDS: pa.bool_(),
            }
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a recording.

    Raises:
        InputError: no recording of ours is there.
    """
    how = "`millrace export-episodes RUN --out DIR` writes one"
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"recording {folder}: expected a folder with {MANIFEST}, there is none; {how}") from error
    except (OSError, ValidationError) as error:
        words = " ".join(str(error).split())[:200]
        raise InputError(f"recording {folder / MANIFEST}: cannot be read: {words}; {how}") from error
    if manifest.format != FORMAT:
        raise InputError(f"recording {folder}: expected format {FORMAT}, got {manifest.format!r}; export it again")
    return manifest


def check_recording(input_: Any, env: EnvSettings) -> Manifest:
    """The manifest of the recording that ``algorithm.offline_data.input_`` names, if it is of this environment.

    Raises:
        SettingsError: none is named, or it was recorded in another environment; names what differs.
        InputError: no recording is there.
    """
    if not isinstance(input_, str) or input_ in ("", "sampler"):
        raise SettingsError(
            f"algorithm.offline_data.input_: expected the folder of a recording, got {input_!r}; write one with "
            "`millrace export-episodes RUN --out DIR`"
        )
    manifest = read_manifest(Path(input_))
    if manifest.settings_hash != settings_hash(env):
        given = env.model_dump(mode="json")
        names = sorted(name for name in manifest.env.keys() | given if manifest.env.get(name) != given.get(name))
        shown = ", ".join(f"{name} = {manifest.env.get(name)!r} (here {given.get(name)!r})" for name in names[:4])
        raise SettingsError(f"recording {input_}: made with [env] {shown}; train with the settings that recorded it")
    return manifest


def read_columns(folder: Path, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """All steps of a recording, by column: observations float32 (N, size), actions (N,) or (N, A), rewards (N,).

    Raises:
        InputError: a file is missing, changed, or has other columns than the manifest says.
    """
    tables = []
    for name, digest in manifest.files.items():
        path = folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"recording {path}: expected a Parquet file: {error}; export it again") from error
        if (found := hashlib.sha256(content).hexdigest()) != digest:
            raise InputError(
                f"recording {path}: expected SHA-256 {digest[:16]}…, got {found[:16]}…; it was changed, export it again"
            )
        file = pq.ParquetFile(pa.BufferReader(content))
        if not file.schema_arrow.equals(manifest.schema):
            raise InputError(f"recording {path}: expected the columns {manifest.schema.names}, got {file.schema_arrow}")
        tables.append(file.read())
    table = pa.concat_tables(tables).combine_chunks()
    return {name: _array(table.column(name)) for name in table.column_names}


def _array(column: Any) -> NDArray[Any]:
    whole = column.combine_chunks()
    values = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
    if pa.types.is_fixed_size_list(values.type):
        flat: NDArray[Any] = values.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(-1, values.type.list_size)
    plain: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return plain


class EpisodeOfflineData(OfflineData):
    """A recording in memory, handed to the learner in shuffled passes; set as ``offline_data_class``.

    RLlib's own reader goes through Ray Data with actors that hold copies of the module: it takes seconds to start,
    draws without a seed, and computes MARWIL's value targets with weights that may be old, from single steps. This one
    computes them over whole episodes: the discounted return, and behind a cut the value of the last observation by the
    weights of now. It feeds the local learner (``num_learners = 0``, on a CPU or a GPU).
    """

    def __init__(self, config: Any) -> None:
        # RLlib's own constructor reads the data by Ray Data.
        self.config = config
        self.iter_batches_kwargs: dict[str, Any] = {}
        if config.num_learners or config.dataset_num_iters_per_learner != 1:
            raise SettingsError(
                "algorithm.learners.num_learners and algorithm.offline_data.dataset_num_iters_per_learner: expected 0 "
                f"and 1 for a recording, got {config.num_learners} and {config.dataset_num_iters_per_learner}"
            )
        trained = EnvConfig.model_validate(dict(config.env_config))
        manifest = check_recording(config.input_, EnvSettings.from_mapping(trained.settings))
        if manifest.scaler != trained.scaler:
            raise SettingsError(
                f"recording {config.input_}: its observations are scaled as run {manifest.run_id} fitted it (scaler "
                f"{manifest.scaler_version}), and this run's scaler is another one; train on the same [data]"
            )
        columns = read_columns(Path(config.input_), manifest)
        if config.normalize_actions and not manifest.discrete:
            space = action_space(EnvSettings.from_mapping(trained.settings), 1)
            columns[Columns.ACTIONS] = _normalized(columns[Columns.ACTIONS], space)
        self._rng = np.random.default_rng(config.seed)
        self._batch = {
            Columns.OBS: columns[Columns.OBS],
            Columns.ACTIONS: columns[Columns.ACTIONS],
        }
        self._returns = EpisodeReturns(columns, config.gamma) if config.beta else None
        self._order = np.empty(0, dtype=np.int64)

    def sample(
        self,
        num_samples: int,
        return_iterator: bool = False,
        num_shards: int = 1,
        module_state: Mapping[str, Any] | None = None,
    ) -> MultiAgentBatch:
        """The next steps of a shuffled pass, which one iteration learns from in minibatches of ``num_samples``."""
        total = len(self._batch[Columns.OBS])
        if not len(self._order):
            self._order = self._rng.permutation(total)
        size = max(num_samples, _STEPS_PER_ITERATION)
        rows, self._order = self._order[:size], self._order[size:]
        batch = {name: values[rows] for name, values in self._batch.items()}
        if self._returns is not None:
            learner = self.learner_handles[0]
            values = _values(learner.module[DEFAULT_MODULE_ID].unwrapped(), self._returns.last_observations)
            batch[Postprocessing.VALUE_TARGETS] = self._returns.targets(values)[rows]
        return MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(batch)}, env_steps=len(rows))


class EpisodeReturns:
    """Discounted returns of recorded episodes, and what a value function adds behind the step that cut them off.

    target(t) = sum of gamma^(k - t) r(k) for k = t .. T, + gamma^(T - t + 1) V(last observation) if not terminated:
    Wang et al. 2018, "Exponentially Weighted Imitation Learning for Batched Historical Data", with a bootstrap.

    Args:
        columns: Of a recording; the rows of an episode are consecutive and in order.
        gamma: Discount.
    """

    def __init__(self, columns: Mapping[str, NDArray[Any]], gamma: float) -> None:
        done = columns[Columns.TERMINATEDS] | columns[Columns.TRUNCATEDS]
        ends = np.flatnonzero(done)
        self.last_observations = columns[Columns.NEXT_OBS][ends]
        rewards = columns[Columns.REWARDS].astype(np.float64)
        self._returns = np.empty(len(rewards))
        self._weights = np.empty(len(rewards))
        self._episode = np.concatenate([[0], np.cumsum(done)[:-1]])
        starts = np.concatenate([[0], ends[:-1] + 1])
        for start, end in zip(starts, ends, strict=True):
            powers = gamma ** np.arange(end - start + 1)
            tail = 0.0
            for row in range(end, start - 1, -1):
                tail = rewards[row] + gamma * tail
                self._returns[row] = tail
            alive = not columns[Columns.TERMINATEDS][end]
            self._weights[start : end + 1] = (gamma * powers[::-1]) * alive

    def targets(self, values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Value targets of all steps, float32 (N,), given the value of each episode's last observation."""
        targets: NDArray[np.float64] = self._returns + self._weights * values[self._episode]
        return targets.astype(np.float32)


def _normalized(actions: NDArray[np.float32], space: Any) -> NDArray[np.float32]:
    """Actions in the space of a symbol, or of each of several, as RLlib's modules speak of them: from -1 to 1."""
    symbols = actions.shape[1] // len(space.low)
    low, high = np.tile(space.low, symbols), np.tile(space.high, symbols)
    normalized: NDArray[np.float32] = 2.0 * (actions - low) / (high - low) - 1.0
    return normalized.astype(np.float32)


def _values(module: Any, observations: NDArray[np.float32]) -> NDArray[np.float32]:
    device = next(module.parameters()).device
    with torch.no_grad():
        batch = {Columns.OBS: torch.from_numpy(np.array(observations)).to(device)}
        values: NDArray[np.float32] = module.compute_values(batch).cpu().numpy()
    return values
