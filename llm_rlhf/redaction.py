"""Tokens, keys and passwords: known by their form, by the key they stand under, or as a value of the environment.

A recipe is copied into the run's folder, its reports, its trackers and a model card, so none may stand in it
(`found_in`). What leaves the process nevertheless, as an error that quotes a value, goes through `redacted` first.

Forms are those that their issuers document, with lengths that no commit id, digest, model or file has: forty
hexadecimal signs may be a key of Weights & Biases or a commit, so only the environment tells these.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

MARK = "[redacted]"
SHORTEST = 12  # signs of a value of the environment that is looked for: shorter ones are words, too

HUB = "put it into the environment (export HF_TOKEN=...), or log in once (hf auth login)"
API = (
    "put it into an environment variable, and name that variable in judge_key_variable, reference_key_variable or "
    "--key-variable"
)
ENVIRONMENT = "put it into the environment, where its library looks for it"


class Found(NamedTuple):
    """A secret in a tree of plain values."""

    key: str  # where, as a recipe's keys are written
    what: str  # it is, in words
    remedy: str


class _Form(NamedTuple):
    what: str
    remedy: str
    pattern: str  # a group called by the form's number, or all of it, is the secret


# No pattern begins inside a word, so that no longer name is cut, nor at more than one place of a run of signs that it
# may go through to the end: long text takes time in proportion. None takes a quote with it, nor a backslash before
# one, so that JSON stays JSON.
_FORMS = (
    _Form("an access token of the hub", HUB, r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}"),
    _Form("an API key", API, r"(?<![\w-])sk-(?:proj|svcacct|admin|ant|or)-[\w-]{16,}"),
    _Form("an API key", API, r"(?<![\w-])sk-[A-Za-z0-9]{20,}"),
    _Form("an API key", API, r"\b(?:AIza[\w-]{35}|gsk_[A-Za-z0-9]{20,}|xai-[A-Za-z0-9]{20,}|r8_[A-Za-z0-9]{30,})"),
    _Form("a token of GitHub", ENVIRONMENT, r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}"),
    _Form("a key of AWS", ENVIRONMENT, r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    _Form("a key of Weights & Biases", ENVIRONMENT, r"\bwandb_v\d_\w{20,}|\blocal-[0-9a-f]{40}\b"),
    _Form("a token of Slack", ENVIRONMENT, r"\bxox[abeoprs]-[\w-]{10,}"),
    _Form("a token of a package index", ENVIRONMENT, r"\bpypi-[\w-]{32,}|\bnpm_[A-Za-z0-9]{36}\b"),
    _Form("a signed token", ENVIRONMENT, r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"),
    _Form(
        "a private key",
        ENVIRONMENT,
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:(?!-----END)(?:[\w+/=:,.\s-]|\\[nr]))*(?:-----END [A-Z ]*KEY-----)?",
    ),
    _Form("a bearer token", API, r"(?i:\bbearer\s+)(?P<secret>(?=[\w.~+/=-]*\d)[\w.~+/=-]{16,})"),
    _Form(
        "a password in an address", API, r"\b[a-z][a-z0-9+.-]{0,30}://(?P<secret>[^\s/@:?#'\"]*:[^\s/@?#'\"]+|[^\s/@:?#'\"]{20,})@"
    ),
    _Form(
        "a key in an address",
        API,
        r"(?i:[?&#;](?:api[-_]?key|key|(?:access[-_]?)?token|auth|sig|signature|x-amz-[a-z-]+|password|secret)=)"
        r"(?P<secret>[^\s&#'\"\\]{6,})",
    ),
)  # fmt: skip
_SHAPED = [(form, re.compile(form.pattern)) for form in _FORMS]
_OF_A_KEY = (
    r"(?:hub|hf|auth|access|api|bearer|refresh|session)[-_]?token|api[-_]?key|(?:secret[-_]?)?access[-_]?key|secret"
    r"(?:[-_]?key)?|password|passwd|passphrase|private[-_]?key|credentials?"
)
_KEY = re.compile(rf"(?i)(?:.*[-_])?(?:{_OF_A_KEY})|token")
# `api_key: value` and `HF_TOKEN=value` within a text; what stands for a value, as $NAME, <token> or ..., is none.
_KEYED = re.compile(
    rf"(?i)(?<![A-Za-z])(?:{_OF_A_KEY})['\"]?\s*(?:[:=]\s*['\"]?|\bis\s+['\"])"
    r"(?P<secret>(?![$<.\[])[^\s'\",;&}]{6,})"
)
_VARIABLE = re.compile(rf"(?i)(?:.*_)?(?:{_OF_A_KEY}|token)")
_ANY_KEY = re.compile(r"(?i)(?:.*_)?key")
_NO_SECRET = re.compile(r"(?i).*_(?:path|file|dir|url|name|id)|tokenizers_.*")


def redacted(text: str, keyed: bool = False) -> str:
    """The text with a mark in place of each secret.

    Args:
        keyed: of what stands under a telling name, as `api_key: ...`, the value is one, whatever its form. For
            messages, not for what a model said.
    """
    for secret in _of_the_environment():
        text = text.replace(secret, MARK)
    for _, pattern in _SHAPED:
        text = pattern.sub(_marked, text)
    return _KEYED.sub(_marked, text) if keyed else text


def redacted_tree(value: Any, key: str = "") -> Any:
    """Plain values with a mark in place of each secret, also of what stands under a telling key."""
    if isinstance(value, Mapping):
        return {_text(name): redacted_tree(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted_tree(item, key) for item in value]
    if _is_telling(key, value):
        return MARK
    return redacted(value) if isinstance(value, str) else value


def redacted_strings(value: Any) -> Any:
    """Plain values with a mark in place of each secret in their strings, whatever they stand under."""
    if isinstance(value, Mapping):
        return {_text(name): redacted_strings(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted_strings(item) for item in value]
    return redacted(value) if isinstance(value, str) else value


def found_in(value: Any, key: str = "") -> Iterator[Found]:
    """The secrets in a tree of plain values, by their keys, without their values."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            named = f"{key}.{_text(name)}" if key else str(_text(name))
            yield from ([] if not isinstance(name, str) else _told(name, named, "the name of "))
            yield from found_in(item, named)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from found_in(item, f"{key}.{number}")
    else:
        last = next((part for part in reversed(key.split(".")) if not part.isdigit()), "")
        if _is_telling(last, value):
            yield Found(key, "an access token, key or password", HUB if "token" in last.lower() else API)
        elif isinstance(value, str):
            yield from _told(value, key)


