"""Routes of runs: create, list, claim, renew, end (PROTOCOL.md §13).

Rules of this file
1. Who may write `run:{id}` makes, claims and ends runs. An owner reads, lists and cancels their own.
2. Who may not read a run is not told whether it is there.
"""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from tailrace.errors import Forbidden, Malformed
from tailrace.features.runs.model import RunStatus, check_run_id, run_stream
from tailrace.features.runs.owners import RecentRuns
from tailrace.features.runs.requests import (
    Claiming,
    Ending,
    NewRun,
    Renewing,
    cursor_of,
    list_query,
    read_json,
    run_payload,
)
from tailrace.features.runs.schemas import LIST_PARAMETERS, answer, body
from tailrace.features.runs.service import RunService
from tailrace.web import openapi
from tailrace.web.gateway import Gateway
from tailrace.web.params import one
from tailrace.web.principal import Action, Principal
from tailrace.web.problems import ProblemRoute
from tailrace.web.streams import json_response

__all__ = ["run_routes"]

MAX_LEASES = 1_000
_WHOLE_KIND = "run:*"


def run_routes(gateway: Gateway, service: RunService, recent: RecentRuns) -> list[BaseRoute]:
    """`/runs` and what is below it, without the events."""
    router = APIRouter(route_class=ProblemRoute, tags=["runs"])
    access, settings = gateway.access, gateway.settings

    @router.post(
        "/runs",
        status_code=201,
        summary="Make a run",
        response_class=Response,
        responses={**answer("Run", 201), **openapi.problems(400, 401, 403, 409, 413, 415, 503)},
        openapi_extra={"requestBody": body("NewRun")},
    )
    async def create(request: Request) -> Response:
        """A queued run, to be claimed by a producer, or to be ended by hand. With an `id` it may be repeated."""
        principal = await access.principal(request)
        new = await read_json(request, NewRun, settings)
        owner = new.owner if new.owner is not None else principal.sub
        if new.id is not None:
            await access.require(principal, Action.WRITE, run_stream(new.id))
        if (new.id is None or owner != principal.sub) and not _may_all(principal, Action.WRITE):
            raise Forbidden(f"not allowed to make this run: it needs a grant to write {_WHOLE_KIND}")
        run = await service.create(owner=owner, kind=new.kind, title=new.title, metadata=new.metadata, run_id=new.id)
        recent.forget(run.id)
        return json_response(run_payload(run), 201)

    @router.get(
        "/runs",
        summary="List runs",
        response_class=Response,
        responses={**answer("RunListResponse"), **openapi.problems(400, 401, 403, 503)},
        openapi_extra={"parameters": LIST_PARAMETERS},
    )
    async def find(request: Request) -> Response:
        """The newest first: one's own, or all for who may read all."""
        principal = await access.principal(request)
        owner = one(request, "owner")
        if not _may_all(principal, Action.READ):
            if owner not in (None, principal.sub):
                raise Forbidden("not allowed to list the runs of others")
            owner = principal.sub
        query = list_query(request, owner=owner)
        runs = await service.find(msgspec.structs.replace(query, limit=query.limit + 1))
        page = runs[: query.limit]
        following = cursor_of(page[-1]) if len(runs) > len(page) else None
        return json_response({"runs": [run_payload(run) for run in page], "next_cursor": following})

    @router.post(
        "/runs/leases",
        summary="Keep claimed runs",
        response_class=Response,
        responses={**answer("Leases"), **openapi.problems(400, 401, 403, 415, 503)},
        openapi_extra={"requestBody": body("RenewLeases")},
    )
    async def renew(request: Request) -> Response:
        """For all runs of a process, about twice a second. The answer says who is to stop."""
        principal = await access.principal(request)
        wanted = await read_json(request, Renewing, settings)
        held = wanted.runs
        if len(held) > MAX_LEASES:
            raise Malformed(f"at most {MAX_LEASES} runs in one request", field="runs", limit=MAX_LEASES)
        await access.require(principal, Action.WRITE, *(run_stream(each.id) for each in held))
        states = await service.renew([(each.id, each.epoch) for each in held], hold_seconds=wanted.hold_seconds)
        return json_response({"runs": states})

    @router.get(
        "/runs/{run_id}",
        summary="One run",
        response_class=Response,
        responses={**answer("Run"), **openapi.problems(400, 401, 403, 404, 503)},
    )
    async def get(request: Request, run_id: str) -> Response:
        """Its status, and how it ended."""
        await access.require(await access.principal(request), Action.READ, run_stream(run_id))
        return json_response(run_payload(await service.get(run_id)))

    @router.post(
        "/runs/{run_id}/claim",
        summary="Claim a run",
        response_class=Response,
        responses={**answer("Claim"), **openapi.problems(400, 401, 403, 404, 409, 415, 503)},
        openapi_extra={"requestBody": body("ClaimRun")},
    )
    async def claim(request: Request, run_id: str) -> Response:
        """Become the producer of a run that nobody has, or whose producer is gone."""
        await access.require(await access.principal(request), Action.WRITE, run_stream(run_id))
        wanted = await read_json(request, Claiming, settings)
        claimed = await service.begin(run_id, producer=wanted.producer)
        recent.forget(run_id)
        return json_response(
            {"run": run_payload(claimed.run), "epoch": claimed.epoch, "lease_seconds": claimed.lease_seconds}
        )

    _add_endings(router, gateway, service, recent)
    return router.routes


