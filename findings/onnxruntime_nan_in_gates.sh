#!/usr/bin/env bash
# onnxruntime 1.32.0: NaN that enters an LSTM or a GRU on the CPU
#
# Guess: NaN in, NaN out, as in PyTorch and as the formulas of the operators say.
# Seen: the outputs are finite. A sensor that fails sends NaN, and the deployed network answers as if nothing were wrong.
# For users: check the input of a deployed network yourself; SpectralLSTM and SpectralGRU export to these operators.
source "$(dirname "$0")/environment.bash"
install onnxruntime==1.32.0 onnx numpy==2.4.6
run <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

rng = np.random.default_rng(0)
for kind, gates in (("RNN", 1), ("LSTM", 4), ("GRU", 3)):
    n, features = 4, 3
    weights = {
        "W": rng.standard_normal((1, gates * n, features)).astype(np.float32),
        "R": rng.standard_normal((1, gates * n, n)).astype(np.float32),
    }
    graph = helper.make_graph(
        [helper.make_node(kind, ["X", "W", "R"], ["Y"], hidden_size=n)],
        "g",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [5, 1, features])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [5, 1, 1, n])],
        [onnx.numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = rng.standard_normal((5, 1, features)).astype(np.float32)
    x[2] = np.nan
    (y,) = session.run(None, {"X": x})
    finite = np.isfinite(y[2:]).all()
    print(kind, "steps from the NaN on are finite:", bool(finite))
    if kind != "RNN":
        assert finite, "NaN comes through now: this has changed"
PYTHON
