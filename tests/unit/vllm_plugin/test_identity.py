"""Two engines that differ in anything that changes bytes never see each other's files."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vllm
from vllm.platforms import current_platform

from kvstrata.chunks import namespace as namespace_module
from kvstrata.chunks.geometry import GroupGeometry, GroupKind
from kvstrata.chunks.key import make_key
from kvstrata.chunks.namespace import Namespace
from kvstrata.tiers.filesystem import FilesystemTier
from kvstrata.tiers.tier import Loaded, Missing, Stored
from kvstrata.vllm_plugin.identity import engine_namespace, layout_facts

KEY = make_key(b"\x17" * 32, 0)
HEAD = (512 << 10).to_bytes(8, "little")
PIECE = 4 << 20
BLOCKS = 40


class HFConfig:
    """Stands for a Hugging Face config; overrides act on it before anybody reads it."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {
            "_name_or_path": "/models/tiny",
            "transformers_version": "5.1.0",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 64,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "text_config": {"_name_or_path": "/models/tiny", "num_attention_heads": 4},
        }

    def to_dict(self) -> dict[str, Any]:
        return dict(self.values)


@dataclasses.dataclass
class Engine:
    """What the connector knows when it makes its namespace."""

    directory: Path
    config: Any
    caches: dict[str, torch.Tensor]
    layers: dict[str, Any]
    num_blocks: int = BLOCKS
    label: str = ""
    seal: str = "none"
    geometries: list[GroupGeometry] = dataclasses.field(
        default_factory=lambda: [
            GroupGeometry(0, GroupKind.FULL, 16, 2, (512,)),
            GroupGeometry(1, GroupKind.WINDOW, 16, 2, (512,), window_tokens=64),
        ]
    )
    groups: dict[int, list[str]] = dataclasses.field(
        default_factory=lambda: {0: ["layer.0"], 1: ["layer.1"]}
    )

    def namespace(self) -> Namespace:
        layout = layout_facts(self.caches, self.num_blocks, self.layers)
        ranks = len(self.geometries[0].rank_block_bytes)
        layouts = [{"layout": layout}] * ranks
        return engine_namespace(
            self.config, self.geometries, self.groups, layouts, self.label, self.seal
        )

    def regroup(self, group: int, **changes: Any) -> None:
        self.geometries[group] = dataclasses.replace(self.geometries[group], **changes)


def cache(blocks: int = BLOCKS, shape: tuple[int, ...] = (16, 2, 8)) -> torch.Tensor:
    """Keys and values apart, then block after block."""
    return torch.zeros((2, blocks, *shape), dtype=torch.bfloat16)


def attention(backend: str = "FLASH_ATTN", dtype: str = "auto") -> SimpleNamespace:
    return SimpleNamespace(
        attn_backend=SimpleNamespace(get_name=lambda: backend), kv_cache_dtype=dtype
    )


def weights(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    with (directory / "model.safetensors").open("wb") as file:
        file.write(HEAD)
        file.truncate(PIECE)
    return directory


def engine(directory: Path) -> Engine:
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            model=str(directory),
            revision=None,
            hf_config=HFConfig(),
            dtype=torch.bfloat16,
            quantization=None,
            quantization_config=None,
            seed=0,
            max_model_len=4096,
            served_model_name="tiny",
            disable_sliding_window=False,
            model_impl="auto",
            model_class_overrides={},
        ),
        load_config=SimpleNamespace(load_format="auto"),
        cache_config=SimpleNamespace(
            prefix_caching_hash_algo="sha256",
            cache_dtype="auto",
            kv_cache_layout="NHD",
            kv_cache_dtype_skip_layers=[],
            mamba_cache_dtype="auto",
            mamba_ssm_cache_dtype="auto",
            mamba_cache_mode="none",
            gpu_memory_utilization=0.9,
            num_gpu_blocks=BLOCKS,
        ),
        attention_config=SimpleNamespace(
            backend=None, backend_per_kind={}, indexer_kv_dtype="auto"
        ),
        parallel_config=SimpleNamespace(
            world_size=1,
            tensor_parallel_size=1,
            pipeline_parallel_size=1,
            prefill_context_parallel_size=1,
            decode_context_parallel_size=1,
            cp_kv_cache_interleave_size=1,
            enable_expert_parallel=False,
            data_parallel_rank=0,
        ),
        speculative_config=None,
    )
    names = ("layer.0", "layer.1")
    return Engine(directory, config, {n: cache() for n in names}, {n: attention() for n in names})


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def set_hf(name: str, value: Any) -> Callable[[Engine], None]:
    def change(e: Engine) -> None:
        e.config.model_config.hf_config.values[name] = value

    return change


