"""Real servers for tests, without root and without containers: what they are, how they start and how they end.

`tests.servers.fixtures` has the fixtures. A server that cannot be had skips the tests that need it and says why;
with `MEMKIT_CI=1` it fails them, so that a green run never means that nothing was run.
"""
