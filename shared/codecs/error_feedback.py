"""What a codec loses in one payload is added to the next (error feedback).

Seide et al. 2014, "1-bit SGD"; Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847.
"""

from dataclasses import dataclass

from torch import Tensor

from shared.codecs import Codec


@dataclass
class ErrorFeedback:
    """One sender's memory of what its payloads left out; the receiver needs none."""

    codec: Codec
    residual: Tensor | None = None  # (size,); what is still owed, nothing before the first payload

    def encode(self, vector: Tensor) -> bytes:
        """Encode ``vector`` (size,) plus the residual, and keep what that loses.

        Raises:
            WireError: a number is not finite; the residual is as it was.
        """
        owed = vector if self.residual is None else vector + self.residual
        payload = self.codec.encode(owed)
        self.residual = owed - self.codec.decode(payload).to(owed.device)
        return payload
