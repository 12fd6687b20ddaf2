"""The names of scopes, and the forms that take a number or another scope."""

from shared.base.errors import ConfigError, UnknownNameError

SCOPES = ("full", "lora", "bias", "reduced", "head", "words", "prior")
LINEAR_SCOPES = ("words", "prior")  # and head, if it has features
ANY_SCOPE = "regex:"
LAST_SCOPE, FEW = "last:", ":bias"  # last:K trains the last K blocks, last:K:bias few numbers there
LAST_FORMS = (f"{LAST_SCOPE}<blocks>", f"{LAST_SCOPE}<blocks>{FEW}")
MASK_SCOPE = "mask:"  # mask:F trains a share of all addresses, mask:F:SCOPE one of a scope's
MASK_FORMS = (f"{MASK_SCOPE}<share>", f"{MASK_SCOPE}<share>:<scope>")
FORMS = (f"{ANY_SCOPE}<pattern>", *LAST_FORMS, *MASK_FORMS)
UNMASKED = ("lora", *LINEAR_SCOPES)  # few numbers already, which are not there before the run
MOST_CHARACTERS = 12  # of a share


def check_scope(scope: str) -> None:
    """Refuse a text that names no scope.

    Raises:
        ConfigError: a form has something else than a number, or a mask is of such a scope.
        UnknownNameError: there is no such scope.
    """
    if scope.startswith(LAST_SCOPE):
        last_of(scope)
    elif scope.startswith(MASK_SCOPE):
        mask_of(scope)
    elif scope not in SCOPES and not scope.startswith(ANY_SCOPE):
        raise UnknownNameError("scope", scope, (*SCOPES, *FORMS))


def last_of(scope: str) -> tuple[int, bool]:
    """The K of ``last:K``, and whether only few numbers are meant, as in ``last:K:bias``.

    Raises:
        ConfigError: K is no whole number, or something else follows it.
    """
    number = scope.removeprefix(LAST_SCOPE).removesuffix(FEW)
    if not (number.isdecimal() and number.isascii()) or len(number) > 4:
        raise ConfigError(f"scope: {LAST_FORMS[0]} or {LAST_FORMS[1]} expected, got {scope!r}")
    return int(number), scope.endswith(FEW)


def mask_of(scope: str) -> tuple[float, str]:
    """The F of ``mask:F``, and the scope whose addresses it is a share of: ``full`` or that named.

    Raises:
        ConfigError: F is no number above 0 and at most 1, or there can be no mask of the scope.
        UnknownNameError: there is no such scope.
    """
    text, _, inner = scope.removeprefix(MASK_SCOPE).partition(":")
    digits = text.replace(".", "", 1)
    is_number = digits.isdecimal() and digits.isascii() and len(text) <= MOST_CHARACTERS
    if not is_number or not 0 < float(text) <= 1:
        raise ConfigError(
            f"scope: {MASK_FORMS[0]} or {MASK_FORMS[1]} expected with a share above 0 and at most "
            f"1, such as {MASK_SCOPE}0.1, got {scope!r}"
        )
    inner = inner or "full"
    if inner in UNMASKED or inner.startswith(MASK_SCOPE):
        raise ConfigError(
            f"scope {scope!r}: a mask of full, bias, head, reduced, last:<blocks> or "
            f"{ANY_SCOPE}<pattern> expected, got one of {inner!r}"
        )
    check_scope(inner)
    return float(text), inner
