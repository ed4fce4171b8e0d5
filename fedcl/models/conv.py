"""Convolutional models with group norm (Wu and He, arXiv:1803.08494), for images (h, w) or (h, w, c), channels last."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import relu

from fedcl.errors import ConfigError
from fedcl.models import Classifier, ModelSettings
from fedcl.settings import setting

HIDDEN = 64  # units between the CNN's convolutions and its head
POOLED = 4  # the CNN halves height and width twice
COLOURS = 4  # channels that images have, at most: more are numbers of pixels


class ChannelsFirst(nn.Module):
    """(b, h, w) -> (b, 1, h, w); (b, h, w, c) -> (b, c, h, w).

    The numbers are laid out anew: with channels that lie last, operators are missing under `vmap`, and PyTorch 2.x on a
    CPU has corrupted memory in the backward pass of a narrow ResNet-18 (float32). Conv4 alone would be a sixth faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the images as convolutions take them."""
        if x.dim() == 3:
            return x.unsqueeze(1)
        return x.permute(0, 3, 1, 2).contiguous()


class GlobalAverage(nn.Module):
    """(b, c, h, w) -> (b, c)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over height and width."""
        return x.mean((2, 3))


def n_channels(model: str, shape: tuple[int, ...], smallest: int) -> int:
    """Return the channels of inputs of this shape.

    Raises:
        ConfigError: they are not images, less than `smallest` pixels high or wide, or have their channels first.
    """
    if len(shape) == 3 and shape[0] <= COLOURS < min(shape[1:]):
        turned = (*shape[1:], shape[0])
        raise ConfigError(
            f"model.name = {model!r}: inputs of shape {shape} have their channels first; images are (h, w, c) here, "
            f"{turned}: np.moveaxis(x, 1, -1) turns an array of them"
        )
    if len(shape) not in (2, 3) or min(shape[:2]) < smallest:
        raise ConfigError(
            f"model.name = {model!r}: needs images (h, w) or (h, w, c) of at least {smallest} x {smallest} pixels, "
            f"not inputs of shape {shape}; use 'mlp'"
        )
    return shape[2] if len(shape) == 3 else 1


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a norm with at most 8 groups of at least 2 channels each (1 if there is only 1)."""
    groups = next((n for n in (8, 4, 2) if channels % (2 * n) == 0), 1)
    return nn.GroupNorm(groups, channels)


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3 x 3 convolution without bias (a norm follows) that keeps the size, or divides it by the stride."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def halving(inputs: int, outputs: int) -> nn.Sequential:
    """Return 3 x 3 convolution, group norm, ReLU and a max pool that halves height and width (rounded down)."""
    return nn.Sequential(conv3x3(inputs, outputs), group_norm(outputs), nn.ReLU(), nn.MaxPool2d(2))


@dataclass(frozen=True, kw_only=True)
class CNN(ModelSettings):
    """Twice 3 x 3 convolution, group norm, ReLU, max pool; then a hidden layer of 64 units."""

    width: int = setting(16, "channels of the first convolution; the second has twice as many", low=1, high=4096)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Return the network for images of at least 4 x 4 pixels."""
        channels, wide = n_channels("cnn", shape, POOLED), 2 * self.width
        body = nn.Sequential(
            ChannelsFirst(),
            halving(channels, self.width),
            halving(self.width, wide),
            nn.Flatten(),
            nn.Linear(wide * (shape[0] // POOLED) * (shape[1] // POOLED), HIDDEN),
            nn.ReLU(),
        )
        return Classifier(body, HIDDEN, classes)


@dataclass(frozen=True, kw_only=True)
class Conv4(ModelSettings):
    """Four times 3 x 3 convolution, group norm, ReLU, max pool: few-shot learning's embedding (arXiv:1703.05175)."""

    width: int = setting(64, "channels of each convolution", low=1, high=4096)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Return the network for images of at least 16 x 16 pixels."""
        channels, wide = n_channels("conv4", shape, 16), self.width
        blocks = [halving(channels, wide), *(halving(wide, wide) for _ in range(3))]
        features = wide * (shape[0] // 16) * (shape[1] // 16)
        return Classifier(nn.Sequential(ChannelsFirst(), *blocks, nn.Flatten()), features, classes)


class ResidualBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)); a 1 x 1 convolution where the shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Go from `inputs` to `outputs` channels and divide height and width by `stride`."""
        super().__init__()
        self.conv1, self.norm1 = conv3x3(inputs, outputs, stride), group_norm(outputs)
        self.conv2, self.norm2 = conv3x3(outputs, outputs), group_norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), group_norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outputs, h / stride, w / stride) of (b, inputs, h, w)."""
        inner = relu(self.norm1(self.conv1(x)))
        return relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


@dataclass(frozen=True, kw_only=True)
class ResNet18(ModelSettings):
    """ResNet-18 (He et al., arXiv:1512.03385) for small images: 3 x 3 stem without pooling, group norm."""

    width: int = setting(64, "channels of the first stage; each next one has twice as many", low=1, high=1024)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Return stem, four stages of two blocks, mean over the image, head."""
        body = nn.Sequential(ChannelsFirst(), conv3x3(n_channels("resnet18", shape, 1), self.width))
        body.extend([group_norm(self.width), nn.ReLU()])
        inputs = self.width
        for stage in range(4):
            outputs = self.width * 2**stage
            body.append(ResidualBlock(inputs, outputs, stride=1 if stage == 0 else 2))
            body.append(ResidualBlock(outputs, outputs, stride=1))
            inputs = outputs
        return Classifier(body.append(GlobalAverage()), inputs, classes)
