"""Two-layer models in float64, and the slow formula that everything fast must equal.

The whole circuit track is one function, with a switch M per edge:
x_v = const_v + sum_u [(1 - M_uv) * current_u + M_uv * other_u]. Here it is written out from the
plain weights: a copy of the stream per destination, a vector of the stream's width per source.
"""

import math

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from evaluation.behaviours.pairs import PairIds
from evaluation.circuits.anatomy import find_anatomy
from evaluation.circuits.batches import in_batches
from models.loading import load
from models.toys_decoders import (
    TALK,
    save_decoder,
    settings,
    toy_gpt2_tokenizer,
    toy_llama_tokenizer,
)
from models.toys_lm import toy_gemma_tokenizer, toy_qwen_tokenizer

KINDS = ("gpt2", "llama", "qwen2", "gemma2")


def save_decoder_of(kind, folder, layers=2):
    makers = {
        "gpt2": (toy_gpt2_tokenizer, GPT2Config, GPT2LMHeadModel, {}),
        "llama": (toy_llama_tokenizer, LlamaConfig, LlamaForCausalLM, {}),
        "qwen2": (lambda: toy_qwen_tokenizer(TALK), Qwen2Config, Qwen2ForCausalLM, {}),
        "gemma2": (
            lambda: toy_gemma_tokenizer(TALK),
            Gemma2Config,
            Gemma2ForCausalLM,
            {
                "head_dim": 8,
                "query_pre_attn_scalar": 8,
                "sliding_window": 6,
                "attn_logit_softcapping": 2.0,
                "final_logit_softcapping": 3.0,
            },
        ),
    }
    tokenizer, config, model, more = makers[kind]
    words = tokenizer()
    stated = settings(words) | {"num_hidden_layers": layers} | more
    if kind == "gpt2":
        stated["n_inner"] = stated.pop("intermediate_size")
        del stated["num_key_value_heads"]
    if kind != "gpt2":
        stated["tie_word_embeddings"] = False
    return save_decoder(folder, model, config(**stated), words, 0, chats=False)


@pytest.fixture(scope="session")
def save_small():
    return save_decoder_of


@pytest.fixture(scope="session")
def anatomies(tmp_path_factory):
    """Of every kind, in float64."""
    found = {}
    for kind in KINDS:
        hosted = load(kind, save_decoder_of(kind, tmp_path_factory.mktemp("circuits") / kind))
        hosted.modules["lm"].double()
        hosted.dtype = torch.float64
        found[kind] = find_anatomy(hosted)
    return found


@pytest.fixture(scope="session", params=KINDS)
def anatomy(request, anatomies):
    return anatomies[request.param]


@pytest.fixture(scope="session")
def pairs():
    """Of two lengths, so that batches differ; two tokens differ in each."""
    draw, found = torch.Generator().manual_seed(1), []
    for i, length in enumerate((6, 9, 6, 9, 6)):
        clean = torch.randint(5, 90, (length,), generator=draw).tolist()
        corrupted = list(clean)
        for place in (2, 4):
            corrupted[place] = int(torch.randint(5, 90, (1,), generator=draw))
        found.append(
            PairIds(clean=tuple(clean), corrupted=tuple(corrupted), correct=5 + i, incorrect=40 + i)
        )
    return found


@pytest.fixture(scope="session")
def batches(anatomies, pairs):
    return list(in_batches(pairs, 64, anatomies["gpt2"].device))


@pytest.fixture(scope="session")
def drain():
    def drained(steps):
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    return drained


@pytest.fixture(scope="session")
def slow():
    return Slow


def tolerance(kind):
    """Llama's and Gemma's norms compute in float32 even in a float64 model."""
    return 1e-10 if kind == "gpt2" else 2e-5


@pytest.fixture(scope="session")
def close():
    def are_close(kind, found, expected, times=1.0):
        largest = float(expected.abs().max())
        assert largest > 1e-3
        assert float((found - expected).abs().max()) <= times * tolerance(kind) * largest

    return are_close


