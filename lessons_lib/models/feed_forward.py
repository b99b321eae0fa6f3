"""What follows attention in a block: one MLP for all tokens, or several of which a router picks for each token."""

import torch
from torch import nn

from ..errors import check_whole


class MLP(nn.Sequential):
    """Two linear layers with a GELU between them, four times as wide as the stream: (..., D) to (..., D)."""

    def __init__(self, width):
        super().__init__()
        self.up, self.gelu, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)


class MixtureOfExperts(nn.Module):
    """Several MLPs; each token goes to the `top_k` that its router scores highest, and gets their weighted sum.

    With the scores s = W x of all experts, and the set K of the top_k highest,  y = Σ_{e in K} softmax_K(s)_e MLP_e(x).
    No token is dropped, however many an expert gets.

    Args:
        width: numbers per token, D.
        num_experts: how many MLPs.
        top_k: how many of them a token goes to.

    Attributes:
        router: a linear layer without bias, D to num_experts.
        experts: the MLPs.

    Raises:
        ValueError: a size is below one, or `top_k` is larger than `num_experts`.

    Source: Shazeer et al. (2017), §2.1; Jiang et al., Mixtral (2024), §2.1; lesson 17.
    """

    def __init__(self, width, num_experts, top_k=2):
        super().__init__()
        check_whole("num_experts", num_experts, 1)
        check_whole("top_k", top_k, 1)
        if top_k > num_experts:
            raise ValueError(f"top_k={top_k}: at most num_experts={num_experts} are possible")
        self.top_k, self.router = top_k, nn.Linear(width, num_experts, bias=False)
        self.experts = nn.ModuleList(MLP(width) for _ in range(num_experts))

    def route(self, x):
        """For tokens (n, D) the experts that each goes to, and the weight of each: two tensors (n, top_k)."""
        scores, chosen = self.router(x).topk(self.top_k, dim=-1)
        return chosen, scores.softmax(-1)

    def forward(self, x):
        tokens = x.flatten(0, -2)
        chosen, weights = self.route(tokens)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, place = (chosen == number).nonzero(as_tuple=True)
            out = out.index_add(0, rows, weights[rows, place].unsqueeze(1) * expert(tokens[rows]))
        return out.view_as(x)
