"""What several tests of evaluation have in common."""

import pytest
from endpoint_stand_in import StandIn


@pytest.fixture
def serve():
    servers = []

    def start(script) -> StandIn:
        servers.append(StandIn(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