def set_fact(part: str, name: str, value: Any) -> Callable[[Engine], None]:
    def change(e: Engine) -> None:
        assert hasattr(getattr(e.config, part), name)
        setattr(getattr(e.config, part), name, value)

    return change


def regroup(group: int, **changes: Any) -> Callable[[Engine], None]:
    return lambda e: e.regroup(group, **changes)


def two_ranks(e: Engine) -> None:
    e.regroup(0, rank_block_bytes=(256, 256))
    e.regroup(1, rank_block_bytes=(256, 256))


def draft(model: str) -> Callable[[Engine], None]:
    def change(e: Engine) -> None:
        e.config.speculative_config = SimpleNamespace(
            method="eagle", model=model, draft_model_config=None
        )

    return change


def draft_with_weights(byte: bytes) -> Callable[[Engine], None]:
    def change(e: Engine) -> None:
        place = weights(e.directory.parent / f"draft{byte.hex()}" / "draft")
        write_at(place / "model.safetensors", 8, byte)
        e.config.speculative_config = SimpleNamespace(
            method="eagle", model=str(place), draft_model_config=engine(place).config.model_config
        )

    return change


def all_caches(tensor: Callable[[], torch.Tensor]) -> Callable[[Engine], None]:
    def change(e: Engine) -> None:
        e.caches = {name: tensor() for name in e.caches}

    return change


def heads_first() -> torch.Tensor:
    """The same logical shape, other strides."""
    return cache(shape=(2, 16, 8)).permute(0, 1, 3, 2, 4)