def _add_endings(router: APIRouter, gateway: Gateway, service: RunService, recent: RecentRuns) -> None:
    access, settings = gateway.access, gateway.settings
    documented = {**answer("Run"), **openapi.problems(400, 401, 403, 404, 409, 413, 415, 503)}
    extra = {"requestBody": {**body("EndRun"), "required": False}}

    async def end(request: Request, run_id: str, status: RunStatus) -> Response:
        await access.require(await access.principal(request), Action.WRITE, run_stream(run_id))
        return await finish(run_id, status, await read_json(request, Ending, settings))

    async def finish(run_id: str, status: RunStatus, ending: Ending) -> Response:
        run = await service.finish(
            run_id,
            ending.epoch,
            status,
            error=ending.error,
            result=ending.result,
            seal=ending.seal,
            hold_seconds=ending.hold_seconds,
        )
        recent.forget(run_id)
        return json_response(run_payload(run))

    @router.post(
        "/runs/{run_id}/complete",
        summary="End a run as done",
        response_class=Response,
        responses=documented,
        openapi_extra=extra,
    )
    async def complete(request: Request, run_id: str) -> Response:
        """In the same way again is the same as once; in another way it is 409 RUN_ENDED."""
        return await end(request, run_id, RunStatus.COMPLETED)

    @router.post(
        "/runs/{run_id}/fail",
        summary="End a run as failed",
        response_class=Response,
        responses=documented,
        openapi_extra=extra,
    )
    async def fail(request: Request, run_id: str) -> Response:
        """As `complete`."""
        return await end(request, run_id, RunStatus.FAILED)

    @router.post(
        "/runs/{run_id}/cancel",
        summary="Ask a run to end",
        response_class=Response,
        responses=documented,
        openapi_extra=extra,
    )
    async def cancel(request: Request, run_id: str) -> Response:
        """A queued run is cancelled at once. A running one's producer is told, and ends it: with its `epoch`, here."""
        principal = await access.principal(request)
        ending = await read_json(request, Ending, settings)
        if ending.epoch is not None:
            await access.require(principal, Action.WRITE, run_stream(run_id))
            return await finish(run_id, RunStatus.CANCELLED, ending)
        await _require_owner(gateway, recent, principal, run_id)
        run = await service.cancel(run_id)
        recent.forget(run_id)
        return json_response(run_payload(run))


async def _require_owner(gateway: Gateway, recent: RecentRuns, principal: Principal, run_id: str) -> None:
    """A run's owner, or who may end its stream. Raises: Forbidden."""
    if not await recent.owns(check_run_id(run_id), principal.sub):
        await gateway.access.require(principal, Action.CLOSE, run_stream(run_id))


def _may_all(principal: Principal, action: Action) -> bool:
    """Whether a token's grants cover every run."""
    grants = principal.grants
    return grants.admin or _WHOLE_KIND in (grants.read if action is Action.READ else grants.write)
