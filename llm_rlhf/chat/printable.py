"""What other people, or models, wrote, so that a terminal only shows it."""

import re

# Control characters, what turns the direction of writing, and halves of surrogate pairs; not line feed and tab.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text that does nothing to a terminal but stand there: ESC becomes its picture, and so on."""

    def picture(found: re.Match[str]) -> str:
        code = ord(found[0])
        return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"

    return CONTROLS.sub(picture, text.replace("\r\n", "\n"))
