#!/usr/bin/env bash
# torch 2.13.0, onnxscript 0.7.2, onnxruntime 1.32.0: nn.RNN, nn.LSTM and nn.GRU exported to ONNX with a dynamic length
#
# Guess: the length declared dynamic is fixed at that of the example, for all three alike, without a word.
# Seen: so for nn.RNN, whose steps are unrolled and whose input is declared with 5 steps. nn.LSTM and nn.GRU, which the guess missed,
# become one node and declare a free length, but a Reshape after it holds the 5: the graph loads, and every other length fails in it.
# No export raises.
# For users: the layers of spectral_triton export with a free length, also with the weights of torch's (from_rnn, from_lstm, from_gru).
source "$(dirname "$0")/environment.bash"
install torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
run <<'PYTHON'
import logging

import onnxruntime
import torch
from torch import nn

logging.disable(logging.WARNING)
onnxruntime.set_default_logger_severity(4)
time = torch.export.Dim("time")
for kind in (nn.RNN, nn.LSTM, nn.GRU):
    layer = kind(3, 4).eval()
    program = torch.onnx.export(
        layer, (torch.randn(5, 2, 3),), dynamo=True, verbose=False, dynamic_shapes=({0: time},)
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (given,) = session.get_inputs()
    print(kind.__name__, "declares", given.shape, "with", sorted({n.op_type for n in program.model.graph}))
    ran = []
    for steps in (3, 5, 9):
        x = torch.randn(steps, 2, 3)
        try:
            y = torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])
        except Exception as error:
            print("  ", steps, "steps:", str(error).split("\n")[0][:110])
        else:
            torch.testing.assert_close(y, layer(x)[0].detach(), rtol=1e-5, atol=1e-5)
            ran.append(steps)
    assert (given.shape[0] == 5) == (kind is nn.RNN), "the declared length: this has changed"
    assert ran == [5], f"lengths {ran} run: this has changed"
PYTHON
