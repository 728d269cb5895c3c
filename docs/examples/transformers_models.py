"""python transformers_models.py: GPT-2 and BERT with bounds, trained, saved and loaded

Run with transformers 5.24.0 and safetensors 0.8.0. The models are small and random; a pretrained
one comes from from_pretrained in the place of the constructor.
"""

import tempfile

import torch
from safetensors.torch import load_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)
from transformers.pytorch_utils import Conv1D

from spectral_triton import SigmoidSpectrum, SVDTransposedLinear, bake, convert, parameter_groups


def bounded(model, **options):
    """Every linear layer but tied ones, each in a band around the singular values it has."""
    return convert(model, spectrum=lambda name, sigma: SigmoidSpectrum.around(sigma), **options)


def outputs(model, **inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits


def train(model, **inputs):
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=1e-3, weight_decay=0.01))
    losses = []
    for _ in range(10):
        loss = model.train()(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


class Rows(torch.utils.data.Dataset):
    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns["labels"])

    def __getitem__(self, index):
        return {name: column[index] for name, column in self.columns.items()}


def gpt2():
    config = GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    plain = GPT2LMHeadModel(config)
    ids = torch.randint(100, (4, 16))
    model, report = bounded(plain)
    print(report)
    # The head is tied to the embedding and stays.
    assert sum(layer.new_type == "SVDTransposedLinear" for layer in report.converted) == 8
    assert model.lm_head.weight is model.transformer.wte.weight
    torch.testing.assert_close(outputs(model, input_ids=ids), outputs(plain, input_ids=ids))
    train(model, input_ids=ids, labels=ids)
    trained = outputs(model, input_ids=ids)

    baked = bake(model)
    assert isinstance(baked.transformer.h[0].attn.c_attn, Conv1D)
    torch.testing.assert_close(outputs(baked, input_ids=ids), trained, rtol=1e-4, atol=1e-5)
    with tempfile.TemporaryDirectory() as folder:
        # Baked, it is GPT-2 to everybody.
        baked.save_pretrained(folder)
        again = GPT2LMHeadModel.from_pretrained(folder)
        torch.testing.assert_close(outputs(again, input_ids=ids), outputs(baked, input_ids=ids))
    with tempfile.TemporaryDirectory() as folder:
        # With its factors, it is loaded into what was converted from the same plain model: files of
        # safetensors hold tensors alone, no bounds, and these were made from the weights.
        model.save_pretrained(folder)
        again, _ = bounded(plain)
        load_model(again, f"{folder}/model.safetensors")
    assert isinstance(again.transformer.h[0].attn.c_attn, SVDTransposedLinear)
    torch.testing.assert_close(outputs(again, input_ids=ids), trained)
    assert model.generate(ids[:1, :4], max_new_tokens=4, do_sample=False).shape == (1, 8)


def bert():
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    plain = BertForSequenceClassification(config)
    ids, labels = torch.randint(100, (8, 16)), torch.randint(2, (8,))
    model, report = bounded(plain, num_reflectors=8)
    print(report)
    torch.testing.assert_close(outputs(model, input_ids=ids), outputs(plain, input_ids=ids))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=10, save_steps=5, report_to=[], use_cpu=True, disable_tqdm=True
        )
        rows = Rows(input_ids=ids, labels=labels)
        before = outputs(model, input_ids=ids)
        Trainer(model, arguments, train_dataset=rows).train()
        trained = outputs(model, input_ids=ids)
        assert (trained - before).abs().max() > 0
        # From the checkpoint of step 5, which holds the factors, to the same weights.
        again, _ = bounded(plain, num_reflectors=8)
        trainer = Trainer(again, arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-5")
        assert trainer.state.global_step == 10
        torch.testing.assert_close(outputs(again, input_ids=ids), trained)
        sigma = again.bert.encoder.layer[0].output.dense.singular_values
        print("singular values stay in", (sigma.min().item(), sigma.max().item()))
    with tempfile.TemporaryDirectory() as folder:
        bake(model).save_pretrained(folder)
        again = BertForSequenceClassification.from_pretrained(folder)
        torch.testing.assert_close(outputs(again, input_ids=ids), trained, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    torch.manual_seed(0)
    gpt2()
    bert()
