"""A small client for one engine's OpenAI endpoint, that measures what a user would feel."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

REQUEST_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion.

    Attributes:
        tokens: generated token ids.
        ttft_ms: milliseconds from the request's first byte sent to the first token received.
        total_ms: milliseconds until the end of the stream.
        cached_tokens: prompt tokens that the engine says it did not compute.
    """

    tokens: tuple[int, ...]
    ttft_ms: float
    total_ms: float
    cached_tokens: int


class EngineClient:
    """Talks to one engine on 127.0.0.1.

    Args:
        port: of the engine.
        model: its served name.
    """

    def __init__(self, port: int, model: str) -> None:
        self._model = model
        self._http = httpx2.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=REQUEST_SECONDS, trust_env=False
        )

    def complete(self, prompt: Sequence[int], max_tokens: int) -> Answer:
        """Greedy completion of a prompt of token ids, streamed.

        Raises:
            httpx2.HTTPError: the engine did not answer, or answered with an error.
        """
        body = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        content = json.dumps(body).encode()  # before the clock starts: not the engine's work
        headers = {"content-type": "application/json"}
        tokens: list[int] = []
        first = 0.0
        usage: dict[str, Any] = {}
        begun = time.perf_counter()
        with self._http.stream(
            "POST", "/v1/completions", content=content, headers=headers
        ) as reply:
            if reply.is_error:
                reply.read()
            reply.raise_for_status()
            for line in reply.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                first = first or time.perf_counter()
                event = json.loads(line[6:])
                for choice in event.get("choices", ()):
                    tokens += choice.get("token_ids") or ()
                usage = event.get("usage") or usage
        ended = time.perf_counter()
        details = usage.get("prompt_tokens_details") or {}
        return Answer(
            tokens=tuple(tokens),
            ttft_ms=(first - begun) * 1000,
            total_ms=(ended - begun) * 1000,
            cached_tokens=int(details.get("cached_tokens") or 0),
        )

    def reset_prefix_cache(self) -> None:
        """Empty the device's prefix cache; the other tiers keep what they have."""
        self._http.post("/reset_prefix_cache").raise_for_status()

    def healthy(self) -> bool:
        """Whether the engine answers."""
        try:
            return bool(self._http.get("/health", timeout=2.0).is_success)
        except httpx2.HTTPError:
            return False

    def metrics(self) -> dict[str, float]:
        """Every sample of the engine's Prometheus endpoint: `name{label=value,…}`, labels sorted.

        The labels `engine` and `model_name`, which say nothing here, are left out.
        """
        reply = self._http.get("/metrics")
        reply.raise_for_status()
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(reply.text):
            for sample in family.samples:
                labels = {
                    k: v for k, v in sample.labels.items() if k not in ("engine", "model_name")
                }
                text = ",".join(f"{key}={labels[key]}" for key in sorted(labels))
                found[f"{sample.name}{{{text}}}"] = sample.value
        return found

    def close(self) -> None:
        """Close the connection."""
        self._http.close()
