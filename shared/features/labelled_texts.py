"""Rows of a label and a text, as the tasks of one label for each text have them."""

from torch import Tensor, nn

from shared.base.errors import ConfigError
from shared.captured.capture import is_captured
from shared.features.readout_logits import ReadoutLogits


class LabelledTexts:
    """What such tasks share: rows (B, 1 + T) are a label, a text's tokens, and then -1."""

    readout: ReadoutLogits | None  # what gives the outputs, if the model has a readout

    def raw_features(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Features (B, f) of rows (B, 1 + T) as the model's readout has them, not standardised.

        Raises:
            ConfigError: the model has no readout.
        """
        return self.require_readout().raw_features(module, *texts_of(rows))

    def keep(self, module: nn.Module, rows: Tensor) -> None:
        """Compute what is kept of rows (n, 1 + T) before it is needed, if anything is."""
        if self.readout is not None:
            self.readout.keep(module, *texts_of(rows))

    def require_readout(self) -> ReadoutLogits:
        """The model's readout.

        Raises:
            ConfigError: the model has none.
        """
        if self.readout is None:
            raise ConfigError(
                "a model with a readout expected: scope words or prior, or scope head with features"
            )
        return self.readout


def texts_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B, T) up to the end of the longest text, and the lengths (B,) of the texts.

    All of the padding while a pass is captured: that serves batches of any lengths.
    """
    lengths = (rows[:, 1:] >= 0).sum(1)
    if is_captured(rows):
        return rows[:, 1:], lengths
    return rows[:, 1 : 1 + int(lengths.max())], lengths
