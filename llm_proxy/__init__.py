"""LLM Proxy in-process: a pool of provider keys behaves like one big, reliable key.

from llm_proxy import LoadBalancer

balancer = LoadBalancer({"providers": [{"name": "openai-primary", "api_key": "…", "weight": 50}, …],
                         "strategy": "weighted_round_robin", "failover": True})
response = balancer.complete(model="gpt-4o", messages=[{"role": "user", "content": "Hello!"}])
print(response.text, response.key, response.usage)
"""

from gateway.upstream.message import Deadlines
from llm_proxy.aio import AsyncLoadBalancer
from llm_proxy.answers import (
    Attempt,
    ChatMessage,
    Choice,
    ChunkChoice,
    Completion,
    CompletionChunk,
    FunctionCall,
    Message,
    MessageEvent,
    Served,
    ToolCall,
    Usage,
)
from llm_proxy.balancer import LoadBalancer
from llm_proxy.engine import Options
from llm_proxy.errors import (
    AllKeysRejected,
    BalancerClosed,
    ConfigurationError,
    InvalidRequest,
    LLMProxyError,
    MissingPackage,
    ModelNotServed,
    ProviderError,
    ProviderUnreachable,
    RateLimited,
    RequestTooLarge,
    Timeout,
)
from llm_proxy.stats import KeyStats, Stats
from llm_proxy.streams import AsyncStream, Stream

__all__ = [
    "AllKeysRejected",
    "AsyncLoadBalancer",
    "AsyncStream",
    "Attempt",
    "BalancerClosed",
    "ChatMessage",
    "Choice",
    "ChunkChoice",
    "Completion",
    "CompletionChunk",
    "ConfigurationError",
    "Deadlines",
    "FunctionCall",
    "InvalidRequest",
    "KeyStats",
    "LLMProxyError",
    "LoadBalancer",
    "Message",
    "MessageEvent",
    "MissingPackage",
    "ModelNotServed",
    "Options",
    "ProviderError",
    "ProviderUnreachable",
    "RateLimited",
    "RequestTooLarge",
    "Served",
    "Stats",
    "Stream",
    "Timeout",
    "ToolCall",
    "Usage",
]
