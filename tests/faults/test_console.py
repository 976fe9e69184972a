"""A command whose terminal cannot show a sign, or is gone: a run goes on, and what is printed stays readable."""

import io
import json
import os
import subprocess
import sys

import pytest

from llm_rlhf.cli.console import Guarded, guard

WORK = """
import sys
from llm_rlhf.cli.console import guard, outlive
guard()
{outlive}
from tqdm import tqdm
for step in tqdm(range(3)):
    print("step", step, "é€😀", flush=True)
print("told", file=sys.stderr)
open("done", "w").write("done")
"""


def work(folder, redirect: str, outlive: bool = True, **variables: str) -> subprocess.CompletedProcess:
    (folder / "work.py").write_text(WORK.format(outlive="outlive()" if outlive else ""))
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = f"{sys.executable} work.py {redirect}"
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirect", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1",
                 "| true; exit ${PIPESTATUS[0]}", "2>&1 | true; exit ${PIPESTATUS[0]}"],
)  # fmt: skip
def test_long_work_goes_on_where_nothing_can_be_printed(tmp_path, redirect) -> None:
    done = work(tmp_path, redirect)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").read_text() == "done", "and no file got what was to be printed"
    assert b"Traceback" not in done.stderr
    if redirect == ">/dev/full":
        assert done.stderr.count(b"nothing more can be printed") == 1


@pytest.mark.slow
def test_a_command_that_only_prints_fails_where_it_cannot(tmp_path) -> None:
    assert work(tmp_path, ">/dev/full", outlive=False).returncode != 0
    assert not (tmp_path / "done").exists()


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"},
                                       {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}])  # fmt: skip
def test_any_sign_is_printed_as_what_json_reads(tmp_path, variables) -> None:
    done = work(tmp_path, "", **variables)
    assert done.returncode == 0, done.stderr
    encoding = "latin-1" if "latin" in str(variables) else "ascii"
    first = done.stdout.decode(encoding).splitlines()[0]
    assert first.isascii() == (encoding == "ascii")
    assert json.loads(f'"{first}"') == "step 0 é€😀"


def test_a_stream_hides_secrets_and_is_otherwise_the_one_it_stands_for(monkeypatch) -> None:
    inner = io.StringIO()
    stream = Guarded(inner)
    token = "hf_" + "Ab3" * 11
    assert stream.write(f"a {token}\n") == len(token) + 3, "of what was given"
    stream.writelines(["b\n", "c"])
    assert inner.getvalue() == "a [redacted]\nb\nc"
    assert not stream.isatty()
    monkeypatch.setattr(sys, "stdout", stream)
    before = sys.stderr
    guard()
    assert sys.stdout is stream, "not a second time"
    monkeypatch.setattr(sys, "stderr", before)