def _is_telling(key: str, value: Any) -> bool:
    """Whether a value stands under a key that tells a secret; nothing, yes and no are none."""
    return (
        isinstance(value, str | bytes | int | float)
        and bool(value)
        and value is not True
        and _KEY.fullmatch(key) is not None
    )


def _told(text: str, key: str, where: str = "") -> Iterator[Found]:
    for form, pattern in _SHAPED:
        if pattern.search(text):
            yield Found(f"{where}{key}" if where else key, form.what, form.remedy)
            return
    if any(secret in text for secret in _of_the_environment()):
        yield Found(key, "the value of an environment variable with a secret", "leave it there")
    elif _KEYED.search(text):
        yield Found(key, "an access token, key or password", ENVIRONMENT)


def _text(name: Any) -> Any:
    return redacted(name) if isinstance(name, str) else name


def _marked(match: re.Match[str]) -> str:
    whole, secret = match[0], match.groupdict().get("secret")
    return MARK if secret is None else whole.replace(secret, MARK)


def _of_the_environment() -> list[str]:
    """Values of variables whose names tell that they are secret, the longest first.

    Any other key (SORT_KEY) is one only where it looks like no word.
    """
    values = set()
    for name, value in os.environ.items():
        named = _VARIABLE.fullmatch(name) is not None or (_ANY_KEY.fullmatch(name) and any(s.isdigit() for s in value))
        if named and len(value) >= SHORTEST and not _NO_SECRET.fullmatch(name) and value[0] != "/":
            values.add(value)
    return sorted(values, key=len, reverse=True)
