"""Tuning PPO with Optuna, which gives up early on what does badly.

    python examples/tune_ppo.py

As it stands the study is tiny and only shows how it is done: take your environment, 50 trials or more, and as many
steps as a run needs. The options are chosen by evaluations during training; what they are worth is said by a run with
another seed, on other episodes, for the best of many is lucky, too.
"""

import optuna

from esper import simic

ENV, TRIALS, TOTAL_STEPS = "esper/Locksmith-v0", 3, 512


class Report(simic.Callback):
    """Tells Optuna of every evaluation, and ends the run that it gives up on."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_update(self, metrics) -> None:
        if "eval/return" in metrics:
            self.trial.report(metrics["eval/return"], step=int(metrics["update"]))
            if self.trial.should_prune():
                raise optuna.TrialPruned


def config_of(trial: optuna.trial.BaseTrial, seed: int) -> simic.TrainConfig:
    """What matters most, in ranges that are wide enough."""
    ppo = simic.PPOConfig(
        learning_rate=f"linear:{trial.suggest_float('learning_rate', 1e-4, 1e-2, log=True)}",
        gamma=1 - trial.suggest_float("1 - gamma", 2e-3, 0.2, log=True),
        gae_lambda=1 - trial.suggest_float("1 - lambda", 0.01, 0.3, log=True),
        entropy_coefficient=trial.suggest_float("entropy", 1e-4, 0.03, log=True),
        minibatches=trial.suggest_categorical("minibatches", [2, 4, 8]),
        epochs=trial.suggest_int("epochs", 2, 8),
    )
    network = simic.NetworkOptions(hidden_dim=trial.suggest_categorical("hidden_dim", [32, 64, 128]))
    every = max(1, TOTAL_STEPS // (8 * 32) // 8)  # about eight evaluations
    return simic.TrainConfig(
        seed=seed,
        total_steps=TOTAL_STEPS,
        num_envs=8,
        num_steps=32,
        ppo=ppo,
        network=network,
        eval_every=every,
        eval_episodes=8,
    )


def objective(trial: optuna.Trial) -> float:
    """Mean return of the last evaluation."""
    return simic.train(ENV, config=config_of(trial, seed=0), callback=Report(trial)).metrics[-1]["eval/return"]


optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(
    direction="maximize",
    sampler=optuna.samplers.TPESampler(seed=0, multivariate=True),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=TRIALS // 5, n_warmup_steps=1),
)
study.optimize(objective, n_trials=TRIALS)
for trial in study.trials:
    print(trial.number, trial.state.name.lower(), trial.value)

best = simic.train(ENV, config=config_of(optuna.trial.FixedTrial(study.best_params), seed=1)).policy
print(f"{study.best_params}\nmean return {simic.evaluate(best, ENV, episodes=20, seed=1).mean_return:.2f}")
