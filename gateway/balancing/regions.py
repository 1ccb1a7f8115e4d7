"""Where provider regions are, and how long light takes between them: the start until latencies are measured.

Coordinates are of the nearest large city, rounded; names are those of AWS, Azure and Google Cloud, and plain areas.
Callers may also be named by their place: "@48,11" (latitude, longitude in whole degrees) or "@DE" (a country).
Sources: the providers' public region lists.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from math import asin, cos, radians, sin, sqrt

from gateway.balancing.countries import COUNTRIES

_VIRGINIA, _OHIO, _IOWA, _TEXAS = (39, -77), (40, -83), (41, -94), (29, -98)
_OREGON, _CALIFORNIA, _ARIZONA = (45, -121), (37, -122), (33, -112)
_MONTREAL, _TORONTO, _SAO_PAULO = (46, -74), (44, -79), (-24, -47)
_DUBLIN, _LONDON, _PARIS, _FRANKFURT, _AMSTERDAM = (53, -6), (51, 0), (49, 2), (50, 9), (52, 5)
_BRUSSELS, _ZURICH, _MILAN, _MADRID, _WARSAW = (51, 4), (47, 9), (45, 9), (40, -4), (52, 21)
_STOCKHOLM, _OSLO, _HELSINKI = (59, 18), (60, 11), (60, 25)
_BAHRAIN, _DUBAI, _TEL_AVIV, _DOHA = (26, 51), (25, 55), (32, 35), (25, 51)
_CAPE_TOWN, _JOHANNESBURG = (-34, 18), (-26, 28)
_MUMBAI, _PUNE, _CHENNAI, _DELHI = (19, 73), (19, 74), (13, 80), (29, 77)
_SINGAPORE, _JAKARTA, _HONG_KONG, _TAIWAN = (1, 104), (-6, 107), (22, 114), (24, 120)
_TOKYO, _OSAKA, _SEOUL, _SYDNEY, _MELBOURNE = (36, 140), (35, 135), (37, 127), (-34, 151), (-38, 145)

REGIONS: Mapping[str, tuple[int, int]] = {
    # plain areas
    "us": _VIRGINIA, "na": _VIRGINIA, "ca": _TORONTO, "eu": _FRANKFURT, "uk": _LONDON, "asia": _SINGAPORE,
    "ap": _SINGAPORE, "apac": _SINGAPORE, "in": _MUMBAI, "jp": _TOKYO, "au": _SYDNEY, "sa": _SAO_PAULO,
    "me": _DUBAI, "af": _JOHANNESBURG,
    # AWS
    "us-east-1": _VIRGINIA, "us-east-2": _OHIO, "us-west-1": _CALIFORNIA, "us-west-2": _OREGON,
    "ca-central-1": _MONTREAL, "sa-east-1": _SAO_PAULO, "eu-west-1": _DUBLIN, "eu-west-2": _LONDON,
    "eu-west-3": _PARIS, "eu-central-1": _FRANKFURT, "eu-central-2": _ZURICH, "eu-north-1": _STOCKHOLM,
    "eu-south-1": _MILAN, "eu-south-2": _MADRID, "me-south-1": _BAHRAIN, "me-central-1": _DUBAI,
    "il-central-1": _TEL_AVIV, "af-south-1": _CAPE_TOWN, "ap-south-1": _MUMBAI, "ap-southeast-1": _SINGAPORE,
    "ap-southeast-2": _SYDNEY, "ap-southeast-3": _JAKARTA, "ap-southeast-4": _MELBOURNE, "ap-east-1": _HONG_KONG,
    "ap-northeast-1": _TOKYO, "ap-northeast-2": _SEOUL, "ap-northeast-3": _OSAKA,
    # Azure
    "eastus": _VIRGINIA, "eastus2": _VIRGINIA, "centralus": _IOWA, "northcentralus": _OHIO, "southcentralus": _TEXAS,
    "westus": _CALIFORNIA, "westus2": _OREGON, "westus3": _ARIZONA, "canadaeast": _MONTREAL,
    "canadacentral": _TORONTO, "brazilsouth": _SAO_PAULO, "northeurope": _DUBLIN, "westeurope": _AMSTERDAM,
    "uksouth": _LONDON, "francecentral": _PARIS, "germanywestcentral": _FRANKFURT, "switzerlandnorth": _ZURICH,
    "italynorth": _MILAN, "spaincentral": _MADRID, "polandcentral": _WARSAW, "swedencentral": _STOCKHOLM,
    "norwayeast": _OSLO, "uaenorth": _DUBAI, "qatarcentral": _DOHA, "southafricanorth": _JOHANNESBURG,
    "southindia": _CHENNAI, "centralindia": _PUNE, "southeastasia": _SINGAPORE, "eastasia": _HONG_KONG,
    "japaneast": _TOKYO, "japanwest": _OSAKA, "koreacentral": _SEOUL, "australiaeast": _SYDNEY,
    # Google Cloud
    "us-east1": _VIRGINIA, "us-east4": _VIRGINIA, "us-east5": _OHIO, "us-central1": _IOWA, "us-south1": _TEXAS,
    "us-west1": _OREGON, "us-west2": _CALIFORNIA, "us-west4": _ARIZONA, "northamerica-northeast1": _MONTREAL,
    "southamerica-east1": _SAO_PAULO, "europe-west1": _BRUSSELS, "europe-west2": _LONDON, "europe-west3": _FRANKFURT,
    "europe-west4": _AMSTERDAM, "europe-west6": _ZURICH, "europe-west8": _MILAN, "europe-west9": _PARIS,
    "europe-southwest1": _MADRID, "europe-central2": _WARSAW, "europe-north1": _HELSINKI, "me-west1": _TEL_AVIV,
    "me-central1": _DOHA, "africa-south1": _JOHANNESBURG, "asia-south1": _MUMBAI, "asia-south2": _DELHI,
    "asia-southeast1": _SINGAPORE, "asia-southeast2": _JAKARTA, "asia-east1": _TAIWAN, "asia-east2": _HONG_KONG,
    "asia-northeast1": _TOKYO, "asia-northeast2": _OSAKA, "asia-northeast3": _SEOUL, "australia-southeast1": _SYDNEY,
}  # fmt: skip

_DEGREES = re.compile(r"@(-?[0-9]{1,2}),(-?[0-9]{1,3})", re.A)
UNKNOWN_RTT_S = 0.15
"""Assumed where a region has no row: farther than a neighbour, nearer than the antipodes."""
_EARTH_KM = 6371.0
_KM_PER_S = 200_000.0
_DETOUR = 1.6
"""Fibre does not follow great circles; measured round trips are about this much longer."""


def _place(name: str | None) -> tuple[int, int] | None:
    if not name:
        return None
    if not name.startswith("@"):
        return REGIONS.get(name.lower())
    degrees = _DEGREES.fullmatch(name)
    return COUNTRIES.get(name[1:].upper()) if degrees is None else (int(degrees[1]), int(degrees[2]))


@lru_cache(maxsize=4096)
def round_trip_s(here: str | None, there: str | None) -> float:
    """Estimate a round trip between two regions, in seconds; case does not matter. Same region: 2 ms."""
    if here is not None and there is not None and here.lower() == there.lower():
        return 0.002
    start, goal = _place(here), _place(there)
    if start is None or goal is None:
        return UNKNOWN_RTT_S
    lat1, lon1, lat2, lon2 = map(radians, (*start, *goal))
    # The haversine formula: stable for near and for opposite points.
    chord = sin((lat2 - lat1) / 2) ** 2 + cos(lat1) * cos(lat2) * sin((lon2 - lon1) / 2) ** 2
    distance_km = 2 * _EARTH_KM * asin(min(1.0, sqrt(chord)))
    return 0.002 + 2 * distance_km * _DETOUR / _KM_PER_S
