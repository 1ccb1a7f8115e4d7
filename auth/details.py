"""What a token may reach and spend: `authorization_details` (RFC 9396) of type `llm_proxy`.

    {"type": "llm_proxy", "pools": ["prod"], "models": ["gpt-4o*"], "regions": ["eu-*"], "priority": 5,
     "caller_region": "eu-west-1", "rpm": 60, "tpm": 90000, "budget_usd": 5.0, "budget_period": "day",
     "expires_at": 1800000000}

Every member but `type` is optional; a member left out does not narrow. `caller_region` never does: it says where the
token's holder is, for pools that serve from near there. Several objects are alternatives: a request
needs one object that permits it as a whole. `priority` is the most urgent one that requests get (0 is the most urgent).
Tokens are narrowed, never widened: each requested object lies within one object of what it comes from.

Rates and budgets have an owner: the token or client that introduced them. A narrower token carries the limits of all
its ancestors along (`limits`, written by the server alone), and every request draws on each of them, so that many
children together spend no more than their parent may.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from auth.errors import Invalid
from auth.globs import MAX_PATTERN_CHARS, all_within, matches

TYPE = "llm_proxy"
MAX_DETAILS = 16
MAX_LIMITS = 16

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PATTERN_CHARS, pattern=r"^[\x21-\x7e]+$")]
Names = Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=64)]
Patterns = Annotated[tuple[Pattern, ...], msgspec.Meta(min_length=1, max_length=64)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10**12)]
Money = Annotated[float, msgspec.Meta(gt=0, le=10**9)]
Period = Literal["hour", "day", "month", "total"]


class Limit(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A rate or budget and the `bucket` that all tokens under it share: `<jti or client_id>:<place>`."""

    bucket: str
    rpm: Count | None = None
    tpm: Count | None = None
    budget_usd: Money | None = None
    budget_period: Period | None = None


