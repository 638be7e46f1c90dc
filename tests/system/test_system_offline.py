"""From a run's record to a policy that imitates it, as a user does it: train, export, BC, and the proof."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule

from trainer.offline_data import read_columns, read_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"


def test_ppo_is_recorded_exported_and_imitated(run_demo: Any) -> None:
    # A rate at which PPO has preferences after few iterations: of chance nothing can be imitated.
    teacher = run_demo("algorithm.name=PPO", "train.iterations=8", "algorithm.training.lr=3e-3", "train.seed=5")
    assert teacher.finish(300) == 0, teacher.output
    out = teacher.state_dir.parent / "episodes"
    export = run_demo(command=("export-episodes", teacher.run_id, "--out", str(out), "--from-iteration", "7", "--json"))
    assert export.finish() == 0, export.output
    manifest = read_manifest(out)
    told = json.loads(re.search(r"\{.*\}", export.output, re.DOTALL)[0])  # type: ignore[index]
    assert (told["run_id"], told["episodes"]) == (teacher.run_id, manifest.episodes)
    assert manifest.episodes > 30

    config = ("demo", "--config", str(CONFIGS / "bc.toml"))
    # Nothing is sampled: what the small demos ask for would never come.
    recording = (f"algorithm.offline_data.input_={out}", "algorithm.reporting.min_sample_timesteps_per_iteration=0")
    pupil = run_demo(*recording, "train.iterations=12", "train.seed=5", command=config)
    assert pupil.finish(300) == 0, pupil.output
    assert "s on recorded episodes" in pupil.output
    assert "The test split, traded once by each policy under the same costs:" in pupil.output
    assert "The integrity table holds: all that was published is stored, once." in pupil.output
    assert "Traceback" not in pupil.output

    # Judged by earlier episodes of the teacher, which the pupil has not seen.
    more = out.with_name("more")
    export = run_demo(command=("export-episodes", teacher.run_id, "--out", str(more), "--from-iteration", "6"))
    assert export.finish() == 0, export.output
    seen = set(read_columns(out, manifest)[Columns.EPS_ID])
    columns = read_columns(more, read_manifest(more))
    unseen = ~np.isin(columns[Columns.EPS_ID], list(seen))
    observations, actions = columns[Columns.OBS][unseen], columns[Columns.ACTIONS][unseen]
    assert 500 < len(actions) < len(unseen)
    checkpoint = pupil.state_dir / "runs" / pupil.run_id / "iteration-000012"
    module = RLModule.from_checkpoint(checkpoint / "learner_group" / "learner" / "rl_module" / "default_policy")
    with torch.no_grad():
        logits = module.forward_inference({Columns.OBS: torch.from_numpy(observations)})[Columns.ACTION_DIST_INPUTS]
    # The teacher draws its actions, so what counts is how likely the pupil finds them: likelier than the best guess
    # that does not look at the bars, their own frequencies.
    found = torch.log_softmax(logits, -1).numpy()[np.arange(len(actions)), actions]
    guessed = np.log(np.bincount(actions) / len(actions))[actions]
    gain = found - guessed
    assert gain.mean() > 3 * gain.std() / np.sqrt(len(gain)), (found.mean(), guessed.mean(), len(gain))

    # Another [env] than the recording's is refused before anything starts.
    wrong = run_demo(*recording, "env.window=9", command=config)
    assert wrong.finish() == 2
    assert re.search(r"millrace: recording .*window = 8 \(here 9\)", wrong.output), wrong.output
