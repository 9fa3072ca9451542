"""Exports run in a process that cannot import esper, and give the same outputs."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch
from torch import nn

from esper.growth.export import export_model
from growing import Loop
from network.hosts import advance, fossilize, germinate

RUN = """
import sys
sys.modules["esper"] = None  # from here on `import esper` fails
try:
    import esper
except ImportError:
    pass
else:
    raise SystemExit("esper is there")
import torch
from torch import nn
path, inputs, outputs = sys.argv[1:]
cases = torch.load(inputs, weights_only=True)
if path.endswith(".pt2"):
    run = torch.export.load(path).module()
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    run = lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])
torch.save([run(x) for x in cases], outputs)
"""


def exported_outputs(path, cases, tmp_path):
    torch.save(cases, tmp_path / "in.pt")
    command = [sys.executable, "-c", RUN, str(path), str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return torch.load(tmp_path / "out.pt", weights_only=True)


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize("kind", ["vector", "sequence", "causal", "image"])
def test_an_export_runs_without_esper_for_any_number_of_samples(kind, suffix, tmp_path):
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
    blueprint, style = {"vector": ("gated_mlp", "gate"), "image": ("conv", "multiply")}.get(kind, ("attention", "add"))
    loop = Loop(kind).script(germinate(blueprint, 0, style), advance(target=0.7), fossilize())
    loop.epochs(4)
    path = loop.growth.export(tmp_path / f"grown.{suffix}")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    cases = [loop.x[:1].clone(), loop.x[:7].clone()]
    model = loop.model.eval()
    with torch.no_grad():
        expected = [model(x) for x in cases]
        alone = loop.growth.network.switched_off(0)
        with alone:
            assert (model(cases[1]) - expected[1]).abs().max() > 1e-4
    for ours, theirs in zip(exported_outputs(path, cases, tmp_path), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.pt2 or \.onnx, got 'grown\.pth'"):
        Loop().growth.export(tmp_path / "grown.pth")
    assert list(tmp_path.iterdir()) == []


def test_what_is_collected_meanwhile_is_no_part_of_the_program(tmp_path):
    """As when a context that was given up in mid-way ends while a model is traced."""

    class Litter(nn.Module):
        def forward(self, x):
            left = [suspended()]
            next(left[0])
            left.append(left)
            del left
            for _ in range(100):
                x = x + torch.stack([x, x]).sum(0)
            return x

    held = torch.zeros(1)

    def suspended():
        try:
            yield
        finally:
            held.fill_(1.0)

    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        path = export_model(Litter(), torch.ones(2, 3), tmp_path / "model.pt2")
    finally:
        gc.set_threshold(*thresholds)
    assert gc.isenabled()
    program = torch.export.load(path)
    assert not any("fill" in str(node.target) for node in program.graph.nodes)
