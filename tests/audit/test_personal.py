"""Suspected personal data: what is found, what is not, and that nothing found is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_rlhf.audit.personal import KINDS, masked, suspicions


def kinds(text: str) -> list[tuple[str, str]]:
    return [(kind, text[start:end]) for kind, start, end in suspicions(text)]


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        ("Write to jo.doe+x@mail.example.org.", "e-mail address", "jo.doe+x@mail.example.org"),
        ("Call me at (212) 555-0147 tonight", "phone number", "(212) 555-0147"),
        ("Call 212-555-0147, please", "phone number", "212-555-0147"),
        ("it is +44 20 7946 0958.", "phone number", "+44 20 7946 0958"),
        ("+49 (0)30 901820 works", "phone number", "+49 (0)30 901820"),
        ("030 1234 5678 in the evening", "phone number", "030 1234 5678"),
        ("my number is 555-0147", "phone number", "555-0147"),
        ("server 8.8.8.8 answered", "IP address", "8.8.8.8"),
        ("ping 2001:4860:4860::8888 now", "IP address", "2001:4860:4860::8888"),
        # 4539 1488 0343 6467: doubled from the right 12=3 8 8 0 16=7 2 6 8 ... sums to 80
        ("card 4539 1488 0343 6467, thanks", "payment card number", "4539 1488 0343 6467"),
        ("pay to DE89 3704 0044 0532 0130 00 today", "IBAN", "DE89 3704 0044 0532 0130 00"),
        ("GB82WEST12345698765432", "IBAN", "GB82WEST12345698765432"),
        ("SSN: 123-45-6789", "social security number", "123-45-6789"),
    ],
)
def test_what_is_found(text: str, kind: str, found: str) -> None:
    assert kinds(text) == [(kind, found)]


@pytest.mark.parametrize(
    "text",
    [
        "card 4539 1488 0343 6468",  # one digit off: Luhn's sum is 81
        "DE88 3704 0044 0532 0130 00",  # leaves another remainder
        "127.0.0.1, 192.168.1.1, 10.0.0.1, 999.1.1.1 and version 1.2.3.4.5",
        "from 1990-2000, on 2020-01-15, at 10:20:30, and 100 200 300 400 500",
        "3.14159265358979, 1,000,000,000 and 12345678901",
        "123-00-6789 and 000-12-3456 and 900-12-3456",
        "a @ b, @handle, x@y",
        "The ratio is 16:9, score 3-2, ISBN 978-3-16-148410-0.",
    ],
)
def test_what_is_not(text: str) -> None:
    assert kinds(text) == []


def test_several_in_order_each_once() -> None:
    found = kinds("a@b.org or 212-555-0147 or c@d.org")
    assert [kind for kind, _ in found] == ["e-mail address", "phone number", "e-mail address"]


def test_masked_keeps_the_form_only() -> None:
    assert masked("jo.doe@mail.org") == "j*.***@****.***"
    assert masked("(212) 555-0147") == "(***) ***-****"
    assert masked("") == ""


@given(st.text(alphabet="0123456789 .-:@+abcDE/()", max_size=60))
def test_spans_are_within_the_text_and_do_not_overlap(text: str) -> None:
    end = 0
    for kind, start, stop in suspicions(text):
        assert kind in KINDS
        assert end <= start < stop <= len(text)
        end = stop
