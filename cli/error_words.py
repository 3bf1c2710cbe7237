"""What kind of error it is, in the user's language, under the English line that says it exactly.

The exact line stays English, because people search for it and paste it to each other; English readers see it alone.
"""

from shoal.client.translate import N_, _
from shoal.protocol import errors

KINDS: tuple[tuple[type[errors.ShoalError], str], ...] = (
    (errors.ContextLengthExceeded, N_("The text is too long for the model.")),
    (errors.AddressInUse, N_("Another program uses this port.")),
    (errors.ModelNotFound, N_("No model was found there.")),
    (errors.NodeAlreadyRunning, N_("A node of this name runs already.")),
    (errors.NodeNotRunning, N_("No node runs on this machine.")),
    (errors.ServiceManagerFailed, N_("The system's service manager refused.")),
    (errors.LocalError, N_("What was asked for is not possible like this.")),
    (errors.RemoteError, N_("A peer did not keep the rules.")),
    (errors.NetworkError, N_("The connection failed; try again.")),
    (errors.CoverageGap, N_("Nobody in the swarm holds a part that is needed; try again later.")),
    (errors.CapacityError, N_("The swarm has no room now; try again later.")),
    (errors.IntegrityError, N_("The model's files are not what they should be.")),
)
"""The nearest kind first."""


def explain(error: errors.ShoalError) -> str:
    """One sentence; empty where it would be English under English."""
    kind = next((words for each, words in KINDS if isinstance(error, each)), "")
    translated = _(kind) if kind else ""
    return "" if translated == kind else translated
