"""What kind of error it is, in the user's language, under the English line that says it exactly.

The exact line stays English, because people search for it and paste it to each other; English readers see it alone.
"""

import errno

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


CURES: dict[int, str] = {
    errno.ENOSPC: N_("No room is left on that disk: free some, or let XDG_CACHE_HOME and XDG_STATE_HOME name another."),
    errno.EACCES: N_("This user may not read or write there: change the owner or the mode."),
    errno.EMFILE: N_("Too many files are open: try ulimit -n 4096."),
}
"""What to do about it, by the system's number."""


def say_os_error(error: OSError) -> list[str]:
    """The system's words and their file; below, where we know it, what to do, in the user's language."""
    words = error.strerror or str(error) or type(error).__name__
    about = f": {error.filename}" if error.filename is not None else ""
    cure = CURES.get(errno.ENOSPC if error.errno == errno.EDQUOT else error.errno or 0)
    return [words + about, *([_(cure)] if cure else [])]


def explain(error: errors.ShoalError) -> str:
    """One sentence; empty where it would be English under English."""
    kind = next((words for each, words in KINDS if isinstance(error, each)), "")
    translated = _(kind) if kind else ""
    return "" if translated == kind else translated
