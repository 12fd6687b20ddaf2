"""The settings of what a site adds to its numbers, and leaves out of its replies, to hide its data.

``privacy = local`` is a discrete Gaussian mechanism at each site (docs/explanation/privacy.md): a
batch that is drawn from the site's secret, numbers of one example clipped together, and noise of
``privacy-noise`` clips on their sum. It counts by rounds and batches, not by ``queries``.
``privacy = shared`` does the same, and sends shares of the noisy numbers to a committee of sites,
so that nobody sees more than their sum.
"""

from dataclasses import dataclass
from math import sqrt

from shared.base.options import option
from shared.config.sections import Section

LOCAL, SHARED, GROUP = "local", "shared", "group"
USED, USED_SHARED = "privacy local, shared", "privacy shared"
MOST_MEMBERS = 33  # of a committee


# fmt: off
@dataclass(frozen=True, kw_only=True)
class PrivacySettings(Section):
    """What hides a site's data from those who see its replies."""

    mode: str = option(
        "none", "local: each site clips, adds noise and counts what that costs; shared: and only "
        "the sites' sum can be seen; none: raw numbers",
        key="privacy", choices=("none", LOCAL, SHARED))
    epsilon: float = option(
        0.0, "promised for the run at each site; without privacy-noise, it sets the noise; 0: none",
        key="privacy-epsilon", at_least=0, used_by=USED)
    delta: float = option(
        1e-5, "probability that goes with privacy-epsilon; below 1 / examples of a site",
        key="privacy-delta", above=0, below=1, used_by=USED)
    noise: float = option(
        0.0, "standard deviation of the noise on a batch's sum, in clips; 0: by privacy-epsilon",
        key="privacy-noise", at_least=0, used_by=USED)
    clip: float = option(
        0.0, "bound on one unit's root mean square slope; dandelion privacy plan measures it",
        key="privacy-clip", at_least=0, used_by=USED)
    unit: str = option(
        "example", "what may be added or removed unseen: an example, or a group (a person's)",
        key="privacy-unit", choices=("example", GROUP), used_by=USED)
    committee: int = option(
        0, "sites that add up; 0: all in the roster, at most nine, an odd number of them",
        key="privacy-committee", at_least=0, at_most=MOST_MEMBERS, used_by=USED_SHARED)
    colluders: int = option(
        1, "members of the committee that may help the server without seeing one site's numbers",
        key="privacy-colluders", at_least=0, at_most=MOST_MEMBERS, used_by=USED_SHARED)
    parts: int = option(
        1, "sums of disjoint sites that a round opens: aggregation other than mean compares them",
        key="privacy-parts", at_least=1, used_by=USED_SHARED)
    site_loss: bool = option(
        True, "sites send the mean loss of their batches; with privacy local or shared never")

    @property
    def is_local(self) -> bool:
        """Whether sites clip and add noise of their own: under a sealed sum they do as well."""
        return self.mode in (LOCAL, SHARED)

    @property
    def is_sealed(self) -> bool:
        """Whether only sums over sites can be seen."""
        return self.mode == SHARED

    @property
    def sends_loss(self) -> bool:
        """Whether a reply holds the site's loss."""
        return self.site_loss and not self.is_local

    def clip_of_differences(self, eps: float, queries: int) -> float:
        """The bound on the Euclidean norm of a unit's differences (q,), which are slopes · 2ε."""
        return self.clip * 2 * eps * sqrt(queries)
# fmt: on
