"""Where tokens lie on the image: the drawn position of a token is the place of the patch that moves it most."""

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from packaging.version import Version
from support import assert_same_state, random_images, state_of
from timm.models.nest import Nest
from timm.models.volo import VOLO
from torch import Tensor, nn

from lightning_xai import GradCAM, ScoreCAM, Tokens, explain
from lightning_xai.trace import Capture, find_layer, last_spatial_layer, name_of, run, same_places
from lightning_xai.trace.places import changed, order_of

VIT = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}
HF_VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
HF_SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}


def of_timm(name: str, **options) -> Callable[[], nn.Module]:
    """A model of timm."""
    return lambda: timm.create_model(name, num_classes=5, **options)


def of_transformers(name: str, **options) -> Callable[[], nn.Module]:
    """A classifier of transformers."""

    def make() -> nn.Module:
        library = pytest.importorskip("transformers")
        configuration = getattr(library, f"{name}Config")(num_labels=5, **options)
        return getattr(library, f"{name}ForImageClassification")(configuration)

    return make


def volo() -> nn.Module:
    """Channels last, then tokens, then a class token; the logits hear the largest of the patches."""
    return VOLO((1, 1), 64, num_classes=5, embed_dims=(24, 36), num_heads=(2, 2), stem_hidden_dim=8)


def nest() -> nn.Module:
    """Tokens in blocks."""
    return Nest(32, num_levels=2, embed_dims=(12, 24), num_heads=(1, 2), depths=(1, 1), num_classes=5)


_hiera = of_timm("hiera_tiny_224", img_size=32, stages=(1, 1, 1), embed_dim=24, num_heads=1, q_pool=2)
MODELS = {
    "timm ViT": (of_timm("vit_tiny_patch16_224", patch_size=8, **VIT), "blocks.1.norm1", 32),
    "timm ViT with registers": (of_timm("vit_little_patch16_reg4_gap_256", patch_size=8, **VIT), "norm", 32),
    "timm BEiT": (of_timm("beit_base_patch16_224", patch_size=8, **VIT), "norm", 32),
    "timm CaiT": (of_timm("cait_xxs24_224", patch_size=8, **VIT), "blocks_token_only.1.norm1", 32),
    "timm ConViT": (of_timm("convit_tiny", patch_size=8, **VIT), "norm", 32),
    "timm XCiT": (of_timm("xcit_nano_12_p8_224", **VIT), "cls_attn_blocks.1.norm1", 32),
    "timm Mixer": (of_timm("mixer_s32_224", img_size=96), "norm", 96),
    "timm VOLO": (volo, "norm" if Version(timm.__version__) >= Version("1.0.31") else "head_drop", 64),
    "timm NesT": (nest, "norm", 32),
    "timm NesT, in blocks": (nest, "levels.0.transformer_encoder", 32),
    "timm Hiera, in units": (_hiera, "blocks.0", 32),
    "transformers ViT": (of_transformers("ViT", **HF_VIT), "vit.layers.1.layernorm_before", 32),
    "transformers DeiT": (of_transformers("DeiT", **HF_VIT), "deit.layers.1.layernorm_before", 32),
    "transformers DINOv2": (of_transformers("Dinov2", **HF_VIT), "dinov2.layernorm", 32),
    "transformers Swin": (of_transformers("Swin", **HF_SWIN), "swin.layernorm", 32),
    "transformers Swin v2": (of_transformers("Swinv2", **HF_SWIN), "swinv2.layernorm", 32),
}


BLURRED = {"timm XCiT", "timm NesT", "timm Hiera, in units"}


