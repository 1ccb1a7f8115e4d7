"""Limit models by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gateway.balancing.quota import Limits
from gateway.simulation.limits.anthropic import AnthropicLimits
from gateway.simulation.limits.azure import AzureLimits
from gateway.simulation.limits.bedrock import BedrockLimits
from gateway.simulation.limits.gemini import GeminiLimits
from gateway.simulation.limits.groq import GroqLimits
from gateway.simulation.limits.mistral import MistralLimits
from gateway.simulation.limits.model import LimitModel
from gateway.simulation.limits.opaque import OpaqueLimits
from gateway.simulation.limits.openai import OpenAILimits
from gateway.simulation.limits.paced import PacedLimits

LIMIT_MODELS: Mapping[str, type[LimitModel]] = MappingProxyType(
    {
        model.style: model
        for model in (
            OpenAILimits,
            AzureLimits,
            AnthropicLimits,
            GeminiLimits,
            MistralLimits,
            GroqLimits,
            BedrockLimits,
            OpaqueLimits,
            PacedLimits,
        )
    }
)


def make_limit_model(style: str, limits: Limits, *, organisation: str, models_share: bool = False) -> LimitModel:
    """Make a fresh quota of the provider `style`; raises ValueError that lists the styles for an unknown one."""
    model = LIMIT_MODELS.get(style)
    if model is None:
        raise ValueError(f"unknown limit style {style!r}: use one of {', '.join(LIMIT_MODELS)}")
    return model(limits, organisation=organisation, models_share=models_share)
