"""Text that looks like personal data: a suspicion for a person to look into, neither proof nor a guarantee.

Patterns find what has a form: e-mail addresses, phone numbers, public IP addresses, payment cards (Luhn's check digit),
IBANs (ISO 13616, remainder 1 of 97) and US social security numbers. They know nothing of names, addresses in words or
other countries' identity numbers; and an invented number in the right form is found like a real one.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

# A number a person would dial: with a country code; of North America; national with a leading zero; or seven digits.
_PHONE = re.compile(
    r"""(?x) (?<![\w.,+/-])
    (?: \+[1-9][0-9]{0,2} [ .-]? (?:\(0?[0-9]{1,4}\)[ .-]?)? [0-9]{1,4} (?:[ .-]?[0-9]{2,4}){1,4}
      | (?:1[ .-])? (?:\([2-9][0-9]{2}\)[ ]?|[2-9][0-9]{2}[ .-]) [2-9][0-9]{2} [ .-] [0-9]{4}
      | 0[1-9][0-9]{1,3} [ /-] [0-9]{3,4} [ -]? [0-9]{3,4}
      | [2-9][0-9]{2}-[0-9]{4}
    ) (?![\w/-]|[.,][0-9])"""
)
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
_IP = re.compile(
    r"(?<![\w.:])(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|(?=[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:)[0-9A-Fa-f:]{6,39})(?![\w:]|\.[0-9])"
)
_CARD = re.compile(r"(?<![\w.-])[2-6][0-9]{3}(?:[ -]?[0-9]){9,15}(?![\w-]|\.[0-9])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?!\w)")
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![\w-])")
_DIGIT = re.compile(r"[0-9]")


class Suspicion(NamedTuple):
    """Something in a text that looks like personal data: what, and where."""

    kind: str
    start: int
    end: int


def suspicions(text: str) -> list[Suspicion]:
    """What looks like personal data, in the order of the text. A number counts once, as the narrowest kind it fits."""
    if not _DIGIT.search(text) and "@" not in text:
        return []  # nearly all texts
    found: list[Suspicion] = []
    for kind, pattern, holds in _KINDS:
        places = [match.span() for match in pattern.finditer(text) if holds(match[0])]
        if places:
            found = sorted([*found, *(Suspicion(kind, *place) for place in _beside(places, found))], key=_start)
    return found


def _beside(places: list[tuple[int, int]], found: list[Suspicion]) -> Iterator[tuple[int, int]]:
    """The places that overlap nothing of what was found before. Both are in the order of the text, without overlaps."""
    others = iter(found)
    other = next(others, None)
    for start, end in places:
        while other is not None and other.end <= start:
            other = next(others, None)
        if other is None or end <= other.start:
            yield start, end


def masked(text: str) -> str:
    """Something found, fit to be shown: its form and its first character."""
    return text[:1] + re.sub(r"[^\W_]", "*", text[1:])


def _is_card(text: str) -> bool:
    """Luhn's check: every second digit from the right doubled, digits summed, divisible by ten (ISO/IEC 7812-1)."""
    digits = [int(digit) for digit in _digits(text)]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """The first four characters moved to the end, letters as 10 to 35, the number leaves 1 of 97."""
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def _is_public_ip(text: str) -> bool:
    """An address that can belong to somebody: no private, documentation or reserved one."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _is_phone(text: str) -> bool:
    return 7 <= len(list(_digits(text))) <= 15  # ITU-T E.164: at most 15


def _digits(text: str) -> Iterator[str]:
    return (character for character in text if character.isdigit())


def _start(suspicion: Suspicion) -> int:
    return suspicion.start


def _always(text: str) -> bool:
    return True


# Narrow kinds first: what has a check digit is no phone number.
_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("e-mail address", _EMAIL, _always),
    ("IBAN", _IBAN, _is_iban),
    ("payment card number", _CARD, _is_card),
    ("IP address", _IP, _is_public_ip),
    ("social security number", _SSN, _always),
    ("phone number", _PHONE, _is_phone),
)
KINDS = tuple(kind for kind, _, _ in _KINDS)
