"""A decoder-only transformer, small enough to read, whose parts every kind of parallelism can take hold of."""

from torch import nn
from torch.nn import functional as F

from ..errors import check_sizes, check_whole
from .feed_forward import MLP, MixtureOfExperts


class GPT(nn.Module):
    """A language model: tables of tokens and positions, blocks, and the logits of the next token.

    Pre-norm blocks, no bias in the last layer, and one table for the tokens that come in and those that go out. Lesson
    06b builds its parts; lessons 13 to 18 split it.

    Args:
        vocabulary: how many tokens there are, V.
        width: numbers per position, D.
        num_layers: how many blocks.
        num_heads: heads of attention in each block; divides `width`.
        context: the most positions, T.
        num_experts: None of them: each block has one MLP. Else each has so many, and a router that sends each token to
            the two (or one) that suit it best.
        dropout: the share of numbers that are dropped after the tables and at the end of each branch.
        tied: whether the last layer uses the table of tokens.

    Attributes:
        embed, blocks, head: its three parts. `head(blocks(embed(tokens)))` is what it computes.

    Raises:
        ValueError: a size is below one, `num_heads` does not divide `width`, or an input has more than T positions.

    Source: Radford et al., GPT-2 (2019), §2.3; Press and Wolf (2017) for the tied table.
    """

    def __init__(self, vocabulary, width, num_layers, num_heads, context, num_experts=0, dropout=0.0, tied=True):
        super().__init__()
        check_sizes(vocabulary=vocabulary, width=width, num_layers=num_layers, num_heads=num_heads, context=context)
        check_whole("num_experts", num_experts, 0)
        if width % num_heads:
            raise ValueError(f"num_heads={num_heads}: a divisor of width={width} is needed")
        self.embed = Embed(vocabulary, width, context, dropout)
        self.blocks = nn.Sequential(*(Block(width, num_heads, num_experts, dropout) for _ in range(num_layers)))
        self.head = Head(vocabulary, width)
        if tied:
            self.head.logits.weight = self.embed.tokens.weight

    def forward(self, tokens, positions=None):
        """Logits (B, T, V) of the token after each of `tokens` (B, T), whose positions are 0 to T - 1 if not given."""
        return self.head(self.blocks(self.embed(tokens, positions)))

    def stages(self):
        """Its parts in the order in which a pipeline may cut them: `embed`, each block, `head`."""
        return [self.embed, *self.blocks, self.head]


class Embed(nn.Module):
    """From tokens (B, T) to (B, T, D): the row of each token and the row of its position."""

    def __init__(self, vocabulary, width, context, dropout):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens, positions=None):
        context, length = self.positions.num_embeddings, tokens.shape[1]
        if positions is None and length > context:
            raise ValueError(f"tokens has {length} positions: at most {context} are possible, the model's context")
        rows = self.positions.weight[:length] if positions is None else self.positions(positions)
        return self.dropout(self.tokens(tokens) + rows)


class Block(nn.Module):
    """Attention, then an MLP or experts, each on a normed copy that is added to the stream (B, T, D)."""

    def __init__(self, width, num_heads, num_experts, dropout):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MixtureOfExperts(width, num_experts, min(2, num_experts)) if num_experts else MLP(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Causal attention with several heads. How many it has follows from its layers, so that a rank may hold some.

    Attributes:
        attend: q, k, v -> answers, all (B, heads, T, D / heads). Another one may take its place.
    """

    def __init__(self, width, num_heads):
        super().__init__()
        self.head_width, self.attend = width // num_heads, causal_attention
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (layer(x).unflatten(2, (-1, self.head_width)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))


def causal_attention(q, k, v):
    """Softmax(q kᵀ / √d) v, in which a position sees itself and those before it (lesson 06b)."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Head(nn.Module):
    """The logits of the next token, (B, T, V)."""

    def __init__(self, vocabulary, width):
        super().__init__()
        self.norm, self.logits = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, x):
        return self.logits(self.norm(x))
