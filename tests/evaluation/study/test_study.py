"""A study runs every arm, goes on where it stopped, counts its compute rightly and ends in a page a browser shows."""

import json
import shutil
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from browser import CHROMIUM, overflow, show
from episodes import quick_task
from esper.cli import main
from esper.env.growth_env import GrowthVectorEnv
from esper.evaluation import EpisodeResult, run_episodes
from esper.evaluation.study import Bench, Study, StudyConfig, add_seeds, figures, open_study, write_report
from esper.evaluation.study.architectures import (
    Architecture,
    EarliestGrowth,
    episode_of,
    random_architectures,
    train_from_scratch,
)
from esper.evaluation.study.gromo import obstacle
from esper.evaluation.study.verdicts import too_few_seeds
from esper.files import from_plain
from esper.simic.training.config import NetworkOptions
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle
from esper.tamiyo.policy.registry import make_policy
from esper.tamiyo.policy.rules import FixedSchedulePolicy, WaitPolicy
from esper.tasks import TASKS, get_task


def test_an_empty_architecture_is_the_host_alone():
    env = GrowthVectorEnv(1, quick_task("digits", horizon=3), autoreset_mode="NextStep", engine="loop")
    alone = run_episodes(env, WaitPolicy(), [7], arm="host alone")[0]
    scratch = train_from_scratch(env.task, episode_of(env.task, 7, 0.02), Architecture(()), arm="empty")
    assert scratch.scores == alone.scores
    assert scratch.test_score == alone.test_score
    assert scratch.train_flops == alone.train_flops


def test_a_grown_architecture_is_trained_from_scratch_with_as_many_parameters():
    env = GrowthVectorEnv(1, quick_task("digits", horizon=8), autoreset_mode="NextStep", engine="loop")
    grown = run_episodes(env, FixedSchedulePolicy(), [7], arm="fixed")[0]
    assert from_plain(EpisodeResult, json.loads(json.dumps(grown.to_json())), "results.json") == grown
    architecture = Architecture(tuple(grown.architecture))
    scratch = train_from_scratch(env.task, episode_of(env.task, 7, 0.02), architecture, arm="scratch", decisions=2)
    assert len(architecture.blocks) == 3
    assert scratch.added_params == grown.added_params
    assert scratch.architecture == grown.architecture
    assert len(scratch.scores) == 3


def test_known_networks_are_grown_as_early_as_the_lifecycle_allows():
    task = quick_task("digits", horizon=10)
    slots = ("block3", "block1", "block2")
    networks = [
        Architecture(tuple((slot, "depthwise", "add", 1.0) for slot in slots)),
        Architecture((("block2", "mlp", "gate", 0.5),)),
        Architecture(()),
    ]
    env = GrowthVectorEnv(3, task, autoreset_mode="NextStep")
    grown = run_episodes(env, EarliestGrowth(task, networks), [1, 2, 3], arm="")
    env.close()
    for result, network in zip(grown, networks, strict=True):
        assert sorted(result.architecture) == sorted(network.blocks)
    assert grown[0].ops == ["GERMINATE"] * 3 + ["ADVANCE"] * 3 + ["FOSSILIZE"] * 3 + ["WAIT"]
    assert grown[2].ops == ["WAIT"] * 10


