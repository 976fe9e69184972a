"""Found by processes that tests start, whose path has this folder (conftest.py): their device is the tests'."""

import os

if os.environ.get("LLM_RLHF_TEST_DEVICE") == "stand-in":
    import stand_in

    stand_in.install()
