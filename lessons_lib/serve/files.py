"""A model and its tokenizer in one file of numbers and JSON: whoever opens it runs nothing that it holds."""

import json

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..models import GPT
from .text import Bytes, Characters

KEY = "lessons_lib.serve"


def save_model(path, model, tokenizer):
    """Write `model`, a `models.GPT`, and `tokenizer`, `Characters` or `Bytes`, as safetensors.

    Raises:
        TypeError: they are something else.
    """
    if not isinstance(model, GPT):
        raise TypeError(f"model is a {type(model).__name__}: a GPT is needed")
    if not isinstance(tokenizer, (Bytes, Characters)):
        raise TypeError(f"tokenizer is a {type(tokenizer).__name__}: Characters or Bytes is needed")
    block, (context, width) = model.blocks[0], model.embed.positions.weight.shape
    sizes = {
        "vocabulary": model.embed.tokens.num_embeddings,
        "width": width,
        "num_layers": len(model.blocks),
        "num_heads": width // block.attention.head_width,
        "context": context,
        "num_experts": len(getattr(block.mlp, "experts", ())),
        "tied": model.head.logits.weight is model.embed.tokens.weight,
    }
    about = {"sizes": sizes, "alphabet": getattr(tokenizer, "alphabet", None)}
    weights = {name: weight.detach().contiguous() for name, weight in model.state_dict().items()}
    if sizes["tied"]:
        del weights["head.logits.weight"]
    save_file(weights, path, {KEY: json.dumps(about)})


def load_model(path):
    """Read what `save_model` wrote.

    Returns:
        (model, tokenizer), the model in evaluation mode and of the dtype that it had.

    Raises:
        OSError: there is no such file.
        ValueError: it is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[KEY])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        model = GPT(**about["sizes"]).to(next(iter(weights.values())).dtype)
        if about["sizes"]["tied"]:
            weights["head.logits.weight"] = weights["embed.tokens.weight"]
        model.load_state_dict(weights)
        tokenizer = Bytes() if about["alphabet"] is None else Characters(about["alphabet"])
    except OSError:
        raise
    except Exception as problem:  # safetensors has its own, and a file may lack anything
        raise ValueError(f"{path}: no model that `save_model` wrote: {problem}") from problem
    return model.eval(), tokenizer


def export_model(model, path):
    """Write `model` as a graph of torch's own operations, which runs without its Python code.

    The graph takes tokens (B, T) of any B from 1 and T from 2 to the model's context, and gives logits (B, T, V).

    Args:
        model: dense `models.GPT`; how many tokens an expert gets would depend on the numbers, which no graph knows.
        path: of the file, which `torch.export.load(path).module()` runs; torch 2.13 falls back to pickle, so that
            a file from elsewhere may run code.

    Raises:
        ValueError: the model has experts.
    """
    if hasattr(model.blocks[0].mlp, "experts"):
        raise ValueError(f"model has {len(model.blocks[0].mlp.experts)} experts per block: one without is needed")
    context = model.embed.positions.num_embeddings
    device = model.embed.tokens.weight.device
    sizes = {0: torch.export.Dim("B", min=1), 1: torch.export.Dim("T", min=2, max=context)}
    example = torch.zeros(2, min(3, context), dtype=torch.long, device=device)
    was_training = model.training
    try:
        program = torch.export.export(model.eval(), (example,), dynamic_shapes={"tokens": sizes})
    finally:
        model.train(was_training)
    torch.export.save(program, path)
