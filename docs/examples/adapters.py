"""Loads an adapter into an instance that serves, lists what is loaded, and unloads it.

TOLLBOOK_INFERENCE_ADDRESS=... TOLLBOOK_ADMIN_SECRET=... python docs/examples/adapters.py FOLDER
"""

from __future__ import annotations

import os
import sys

import grpc

from tollbook.inference.v1 import adapters_pb2, adapters_pb2_grpc

SECRET = (("authorization", f"Bearer {os.environ['TOLLBOOK_ADMIN_SECRET']}"),)


def main(folder: str) -> None:
    channel = grpc.insecure_channel(os.environ["TOLLBOOK_INFERENCE_ADDRESS"])
    stub = adapters_pb2_grpc.AdapterServiceStub(channel)
    loaded = stub.LoadAdapter(
        adapters_pb2.LoadAdapterRequest(folder=folder), metadata=SECRET, timeout=60
    ).adapter
    print(f"{loaded.name} is served; its files are {loaded.digest.hex()}")
    listed = stub.ListAdapters(adapters_pb2.ListAdaptersRequest(), metadata=SECRET, timeout=10)
    print("loaded:", ", ".join(adapter.name for adapter in listed.adapters))
    stub.UnloadAdapter(
        adapters_pb2.UnloadAdapterRequest(name=loaded.name), metadata=SECRET, timeout=90
    )
    print(f"{loaded.name} is gone")


if __name__ == "__main__":
    main(sys.argv[1])
