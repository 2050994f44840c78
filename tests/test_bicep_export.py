"""A model written as ONNX answers as it does here, pruned, and with dropout masks as inputs."""

import numpy as np
import pytest
import torch
from torch import nn

from bicep import BICEPLayer, accelerate, build_plan, export
from bicep.export import ExportError, export_onnx
from strategy.fusionnet import FusionNet

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
torch.set_num_threads(1)


def _session(path):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(str(path), options)


def _model():
    torch.manual_seed(0)
    return nn.Sequential(
        BICEPLayer(10, 16, activation="gelu", dropout=0.25, density=0.4),
        nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.5),
        BICEPLayer(8, 6, activation="silu"), BICEPLayer(6, 2, bias=False),
    )  # fmt: skip


def test_the_file_answers_as_the_model_does_for_any_number_of_rows(tmp_path):
    model = _model().train()
    assert export_onnx(model, (torch.randn(3, 10),), tmp_path / "model.onnx") == ["input_0"]
    assert model.training
    assert [type(part) for part in model][3] is nn.Dropout
    session = _session(tmp_path / "model.onnx")
    for rows in (1, 7):
        x = torch.randn(rows, 10)
        wanted = model.eval()(x).detach().numpy()
        np.testing.assert_allclose(session.run(None, {"input_0": x.numpy()})[0], wanted, rtol=1e-5, atol=1e-6)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert "Dropout" not in {node.op_type for node in graph.node}


def test_the_file_and_the_plan_of_a_pruned_net_answer_alike(tmp_path):
    torch.manual_seed(6)
    first = nn.Linear(12, 64), nn.ReLU(), nn.Dropout(0.1)
    net = nn.Sequential(*first, nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    accelerate(net, density=0.2)
    x = torch.randn(9, 12)
    export_onnx(net, (x,), tmp_path / "net.onnx")
    theirs = _session(tmp_path / "net.onnx").run(None, {"input_0": x.numpy()})[0]
    for part in net.modules():
        if isinstance(part, BICEPLayer):
            part.dropout = 0.0  # the plan would draw it, the file leaves it out
    answers = build_plan(net, symbols_max=4).predict(x.numpy())
    np.testing.assert_allclose(answers["mean"], theirs[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(answers["aleatoric"], np.exp(theirs[:, 1]), rtol=1e-4)


def test_dropout_masks_are_inputs_of_the_graph(tmp_path):
    model = _model()
    names = export_onnx(model, (torch.randn(3, 10),), tmp_path / "model.onnx", dropout_inputs=True)
    assert names == ["input_0", "keep_0", "keep_3"]
    session = _session(tmp_path / "model.onnx")
    x, one, two = torch.randn(5, 10), (torch.rand(5, 16) < 0.75).float(), (torch.rand(5, 8) < 0.5).float()
    fed = dict(zip(names, (x.numpy(), one.numpy(), two.numpy()), strict=True))
    hidden = model[2](model[1](model[0](x, keep=one))) * two / 0.5
    wanted = model[5](model[4](hidden)).detach().numpy()
    np.testing.assert_allclose(session.run(None, fed)[0], wanted, rtol=1e-5, atol=1e-6)
    fed["keep_3"] = np.zeros((5, 8), np.float32)
    assert not np.allclose(session.run(None, fed)[0], wanted)
    assert model[0].keep is None


def test_the_trading_net_with_its_news_half_and_masks(tmp_path):
    net = FusionNet(8, 12, (64, 16))
    for layer in (net.tech, net.second):
        layer.density = 0.3
    rows = (torch.randn(4, 8), torch.randn(4, 12))
    names = export_onnx(net, rows, tmp_path / "net.onnx", dropout_inputs=True)
    assert names == ["input_0", "input_1", "keep_tech", "keep_second"]
    masks = ((torch.rand(4, 64) < 0.875).float(), (torch.rand(4, 16) < 0.875).float())
    wanted = [part.detach().numpy() for part in net.eval()(*rows, masks=masks)]
    fed = dict(zip(names, (value.numpy() for value in (*rows, *masks)), strict=True))
    for ours, theirs in zip(_session(tmp_path / "net.onnx").run(None, fed), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_without_the_exporter_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "absent", lambda: "onnxscript is absent: no module")
    with pytest.raises(ExportError, match="onnxscript is absent"):
        export_onnx(_model(), (torch.randn(3, 10),), tmp_path / "model.onnx")