DIFFERENCES: dict[str, Callable[[Engine], None]] = {
    "first weights": lambda e: write_at(e.directory / "model.safetensors", 8, b"\x01"),
    "last weights": lambda e: write_at(e.directory / "model.safetensors", PIECE - 1, b"\x01"),
    "tensor names": lambda e: write_at(e.directory / "model.safetensors", 400 << 10, b"\x01"),
    "weights size": lambda e: write_at(e.directory / "model.safetensors", PIECE, b"\x00"),
    "weights name": lambda e: (e.directory / "model.safetensors").rename(e.directory / "m.bin"),
    "another weights file": lambda e: (e.directory / "extra.safetensors").write_bytes(b""),
    "random weights": set_fact("load_config", "load_format", "dummy"),
    "hidden size": set_hf("hidden_size", 128),
    "architecture": set_hf("architectures", ["MistralForCausalLM"]),
    "part of the model": set_hf("text_config", {"num_attention_heads": 8}),
    "hf_overrides": set_hf("query_pre_attn_scalar", 128),
    "rope theta": set_hf("rope_parameters", {"rope_type": "default", "rope_theta": 1e6}),
    "rope scaling": set_hf("rope_parameters", {"rope_type": "yarn", "factor": 4.0}),
    "dtype": set_fact("model_config", "dtype", torch.float32),
    "quantisation": set_fact("model_config", "quantization", "fp8"),
    "quantisation detail": set_fact("model_config", "quantization_config", {"bits": 4}),
    "no sliding window": set_fact("model_config", "disable_sliding_window", True),
    "implementation": set_fact("model_config", "model_impl", "transformers"),
    "model class": set_fact("model_config", "model_class_overrides", {"A": "B"}),
    "hash algorithm": set_fact("cache_config", "prefix_caching_hash_algo", "sha256_cbor"),
    "KV dtype": set_fact("cache_config", "cache_dtype", "fp8_e4m3"),
    "KV dtype of some layers": set_fact("cache_config", "kv_cache_dtype_skip_layers", ["0"]),
    "KV layout": set_fact("cache_config", "kv_cache_layout", "HND"),
    "mamba dtype": set_fact("cache_config", "mamba_cache_dtype", "float32"),
    "mamba state dtype": set_fact("cache_config", "mamba_ssm_cache_dtype", "float32"),
    "mamba mode": set_fact("cache_config", "mamba_cache_mode", "align"),
    "attention backend": set_fact("attention_config", "backend", "FLASHINFER"),
    "backend of a kind": set_fact("attention_config", "backend_per_kind", {"full": "X"}),
    "indexer dtype": set_fact("attention_config", "indexer_kv_dtype", "fp8"),
    "tensor parallel": set_fact("parallel_config", "tensor_parallel_size", 2),
    "pipeline parallel": set_fact("parallel_config", "pipeline_parallel_size", 2),
    "prefill context parallel": set_fact("parallel_config", "prefill_context_parallel_size", 2),
    "decode context parallel": set_fact("parallel_config", "decode_context_parallel_size", 2),
    "interleaving": set_fact("parallel_config", "cp_kv_cache_interleave_size", 16),
    "expert parallel": set_fact("parallel_config", "enable_expert_parallel", True),
    "world size": set_fact("parallel_config", "world_size", 2),
    "block size": regroup(0, tokens_per_block=32),
    "blocks per chunk": regroup(0, blocks_per_chunk=4),
    "block bytes": regroup(0, rank_block_bytes=(1024,)),
    "ranks": two_ranks,
    "window": regroup(1, window_tokens=128),
    "kind": regroup(1, kind=GroupKind.LOCAL),
    "fewer groups": lambda e: e.geometries.pop(),
    "layers of a group": lambda e: e.groups.update({0: ["layer.7"]}),
    "order of layers": lambda e: e.groups.update({0: ["layer.1"], 1: ["layer.0"]}),
    "label": lambda e: setattr(e, "label", "blue"),
    "seal": lambda e: setattr(e, "seal", "encrypt"),
    "other seal": lambda e: setattr(e, "seal", "authenticate"),
    "draft model": draft("some/draft"),
    "another draft model": draft("some/other"),
    "strides": all_caches(heads_first),
    "element type": all_caches(lambda: cache().to(torch.float16)),
    "kernel block": all_caches(lambda: cache(2 * BLOCKS, (8, 2, 8))),
    "head size": all_caches(lambda: cache(shape=(16, 2, 16))),
    "layout of one layer": lambda e: e.caches.update({"layer.1": heads_first()}),
    "layout of the other": lambda e: e.caches.update({"layer.0": heads_first()}),
    "backend in force": lambda e: e.layers.update({"layer.0": attention("TRITON_ATTN")}),
    "KV dtype in force": lambda e: e.layers.update({"layer.0": attention(dtype="fp8")}),
}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)


def assert_strangers(root: Path, one: Engine, other: Namespace, mine: Namespace) -> None:
    """Neither finds what the other stored, though the key is the same."""
    assert mine.fingerprint != other.fingerprint
    writer = FilesystemTier(root, mine, {g.group: g for g in one.geometries})
    writer.prepare()
    size = one.geometries[0].payload_bytes
    assert isinstance(writer.write(KEY, memoryview(bytes(size))), Stored)
    reader = FilesystemTier(root, other, {g.group: g for g in one.geometries})
    reader.prepare()
    assert writer.probe([KEY]) == [True] and reader.probe([KEY]) == [False]
    assert isinstance(writer.read(KEY, memoryview(bytearray(size))), Loaded)
    assert isinstance(reader.read(KEY, memoryview(bytearray(size))), Missing)
    assert list(reader.scan()) == []


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("what", DIFFERENCES)
def test_engines_that_differ_never_meet(tmp_path: Path, what: str) -> None:
    one, other = engine(weights(tmp_path / "a" / "m")), engine(weights(tmp_path / "b" / "m"))
    assert one.namespace() == other.namespace()  # or the difference below would prove nothing
    DIFFERENCES[what](other)
    assert_strangers(tmp_path / "root", one, other.namespace(), one.namespace())