class Detail(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One object of type `llm_proxy`; None: this member does not narrow. Times are Unix seconds, money US dollars."""

    type: Literal["llm_proxy"]
    pools: Names | None = None
    models: Patterns | None = None
    regions: Patterns | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] | None = None
    caller_region: Name | None = None
    rpm: Count | None = None
    tpm: Count | None = None
    budget_usd: Money | None = None
    budget_period: Period | None = None
    expires_at: Annotated[int, msgspec.Meta(ge=0, le=2**40)] | None = None
    limits: Annotated[tuple[Limit, ...], msgspec.Meta(max_length=MAX_LIMITS)] = ()


class DetailsRefused(Invalid):
    """`authorization_details` that are malformed or wider than what they come from (RFC 9396 section 5)."""

    code = "invalid_authorization_details"


def parse_details(value: str | bytes | Sequence[Any]) -> tuple[Detail, ...]:
    """Read what a caller asks for: JSON text or decoded objects; `DetailsRefused` names the member that is wrong."""
    try:
        if isinstance(value, str | bytes):
            found = msgspec.json.decode(value, type=tuple[Detail, ...])
        else:
            found = msgspec.convert(value, type=tuple[Detail, ...])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        said = _ascii(str(error))
        if "unknown field" in said:
            said = f"{said}; use {', '.join(each for each in Detail.__struct_fields__ if each != 'limits')}"
        raise DetailsRefused(
            "authorization_details is not valid.",
            hint=f"Send a JSON array of objects of type {TYPE}. {said}",
            errors=(("/authorization_details", said),),
        ) from None
    if len(found) > MAX_DETAILS:
        raise _refused(f"has more than {MAX_DETAILS} objects")
    for place, each in enumerate(found):
        if each.limits:
            raise _refused("carries limits, which only the server writes", place)
        if (each.budget_usd is None) != (each.budget_period is None):
            raise _refused("needs budget_usd and budget_period together", place)
    return found


def read_details(details: Iterable[Mapping[str, Any]]) -> tuple[Detail, ...]:
    """Read the details of a verified token or a stored client, server-written members included."""
    return msgspec.convert([each for each in details if each.get("type") == TYPE], type=tuple[Detail, ...])


def write_details(details: Iterable[Detail]) -> list[dict[str, Any]]:
    """Return what goes into a token, a row or an answer: plain JSON objects without empty members."""
    return [msgspec.to_builtins(each) for each in details]


def own_limits(details: Iterable[Detail], owner: str) -> tuple[Detail, ...]:
    """Give every rate and budget that stands in `details` its bucket, owned by `owner` (a client id or a jti)."""
    return tuple(_with_limit(each, f"{owner}:{place}") for place, each in enumerate(details))


def narrow(held: Sequence[Detail], asked: Sequence[Detail], owner: str) -> tuple[Detail, ...]:
    """Return the details of a token that asks for `asked` under `held`, with `owner` (its jti) owning new limits.

    Nothing asked: all that is held. Nothing held: no bounds, `asked` as it stands. `DetailsRefused` when an object lies
    within none of those held; the answer says which member is too wide.
    """
    if not asked:
        return tuple(held)
    if not held:
        return own_limits(asked, owner)
    narrowed = []
    for place, each in enumerate(asked):
        faults = []
        for outer in held:
            if (fault := _too_wide(each, outer)) is None:
                narrowed.append(_with_limit(_inherit(each, outer), f"{owner}:{place}"))
                break
            faults.append(fault)
        else:
            raise _refused(f"is wider than what it would come from: {faults[0]}", place)
    return tuple(narrowed)


def permitting(details: Sequence[Detail], *, pool: str, model: str, region: str = "", now: float) -> Detail | str:
    """Return the first object that permits the request, or the name of the member that refuses it.

    `region` "" is not checked. Without details everything is permitted by an object that narrows nothing.
    """
    if not details:
        return Detail(type="llm_proxy")
    refusal = ""
    for each in details:
        fault = _refuses(each, pool, model, region, now)
        if not fault:
            return each
        refusal = refusal or fault
    return refusal


def latest_end(details: Sequence[Detail]) -> int | None:
    """Return when the last of the objects expires (Unix seconds), None if one of them does not."""
    ends = [each.expires_at for each in details if each.expires_at is not None]
    return max(ends) if ends and len(ends) == len(details) else None


def _refuses(detail: Detail, pool: str, model: str, region: str, now: float) -> str:
    if detail.expires_at is not None and detail.expires_at <= now:
        return "expires_at"
    if detail.pools is not None and pool not in detail.pools:
        return "pools"
    if detail.models is not None and not any(matches(pattern, model) for pattern in detail.models):
        return "models"
    if detail.regions is not None and region and not any(matches(pattern, region) for pattern in detail.regions):
        return "regions"
    return ""


def _too_wide(asked: Detail, held: Detail) -> str | None:
    """Name the member of `asked` that exceeds `held`; a member left out inherits and so never does."""
    if asked.pools is not None and held.pools is not None and not set(asked.pools) <= set(held.pools):
        return "pools"
    if asked.models is not None and held.models is not None and not all_within(asked.models, held.models):
        return "models"
    if asked.regions is not None and held.regions is not None and not all_within(asked.regions, held.regions):
        return "regions"
    if asked.priority is not None and held.priority is not None and asked.priority < held.priority:
        return "priority"
    if asked.expires_at is not None and held.expires_at is not None and asked.expires_at > held.expires_at:
        return "expires_at"
    for limit in held.limits:
        if asked.rpm is not None and limit.rpm is not None and asked.rpm > limit.rpm:
            return "rpm"
        if asked.tpm is not None and limit.tpm is not None and asked.tpm > limit.tpm:
            return "tpm"
        same_period = limit.budget_usd is not None and asked.budget_period == limit.budget_period
        if same_period and (asked.budget_usd or 0.0) > (limit.budget_usd or 0.0):
            return "budget_usd"
    return None


def _inherit(asked: Detail, held: Detail) -> Detail:
    """Fill what `asked` leaves out; rates and budgets are inherited as buckets, so they are not owned anew."""
    return msgspec.structs.replace(
        asked,
        pools=held.pools if asked.pools is None else asked.pools,
        models=held.models if asked.models is None else asked.models,
        regions=held.regions if asked.regions is None else asked.regions,
        priority=held.priority if asked.priority is None else asked.priority,
        caller_region=held.caller_region if asked.caller_region is None else asked.caller_region,
        expires_at=held.expires_at if asked.expires_at is None else asked.expires_at,
        limits=held.limits,
    )


def _with_limit(detail: Detail, bucket: str) -> Detail:
    if (detail.rpm, detail.tpm, detail.budget_usd) == (None, None, None):
        return detail
    if len(detail.limits) >= MAX_LIMITS:
        raise _refused(f"stands under {MAX_LIMITS} limits already")
    own = Limit(bucket, detail.rpm, detail.tpm, detail.budget_usd, detail.budget_period)
    return msgspec.structs.replace(detail, limits=(*detail.limits, own))


def _refused(what: str, place: int | None = None) -> DetailsRefused:
    pointer = "/authorization_details" if place is None else f"/authorization_details/{place}"
    return DetailsRefused(
        f"authorization_details{'' if place is None else f' object {place}'} {what}.",
        hint="Ask for a subset of what the token or client holds; leave a member out to inherit it.",
        errors=((pointer, what),),
    )


def _ascii(text: str) -> str:
    return "".join(char if char.isprintable() and char.isascii() and char not in '"\\' else "'" for char in text)[:300]
