"""An S3 server on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import fsspec
import pytest


@contextmanager
def bucket(name: str) -> Iterator[Any]:
    """The file system of a server that has the bucket; skips the test where s3fs or moto is absent.

    The environment names the server, so that processes which are started inside find it too.
    """
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    variables = {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with mock.patch.dict(os.environ, variables):
            filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
            filesystem.mkdir(name)
            yield filesystem
            filesystem.rm(name, recursive=True)  # or the next server has it
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # its instances know this server
        server.stop()
