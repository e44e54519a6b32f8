"""The vLLM plug-in: the only package that imports vLLM or torch.

Named in `--kv-transfer-config` as `"kv_connector": "KVStrataConnector"`; the module path
`kvstrata.vllm_plugin` may be given, but need not be, since `register` runs as one of vLLM's general
plug-ins.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstrata.vllm_plugin.connector import KVStrataConnector
    from kvstrata.vllm_plugin.spec import KVStrataSpec

__all__ = ["KVStrataConnector", "KVStrataSpec", "register"]

CONNECTOR_NAME = "KVStrataConnector"


def register() -> None:
    """Make the connector known to vLLM by name (entry point `vllm.general_plugins`). Repeatable.

    Runs in each of the engine's processes, before a model is loaded.
    """
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    from kvstrata.vllm_plugin.cpu_build import mend
    from kvstrata.vllm_plugin.publisher import register_publisher

    if CONNECTOR_NAME not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(
            CONNECTOR_NAME, "kvstrata.vllm_plugin.connector", CONNECTOR_NAME
        )
    mend()
    register_publisher()


def __getattr__(name: str) -> Any:
    """The classes are imported when they are asked for: they need vLLM, whose start-up is slow."""
    if name == CONNECTOR_NAME:
        from kvstrata.vllm_plugin.connector import KVStrataConnector

        return KVStrataConnector
    if name == "KVStrataSpec":
        from kvstrata.vllm_plugin.spec import KVStrataSpec

        return KVStrataSpec
    raise AttributeError(name)
