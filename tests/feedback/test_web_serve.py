"""`llm-rlhf feedback serve`: who gets links, which port, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.errors import RecipeError
from llm_rlhf.feedback import people
from llm_rlhf.feedback.database import Database
from llm_rlhf.feedback.tables import Identity, Person
from llm_rlhf.feedback.web import serving
from llm_rlhf.feedback.web.security import Access
from llm_rlhf.feedback.web.serving import address_of, annotator_links, bind, lead_link


def test_a_store_has_one_lead_however_often_it_is_served(database: Database) -> None:
    leads = set()
    for _ in range(2):
        with database.write() as session:
            person, token = lead_link(session)
            assert people.enter(session, token)[0].role == "lead"
            leads.add(person.id)
    assert len(leads) == 1


def test_names_are_known_again_and_kept_apart(database: Database) -> None:
    with database.write() as session:
        first = annotator_links(session, ["Ada", "Grace"])
        again = annotator_links(session, ["Grace"])
        assert [who for _, _, who in first] == ["Ada", "Grace"]
        assert again[0][0].id == first[1][0].id
        assert again[0][1] != first[1][1]
        assert set(session.scalars(select(Identity.name))) == {"Ada", "Grace"}
        people.withdraw(session, first[0][0])
        session.flush()
        assert annotator_links(session, ["Ada"])[0][0].id != first[0][0].id


def test_without_a_name_a_link_is_for_somebody_who_has_not_come_yet(database: Database) -> None:
    with database.write() as session:
        annotator_links(session, ["Ada"])
        ((first, token, _),) = annotator_links(session, [])
        ((same, _, _),) = annotator_links(session, [])
        people.enter(session, token)
        session.flush()
        ((other, _, _),) = annotator_links(session, [])
        assert first.id == same.id != other.id
        assert session.scalar(select(Identity.person_id).where(Identity.person_id == first.id)) is None


def test_a_port_that_is_taken_is_told_with_the_remedy() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RecipeError, match=rf"--port is {port}, .*--port {port + 1}"):
            bind("127.0.0.1", port)
    with pytest.raises(RecipeError, match=r"--host is 192\.0\.2\.1 .*cannot listen there"):
        bind("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("access", "address"),
    [
        (Access(), "http://127.0.0.1:81"),
        (Access("::1"), "http://[::1]:81"),
        (Access("0.0.0.0"), f"http://{socket.gethostname()}:81"),
        (Access(public_url="https://ask.example.org/"), "https://ask.example.org"),
    ],
)
def test_links_name_the_page_as_people_reach_it(access: Access, address: str) -> None:
    assert address_of(access, 81) == address


@pytest.mark.parametrize(
    "url", ["ask.example.org", "ftp://ask.example.org", "https://ask.example.org/page", "https:///x"]
)
def test_a_public_url_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    result = CliRunner().invoke(app, ["feedback", "serve", str(tmp_path / "store.db"), "--public-url", url])
    assert result.exit_code == 2
    assert "it is an address without a path" in result.stderr
    assert not (tmp_path / "store.db").exists()


def test_others_are_let_in_with_a_word_of_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def served(app: object, listener: socket.socket) -> None:
        listener.close()

    monkeypatch.setattr(serving, "serve", served)
    for arguments, warned in (([], False), (["--host", "0.0.0.0"], True)):
        result = CliRunner().invoke(app, ["feedback", "serve", str(tmp_path / "store.db"), "--port", "0", *arguments])
        assert result.exit_code == 0, result.output
        assert ("not encrypted on its way" in result.stdout) == warned
        assert "llm-rlhf feedback select RUN" in result.stdout
        assert "Stopped. All that was said is in" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    store = tmp_path / "store.db"
    command = [sys.executable, "-m", "llm_rlhf", "feedback", "serve", str(store), "--port", "0", "--name", "Ada"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = iter(process.stdout.readline, "")
        link = next(found[1] for line in lines if (found := re.search(r"Ada \(\S+\): (http\S+)", line)))
        with urllib.request.urlopen(link, timeout=20) as page:
            assert b"Come in" in page.read()
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stdout.read().endswith(f"Stopped. All that was said is in {store}.\n")
        assert process.stderr.read() == ""
    database = Database.of(store)
    with database.read() as session:
        assert sorted(session.scalars(select(Person.role))) == ["annotator", "lead"]
    database.close()


@pytest.mark.slow
def test_the_page_is_up_without_what_trains() -> None:
    code = (
        "import sys, llm_rlhf.cli.main, llm_rlhf.feedback.web.app; "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