@pytest.mark.usefixtures("alone")
def test_all_differences_differ_from_each_other(tmp_path: Path) -> None:
    found = set()
    for index, change in enumerate(DIFFERENCES.values()):
        one = engine(weights(tmp_path / str(index) / "m"))
        change(one)
        found.add(one.namespace().fingerprint)
    assert len(found) == len(DIFFERENCES)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        (namespace_module, "RECORD_VERSION", 2),
        (namespace_module, "ALGORITHM", "crc32c"),
        (vllm, "__version__", "0.97.1"),
        (type(current_platform), "device_type", "cuda"),
        (torch.cpu, "_is_amx_tile_supported", None),
    ],
    ids=["record version", "checksum", "release", "device", "matrix unit"],
)
def test_facts_of_the_process_enter(tmp_path, monkeypatch, target, name: str, value) -> None:
    one = engine(weights(tmp_path / "m"))
    before = one.namespace()
    fingerprint = before.fingerprint  # made anew at each look, with the record version of then
    if value is None:
        has_it = bool(getattr(target, name)())
        value = lambda: not has_it  # noqa: E731
    monkeypatch.setattr(target, name, value)
    assert one.namespace().fingerprint != fingerprint


def test_seeds_of_the_hash_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = engine(weights(tmp_path / "m"))
    found = []
    for seed in (None, "0", "1", "default", ""):
        monkeypatch.delenv("PYTHONHASHSEED", raising=False)
        if seed is not None:
            monkeypatch.setenv("PYTHONHASHSEED", seed)
        assert one.namespace() == one.namespace()
        found.append(one.namespace().fingerprint)
    assert len(set(found)) == len(found)


def test_a_random_seed_is_shared_with_nobody(tmp_path: Path, monkeypatch) -> None:
    one = engine(weights(tmp_path / "m"))
    one.config.cache_config.prefix_caching_hash_algo = "xxhash"
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    assert_strangers(tmp_path / "root", one, one.namespace(), one.namespace())
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert one.namespace() == one.namespace()


def test_without_files_name_revision_and_seed_tell_models_apart(tmp_path: Path) -> None:
    found = set()
    for name, value in (
        ("model", "nobody/no-such-model"),
        ("model", "nobody/another"),
        ("revision", "abc"),
        ("seed", 1),
    ):
        one = engine(tmp_path / "nothing")
        one.config.model_config.model = "nobody/no-such-model"
        setattr(one.config.model_config, name, value)
        found.add(one.namespace().fingerprint)
    assert len(found) == 4


def test_draft_weights_enter(tmp_path: Path) -> None:
    found = set()
    for index, byte in enumerate((b"\x01", b"\x02", b"\x01")):
        one = engine(weights(tmp_path / str(index) / "m"))
        draft_with_weights(byte)(one)
        found.add(one.namespace().fingerprint)
    assert len(found) == 2


def test_long_rope_depends_on_the_limit_of_the_engine(tmp_path: Path) -> None:
    def fingerprint(limit: int, rope: str) -> bytes:
        one = engine(tmp_path / "m")
        config = {"rope_type": rope, "original_max_position_embeddings": 4096}
        set_hf("rope_parameters", config)(one)
        one.config.model_config.max_model_len = limit
        return one.namespace().fingerprint

    weights(tmp_path / "m")
    assert fingerprint(4096, "longrope") == fingerprint(1024, "longrope")
    assert fingerprint(4097, "longrope") == fingerprint(131072, "longrope")
    assert fingerprint(4096, "longrope") != fingerprint(4097, "longrope")
    assert fingerprint(4096, "yarn") == fingerprint(4097, "yarn")


