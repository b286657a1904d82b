"""Names of one kind with versions and aliases: what presets and vectors have in common.

An edit has the same (`service.api.edits`); here the kind of each name is looked at first, so that
`/v1/presets/potus` is unknown where `potus` is an edit.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi import Path as PathPart
from fastapi.responses import JSONResponse

from service.api.answers import Bench, Generation, Page, listed, no_query, reply
from service.api.edits import Promoter, Reader, Writer, alias_body
from service.api.once import Once
from service.auth import Principal
from service.errors import BadRequest
from service.registry import Registry
from service.registry.errors import UnknownEdit, UnknownName
from service.registry.records import Alias, Edit, Version
from service.schema import NAME, AliasBody
from service.workbench import Workbench

EXACT = [Depends(no_query)]
PathName = Annotated[str, PathPart(pattern=NAME)]
_SHORT = ("version", "status", "digest", "created_at", "created_by")


@dataclass(frozen=True, kw_only=True)
class Noun:
    """One kind of names.

    Attributes:
        word: How people call it; `/v1/<word>s` is its path.
        kind: How the registry calls it.
        content: What a version says besides what all versions say.
    """

    word: str
    kind: str
    content: Callable[[Version], Mapping[str, Any]]

    @property
    def path(self) -> str:
        """Where its routes are."""
        return f"/v1/{self.word}s"

    def find(self, registry: Registry, tenant: str, name: str) -> Edit:
        """The tenant's name of this kind; UnknownName if it has none."""
        try:
            found = registry.edits.get(tenant, name)
        except UnknownEdit:
            raise UnknownName(self.word, name) from None
        if found.kind != self.kind:
            raise UnknownName(self.word, name)
        return found

    def body(self, found: Edit) -> dict[str, Any]:
        """A name as JSON."""
        return {
            "object": self.word,
            "name": found.name,
            "versions": found.versions,
            "aliases": [self.alias_body(a) for a in found.aliases],
            "created_at": found.created_at,
            "created_by": found.created_by,
        }

    def alias_body(self, alias: Alias) -> dict[str, Any]:
        """An alias as JSON: it says whose it is by the noun's own word."""
        told = alias_body(alias)
        return {self.word if key == "edit" else key: value for key, value in told.items()}

    def version_body(self, version: Version) -> dict[str, Any]:
        """A version as JSON."""
        return {
            "object": f"{self.word}.version",
            self.word: version.name,
            "version": version.number,
            "digest": version.digest,
            "model": version.model,
            "fingerprint": version.fingerprint,
            "status": version.status,
            "parent": version.parent,
            **self.content(version),
            "report": version.report,
            "size": version.size,
            "created_at": version.created_at,
            "created_by": version.created_by,
            "location": self.address(version),
        }

    def address(self, version: Version) -> str:
        """Where a version is."""
        return f"{self.path}/{version.name}/versions/{version.number}"

    async def found(self, bench: Workbench, caller: Principal, name: str) -> Edit:
        """As `find`, off the event loop."""
        return await asyncio.to_thread(self.find, bench.registry, caller.tenant, name)

    async def version(self, bench: Workbench, caller: Principal, name: str, number: int) -> Version:
        """One version of a name of this kind."""
        await self.found(bench, caller, name)
        return await asyncio.to_thread(bench.registry.edits.version, caller.tenant, name, number)


def routes(noun: Noun) -> APIRouter:
    """A router with everything that is the same for all kinds."""
    router = APIRouter(prefix=noun.path, tags=[f"{noun.word}s"], route_class=Once)
    _reading(router, noun)
    _versions(router, noun)
    _aliases(router, noun)
    _moving(router, noun)
    return router


def _reading(router: APIRouter, noun: Noun) -> None:
    @router.get("", summary=f"This tenant's {noun.word}s by name")
    async def list_names(
        request: Request, page: Annotated[Page, Query()], bench: Bench, caller: Reader
    ) -> JSONResponse:
        found = await asyncio.to_thread(
            bench.registry.presets.list, caller.tenant, noun.kind, page.limit, page.after
        )
        return listed(request, found, noun.body)

    @router.get("/{name}", dependencies=EXACT, summary=f"One {noun.word}: aliases and history")
    async def show_name(
        request: Request, name: PathName, bench: Bench, caller: Reader
    ) -> JSONResponse:
        found = await noun.found(bench, caller, name)
        versions = await asyncio.to_thread(bench.registry.edits.versions, caller.tenant, name)
        history = [{k: noun.version_body(v)[k] for k in _SHORT} for v in versions.items]
        told = {"history": history, "history_has_more": versions.has_more}
        return reply(request, {**noun.body(found), **told})


