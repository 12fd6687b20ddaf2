"""A site's secret: 32 random bytes in a file that its owner alone can read, never sent.

Batches and noise are functions of it and of the whole request. Whoever has it can take the noise
away from every reply of the site, past ones included.
"""

import os
import secrets
import stat
from pathlib import Path

from client.privacy.budget import COUNTER_FILE
from shared.base.errors import BudgetError
from shared.privacy.keystream import KEY_BYTES

SECRET_FILE = "site.secret"


def load_secret(folder: Path) -> bytes:
    """Read the secret of a site's privacy folder; make it if nothing was spent with another.

    Raises:
        BudgetError: another user can read it, it is damaged, or it is missing beside a budget.
    """
    path = folder / SECRET_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        if (folder / COUNTER_FILE).exists():
            raise BudgetError(
                f"{path}: missing beside a budget; restore it, or make another with 'dandelion "
                "client secret --new'"
            ) from None
        return make_secret(folder)
    except OSError as error:
        raise BudgetError(f"{path}: a readable file expected ({error})") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.getuid():
            raise BudgetError(
                f"{path}: a file of user {os.getuid()} alone (mode 0600) expected, got user "
                f"{status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}. Others may have read "
                "it: make another with 'dandelion client secret --new'"
            )
        data = file.read()
    if len(data) != KEY_BYTES:
        raise BudgetError(f"{path}: {KEY_BYTES} bytes expected, got {len(data)}")
    return data


def make_secret(folder: Path, replace: bool = False) -> bytes:
    """Make the secret, in a folder that its owner alone can enter; return it.

    Args:
        folder: the site's privacy folder.
        replace: whether another may take the place of one that is there. Past noise stays what it
            was; a request that is repeated then counts as a new one.

    Raises:
        BudgetError: there is one already.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path, draft = folder / SECRET_FILE, folder / f".{SECRET_FILE}.{os.getpid()}"
    value = secrets.token_bytes(KEY_BYTES)
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(value)
        file.flush()
        os.fsync(file.fileno())
    if replace:
        draft.replace(path)
        return value
    try:
        os.link(draft, path)  # fails if another process was first
    except FileExistsError:
        draft.unlink()
        return load_secret(folder)
    draft.unlink()
    return value
