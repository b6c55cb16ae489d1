"""An adapter in an archive as Together sends it: a tar packed by zstd as a stream, so that its header has no length.

    provider_archive.py      needs zstandard 0.25.0
"""
import io
import pathlib
import tarfile

import zstandard

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
packed = io.BytesIO()
with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        info = tarfile.TarInfo(f"ft-0a1b2c3d-aaaa-bbbb/checkpoint/{name}")
        content = (GOLDEN / "kinds" / "linear" / name).read_bytes()
        info.size = len(content)
        # A record of its own before the file, as other archives have them.
        info.pax_headers = {"comment": "trained"}
        tar.addfile(info, io.BytesIO(content))
stream = zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj()
(GOLDEN / "providers" / "adapter.tar.zst").write_bytes(stream.compress(packed.getvalue()) + stream.flush())