def _versions(router: APIRouter, noun: Noun) -> None:
    @router.get("/{name}/versions", summary="All versions, newest first")
    async def list_versions(
        request: Request,
        name: PathName,
        page: Annotated[Page, Query()],
        bench: Bench,
        caller: Reader,
    ) -> JSONResponse:
        await noun.found(bench, caller, name)
        versions = await asyncio.to_thread(
            bench.registry.edits.versions, caller.tenant, name, page.limit, page.after
        )
        return listed(request, versions, noun.version_body)

    @router.get("/{name}/versions/{number}", dependencies=EXACT, summary="One version")
    async def show_version(
        request: Request, name: PathName, number: int, bench: Bench, caller: Reader
    ) -> JSONResponse:
        version = await noun.version(bench, caller, name, number)
        headers = {"ETag": f'"{version.digest}"'}
        return reply(request, noun.version_body(version), headers=headers)

    @router.delete(
        "/{name}/versions/{number}",
        dependencies=EXACT,
        summary="Retire: refused while an alias or a variant points to it",
    )
    async def retire_version(
        request: Request, name: PathName, number: int, bench: Bench, caller: Writer
    ) -> JSONResponse:
        await noun.found(bench, caller, name)
        retired = await asyncio.to_thread(
            bench.registry.edits.retire, caller.tenant, name, number, caller.name
        )
        return reply(request, noun.version_body(retired))


def _aliases(router: APIRouter, noun: Noun) -> None:
    @router.get("/{name}/aliases", dependencies=EXACT, summary="Names that move")
    async def list_aliases(
        request: Request, name: PathName, bench: Bench, caller: Reader
    ) -> JSONResponse:
        found = await noun.found(bench, caller, name)
        return reply(
            request, {"object": "list", "data": [noun.alias_body(a) for a in found.aliases]}
        )

    @router.get(
        "/{name}/aliases/{alias}",
        dependencies=EXACT,
        summary="One alias; its ETag is its generation",
    )
    async def show_alias(
        request: Request, name: PathName, alias: str, bench: Bench, caller: Reader
    ) -> JSONResponse:
        await noun.found(bench, caller, name)
        alias_now = await asyncio.to_thread(bench.registry.names.alias, caller.tenant, name, alias)
        return _alias_reply(request, noun, alias_now)

    @router.delete(
        "/{name}/aliases/{alias}", dependencies=EXACT, summary="Forget the alias; versions stay"
    )
    async def delete_alias(
        request: Request,
        name: PathName,
        alias: str,
        bench: Bench,
        caller: Promoter,
        if_match: Generation,
    ) -> JSONResponse:
        await noun.found(bench, caller, name)
        await asyncio.to_thread(
            bench.registry.names.delete_alias, caller.tenant, name, alias, caller.name, if_match
        )
        told = {"object": "alias", noun.word: name, "alias": alias, "deleted": True}
        return reply(request, told)


def _moving(router: APIRouter, noun: Noun) -> None:
    @router.put(
        "/{name}/aliases/{alias}",
        dependencies=EXACT,
        summary="Point the alias to a version; with If-Match only if nobody moved it",
    )
    async def move_alias(  # noqa: PLR0913, PLR0917 - one argument per part of the request
        request: Request,
        name: PathName,
        alias: str,
        body: AliasBody,
        bench: Bench,
        caller: Promoter,
        if_match: Generation,
    ) -> JSONResponse:
        await noun.found(bench, caller, name)
        moved = await asyncio.to_thread(
            bench.registry.names.move,
            caller.tenant,
            name,
            alias,
            body.version,
            actor=caller.name,
            if_match=if_match,
            force=body.force,
        )
        return _alias_reply(request, noun, moved)

    @router.post(
        "/{name}/aliases/{alias}/rollback",
        dependencies=EXACT,
        summary="Point the alias to where it pointed before",
    )
    async def roll_back(
        request: Request,
        name: PathName,
        alias: str,
        bench: Bench,
        caller: Promoter,
        if_match: Generation,
    ) -> JSONResponse:
        if await request.body() not in (b"", b"{}"):
            raise BadRequest("A rollback has no body.", remedy="Send none; PUT chooses a version.")
        await noun.found(bench, caller, name)
        moved = await asyncio.to_thread(
            bench.registry.names.rollback,
            caller.tenant,
            name,
            alias,
            actor=caller.name,
            if_match=if_match,
        )
        return _alias_reply(request, noun, moved)


def _alias_reply(request: Request, noun: Noun, alias: Alias) -> JSONResponse:
    return reply(request, noun.alias_body(alias), headers={"ETag": f'"{alias.generation}"'})
