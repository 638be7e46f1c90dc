"""Your own RLlib script, with its episodes in ClickHouse: nothing of Millrace but one call before and one after.

PPO learns CartPole with two env runners. Each runner publishes its episodes from its own process; log, store and
consumer run on this machine while the script does, and keep what they have in ./.millrace.

Run: python examples/cartpole_events.py
"""

from __future__ import annotations

import logging
import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import ray
from ray.rllib.algorithms.ppo import PPOConfig

from millrace import LocalStack, finish_run, publish_events

ITERATIONS = 5

LEARNING = """
    SELECT iteration, count() AS episodes, round(avg(steps), 1) AS mean_length, max(steps) AS longest
    FROM episodes
    WHERE run_id = {run_id:String} AND status = 'completed'
    GROUP BY iteration
    ORDER BY iteration
"""


def my_config() -> PPOConfig:
    """A config as anybody has one; nothing in it knows of Millrace."""
    return (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=2, num_envs_per_env_runner=4)
        .training(train_batch_size_per_learner=2_000, minibatch_size=250, num_epochs=6, lr=1e-3)
        .debugging(seed=1, log_level="ERROR")
    )


def main() -> None:
    """Train, then ask what happened."""
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with LocalStack() as stack:
        config = my_config()
        # The call before: callbacks that publish, beside those that the config may have.
        run_id = publish_events(config, log=stack.log_address, outbox=stack.outbox, name="cartpole")

        algorithm = config.build_algo()
        for _ in range(ITERATIONS):
            result = algorithm.train()
            print(f"iteration {result['training_iteration']}: {result['env_runners']['episode_return_mean']:.1f}")
        # The call after: it ends the run in the record. Without it nothing is lost, but the run shows no end.
        finish_run(algorithm)
        algorithm.stop()

        # Episodes are on their way: outbox, forwarder, log, consumer, ClickHouse. Wait until all have arrived.
        stack.drain(60)
        with stack.client() as client:
            answer = client.query(LEARNING, parameters={"run_id": run_id})
        print(f"\nrun {run_id}, asked in SQL:")
        print("  ".join(answer.column_names))
        for row in answer.result_rows:
            print("  ".join(f"{value:>{len(name)}}" for name, value in zip(answer.column_names, row, strict=True)))

        # The same comparison as `millrace check`: what the publishers say they sent, with what is stored.
        table = stack.check(run_id)
        table.require()  # raises where they differ
        stored = sum(line.stored for line in table.lines)
        print(f"\n{stored:,} events of {table.publishers} publishers are stored, each once")
        print(f"The store stays. Ask it more: millrace check {run_id}")
    ray.shutdown()


if __name__ == "__main__":
    main()
