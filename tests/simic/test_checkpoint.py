"""Checkpoints keep any nest of plain data exactly, and are replaced as a whole or not at all."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from esper.files import Format
from esper.heads import Head, HeadTable
from esper.simic.training import checkpoint
from esper.simic.training.checkpoint import find_checkpoint, load_state, save_checkpoint
from esper.tamiyo.networks.factored_lstm import FactoredRecurrentActorCritic
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle


def small_policy() -> LSTMPolicyBundle:
    return LSTMPolicyBundle(
        FactoredRecurrentActorCritic(
            state_dim=2, num_slots=0, heads=HeadTable([Head("a", 2)]), hidden_dim=4, head_dim=4
        )
    )


ARRAYS = npst.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.bool_, np.uint8]), npst.array_shapes(min_dims=0)
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**130), 2**130),
    st.floats(),
    st.text(),
    ARRAYS,
    ARRAYS.map(torch.as_tensor),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers(), st.just("$tensor")), inner, max_size=3),
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, (np.ndarray, torch.Tensor)):
        return a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return repr(a) == repr(b)


@given(tree=TREES)
@settings(max_examples=100, deadline=None)
def test_any_nest_of_plain_data_comes_back_as_it_was(tree: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    encoded = json.loads(json.dumps(checkpoint._to_json({"state": tree}, tensors)))
    assert same(checkpoint._from_json(encoded, tensors), {"state": tree})


def test_the_state_of_a_generator_and_an_optimiser_go_through_files(tmp_path: Path) -> None:
    policy = small_policy()
    optimizer = torch.optim.Adam(policy.network.parameters())
    for p in policy.network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "random": np.random.default_rng(0).bit_generator.state}
    save_checkpoint(tmp_path / "checkpoint", policy, state)
    loaded = load_state(tmp_path / "checkpoint")
    assert same(loaded["random"], state["random"])
    torch.optim.Adam(policy.network.parameters()).load_state_dict(loaded["optimizer"])
    assert same(loaded["optimizer"]["state"][0]["exp_avg"], state["optimizer"]["state"][0]["exp_avg"])


def test_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a checkpoint holds numbers, strings, tensors"):
        save_checkpoint(tmp_path / "checkpoint", small_policy(), {"x": object()})


@pytest.mark.parametrize("moment", ["policy", "state", "swap"])
def test_a_crash_while_saving_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch, moment: str) -> None:
    """Whether it dies before the policy is written, before the state is, or between the two moves."""
    place = tmp_path / "checkpoint"
    save_checkpoint(place, small_policy(), {"update": 1})

    def crash(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("killed")

    if moment == "policy":
        monkeypatch.setattr(LSTMPolicyBundle, "save", crash)
    elif moment == "state":
        monkeypatch.setattr(Format, "write", crash)
    else:
        replace, calls = checkpoint.os.replace, []

        def second_fails(*args: Any) -> None:
            calls.append(args)
            if str(args[1]).endswith("checkpoint"):
                crash()
            replace(*args)

        monkeypatch.setattr(checkpoint.os, "replace", second_fails)
    with pytest.raises(RuntimeError, match="killed"):
        save_checkpoint(place, small_policy(), {"update": 2})
    monkeypatch.undo()
    assert load_state(find_checkpoint(place))["update"] == 1
    save_checkpoint(place, small_policy(), {"update": 3})
    assert load_state(find_checkpoint(place))["update"] == 3


@pytest.mark.slow
def test_150_double_crashes_while_saving_lose_nothing(tmp_path: Path) -> None:
    """A process that saves and saves is killed at a random moment, and so is the one that goes on."""
    place, chance = tmp_path / "checkpoint", random.Random(0)
    policy = small_policy()
    save_checkpoint(place, policy, {"update": 0})
    for _ in range(300):
        before = load_state(find_checkpoint(place))["update"]
        saver = os.fork()
        if saver == 0:
            for update in range(before + 1, 10**6):
                save_checkpoint(place, policy, {"update": update, "x": torch.full((1000,), float(update))})
        time.sleep(chance.uniform(0, 0.05))
        os.kill(saver, signal.SIGKILL)
        os.waitpid(saver, 0)
        whole = find_checkpoint(place)
        state = load_state(whole)
        assert state["update"] >= before
        assert "x" not in state or state["x"].unique().tolist() == [state["update"]]
        LSTMPolicyBundle.load(whole)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """The files of a checkpoint in ``tmp_path / "checkpoint"``, by name."""
    save_checkpoint(tmp_path / "checkpoint", small_policy(), {"update": 1, "x": torch.ones(3)})
    return {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), data=st.data())
def test_a_truncated_file_is_refused(
    files: dict[str, bytes], tmp_path: Path, share: float, data: st.DataObject
) -> None:
    place = tmp_path / "checkpoint"
    damaged = data.draw(st.sampled_from(sorted(files)))
    for name, content in files.items():
        (place / name).write_bytes(content if name != damaged else content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=rf"{damaged}' is truncated or not a safetensors file"):
        find_checkpoint(place)


def test_says_when_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a checkpoint in"):
        find_checkpoint(tmp_path / "checkpoint")
