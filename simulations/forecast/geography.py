"""Cities, what lies between them, and how people there are connected: parameters, drawn from seeds.

Fitted to measurements that are not shipped, for their licences are weak or unstated: path stretch to 57,807 pings
between 242 cities (WonderNetwork, October 2018, through ConsenSys/wittgenstein), bandwidth to speedtest.net's averages
by country (April 2020, through tmodel-ccs2018), rounded. Coordinates are rounded to a tenth of a degree.
"""

import math
from dataclasses import dataclass

import numpy as np

from shoal.simulations.forecast.peers import Link

MBIT_BYTES = 1e6 / 8
EARTH_KM = 6371.0
KM_PER_MS = 100.0
"""Round trip in fibre: 200 km a millisecond each way."""

BASE_MS = 1.0
"""Of a path between two data centres, however near."""

LAST_MILE_MS, LAST_MILE_SPREAD_MS = 3.0, 5.0
"""What a home adds to a round trip: at least, and the mean of an exponential on top (a guess: the pings are between
data centres)."""

SPEED_SPREAD = 0.5
"""Standard deviation of ln(bandwidth) of a home about its country's mean (a guess)."""

STRETCH = {
    "AF-AF": (3.4, 0.49), "AF-AS": (3.4, 0.34), "AF-EU": (2.7, 0.35), "AF-LA": (3.1, 0.30), "AF-NA": (2.0, 0.19),
    "AF-OC": (3.2, 0.39), "AS-AS": (4.0, 0.66), "AS-EU": (2.8, 0.31), "AS-LA": (2.1, 0.20), "AS-NA": (1.8, 0.21),
    "AS-OC": (2.4, 0.34), "EU-EU": (2.9, 0.40), "EU-LA": (2.2, 0.17), "EU-NA": (1.7, 0.18), "EU-OC": (1.9, 0.16),
    "LA-LA": (5.0, 0.42), "LA-NA": (2.1, 0.20), "LA-OC": (2.5, 0.28), "NA-NA": (2.1, 0.51), "NA-OC": (1.5, 0.15),
    "OC-OC": (1.6, 0.19),
}  # fmt: skip
"""How many times longer than along a great circle in fibre a path takes: median, and standard deviation of its
logarithm."""

COUNTRIES = {
    "AR": (41, 11), "AU": (69, 20), "BR": (53, 29), "CA": (126, 55), "CO": (32, 17), "DE": (91, 23), "ES": (133, 122),
    "FR": (140, 95), "GB": (68, 21), "IN": (42, 40), "IT": (63, 25), "JP": (105, 128), "KE": (22, 20), "MX": (37, 15),
    "NG": (17, 12), "NL": (113, 62), "PE": (49, 14), "PL": (98, 36), "PT": (108, 50), "TZ": (16, 17), "US": (137, 52),
    "ZA": (35, 23),
}  # fmt: skip
"""Mean Mbit/s down and up."""


@dataclass(frozen=True, slots=True)
class City:
    """A place with people."""

    name: str
    country: str
    region: str
    """AF, AS, EU, LA, NA or OC, as in STRETCH."""
    latitude: float
    longitude: float
    weight: float = 1.0
    """Share of a scenario's nodes, beside the other cities'."""


@dataclass(frozen=True, slots=True)
class Access:
    """How a machine there is connected."""

    last_mile_ms: float
    link: Link


def path_ms(first: City, second: City, seed: int) -> float:
    """Round trip between two cities' networks; the same for a pair and a seed, whichever comes first."""
    if first.name == second.name:
        return BASE_MS
    pair = "-".join(sorted((first.region, second.region)))
    median, spread = STRETCH[pair]
    names = sorted((first.name, second.name))
    luck = np.random.default_rng((seed, *("/".join(names)).encode())).normal(0.0, spread)
    return BASE_MS + distance_km(first, second) / KM_PER_MS * median * math.exp(luck)


def distance_km(first: City, second: City) -> float:
    """Along a great circle."""
    here, there = math.radians(first.latitude), math.radians(second.latitude)
    turn = math.radians(second.longitude - first.longitude)
    half = math.sin((there - here) / 2) ** 2 + math.cos(here) * math.cos(there) * math.sin(turn / 2) ** 2
    return 2 * EARTH_KM * math.asin(math.sqrt(min(1.0, half)))


def home(city: City, rng: np.random.Generator) -> Access:
    """A volunteer's connection."""
    down, up = COUNTRIES[city.country]
    luck = math.exp(rng.normal(-(SPEED_SPREAD**2) / 2, SPEED_SPREAD))
    link = Link(up * MBIT_BYTES * luck, down * MBIT_BYTES * luck)
    return Access(LAST_MILE_MS + rng.exponential(LAST_MILE_SPREAD_MS), link)


def lan(rtt_ms: float, mbit_per_s: float) -> Access:
    """A machine of a computer room. rtt_ms: between two of them."""
    return Access(rtt_ms / 2, Link(mbit_per_s * MBIT_BYTES, mbit_per_s * MBIT_BYTES))
