"""Chunk keys: block hash of the chunk's last block followed by the group index.

The layout is vLLM's own (`vllm.v1.kv_offload.base.make_offload_key`): the digest as vLLM computed it
(16 bytes for the xxhash kinds, 32 for the sha256 kinds), then the group index as 4 bytes, big endian.
"""

import re

ChunkKey = bytes
"""Digest ‖ group index (4 bytes, big endian)."""

GROUP_BYTES = 4
SUFFIX = ".kv"
_FILE_NAME = re.compile(r"([0-9a-f]{16,128})\.g([0-9]{1,9})\.kv")


def make_key(block_hash: bytes, group: int) -> ChunkKey:
    """Key of the chunk of `group` whose last block has `block_hash`."""
    return block_hash + group.to_bytes(GROUP_BYTES, "big")


def hash_of(key: ChunkKey) -> bytes:
    """The block hash inside `key`."""
    return key[:-GROUP_BYTES]


def group_of(key: ChunkKey) -> int:
    """The KV cache group index inside `key`."""
    return int.from_bytes(key[-GROUP_BYTES:], "big")


def relative_path(key: ChunkKey) -> str:
    """Where `key` lives below its namespace: `xx/yy/<hash>.g<group>.kv`, lower-case hexadecimal.

    `xx` and `yy` are the first two bytes of the hash, so files spread evenly over 65 536 directories.
    """
    text = hash_of(key).hex()
    return f"{text[:2]}/{text[2:4]}/{text}.g{group_of(key)}{SUFFIX}"


def parse_file_name(name: str) -> ChunkKey | None:
    """The key that a file name stands for, or None if the name is not a chunk's."""
    match = _FILE_NAME.fullmatch(name)
    if match is None or len(match[1]) % 2:
        return None
    group = int(match[2])
    if group >= 1 << 32 or (len(match[2]) > 1 and match[2][0] == "0"):
        return None
    return make_key(bytes.fromhex(match[1]), group)
