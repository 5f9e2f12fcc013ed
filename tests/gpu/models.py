"""The models that `trainings.py` trains: torchvision's, language models, a small ViT.

Language models have published shapes and random weights; nothing is fetched.
"""

TEXT_MODELS = (
    "gpt2",
    "distilgpt2",
    "opt-125m",
    "gpt-neo-125m",
    "pythia-160m",
    "bert-base",
    "t5-small",
    "llama-110m",
    "qwen-150m",
)


def prepared(options):
    """A model that returns a loss, on the processor, and a function that makes a batch of it."""
    import torch  # noqa: PLC0415

    if options.model in TEXT_MODELS:
        model = text_model(options.model)

        def words(device):
            ids = torch.randint(5, 20000, (options.batch, options.length))
            named = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
            return {name: value.to(device) for name, value in named.items()}

        return with_loss(model, lambda model, batch: model(**batch).loss), words
    if options.model == "vit":
        model = vit(options)
    else:
        from torchvision import models  # noqa: PLC0415

        model = getattr(models, options.model)(weights=None, num_classes=100)

    def pictures(device):
        images = torch.zeros(options.batch, 3, options.side, options.side)
        if options.precision == "bf16-weights":
            images = images.bfloat16()
        images = images.to(device)
        if options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return {"images": images, "labels": torch.zeros(options.batch, dtype=torch.long).to(device)}

    def cross_entropy(model, batch):
        return torch.nn.functional.cross_entropy(model(batch["images"]), batch["labels"])

    return with_loss(model, cross_entropy), pictures


def with_loss(model, loss):
    """Wrap a model, so that calling it with a batch returns `loss(model, batch)`."""
    import torch  # noqa: PLC0415

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, **batch):
            return loss(self.model, batch)

    return Wrapped()


def text_model(name):
    """A language model of a published shape, with random weights."""
    import transformers as t  # noqa: PLC0415

    gpt2 = {"bos_token_id": 50256, "eos_token_id": 50256}
    kinds = {
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**gpt2)),
        "distilgpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(n_layer=6, **gpt2)),
        "opt-125m": lambda: t.OPTForCausalLM(t.OPTConfig(attention_dropout=0.0)),
        "gpt-neo-125m": lambda: t.GPTNeoForCausalLM(
            t.GPTNeoConfig(
                num_layers=12,
                num_heads=12,
                hidden_size=768,
                attention_types=[[["global", "local"], 6]],
            )
        ),
        "pythia-160m": lambda: t.GPTNeoXForCausalLM(
            t.GPTNeoXConfig(
                hidden_size=768,
                num_hidden_layers=12,
                num_attention_heads=12,
                intermediate_size=3072,
                vocab_size=50304,
            )
        ),
        "bert-base": lambda: t.BertForMaskedLM(t.BertConfig()),
        "t5-small": lambda: t.T5ForConditionalGeneration(
            t.T5Config(decoder_start_token_id=0, pad_token_id=0)
        ),
        "llama-110m": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(
                hidden_size=768,
                num_hidden_layers=12,
                num_attention_heads=12,
                num_key_value_heads=12,
                intermediate_size=2048,
                vocab_size=32000,
            )
        ),
        "qwen-150m": lambda: t.Qwen2ForCausalLM(
            t.Qwen2Config(
                hidden_size=640,
                num_hidden_layers=12,
                num_attention_heads=10,
                num_key_value_heads=2,
                intermediate_size=1792,
                vocab_size=151936,
                tie_word_embeddings=True,
            )
        ),
    }
    return kinds[name]()


def vit(options):
    """A small vision transformer of plain torch."""
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415
    from torch.nn import functional as f  # noqa: PLC0415

    width, depth, heads, patch = 256, 6, 8, 4
    tokens = (options.side // patch) ** 2 + 1

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x):
            shape = (len(x), tokens, 3, heads, width // heads)
            q, k, v = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4)
            dropped = options.dropout if self.training else 0.0
            if options.attention == "sdpa":
                y = f.scaled_dot_product_attention(q, k, v, dropout_p=dropped)
            else:
                scores = (q * (width // heads) ** -0.5) @ k.transpose(-2, -1)
                y = f.dropout(scores.softmax(-1), dropped, self.training) @ v
            return self.out(y.transpose(1, 2).reshape(x.shape))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
            self.attention = Attention()
            self.mlp = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )

        def forward(self, x):
            x = x + self.attention(self.norms[0](x))
            return x + self.mlp(self.norms[1](x))

    class Vit(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, width, patch, stride=patch, bias=False)
            self.token = nn.Parameter(torch.zeros(width))
            self.places = nn.Parameter(torch.zeros(tokens, width))
            self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
            self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
            self.classes = nn.Linear(width, 100)

        def forward(self, images):
            x = self.patches(images).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), 1, -1), x], 1) + self.places
            return self.classes(self.after(self.blocks(self.before(x))[:, 0]))

    return Vit()