class Slow:
    """The switch function of one decoder, from its state dict."""

    def __init__(self, anatomy):
        self.graph, self.kind = anatomy.graph, anatomy.family.kind
        self.config = anatomy.decoder.config
        self.w = {k: v.double() for k, v in anatomy.hosted.modules["lm"].state_dict().items()}
        self.rms = self.kind != "gpt2"
        self.width = 8

    def inputs(self, ids):
        """The source `input`, and the constant that positions add."""
        if self.kind == "gpt2":
            return self.w["transformer.wte.weight"][ids], self.w["transformer.wpe.weight"][
                torch.arange(ids.shape[1])
            ]
        scale = math.sqrt(self.graph.width) if self.kind == "gemma2" else 1.0
        return self.w["model.embed_tokens.weight"][ids] * scale, 0.0

    def norm(self, name, x):
        if not self.rms:
            x = x - x.mean(-1, keepdim=True)
        x = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        weight = self.w[f"{name}.weight"]
        return x * (1 + weight if self.kind == "gemma2" else weight) + self.w.get(f"{name}.bias", 0)

    @property
    def eps(self):
        return getattr(self.config, "layer_norm_epsilon", None) or self.config.rms_norm_eps

    def names(self, layer):
        if self.kind == "gpt2":
            at = f"transformer.h.{layer}"
            return at, f"{at}.ln_1", f"{at}.ln_2"
        at = f"model.layers.{layer}"
        before = "pre_feedforward" if self.kind == "gemma2" else "post_attention"
        return at, f"{at}.input_layernorm", f"{at}.{before}_layernorm"

    def project(self, layer, head, letter, x):
        at, d, h = self.names(layer)[0], self.graph.width, self.width
        if self.kind == "gpt2":
            rows = slice(letter * d + head * h, letter * d + (head + 1) * h)
            return (
                x @ self.w[f"{at}.attn.c_attn.weight"][rows].T
                + self.w[f"{at}.attn.c_attn.bias"][rows]
            )
        name, own = f"{at}.self_attn.{'qkv'[letter]}_proj", head if letter == 0 else head // 2
        rows = slice(own * h, (own + 1) * h)
        bias = self.w.get(f"{name}.bias")
        return x @ self.w[f"{name}.weight"][rows].T + (0 if bias is None else bias[rows])

    def turned(self, x):
        if self.kind == "gpt2":
            return x
        half = torch.arange(0, self.width, 2).double() / self.width
        angles = torch.arange(x.shape[1]).double()[:, None] / 10000.0**half
        cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def attention(self, layer, q, k, v):
        scores = self.turned(q) @ self.turned(k).mT / math.sqrt(self.width)
        if self.kind == "gemma2":
            scores = torch.tanh(scores / 2.0) * 2.0
        places = torch.arange(q.shape[1])
        hidden = places[None, :] > places[:, None]
        kinds = getattr(self.config, "layer_types", None)
        if kinds is not None and kinds[layer] == "sliding_attention":
            hidden |= places[None, :] <= places[:, None] - self.config.sliding_window
        return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v

    def head(self, layer, head, x):
        """The output of a head that reads x[0], x[1], x[2] for q, k, v; without the bias."""
        at, norm, _ = self.names(layer)
        q, k, v = (self.project(layer, head, i, self.norm(norm, x[i])) for i in range(3))
        z = self.attention(layer, q, k, v)
        name = "attn.c_proj" if self.kind == "gpt2" else "self_attn.o_proj"
        columns = slice(head * self.width, (head + 1) * self.width)
        return z @ self.w[f"{at}.{name}.weight"][:, columns].T

    def mlp(self, layer, x):
        at, _, norm = self.names(layer)
        y, w = self.norm(norm, x), self.w
        if self.kind == "gpt2":
            y = torch.nn.functional.gelu(
                y @ w[f"{at}.mlp.c_fc.weight"].T + w[f"{at}.mlp.c_fc.bias"], approximate="tanh"
            )
            return y @ w[f"{at}.mlp.c_proj.weight"].T + w[f"{at}.mlp.c_proj.bias"]
        gate = y @ w[f"{at}.mlp.gate_proj.weight"].T
        bend = (
            torch.nn.functional.silu(gate)
            if self.kind != "gemma2"
            else torch.nn.functional.gelu(gate, approximate="tanh")
        )
        y = (bend * (y @ w[f"{at}.mlp.up_proj.weight"].T)) @ w[f"{at}.mlp.down_proj.weight"].T
        return self.norm(f"{at}.post_feedforward_layernorm", y) if self.kind == "gemma2" else y

    def logits(self, stream):
        if self.kind == "gpt2":
            return self.norm("transformer.ln_f", stream) @ self.w["lm_head.weight"].T
        logits = self.norm("model.norm", stream) @ self.w["lm_head.weight"].T
        return torch.tanh(logits / 3.0) * 3.0 if self.kind == "gemma2" else logits

    def read(  # noqa: PLR0913, PLR0917 - one formula, written out
        self, layer_end, limit, outputs, constant, switch, others, added=None
    ):
        """x_v of one destination: `switch` is its column of M, by source."""
        if added is not None:
            changes = sum(switch[u] * added[u] for u in range(limit))
            off = torch.zeros_like(switch)
            return changes + self.read(layer_end, limit, outputs, constant, off, None)
        mixed = [
            (1 - switch[u]) * outputs[u] + (switch[u] * others[u] if others is not None else 0)
            for u in range(limit)
        ]
        g, x = self.graph, mixed[0] + constant
        for layer in range(layer_end):
            first = g.before(layer)
            heads = sum(mixed[first : first + g.heads])
            if self.kind == "gpt2":
                heads = heads + self.w[f"transformer.h.{layer}.attn.c_proj.bias"]
            if self.kind == "gemma2":
                heads = self.norm(f"model.layers.{layer}.post_attention_layernorm", heads)
            x = x + heads
            if first + g.heads < limit:
                x = x + mixed[first + g.heads]
        return x

    def run(self, ids, switches=None, others=None, entering=None, held=None, added=None):
        """Outputs of all sources, and the last token's logits.

        Args:
            ids: (rows, tokens).
            switches: M, (sources, destinations).
            others: What a source gives where its switch is on.
            entering: Instead of the token embeddings.
            held: By source, what replaces its output.
            added: What a switch adds to the stream, instead of mixing.
        """
        g, held = self.graph, held or {}
        switches = torch.zeros(g.sources, g.destinations).double() if switches is None else switches
        embedded, constant = self.inputs(ids)
        outputs = [held.get(0, embedded if entering is None else entering)]

        def read(layer_end, limit, v):
            return self.read(layer_end, limit, outputs, constant, switches[:, v], others, added)

        for layer in range(g.layers):
            limit = g.before(layer)
            for head in range(g.heads):
                x = [read(layer, limit, g.into(layer, head, letter)) for letter in "qkv"]
                u = g.head(layer, head)
                outputs.append(held.get(u, self.head(layer, head, x)))
            x = read(layer + 1, limit + g.heads, g.into_mlp(layer))
            outputs.append(held.get(g.mlp(layer), self.mlp(layer, x)))
        stream = read(g.layers, g.sources, g.logits)
        return outputs, self.logits(stream[:, -1])

    def margins(self, batch, switches, **more):
        """The metric when edges whose switch is on carry the corrupted run."""
        others, _ = self.run(batch.corrupted)
        return batch.margins(self.run(batch.clean, switches, others, **more)[1])

    def slope(self, batch, differences, entering=None, held=None):
        """d loss / dM at M = 0, where a switch adds the source's difference to the stream."""
        return self._slope(batch, entering=entering, held=held, added=differences)

    def mixing_slope(self, batch):
        """The same where a switch mixes in the corrupted run, behind whatever norms there are."""
        return self._slope(batch, others=self.run(batch.corrupted)[0])

    def _slope(self, batch, **more):
        switches = torch.zeros(
            self.graph.sources, self.graph.destinations, dtype=torch.float64, requires_grad=True
        )
        loss = -(batch.weights * batch.margins(self.run(batch.clean, switches, **more)[1])).sum()
        return torch.autograd.grad(loss, switches)[0]

    def carried(self, clean, differences):
        """Gemma: heads' differences through the norm behind them, linearly, at the clean run."""
        found = list(differences)
        for layer in range(self.graph.layers):
            heads = [self.graph.head(layer, h) for h in range(self.graph.heads)]
            total, name = (
                sum(clean[u] for u in heads),
                f"model.layers.{layer}.post_attention_layernorm",
            )
            for u in heads:
                found[u] = torch.autograd.functional.jvp(
                    lambda x, name=name: self.norm(name, x), total, differences[u]
                )[1]
        return found