def test_random_architectures_depend_on_the_seed_alone():
    task = quick_task("digits")
    assert random_architectures(task, 5, seed=1) == random_architectures(task, 5, seed=1)
    assert random_architectures(task, 5, seed=1) != random_architectures(task, 5, seed=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small but real study of an untrained policy, on two tasks."""
    from esper import simic  # noqa: PLC0415
    from esper.simic.training.config import TrainConfig  # noqa: PLC0415

    directory = tmp_path_factory.mktemp("study")
    env = GrowthVectorEnv(2, quick_task("wine", horizon=4))
    config = TrainConfig(updates=1, num_steps=4, network=NetworkOptions(hidden_dim=16), normalize_observations=False)
    simic.train([env], config=config, run_dir=directory / "run").policy.save(directory / "policy")
    policy, out = str(directory / "policy"), str(directory / "out")
    arguments = ["compare", "--task", "wine", "spirals", "--policy", policy, "--out", out, "--quiet"]
    arguments += ["--seeds", "2", "--rents", "0.01", "0.04", "--random-architectures", "2"]
    arguments += ["--arm", "episodes:eager"]
    arguments += ["--workers", "2"]
    assert main(arguments) == 0
    return directory / "out", arguments


def test_every_arm_is_in_the_report(finished):
    directory, _ = finished
    page = (directory / "report.html").read_text(encoding="utf-8")
    comparison = json.loads((directory / "comparison.json").read_text(encoding="utf-8"))
    assert len(comparison["claims"]) == 5
    assert len({row["arm"] for row in comparison["rows"]}) == 17 + (obstacle(get_task("wine")) is None)
    assert len(comparison["anytime"]) == 0, "competitors are left out unless budgets are given"
    for row in comparison["rows"]:
        assert row["arm"] in page or "rent" in row["arm"]
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_a_controller_of_the_users_own_is_an_arm_like_the_others(finished):
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert "<dt>episodes:eager</dt><dd>Germinates the first thing that fits, and lets every seed in.</dd>" in page
    assert "Tamiyo − episodes:eager" in page
    comparison = json.loads((finished[0] / "comparison.json").read_text(encoding="utf-8"))
    own = [row for row in comparison["rows"] if row["arm"] == "episodes:eager"]
    assert [row["task"] for row in own] == ["wine", "spirals"]


def test_an_arm_that_cannot_be_found_is_refused_before_anything_is_computed(tmp_path, capsys):
    for arm, said in (
        ("nowhere:rule", "importing 'nowhere' failed: ModuleNotFoundError: No module named 'nowhere'"),
        ("episodes:nothing", "has no 'nothing'"),
        ("heuristik", "did you mean 'heuristic'?"),
        ("heuristic", "--arm heuristic: an arm of this name is in every comparison"),
    ):
        assert main(["compare", "--arm", arm, "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_too_few_seeds_show_is_not_called_shown(finished):
    comparison = json.loads((finished[0] / "comparison.json").read_text(encoding="utf-8"))
    checks = [check for claim in comparison["claims"] for check in claim["checks"] if check["interval"]]
    assert all(check["interval"]["values"] == 4 for check in checks if "random architecture" not in check["what"])
    assert {check["shown"] for check in checks} == {"too few seeds"}
    assert {claim["verdict"] for claim in comparison["claims"]} == {"not tested"}
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert "intervals for one task rest on 2 seeds and say little, 5 or more are needed; no claim is judged" in page
    assert too_few_seeds(5, 1) == ""
    assert too_few_seeds(4, 2).endswith("only what rests on several tasks is judged")


def test_esper_report_makes_the_same_page_again_whatever_became_of_the_policy(finished, tmp_path, monkeypatch, capsys):
    directory = shutil.copytree(finished[0], tmp_path / "out")
    monkeypatch.setattr("esper.evaluation.study.study.fingerprint", lambda policy: "another")
    before = (directory / "report.html").read_text(encoding="utf-8")
    (directory / "report.html").unlink()
    assert main(["report", str(directory)]) == 0
    assert (directory / "report.html").read_text(encoding="utf-8") == before
    next((directory / "results").iterdir()).unlink()
    assert main(["report", str(directory)]) == 2
    assert "of this comparison 1 pieces are missing" in capsys.readouterr().err


def test_a_study_goes_on_where_it_stopped(finished):
    directory, arguments = finished
    kept, lost = sorted((directory / "results").iterdir())[:2]
    before, again = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    assert main(arguments) == 0
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == again


def test_every_arm_is_in_the_legend_which_is_whole_and_no_axis_has_an_offset(finished, tmp_path, monkeypatch):
    drawn = []

    class Seen(figures.Figure):
        def savefig(self, *args, **kwargs):
            super().savefig(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr(figures, "Figure", Seen)
    write_report(open_study(shutil.copytree(finished[0], tmp_path / "out")))
    for figure in drawn:
        legend = figure.legends[0].get_window_extent()
        assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= legend.y0 < legend.y1 <= figure.bbox.y1
        assert [axes.yaxis.get_offset_text().get_text() for axes in figure.axes] == [""] * len(figure.axes)
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert {"audition", "gromo", "episodes:eager", "Tamiyo, observations of other tasks"} - set(labels) <= {"gromo"}
    front = drawn[2].axes[0].get_ylim()
    assert front[1] - front[0] >= 0.02, "a difference of nothing looks like one"


@pytest.fixture
def short_tasks(monkeypatch):
    """Two tasks of few and short decisions."""
    for name in ("wine", "spirals"):
        short = type(name, (TASKS[name],), {"name": f"short_{name}", "horizon": 4, "steps_per_decision": 2})
        monkeypatch.setitem(TASKS, short.name, short)
    return "short_wine", "short_spirals"


@pytest.mark.parametrize("policy", ["random", "tamiyo"])
def test_what_a_policy_does_on_a_seed_does_not_depend_on_how_many_there_are(short_tasks, policy):
    bench = Bench(
        short_tasks[0], short_tasks, "tamiyo", num_seeds=4, seed=0, rent=0.02, random_architectures=2, all_results=None
    )
    together = bench.play(make_policy(policy), "an arm", keep_features=True)
    added = replace(bench, first_seed=2).play(make_policy(policy), "an arm", keep_features=True)
    assert together[2:] == added
    assert together[:2] == replace(bench, num_seeds=2).play(make_policy(policy), "an arm", keep_features=True)


def test_seeds_are_added_to_what_has_been_run(finished, tmp_path, capsys):
    directory = shutil.copytree(finished[0], tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (directory / "results").iterdir()}
    config = add_seeds(directory, 3)
    kept = {path.name: path.stat().st_mtime_ns for path in (directory / "results").iterdir()}
    assert kept.items() <= before.items()
    anew = before.keys() - kept.keys()
    arms = (
        "Tamiyo-shuffled-observations",
        "Tamiyo-observations-of-other-tasks",
        "random-architectures",
        "best-of-random",
    )
    assert anew == {f"{task}-{arm}.json" for task in ("wine", "spirals") for arm in arms}
    study = Study(config, directory)
    assert not any(study.is_finished(unit) for unit in study.units)
    assert main(["report", str(directory)]) == 2
    assert f"finish it by `esper compare --resume {directory}`" in capsys.readouterr().err
    assert main(["compare", "--resume", str(directory), "--seeds", "2"]) == 2
    assert "has 3; seeds can only be added" in capsys.readouterr().err


@pytest.mark.slow
def test_a_comparison_is_gone_on_with_by_its_directory_alone(finished, tmp_path, capsys):
    directory = shutil.copytree(finished[0], tmp_path / "out")
    (directory / "report.html").unlink()
    assert main(["compare", "--resume", str(directory), "--quiet"]) == 0
    assert (directory / "report.html").read_bytes() == (finished[0] / "report.html").read_bytes()
    assert main(["compare", "--resume", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


@contextmanager
def this_process(workers):
    """Runs every piece at once, here."""

    def submit(function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future

    yield submit


@pytest.mark.slow
def test_a_comparison_to_which_seeds_were_added_is_that_of_all_seeds(short_tasks, tmp_path):
    config = StudyConfig(
        task=short_tasks, seeds=3, rents=(0.02,), random_architectures=2, arm=("episodes:eager",), budgets=(1.0,)
    )
    at_once, added = Study(config, tmp_path / "once"), Study(replace(config, seeds=2), tmp_path / "added")
    for study in (at_once, added):
        study.run(1, lambda unit: None, this_process)
    added = Study(add_seeds(tmp_path / "added", 3), tmp_path / "added")
    added.run(1, lambda unit: None, this_process)
    for unit in at_once.units:
        assert added.path(unit).read_bytes() == at_once.path(unit).read_bytes(), unit


def test_an_arm_that_cannot_be_run_is_left_out_with_the_reason(finished, tmp_path, monkeypatch):
    directory = shutil.copytree(finished[0], tmp_path / "out")
    monkeypatch.setattr("esper.evaluation.study.arms.obstacle", lambda task: "it is too late")
    stored = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items() if not k.endswith("_sha256")}
    write_report(Study(StudyConfig(**config), directory))
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "gromo on wine (it is too late)" in page
    assert "<td>gromo</td>" not in page


def test_other_settings_are_refused(finished, capsys):
    _, arguments = finished
    assert main([*arguments, "--seed", "5"]) == 2
    assert "other settings (seed)" in capsys.readouterr().err


def test_other_weights_of_the_policy_are_refused(finished, tmp_path, capsys):
    # as after training it further: what is there was measured on another policy
    directory, arguments = finished
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    mine = tmp_path / "policy"
    shutil.copytree(config["policy"], mine)
    arguments = [str(mine) if a == config["policy"] else a for a in arguments]
    arguments[arguments.index("--out") + 1] = str(shutil.copytree(directory, tmp_path / "out"))
    stored = tmp_path / "out" / "config.json"
    stored.write_text(json.dumps(config | {"policy": str(mine)}), encoding="utf-8")
    bundle = LSTMPolicyBundle.load(mine)
    bundle.save(mine)
    assert main(arguments) == 0
    with torch.no_grad():
        bundle.network.critic.bias += 1
    bundle.save(mine)
    assert main(arguments) == 2
    assert "other settings (policy_sha256)" in capsys.readouterr().err


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="--seeds"):
        StudyConfig(seeds=1).check()
    with pytest.raises(ValueError, match="--budgets"):
        StudyConfig(budgets=(2.0, 2.0)).check()
    with pytest.raises(ValueError, match="learned policy"):
        StudyConfig(policy="heuristic").check()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_report_without_complaint_and_within_its_window(finished, tmp_path):
    page = finished[0] / "report.html"
    dom, complaints = show(page, tmp_path / "profile")
    assert "Verdicts" in dom
    assert "CONSOLE" not in complaints
    assert [overflow(page, tmp_path, width) for width in (500, 900, 1400)] == [0, 0, 0]