def fewer_blocks(e: Engine) -> None:
    e.num_blocks = 23
    e.config.cache_config.num_gpu_blocks = 23
    e.caches = {name: cache(23) for name in e.caches}


def as_a_square(e: Engine) -> None:
    """As many blocks as a block has tokens: no dimension may be mistaken for the blocks."""
    e.num_blocks = 16
    e.caches = {name: cache(16) for name in e.caches}


SAME_BYTES: dict[str, Callable[[Engine], None]] = {
    "number of blocks": fewer_blocks,
    "blocks as many as tokens": as_a_square,
    "limit of the engine": set_fact("model_config", "max_model_len", 1024),
    "served name": set_fact("model_config", "served_model_name", "other"),
    "sampling seed": set_fact("model_config", "seed", 3),
    "memory fraction": set_fact("cache_config", "gpu_memory_utilization", 0.5),
    "replica": set_fact("parallel_config", "data_parallel_rank", 1),
    "where the config came from": set_hf("_name_or_path", "/elsewhere"),
    "library that wrote it": set_hf("transformers_version", "4.0.0"),
    "where its parts came from": set_hf(
        "text_config", {"_name_or_path": "/elsewhere", "num_attention_heads": 4}
    ),
    "a file that is no weights": lambda e: (e.directory / "README.md").write_text("x"),
    "load format": set_fact("load_config", "load_format", "safetensors"),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("what", SAME_BYTES)
def test_what_leaves_the_bytes_alone_is_shared(tmp_path: Path, what: str) -> None:
    """The two also have their weights at different places."""
    one, other = engine(weights(tmp_path / "a" / "m")), engine(weights(tmp_path / "b" / "m"))
    SAME_BYTES[what](other)
    geometries = {g.group: g for g in one.geometries}
    writer = FilesystemTier(tmp_path / "root", one.namespace(), geometries)
    reader = FilesystemTier(tmp_path / "root", other.namespace(), geometries)
    writer.prepare()
    reader.prepare()  # accepts the description that the other wrote
    size = one.geometries[0].payload_bytes
    assert isinstance(writer.write(KEY, memoryview(b"\x05" * size)), Stored)
    into = bytearray(size)
    assert isinstance(reader.read(KEY, memoryview(into)), Loaded)
    assert into == b"\x05" * size


def test_layout_tells_strides_apart_even_where_every_size_is_a_multiple() -> None:
    plain = {"a": torch.zeros(2, 8, 16, 8, 64)}
    turned = {"a": torch.zeros(2, 8, 8, 16, 64).transpose(2, 3)}
    assert plain["a"].shape == turned["a"].shape
    assert layout_facts(plain, 8) != layout_facts(turned, 8)


def test_layout_of_states_and_padded_pages() -> None:
    def states(blocks: int, page: int) -> dict[str, list[torch.Tensor]]:
        raw = torch.zeros(blocks * page)
        conv = torch.as_strided(raw, (blocks, 4, 3), (page, 3, 1))
        ssm = torch.as_strided(raw, (blocks, 2, 8), (page, 8, 1), 12)
        return {"mamba": [conv, ssm]}

    assert layout_facts(states(9, 64), 9) == layout_facts(states(31, 64), 31)
    swapped = {"mamba": states(9, 64)["mamba"][::-1]}
    assert layout_facts(states(9, 64), 9) != layout_facts(swapped, 9)


def test_a_declaration_stays_small() -> None:
    """A thousand layers share one layout, and the arena's cell for a worker is 64 KiB."""
    facts = layout_facts({f"model.layers.{i}.self_attn.attn": cache(3) for i in range(1000)}, 3)
    assert len(str(facts)) < 1000
