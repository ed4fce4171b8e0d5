"""Models and pictures of users, as tests need them: what works, and what cannot be trained here."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from fedcl.models import Classifier, ModelSettings
from fedcl.streams import Dataset
from fedcl.streams.dataset import DatasetSettings


class Recurrent(nn.Module):
    """The last output of an LSTM over the rows of an image; PyTorch has no rule to stack it."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(inputs, 6, batch_first=True), nn.Linear(6, classes)

    def features(self, x: Tensor) -> Tensor:
        out: Tensor = self.rnn(x)[0]
        return out[:, -1]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out


@dataclass(frozen=True, kw_only=True)
class LSTM(ModelSettings):
    """A recurrent model."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return Recurrent(shape[-1], classes)


class Centred(nn.Module):
    """Takes the mean of its batch away: a norm that no list of layers knows."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Draws(nn.Module):
    """Drops by torch's global generator, without a layer that says so."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


class Embeds(nn.Module):
    """Looks its inputs up, as numbers of words."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x.long()).flatten(1)


LAYERS = {
    "batch-norm": lambda n: nn.BatchNorm1d(n, track_running_stats=False), "centred": lambda n: Centred(),
    "draws": lambda n: Draws(), "layer-norm": nn.LayerNorm,
    "instance-norm": lambda n: nn.Sequential(nn.Unflatten(1, (1, n)), nn.InstanceNorm1d(1), nn.Flatten()),
    "attention": lambda n: nn.Sequential(
        nn.Unflatten(1, (n, 1)), nn.TransformerEncoderLayer(1, 1, 4, dropout=0.0, batch_first=True), nn.Flatten()
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class With(ModelSettings):
    """A linear layer, the named layer, ReLU."""

    layer: str = "layer-norm"
    frozen: bool = False

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        first = nn.Linear(shape[0], 6).requires_grad_(not self.frozen)
        return Classifier(nn.Sequential(nn.Flatten(), first, LAYERS[self.layer](6), nn.ReLU()), 6, classes)


@dataclass(frozen=True, kw_only=True)
class Words(ModelSettings):
    """Words that are looked up."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return Classifier(Embeds(shape[0]), 3 * shape[0], classes)


@dataclass(frozen=True, kw_only=True)
class Frozen(ModelSettings):
    """An MLP of which everything that begins with `prefix` does not train; `scale` stands for a file that is read."""

    prefix: str = "body"
    scale: float = 1.0

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        module = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(shape[0], 6), nn.ReLU()), 6, classes)
        for name, each in module.named_parameters():
            if name.startswith(self.prefix):
                each.requires_grad = False
                each.data *= self.scale
        return module


@dataclass(frozen=True, kw_only=True)
class Pictures(DatasetSettings):
    """Random pictures (pixels, pixels[, channels]) of 4 classes; a class has a brightness."""

    samples: int = 120
    pixels: int = 16
    channels: int = 3

    def load(self, root: str | None) -> Dataset:
        rng, n = np.random.default_rng(0), self.samples
        shape = (self.pixels, self.pixels, *((self.channels,) if self.channels > 1 else ()))
        x = rng.random((n + 24, *shape)).astype(np.float32)
        y = np.arange(n + 24) % 4
        x += y.reshape(-1, *(1,) * len(shape)).astype(np.float32) / 4
        return Dataset(x=x[:n], y=y[:n], test_x=x[n:], test_y=y[n:], classes=4)
