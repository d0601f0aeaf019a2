"""Servers from npm for `tests/pool/test_stream_npm.py`; `WSPOOL_NPM` says in which directory.

    npm install --prefix DIRECTORY ganache @foundry-rs/anvil graphql graphql-ws ws

Each prints its port, and ends with its stdin.
"""
