"""A small GPT: decoder-only transformer with pre-normalisation and learned positions, no biases.

The defaults are the fixed bench model: 10.8 M parameters. Architecture: Radford et al., "Language Models are
Unsupervised Multitask Learners" (2019).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.errors import TrainerError
from trainer.models import MODELS


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        per_head = self.query_key_value(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = per_head.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each added to its own input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """Tokens (batch, length), of any integer dtype -> logits (batch, length, vocabulary).

    Length is at most `context`.
    """

    def __init__(
        self, vocabulary: int, context: int, width: int, heads: int, layers: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width % heads:
            raise TrainerError(f"model 'gpt': width {width} is not a multiple of heads {heads}")
        self.context = context
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if length > self.context:
            raise TrainerError(f"model 'gpt': {length} tokens are more than its context of {self.context}")
        positions = torch.arange(length, device=tokens.device)
        x = self.dropout(self.token(tokens.long()) + self.position(positions))
        return self.head(self.norm(self.blocks(x)))


@MODELS.register("gpt")
def gpt(
    vocabulary: int = 256,
    context: int = 64,
    width: int = 384,
    heads: int = 6,
    layers: int = 6,
    dropout: float = 0.0,
) -> nn.Module:
    """`dropout`: of attention weights, and of what is added to the residual stream."""
    return GPT(vocabulary, context, width, heads, layers, dropout)
