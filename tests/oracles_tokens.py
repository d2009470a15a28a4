"""Twins of the methods that read a vision transformer's attention: see oracles.py, which imports them.

The transformer is run here from its weights, block by block, for one picture: softmax(Q K^T / sqrt(d)) V in each head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def normed(x: Tensor, norm: Any) -> Tensor:
    """LayerNorm or RMSNorm of tokens (N, D), from its weights."""
    if isinstance(norm, nn.Identity):
        return x
    if not isinstance(norm, nn.LayerNorm):
        scaled: Tensor = x / (x.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight
        return scaled
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def block(part: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A block's attention (heads, N, N), and the tokens (N, D) after it."""
    attn, size = part.attn, x.shape[1]
    d = size // attn.num_heads
    together = normed(x, part.norm1) @ attn.qkv.weight.T + attn.qkv.bias
    q, k, v = together[:, :size], together[:, size : 2 * size], together[:, 2 * size :]
    own = [slice(h * d, (h + 1) * d) for h in range(attn.num_heads)]
    scores = torch.stack([q[:, s] @ k[:, s].T / d**0.5 for s in own])
    matrix = scores.exp() / scores.exp().sum(2, keepdim=True)
    attended = torch.cat([matrix[h] @ v[:, s] for h, s in enumerate(own)], 1)
    x = x + (attended @ attn.proj.weight.T + attn.proj.bias) * getattr(part.ls1, "gamma", 1)
    return matrix, x + part.mlp(normed(x, part.norm2)) * getattr(part.ls2, "gamma", 1)


def transformer(model: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """For one picture, each block's attention and the tokens after it, all in one graph."""
    net: Any = model
    tokens = net.norm_pre(net._pos_embed(net.patch_embed(x)))[0]
    matrices, after = [], []
    for part in net.blocks:
        matrix, tokens = block(part, tokens)
        matrices.append(matrix)
        after.append(tokens)
    return matrices, after


def score(model: nn.Module, tokens: Tensor, c: int) -> Tensor:
    """The logit of class c when the head reads these tokens (N, D)."""
    net: Any = model
    logit: Tensor = net.forward_head(normed(tokens, net.norm)[None])[0, c]
    return logit


def rows_read(model: nn.Module, count: int) -> list[int]:
    """The tokens that the head reads, of `count`."""
    net: Any = model
    if net.global_pool == "map":  # test_vit3's reads the prefix, too
        return list(range(count))
    if net.global_pool == "token":
        return [0, 1] if hasattr(net, "dist_token") else [0]
    return list(range(net.num_prefix_tokens, count))


def on_grid(model: nn.Module, relevance: Tensor, x: Tensor) -> Tensor:
    """A value a token, (N,), as a map (h, w)."""
    net: Any = model
    rows, columns = net.patch_embed.patch_size
    return relevance[net.num_prefix_tokens :].reshape(x.shape[2] // rows, x.shape[3] // columns)


def slow_attention_rollout(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    """The read rows of (A_L + 1) / 2 ... (A_1 + 1) / 2, each A the mean over heads."""
    with torch.no_grad():
        matrices, _ = transformer(model, x)
    total = torch.eye(matrices[0].shape[1], dtype=torch.float64)
    for heads in matrices:
        mean = torch.stack(list(heads)).sum(0) / len(heads)
        total = (0.5 * mean + 0.5 * torch.eye(len(mean), dtype=torch.float64)) @ total
    read = rows_read(model, len(total))
    return on_grid(model, torch.stack([total[row] for row in read]).sum(0) / len(read), x)


def slow_gradient_rollout(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    """The read rows of R less 1: R = 1, then R + mean_h((ds/dA * A)^+) R for each block."""
    matrices, after = transformer(model, x)
    gradients = torch.autograd.grad(score(model, after[-1], c), matrices)
    one = torch.eye(matrices[0].shape[1], dtype=torch.float64)
    total = one
    for heads, slopes in zip(matrices, gradients, strict=True):
        products = [(g * a).clamp_min(0) for g, a in zip(slopes, heads.detach(), strict=True)]
        total = total + torch.stack(products).sum(0) / len(products) @ total
    read = rows_read(model, len(total))
    return on_grid(model, torch.stack([(total - one)[row] for row in read]).sum(0) / len(read), x)


def slow_legrad(model: nn.Module, x: Tensor, c: int, layer: str) -> Tensor:
    """The mean over blocks, heads and queries of (ds_l/dA_l)^+, s_l from the tokens after block l."""
    matrices, after = transformer(model, x)
    total = torch.zeros(matrices[0].shape[1], dtype=torch.float64)
    for matrix, tokens in zip(matrices, after, strict=True):
        (slopes,) = torch.autograd.grad(score(model, tokens, c), matrix, retain_graph=True)
        for head in slopes:
            for query in head:
                total = total + query.clamp_min(0) / (len(matrices) * len(slopes) * len(head))
    return on_grid(model, total, x)
