"""Dialogues with real servers, recorded in `tests/parts/recordings` with what came out of them.

    WSPOOL_NPM=DIRECTORY python -m tests.support.dialogues

records them anew; it needs Chromium, and a directory with what `package.json` here lists:

    cp tests/support/dialogues/package.json DIRECTORY && npm install --prefix DIRECTORY

A dialogue is some tasks, in any order, over a pool of any size. What comes out of each is always
the same, by what the server has said and not by chance.
"""
