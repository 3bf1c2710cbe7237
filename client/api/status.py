"""What is asked about the gateway itself: models, health, readiness, version, metrics. All answered from memory."""

import math

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shoal.client.api.errors import ApiError
from shoal.client.api.services import Services


class StatusEndpoints:
    """The gateway about itself."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def models(self, request: Request) -> Response:
        """The one model; also while the swarm is away: programs poll this and wait for it."""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        """The one model, by name."""
        self._services.check_model(request.path_params["name"])
        return JSONResponse(self._card())

    async def health(self, request: Request) -> Response:
        """The process lives."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether an answer would succeed now; if not, why: 503."""
        coverage = self._services.model.coverage()
        reason = self._reason_against(coverage.first_missing, coverage.num_missing, coverage.ratio)
        told = {"status": "not ready" if reason else "ready", "reason": reason, "coverage": round(coverage.ratio, 6)}
        return JSONResponse(told, 503 if reason else 200)

    async def version(self, request: Request) -> Response:
        """Of the program, and which weights."""
        return JSONResponse({"version": self._services.card.version, "model_root": self._services.model.root})

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self._services.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    def _reason_against(self, first: tuple[int, int] | None, num_missing: int, ratio: float) -> str | None:
        try:
            self._services.shutdown.check()
        except ApiError as error:
            return error.message
        if first is None:
            return None
        others = f" and {num_missing - 1} more" if num_missing > 1 else ""
        percent = math.floor(ratio * 1000) / 10  # a gap never reads as 100 %
        return f"coverage {percent}%: nobody holds expert {first[1]} of layer {first[0]}{others}"

    def _card(self) -> dict[str, object]:
        card, model = self._services.card, self._services.model
        return {
            "id": card.name,
            "object": "model",
            "created": card.created,
            "owned_by": "shoal",
            "max_model_len": model.max_model_len,
            "root": model.root,
        }