def made(make: Callable[[], nn.Module], size: int) -> tuple[nn.Module, Tensor]:
    """A seeded model in evaluation mode whose head is not zero, and two images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        nn.init.normal_([one for one in model.modules() if isinstance(one, nn.Linear)][-1].weight)
        return model, torch.randn(2, 3, size, size)


def moved_positions(model: nn.Module, image: Tensor, layer: str) -> tuple[Tensor, tuple[int, int]]:
    """For each patch, in reading order, the drawn position whose features change most when it alone is changed."""
    capture = Capture({layer: find_layer(model, layer)})
    before = run(model, image, capture).activation(layer)
    height, width = before.shape[2:]
    far = []
    for row in range(height):
        for column in range(width):
            other = image.clone()
            rows, columns = (
                slice(i * s // n, (i + 1) * s // n)
                for i, s, n in ((row, image.shape[2], height), (column, image.shape[3], width))
            )
            other[..., rows, columns] *= -1
            far.append((run(model, other, capture).activation(layer) - before).norm(dim=1).flatten())
    far = torch.stack(far)
    return (far / far.mean(0)).argmax(1), (height, width)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_drawn_where_the_patches_are_that_move_them(name: str) -> None:
    """Checked patch by patch, where the library changes whole rows and columns; convolutions blur by one."""
    make, layer, size = MODELS[name]
    model, images = made(make, size)
    positions, (height, width) = moved_positions(model, images[1:], layer)
    assert height * width > 1
    rows, columns = positions // width, positions % width
    places = torch.arange(height * width)
    off = torch.maximum((rows - places // width).abs(), (columns - places % width).abs())
    assert off.max() <= (1 if name in BLURRED else 0)


@pytest.mark.parametrize("name", [name for name in MODELS if ", in" not in name])
def test_the_last_tokens_that_the_logits_depend_on_are_found(name: str) -> None:
    """And nothing about the model or the random state is different afterwards."""
    make, layer, size = MODELS[name]
    model, images = made(make, size)
    model.train()
    before, random = state_of(model), torch.get_rng_state()
    assert name_of(model, last_spatial_layer(model, images)) == layer
    assert_same_state(before, state_of(model))
    assert torch.equal(torch.get_rng_state(), random)


class Transformer(nn.Module):
    """One block, with patches of 4 x 4 pixels; what differs is how tokens are kept and what is made of them."""

    def __init__(self, norm: Callable[[], nn.Module], *, first: bool = False, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.embed, self.first, self.pool = nn.Conv2d(3, 16, 4, stride=4), first, pool
        self.norm1, self.norm2 = norm(), norm()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=not first)
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).permute(*((2, 0, 1) if self.first else (0, 2, 1)))
        hidden = self.norm1(tokens)
        tokens = self.norm2(tokens + self.attention(hidden, hidden, hidden)[0])
        if self.pool is not None:
            return self.head(self.pool(tokens.transpose(1, 2)).flatten(1))
        return self.head(tokens.mean(0 if self.first else 1))


class OverTokens(nn.BatchNorm1d):
    """Batch normalisation of each channel."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.flatten(0, 1)).view_as(tokens)


@pytest.mark.parametrize(
    ("make", "layer", "size"),
    [
        pytest.param(lambda: Transformer(lambda: OverTokens(16)), "norm2", 16, id="normalised by batch"),
        pytest.param(lambda: Transformer(lambda: nn.LayerNorm(16), first=True), "norm2", 16, id="tokens first"),
        pytest.param(
            lambda: Transformer(lambda: nn.LayerNorm(16), pool=nn.AdaptiveAvgPool1d(1)), "norm2", 16, id="pooled"
        ),
    ],
)
@pytest.mark.parametrize("n", [1, 2, 16])
def test_grad_cam_of_tokens_is_that_of_its_definition(make, layer: str, size: int, n: int) -> None:
    """Also with as many images as tokens and channels: (16,16,16)."""
    torch.manual_seed(0)
    model, images = make().double().eval(), torch.randn(n, 3, size, size, dtype=torch.float64)
    outputs: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: outputs.append(output))
    (gradient,) = torch.autograd.grad((logits := model(images))[:, 1].sum() - logits.mean(1).sum(), outputs[0])
    handle.remove()
    tokens = outputs[0].detach()
    if getattr(model, "first", False):
        tokens, gradient = tokens.transpose(0, 1), gradient.transpose(0, 1)
    expected = torch.einsum("ntd,nd->nt", tokens, gradient.mean(1)).relu().view(n, 1, 4, 4)
    expected = F.interpolate(expected, size=(size, size), mode="bilinear", align_corners=False)[:, 0]
    maps = explain(model, images, 1, attributions={"found": GradCAM(), "named": GradCAM(layer)})
    torch.testing.assert_close(maps["found"], expected)
    torch.testing.assert_close(maps["named"], expected)


def test_a_shared_dropout_is_not_chosen() -> None:
    """It serves maps and vectors; what came before it is found, and Score-CAM needs nothing more."""
    dropout = nn.Dropout()
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), dropout, nn.AdaptiveAvgPool2d(1), nn.Flatten(), dropout, nn.Linear(4, 3)
    ).eval()
    assert last_spatial_layer(model, random_images()) is model[0]
    assert explain(model, random_images(), attributions=ScoreCAM()).shape == (4, 8, 8)


