"""python lightning_training.py: fit, mixed precision, checkpoint and resume with Lightning

Run with lightning 2.6.6 on a CPU.
"""

import tempfile
import warnings

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from spectral_triton import SigmoidSpectrum, SpectralRNN, SVDLinear, parameter_groups


class Sum(lightning.LightningModule):
    """Tells the sum of a sequence."""

    def __init__(self, width=16, margin=0.1):
        super().__init__()
        self.save_hyperparameters()
        bounds = SigmoidSpectrum(margin=margin)
        self.rnn = SpectralRNN(2, width, spectrum=bounds, nonlinearity="relu", batch_first=True)
        self.hidden = SVDLinear(width, width, spectrum=bounds)
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(self.rnn(x)[0][:, -1]))).squeeze(-1)

    def training_step(self, batch, _):
        x, y = batch
        loss = nn.functional.mse_loss(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(parameter_groups(self, lr=1e-3))


def data():
    x = torch.rand(64, 10, 2, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x.sum((1, 2))), batch_size=16)


def trainer(folder, epochs, **options):
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        **options,
    )


def fitted(epochs, folder, resume=None, **options):
    lightning.seed_everything(0, verbose=False)
    model = Sum()
    fit = trainer(folder, epochs, **options)
    fit.fit(model, data(), ckpt_path=resume)
    for layer in (model.rnn, model.hidden):
        assert (layer.singular_values - 1).abs().max() <= 0.1
    return model, fit


def main():
    warnings.filterwarnings("ignore", ".*num_workers.*")
    with tempfile.TemporaryDirectory() as folder:
        first, _ = fitted(1, folder)
        whole, fit = fitted(4, folder)
        x, y = next(iter(data()))
        losses = [nn.functional.mse_loss(model(x), y).item() for model in (first, whole)]
        assert losses[1] < losses[0]
        print("loss after 1 and 4 epochs", losses)

        half, fit = fitted(2, folder)
        path = f"{folder}/half.ckpt"
        fit.save_checkpoint(path)
        resumed, _ = fitted(4, folder, resume=path)
        torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
        print("resumed: the same weights, to the bit")
        loaded = Sum.load_from_checkpoint(path)
        torch.testing.assert_close(loaded(x), half(x), rtol=0, atol=0)

        for precision in ("bf16-mixed", "16-mixed", "bf16-true", "64-true"):
            model, fit = fitted(4, folder, precision=precision)
            assert all(p.isfinite().all() for p in model.parameters())
            kinds = {p.dtype for p in model.parameters()}
            print(precision, kinds, "loss", fit.callback_metrics["loss"].item())
            assert fit.callback_metrics["loss"] < 2 * losses[0]


if __name__ == "__main__":
    main()
