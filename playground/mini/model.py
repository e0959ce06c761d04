"""The embedded model: LLaVA-1.5's architecture and geometry at 1/1000 of its size, and a packed forward to train it.

336-pixel pictures in 14-pixel patches give 24 x 24 = 576 visual tokens; a CLIP tower, a two-layer GELU projector and
a Llama decoder do the rest. The decoder is 320 wide so that screening 256 channels screens something.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from playground.mini.tokenizer import VICUNA_SYSTEM, build
from playground.mini.world import GRID, PATCH

PREFIX = 3  # <s>, the system sentence, USER: -- the picture starts here
PRUNED_LAYER = 2
PIXEL_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
PIXEL_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def tower_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=480,
        num_hidden_layers=4,
        num_attention_heads=5,
        image_size=GRID * PATCH,
        patch_size=PATCH,
        projection_dim=160,
    )


def decoder_config(vocab_size: int, layers: int = 6) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=320,
        intermediate_size=576,
        num_hidden_layers=layers,
        num_attention_heads=5,
        num_key_value_heads=5,
        head_dim=64,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.04,
        tie_word_embeddings=False,
    )


@dataclass(frozen=True)
class Pack:
    """Questions of one length about B pictures: `ids`, `labels` long [B, Q, T], -100 where nothing is asked."""

    ids: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Sight:
    """Which question tokens see the picture where; the default is LLaVA's forward. For training and checks only.

    layers: decoder layers (from 0) in which they do. blind: bool [B, Q, T], one per pack; these tokens see the
    picture nowhere. The opening is seen always and by all.
    """

    layers: Container[int] = range(10**6)
    blind: list[Tensor] | None = None


@dataclass
class Watch:
    """What a forward leaves behind when it is given one.

    layers: whose attention to keep. weights: by layer, one [B, H, Q, T, PREFIX + N + T] per pack (without N where
    questions see no picture). whole: states behind layer 0, 1, ..., [B, T, d] each; prefixes: where questions begin.
    """

    layers: Container[int] = ()
    weights: dict[int, list[Tensor]] = field(default_factory=dict)
    whole: list[Tensor] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)

    def states(self, layer: int) -> Tensor:
        """Of all question tokens behind `layer`, [B, sum Q*T, d]."""
        return self.whole[layer][:, self.prefixes[layer] :]

    def gradient(self, layer: int) -> Tensor:
        """As `states`, after a backward, where `whole[layer].retain_grad()` was called before."""
        return self.whole[layer].grad[:, self.prefixes[layer] :]


class MiniModel(nn.Module):
    """Tower, projector and decoder, with a forward that answers many questions per picture at once.

    Every question sees the picture and itself only, with the position ids that it would have alone, so a packed
    forward equals one forward per question (tested); the picture is computed once instead of Q times.
    """

    def __init__(self, vocab_size: int, layers: int = 6) -> None:
        super().__init__()
        tower, decoder = tower_config(), decoder_config(vocab_size, layers)
        self.tower = CLIPVisionModel(tower)
        self.projector = nn.Sequential(
            nn.Linear(tower.hidden_size, decoder.hidden_size),
            nn.GELU(),
            nn.Linear(decoder.hidden_size, decoder.hidden_size),
        )
        self.decoder = LlamaForCausalLM(decoder)

    def see(self, pixels: Tensor, raster: Tensor) -> Tensor:
        """Tower features [B, N, c] of `pixels` [B, 3, h, w]; `raster` [B, N] are the patches' places in 24 x 24."""
        return self.look(pixels, raster)[:, 1:]

    def look(self, pixels: Tensor, raster: Tensor) -> Tensor:
        """As `see`, with the class token in front: [B, 1 + N, c]."""
        tower = getattr(self.tower, "vision_model", self.tower)
        weight = tower.embeddings.patch_embedding.weight
        batch, _, height, width = pixels.shape
        patches = pixels.reshape(batch, 3, height // PATCH, PATCH, width // PATCH, PATCH)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, raster.shape[1], -1)
        tokens = F.linear(patches, weight.flatten(1)) + tower.embeddings.position_embedding(raster + 1)
        first = tower.embeddings.class_embedding + tower.embeddings.position_embedding.weight[0]
        x = tower.pre_layrnorm(torch.cat([first.expand(batch, 1, -1), tokens], 1))
        for layer in tower.encoder.layers:
            x = _tower_layer(layer, x)
        return x

    def read(
        self,
        features: Tensor,
        raster: Tensor,
        packs: list[Pack],
        keep: Tensor | None = None,
        sight: Sight = Sight(),
        watch: Watch | None = None,
    ) -> Tensor:
        """Final hidden states [B, sum Q*T, d] of all questions.

        `keep` long [R]: only these visual tokens go on from layer 2. Never used to train, only to watch training.
        The picture's own tokens are computed as far as a question still looks at them.
        """
        x, positions, prefix = self._embed(features, raster, packs)
        tables = _rope(positions, self.decoder.config.head_dim)
        layers = self.decoder.model.layers
        looked = [index for index in range(len(layers)) if index in sight.layers]
        for index, layer in enumerate(layers):
            if index == PRUNED_LAYER and keep is not None:
                stay = torch.cat([torch.arange(PREFIX), PREFIX + keep, torch.arange(prefix, x.shape[1])])
                x, tables, prefix = x[:, stay], tuple(t[:, :, stay] for t in tables), PREFIX + len(keep)
            call = _Call(packs, prefix, sight, watch, index, index >= (looked or [0])[-1])
            x = call.run(layer, x, tables)
            if call.last and prefix > PREFIX:
                tables = tuple(torch.cat([t[:, :, :PREFIX], t[:, :, prefix:]], 2) for t in tables)
                prefix = PREFIX
            if watch is not None:
                watch.whole.append(x)
                watch.prefixes.append(prefix)
        return x[:, prefix:]

    def grown(self, doubled: tuple[int, ...]) -> MiniModel:
        """A deeper model with the same answers: behind each decoder layer in `doubled` stands a copy of it.

        The copy's outputs are zero at first, so that it adds nothing until it has learned something.
        """
        sources = sorted([*range(len(self.decoder.model.layers)), *doubled])
        model = MiniModel(self.decoder.config.vocab_size, len(sources))
        layers, prefix = model.decoder.model.layers, "decoder.model.layers."
        rest = {name: t for name, t in self.state_dict().items() if not name.startswith(prefix)}
        model.load_state_dict(rest, strict=False)
        for place, source in enumerate(sources):
            layers[place].load_state_dict(self.decoder.model.layers[source].state_dict())
            if place and sources[place - 1] == source:
                nn.init.zeros_(layers[place].self_attn.o_proj.weight)
                nn.init.zeros_(layers[place].mlp.down_proj.weight)
        return model

    def answer(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states."""
        return self.decoder.lm_head(self.decoder.model.norm(hidden))

    def _embed(self, features: Tensor, raster: Tensor, packs: list[Pack]) -> tuple[Tensor, Tensor, int]:
        embed, batch = self.decoder.model.embed_tokens, len(features)
        visual = self.projector(features)
        opening = embed(torch.tensor(opening_ids(), device=raster.device)).expand(batch, -1, -1)
        texts = [embed(pack.ids).flatten(1, 2) for pack in packs]
        x = torch.cat([opening.to(visual.dtype), visual, *(t.to(visual.dtype) for t in texts)], 1)
        start = PREFIX + GRID * GRID
        positions = [torch.arange(PREFIX, device=raster.device).expand(batch, -1), PREFIX + raster]
        for pack in packs:
            count, length = pack.ids.shape[1:]
            steps = start + torch.arange(length, device=raster.device)
            positions.append(steps.repeat(count).expand(batch, -1))
        return x, torch.cat(positions, 1), PREFIX + raster.shape[1]


@lru_cache(maxsize=1)
def opening_ids() -> tuple[int, ...]:
    """Ids of what precedes the picture in a vicuna_v1 prompt."""
    return tuple(build()(f"{VICUNA_SYSTEM} USER: ").input_ids)


def _rope(positions: Tensor, width: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables [B, 1, T, width]."""
    frequencies = theta ** (-torch.arange(0, width, 2, device=positions.device).float() / width)
    angles = positions[:, None, :, None].float() * frequencies
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    half = x.shape[-1] // 2
    return x * tables[0] + torch.cat([-x[..., half:], x[..., :half]], -1) * tables[1]


class _RMSNorm(torch.autograd.Function):
    """RMS norm of bfloat16 states without float32 copies of them; sums are in float32 all the same."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = (length.square() / x.shape[-1] + eps).rsqrt().to(x.dtype)
        unit = x * inverse
        ctx.save_for_backward(unit, inverse, weight)
        return unit * weight.to(x.dtype)

    @staticmethod
    def backward(ctx, out: Tensor):
        unit, inverse, weight = ctx.saved_tensors
        along = out * unit
        to_weight = along.flatten(0, -2).sum(0, dtype=torch.float32)
        inner = (along @ weight.to(out.dtype)[:, None]) / unit.shape[-1]
        return (out * weight.to(out.dtype) - unit * inner) * inverse, to_weight, None


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    """A Llama norm; in bfloat16 without its float32 copies, on CPUs four times as fast forward and backward."""
    if x.dtype == torch.bfloat16:
        return _RMSNorm.apply(x, norm.weight, norm.variance_epsilon)
    return norm(x)


def _softmax(scores: Tensor) -> Tensor:
    """In the scores' own type: summed in float32 all the same, and nothing of [.., T, T] is copied to float32."""
    with torch.autocast(scores.device.type, enabled=False):
        return scores.softmax(-1)


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention, [B, H, T, w] each; plain on CPUs, with bfloat16 products several times faster there than fused."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        length = q.shape[2]
        scores = scores + torch.full((length, length), float("-inf"), device=q.device, dtype=scores.dtype).triu(1)
    return _softmax(scores).to(v.dtype) @ v


def _tower_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """One CLIP encoder layer."""
    attention, heads = layer.self_attn, layer.self_attn.num_heads
    batch, length, _ = x.shape
    h = layer.layer_norm1(x)
    q, k, v = (
        project(h).view(batch, length, heads, -1).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed = _attend(q, k, v, causal=False).transpose(1, 2).reshape(batch, length, -1)
    x = x + attention.out_proj(mixed)
    return x + layer.mlp(layer.layer_norm2(x))


@dataclass(frozen=True)
class _Call:
    """One Llama decoder layer over [opening, picture, questions]: `prefix` tokens before the questions of `packs`.

    last: no layer behind this one shows the picture to questions, so that its tokens stop here.
    """

    packs: list[Pack]
    prefix: int
    sight: Sight
    watch: Watch | None
    index: int
    last: bool

    def run(self, layer: nn.Module, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """States [B, T, d], without the picture's when this is the last layer that shows it."""
        attention, width = layer.self_attn, layer.self_attn.head_dim
        h = _norm(layer.input_layernorm, x)
        joint = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        q, k, v = F.linear(h, joint).view(*x.shape[:2], 3, -1, width).permute(2, 0, 3, 1, 4)
        tables = tuple(t.to(v.dtype) for t in tables)
        q, k = _rotate(q, tables), _rotate(k, tables)
        # One split in place of many slices: its backward is one copy.
        q, k, v = (t.split([self.prefix, *(p.ids[0].numel() for p in self.packs)], 2) for t in (q, k, v))
        own = PREFIX if self.last else self.prefix
        first = _attend(q[0][:, :, :own], k[0][:, :, :own], v[0][:, :, :own], causal=True)
        mixed = torch.cat([first, *self._questions(q, k, v)], 2).transpose(1, 2).flatten(2)
        if self.last:
            x = torch.cat([x[:, :PREFIX], x[:, self.prefix :]], 1)
        x = x + attention.o_proj(mixed)
        return x + layer.mlp(_norm(layer.post_attention_layernorm, x))

    def _questions(self, q: tuple[Tensor, ...], k: tuple[Tensor, ...], v: tuple[Tensor, ...]) -> list[Tensor]:
        """Attention [B, H, Q*T, w] of each pack's questions to what they see before them and, causally, to themselves.

        q, k, v: of all that precedes questions, then of each pack.
        """
        seen = self.prefix if self.index in self.sight.layers else PREFIX
        seen_k, seen_v = k[0][:, :, :seen], v[0][:, :, :seen]
        outputs, kept = [], []
        for number, pack in enumerate(self.packs):
            blind = self.sight.blind[number] if self.sight.blind and seen > PREFIX else None
            weights = _weights(q[number + 1], k[number + 1], seen_k, *pack.ids.shape[1:], blind)
            outputs.append(_mix(weights, seen_v, v[number + 1]))
            kept.append(weights)
        if self.watch is not None and self.index in self.watch.layers:
            self.watch.weights[self.index] = kept
        return outputs


def _weights(q: Tensor, k: Tensor, seen_k: Tensor, count: int, steps: int, blind: Tensor | None) -> Tensor:
    """Attention weights [B, H, Q, T, seen + T] of `count` questions; `blind` [B, Q, T] see the opening only."""
    batch, heads, _, width = q.shape
    q = q * width**-0.5
    to_picture = (q @ seen_k.transpose(-1, -2)).view(batch, heads, count, steps, -1)
    if blind is not None:
        opening, picture = to_picture.split([PREFIX, seen_k.shape[2] - PREFIX], -1)
        to_picture = torch.cat([opening, picture.masked_fill(blind[:, None, :, :, None], float("-inf"))], -1)
    own_q, own_k = (t.reshape(batch, heads, count, steps, width) for t in (q, k))
    future = torch.full((steps, steps), float("-inf"), device=q.device, dtype=q.dtype).triu(1)
    return _softmax(torch.cat([to_picture, own_q @ own_k.transpose(-1, -2) + future], -1))


def _mix(weights: Tensor, seen_v: Tensor, v: Tensor) -> Tensor:
    """Values [B, H, Q*T, w] for `_weights`: `seen_v` of the picture, `v` of the questions' own tokens."""
    batch, heads, count, steps, _ = weights.shape
    to_picture, to_self = weights.to(v.dtype).split([seen_v.shape[2], steps], -1)
    from_picture = to_picture.reshape(batch, heads, count * steps, -1) @ seen_v
    own = to_self @ v.reshape(batch, heads, count, steps, -1)
    return from_picture + own.reshape(batch, heads, count * steps, -1)


def to_pixels(pictures: Tensor) -> Tensor:
    """uint8 [B, h, w, 3] to CLIP-normalised float [B, 3, h, w]."""
    mean, deviation = PIXEL_MEAN.to(pictures.device), PIXEL_STD.to(pictures.device)
    return ((pictures.float() / 255 - mean) / deviation).permute(0, 3, 1, 2).contiguous()


def save_whole(state: Any, path: Path) -> None:
    """Saves a state so that a kill leaves the old one or the new one, never half of one."""
    part = path.with_name(f"{path.name}.part")
    torch.save(state, part)
    part.replace(path)