def test_a_layer_that_the_logits_do_not_depend_on_is_not_chosen() -> None:
    """A decoder that runs after the classifier's features."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.decoder, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3), nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            hidden = self.features(images)
            self.picture = self.decoder(hidden)
            return self.head(hidden.mean((2, 3)))

    model = Two()
    assert last_spatial_layer(model, random_images()) is model.features


def test_a_layer_that_is_called_twice_is_refused() -> None:
    """The two maps are not of the same image: one is mirrored."""

    class Mirrored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, images: Tensor) -> Tensor:
            return (self.net(images) + self.net(images.flip(3))) / 2

    model, images = Mirrored(), random_images()
    with pytest.raises(ValueError, match=r"`layer` 'net.0' was called 2 times.* such as 'net' around it.*one view"):
        explain(model, images, attributions=GradCAM("net.0"))
    with pytest.raises(ValueError, match=r"`layer=None` expected a layer, called once, .*'net.0' was called 2 times.*"):
        explain(model, images, attributions=GradCAM())
    assert explain(model.net, images, attributions=GradCAM("0")).any()


def test_what_was_shown_of_a_model_is_looked_for_once() -> None:
    """A second explanation, and that of a copy whose places are said to be the same, take no more passes."""
    model, images = made(*MODELS["timm ViT"][::2])
    explain(model, images, attributions=GradCAM("norm"))
    passes: list[int] = []
    copied = timm.create_model("vit_tiny_patch16_224", patch_size=8, num_classes=5, **VIT)
    same_places(model, copied)
    for one in (model, copied):
        handle = one.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
        explain(one, images, attributions=GradCAM("norm"))
        handle.remove()
    assert passes == [2, 2]


# The arithmetic


def test_every_row_and_column_is_changed_once() -> None:
    """Two rows and three columns of an image; the rest stays."""
    image = torch.arange(24.0).view(1, 1, 4, 6)
    different = torch.cat(list(changed(image, (2, 3))))[:, 0] != image[0]
    expected = torch.zeros(5, 4, 6, dtype=torch.bool)
    for row in range(2):
        expected[row, 2 * row : 2 * row + 2] = True
    for column in range(3):
        expected[2 + column, :, 2 * column : 2 * column + 2] = True
    assert torch.equal(different, expected)


def moved_by(order: list[int], grid: tuple[int, int], others: int = 0, noise: float = 0.1) -> Tensor:
    """How far tokens move, of which the i-th lies on patch ``order[i]``, and others that move with everything."""
    height, width = grid
    places, generator = torch.tensor(order), torch.Generator().manual_seed(0)
    rows = torch.arange(height)[:, None] == places // width
    columns = torch.arange(width)[:, None] == places % width
    own = torch.cat([rows, columns]).float()
    return (
        torch.cat([torch.zeros(height + width, others), own], 1)
        + 1
        + noise * torch.rand(height + width, others + len(order), generator=generator)
    )


def test_any_order_is_found() -> None:
    """A seeded permutation of 15 patches, with and without others before them."""
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0)).tolist()
    expected = torch.tensor(order).argsort()
    assert order_of(moved_by(order, (3, 5)), (3, 5)) == expected.tolist()
    assert order_of(moved_by(order, (3, 5), others=2), (3, 5)) == (expected + 2).tolist()


def test_tokens_in_reading_order_need_not_be_clear_one_by_one() -> None:
    """Each moves as much with the row and column before its own, as strides make it, and one with those after it."""
    moved = moved_by(list(range(30)), (5, 6))
    moved[:4] += moved[1:5] - 1
    moved[5:10] += moved[6:11] - 1
    moved[:, 7] = moved[:, 14]
    assert order_of(moved, (5, 6)) == list(range(30))


def test_an_order_that_noise_makes_is_none() -> None:
    """Four tokens that move with all parts alike, as in a LeViT with random weights, have some order or other."""
    for seed in range(30):
        moved = 1 + 0.01 * torch.rand(4, 4, generator=torch.Generator().manual_seed(seed))
        assert order_of(moved, (2, 2)) in (None, [0, 1, 2, 3])


def test_what_does_not_lie_on_the_grid_has_no_order() -> None:
    """Two tokens at one place in no order, too many others, a row too many, columns shifted, nothing but noise."""
    reading = list(range(15))
    assert order_of(moved_by(reading, (3, 5)), (3, 5)) == reading
    twice = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    twice[0] = twice[1]
    for moved in (
        moved_by(twice.tolist(), (3, 5)),
        moved_by(reading, (3, 5), others=9),
        torch.cat([moved_by(reading, (3, 5)), moved_by(reading, (3, 5))[:, 10:]], 1),
        moved_by([*reading[1:], 14], (3, 5)),
        torch.rand(8, 15, generator=torch.Generator().manual_seed(0)),
    ):
        assert order_of(moved, (3, 5)) is None


def test_two_ways_to_lie_are_refused() -> None:
    """Maps (N,T,T) of how much each token hears of each other have places on both axes."""

    class Hearing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mutual, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Identity(), nn.Linear(16, 2)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.embed(images).flatten(2)
            return self.head(self.mutual(tokens.transpose(1, 2) @ tokens).mean(1))

    torch.manual_seed(0)
    model, images = Hearing(), torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"`layer` 'mutual' expected.*axes='NTD'.* and .*axes='NDT'.* fits"):
        explain(model, images, attributions=GradCAM("mutual"))
    assert explain(model, images, 1, attributions=GradCAM(Tokens("mutual", (4, 4)))).shape == (2, 16, 16)
