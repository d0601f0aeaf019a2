"""Servers from npm for `tests/pool/test_stream_npm.py`: install `ganache graphql graphql-ws ws`.

`WSPOOL_NPM` says in which directory. Each prints its port, and ends with its stdin.
"""
