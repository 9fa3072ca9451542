"""A grown network leaves as one file of data and comes back into a host built alike."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import esper
from esper import files
from esper.files import Format
from esper.growth.saving import FILE, GROWN
from growing import Loop, grown_modules
from network.hosts import advance, fossilize, germinate, host_case, same, wake

KINDS = ["vector", "sequence", "causal", "image"]


def grown(kind="vector", **kwargs):
    """A growth with a seed kept at 0.7 in the first slot and one in training in the second."""
    loop = Loop(kind, **kwargs).script(germinate("mlp"), advance(target=0.7), fossilize(), germinate("lora", 1))
    loop.epochs(5)
    for slot in loop.growth.network.slots:
        wake(slot.seed)
    return loop


def fresh(kind="vector"):
    torch.manual_seed(99)
    return host_case(kind).model


def answers(model, x):
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_network_answers_as_the_one_that_was_saved(kind, tmp_path):
    loop = grown(kind)
    assert loop.growth.save(tmp_path) == tmp_path / FILE
    model = fresh(kind)
    assert not torch.allclose(answers(model, loop.x), answers(loop.model, loop.x))
    assert esper.load_grown(tmp_path, model, loop.x[:2]) is model
    assert torch.equal(answers(model, loop.x), answers(loop.model, loop.x))
    ours, theirs = model.state_dict(), loop.model.state_dict()
    second = loop.growth.network.slots[1].place.prefix
    assert list(ours) == [name for name in theirs if not name.startswith(second)], "the seed in training stays behind"
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    plain = esper.grown_model(model)
    assert len(grown_modules(plain)) == 1
    assert torch.equal(answers(plain, loop.x), answers(loop.model, loop.x))
    assert torch.equal(answers(copy.deepcopy(model), loop.x), answers(loop.model, loop.x))


def test_a_loaded_network_trains_like_any_other(tmp_path):
    loop = grown()
    loop.growth.save(tmp_path)
    model = esper.load_grown(tmp_path, fresh().eval(), loop.x[:2])
    assert not any(module.training for module in model.modules())
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    twin = esper.grown_model(model)
    other = torch.optim.SGD(twin.parameters(), lr=0.1)
    for net, opt in ((model, optimizer), (twin, other)):
        for _ in range(3):
            opt.zero_grad()
            loop.loss(net).backward()
            opt.step()
    torch.testing.assert_close(answers(model, loop.x), answers(twin, loop.x))
    assert not torch.allclose(answers(model, loop.x), answers(loop.model, loop.x))


def test_seeds_take_the_dtype_of_the_host_that_they_are_loaded_into(tmp_path):
    loop = grown()
    loop.growth.save(tmp_path)
    model = esper.load_grown(tmp_path, fresh().double(), loop.x[:2].double())
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    torch.testing.assert_close(answers(model, loop.x.double()).float(), answers(loop.model, loop.x))


def test_a_decision_that_no_training_has_followed_is_not_in_the_file(tmp_path):
    loop = Loop().script(germinate("mlp"), advance())
    loop.epochs(1)
    loop.train()
    before = answers(loop.model, loop.x)
    loop.growth.step(loop.evaluate)  # blends it in
    assert not torch.allclose(answers(loop.model, loop.x), before)
    loop.growth.save(tmp_path)
    assert torch.equal(answers(esper.load_grown(tmp_path, fresh(), loop.x[:2]), loop.x), before)


def test_what_has_been_loaded_cannot_grow_before_its_seeds_are_built_in(tmp_path):
    loop = grown()
    loop.growth.save(tmp_path)
    model = esper.load_grown(tmp_path, fresh(), loop.x[:2])
    for carrying in (model, copy.deepcopy(loop.model)):
        with pytest.raises(ValueError, match=r"carries seeds.*esper\.grown_model"):
            esper.Growth(carrying, torch.optim.SGD(carrying.parameters()), slots=["3"], example_input=loop.x[:2])
        with pytest.raises(ValueError, match="carries seeds"):
            esper.load_grown(tmp_path, carrying, loop.x[:2])
    plain = esper.grown_model(model)
    esper.Growth(plain, torch.optim.SGD(plain.parameters()), slots=["3"], example_input=loop.x[:2])


def test_tied_weights_stand_in_the_file_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 8)
            self.layer = nn.Linear(8, 8)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.layer(self.embed(tokens)))

    model, x = Tied(), torch.randint(0, 11, (2, 5))
    growth = esper.Growth(model, torch.optim.SGD(model.parameters()), slots=["layer"], example_input=x, causal=True)
    growth.save(tmp_path)
    assert sorted(load_file(tmp_path / FILE)) == ["host/embed.weight", "host/layer.bias", "host/layer.weight"]
    loaded = esper.load_grown(tmp_path, Tied(), x)
    assert torch.equal(answers(loaded, x), answers(model, x))
    assert loaded.head.weight is loaded.embed.weight


def test_what_cannot_be_loaded_is_refused_in_words_and_changes_nothing(tmp_path):
    loop = grown()
    path = loop.growth.save(tmp_path)
    host = fresh()
    before = copy.deepcopy(host.state_dict())

    def refused(match, model=host, x=loop.x[:2], directory=tmp_path):
        with pytest.raises(ValueError, match=match):
            esper.load_grown(directory, model, x)
        assert same(dict(host.state_dict()), dict(before))
        assert not any(module._forward_hooks for module in host.modules())

    refused("expected a grown network at", directory=tmp_path / "elsewhere")
    refused("a grown Sequential, and this SmallCNN is built otherwise", fresh("image"), torch.randn(2, 1, 5, 4))
    wide = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))
    refused(r"first '0.weight' of shape \(8, 4\) in the file and \(9, 4\) here", wide)
    refused("carried vectors of 8 channels when it grew, but carries sequences of 8", host, torch.randn(2, 5, 4))
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    refused("truncated or not a safetensors file")
    path.write_bytes(whole)
    description, tensors = GROWN.read(path)
    seed = description["seeds"]["1"]
    spec = seed["spec"]
    Format("esper_grown", 99, "a grown network").write(path, description, tensors)
    refused("field 'format': expected 2, got 99")
    for wrong, says in (
        ({"host": 5}, "field 'host': expected str, got 5"),
        ({"slots": None}, "field 'slots': expected .*, got None"),
        ({"same": {"0.weight": 1}}, "field 'same"),
        ({"seeds": {"elsewhere": seed}}, "seeds must stand in slots, 1, 3; got seeds in elsewhere"),
        ({"seeds": {"1": {**seed, "alpha": 2.0}}}, "field 'seeds.1': alpha must be above 0 and at most 1"),
        ({"seeds": {"1": {**seed, "blueprint": "shrubbery"}}}, "field 'seeds.1': blueprint must be one of"),
        ({"seeds": {"1": {**seed, "spec": {**spec, "spatial": "all"}}}}, "field 'seeds.1.spec.spatial'"),
        ({"seeds": {"1": {**seed, "spec": {**spec, "kind": "smell"}}}}, "field 'seeds.1.spec.kind'"),
        ({"seeds": {"1": {**seed, "spec": {**spec, "channels": 2**40}}}}, "carried vectors of 1099511627776 channels"),
        ({"seeds": {"1": {**seed, "blueprint": "attention"}}}, "the seeds in .* cannot be built into this Sequential"),
    ):
        GROWN.write(path, {**description, **wrong}, tensors)
        refused(says)
    path.write_bytes(whole)
    esper.load_grown(tmp_path, host, loop.x[:2])


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    loop = grown()
    path = loop.growth.save(tmp_path)
    before = path.read_bytes()

    def fail(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(files, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        loop.growth.save(tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_only_tensors_can_be_saved(tmp_path):
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            pass

    model, x = nn.Sequential(Counting(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    growth = esper.Growth(model, torch.optim.SGD(model.parameters()), slots=["1"], example_input=x)
    with pytest.raises(ValueError, match=r"a dict at '0._extra_state'.*torch\.save"):
        growth.save(tmp_path)


def test_the_plain_copy_of_something_around_the_host_is_refused():
    loop = grown()
    with pytest.raises(ValueError, match="give the module inside"):
        esper.grown_model(torch.optim.swa_utils.AveragedModel(loop.model))
